"""From a trained model to a signed bundle, and from a bundle to a diagnosis. `import ayni_export` loads neither
torch nor numpy: `export_site` is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ayni_export.export import export_site

__all__ = ["export_site"]


def __getattr__(name: str) -> Any:
    if name == "export_site":
        from ayni_export.export import export_site

        return export_site
    raise AttributeError(f"module 'ayni_export' has no attribute {name!r}")
