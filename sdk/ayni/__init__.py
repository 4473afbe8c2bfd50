"""Ayni: reciprocal help between unequal sites, without moving patient data.

The SDK is what a site needs. `import ayni` is light: it loads neither torch nor numpy, and the names
below are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ayni.errors import AyniError

if TYPE_CHECKING:
    from ayni.invitation import Invitation
    from ayni.site.site import Site
    from ayni.task import Task

__version__ = "0.1.0"
__all__ = ["AyniError", "Invitation", "Site", "Task", "__version__"]

_LAZY = {"Site": "ayni.site.site", "Invitation": "ayni.invitation", "Task": "ayni.task"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'ayni' has no attribute {name!r}")
