"""Get a data set of the catalogue: whole, verified, and never over something else. Needs no numpy."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from ayni.artefacts.files import flush_folder
from ayni.artefacts.lock import folder_lock
from ayni.data.catalogue import DataSet
from ayni.data.download import download
from ayni.data.mirror import copy_verified, find_in_mirror, why_another
from ayni.errors import IntegrityError, UserError

Progress = Callable[[int, int], None]  # bytes done, bytes in all


def _silent(done: int, total: int) -> None:
    pass


def is_fetched(data_set: DataSet, folder: Path, on_progress: Progress = _silent) -> bool:
    """Whether it is in `folder`, whole. Raises UserError if something else has its name there."""
    target = folder / data_set.target
    if not target.exists():
        return False
    trouble = why_another(data_set, target, on_progress)
    if trouble:
        raise UserError(
            f"{target} is there and is not {data_set.name} as the catalogue knows it: {trouble}. Move it away, or give "
            "another --out."
        )
    return True


def check_source(data_set: DataSet, mirror: Path | None) -> None:
    """Raises UserError or DataError if there is nowhere to get it from; asks nobody."""
    if mirror is not None:
        find_in_mirror(data_set, mirror)
    elif not data_set.url:
        raise UserError(
            f"{data_set.name} has no single file to download: it was made from what is published at {data_set.page}. "
            f"Give --from a folder that holds {data_set.target}."
        )


def fetch(data_set: DataSet, folder: Path, mirror: Path | None = None, on_progress: Progress = _silent) -> Path:
    """Bring the data set to `folder`; returns its file or folder there, which is whole or not there at all.

    It comes from `mirror`, a local folder, or else from its publisher. After a cut a download goes on where it was,
    and a copy begins anew. Raises UserError, DataError, LineError or IntegrityError.
    """
    target, part = folder / data_set.target, folder / f".{data_set.target}.part"
    folder.mkdir(parents=True, exist_ok=True)
    with folder_lock(folder, "another fetch is at work in this folder"):
        if is_fetched(data_set, folder, on_progress):
            return target
        check_source(data_set, mirror)
        _check_space(data_set, folder)
        if mirror is not None:
            _remove(part)
            try:
                copy_verified(data_set, find_in_mirror(data_set, mirror), part, on_progress)
            except BaseException:
                _remove(part)
                raise
        else:
            _download_verified(data_set, part, on_progress)
        if is_fetched(data_set, folder):  # somebody else has brought it meanwhile
            _remove(part)
        else:
            part.rename(target)
            flush_folder(folder)
    return target


def _download_verified(data_set: DataSet, part: Path, on_progress: Progress) -> None:
    began_earlier = part.exists()
    download(data_set.url, part, data_set.num_bytes, on_progress)
    trouble = why_another(data_set, part, _silent)
    if trouble and began_earlier:  # the publisher's file, or ours, may have changed since then
        part.unlink()
        download(data_set.url, part, data_set.num_bytes, on_progress)
        trouble = why_another(data_set, part, _silent)
    if trouble:
        part.unlink()
        raise IntegrityError(
            f"{data_set.url} is not {data_set.name} as the catalogue knows it: {trouble}. Nothing was kept. Try again, "
            "or get it from a mirror (--from)."
        )
    with part.open("rb") as file:
        os.fsync(file.fileno())


def _check_space(data_set: DataSet, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < data_set.num_bytes:
        raise UserError(
            f"{data_set.name} has {data_set.num_bytes} bytes, and {folder} has {free} left. Make room, or give another "
            "--out."
        )


def _remove(part: Path) -> None:
    if part.is_dir():
        shutil.rmtree(part)
    else:
        part.unlink(missing_ok=True)
