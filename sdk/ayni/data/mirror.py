"""Data sets in folders of this machine: found, copied and compared with the catalogue, byte for byte."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from ayni.artefacts.files import flush_folder
from ayni.data.catalogue import DataSet, list_digest
from ayni.errors import DataError

BLOCK_BYTES = 1 << 20


def find_in_mirror(data_set: DataSet, mirror: Path) -> Path:
    """The data set's file or folder in `mirror`, or one level below. Raises DataError."""
    if not mirror.is_dir():
        raise DataError(f"there is no folder {mirror} to get {data_set.name} from. Check its name.")
    for found in (mirror / data_set.target, *sorted(mirror.glob(f"*/{data_set.target}"))):
        if found.is_dir() if data_set.is_folder else found.is_file():
            return found
    kind = "folder" if data_set.is_folder else "file"
    raise DataError(f"there is no {kind} {data_set.target} in {mirror}, nor one level below.")


def why_another(data_set: DataSet, path: Path, on_progress: Callable[[int, int], None]) -> str:
    """What makes `path` another thing than the data set; empty if it is just that. Hidden files do not count."""
    trouble = _other_measure(data_set, path)
    return trouble or _other_digest(data_set, _digest(data_set, path, None, on_progress))


def copy_verified(data_set: DataSet, source: Path, part: Path, on_progress: Callable[[int, int], None]) -> None:
    """Copy to `part`, which must not be there. Raises DataError if the source is not the data set."""
    trouble = _other_measure(data_set, source)
    trouble = trouble or _other_digest(data_set, _digest(data_set, source, part, on_progress))
    if trouble:
        raise DataError(f"{source} is not {data_set.name} as the catalogue knows it: {trouble}. Use another mirror.")


def _files(data_set: DataSet, path: Path) -> list[tuple[str, Path]]:
    """(path below, file), sorted; of a single file its name."""
    if not data_set.is_folder:
        return [(path.name, path)]
    below = ((file.relative_to(path), file) for file in path.rglob("*") if file.is_file())
    return sorted((place.as_posix(), file) for place, file in below if not any(p.startswith(".") for p in place.parts))


def _other_measure(data_set: DataSet, path: Path) -> str:
    """Looked at first: it costs nothing."""
    if path.is_dir() != data_set.is_folder:
        return f"it is no {'folder' if data_set.is_folder else 'file'}"
    files = _files(data_set, path)
    if len(files) != data_set.num_files:
        return f"it has {len(files)} files instead of {data_set.num_files}"
    num_bytes = sum(file.stat().st_size for _, file in files)
    return "" if num_bytes == data_set.num_bytes else f"it has {num_bytes} bytes instead of {data_set.num_bytes}"


def _other_digest(data_set: DataSet, sha256: str) -> str:
    return "" if sha256 == data_set.sha256 else f"its SHA-256 is {sha256} instead of {data_set.sha256}"


def _digest(data_set: DataSet, path: Path, copy: Path | None, on_progress: Callable[[int, int], None]) -> str:
    """SHA-256 of what was read; the same bytes go to `copy`, if there is one."""
    done, digests = 0, []
    for place, file in _files(data_set, path):
        target = copy / place if copy and data_set.is_folder else copy
        digests.append((place, _read(file, target)))
        done += file.stat().st_size
        on_progress(done, data_set.num_bytes)
    if copy and data_set.is_folder:
        for folder in (copy, *(folder for folder in copy.rglob("*") if folder.is_dir())):
            flush_folder(folder)
    return list_digest(digests) if data_set.is_folder else digests[0][1]


def _read(file: Path, copy: Path | None) -> str:
    digest = hashlib.sha256()
    if copy:
        copy.parent.mkdir(parents=True, exist_ok=True)
    with file.open("rb") as source, open(copy or os.devnull, "wb") as target:
        while block := source.read(BLOCK_BYTES):
            digest.update(block)
            target.write(block)
        if copy:
            target.flush()
            os.fsync(target.fileno())
    return digest.hexdigest()
