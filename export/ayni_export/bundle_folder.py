"""Writing a bundle's folder: whole or not at all, and never over what is not a bundle. Needs no numpy, no torch."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec

from ayni.artefacts.files import flush_folder, write_atomic
from ayni.errors import UserError
from ayni_export.bundle import check_replaceable

OLD = ".old"  # ends the name of a bundle that stepped aside


def pretty_json(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def write_bundle(bundle: Path, files: Mapping[str, bytes]) -> None:
    """Write beside the final place, then rename; an older bundle steps aside first and is then removed."""
    bundle = bundle.absolute()
    aside = bundle.with_name(f".{bundle.name}.{os.getpid()}.tmp")
    old = bundle.with_name(f".{bundle.name}.{os.getpid()}{OLD}")
    try:
        for name, data in files.items():
            write_atomic(aside / name, data)
        check_replaceable(bundle)  # again: making the graph takes a while
        if bundle.is_dir() and any(bundle.iterdir()):
            bundle.replace(old)
        aside.replace(bundle)
    except OSError as error:
        if old.exists() and not bundle.exists():
            old.replace(bundle)
        raise UserError(f"{bundle} cannot be written ({error.strerror}). Choose another place.") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    flush_folder(bundle.parent)


def take_back(bundle: Path) -> None:
    """A kill between the two renames left nothing under the name: the older bundle stands again."""
    bundle = bundle.absolute()
    for old in sorted(bundle.parent.glob(f".{glob.escape(bundle.name)}.*{OLD}")):
        if not os.path.lexists(bundle):
            old.replace(bundle)
