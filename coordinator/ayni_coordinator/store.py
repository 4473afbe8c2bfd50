"""Where artefacts lie: content-addressed files behind fsspec, a folder by default."""

from __future__ import annotations

import hashlib
import mmap
import re
from collections.abc import Iterable
from pathlib import Path

import fsspec

from ayni.artefacts.files import flush_folder, write_atomic
from ayni.errors import IntegrityError, UserError
from ayni.tensors.safe import Bytes

SWEPT = ".swept"
_NAME = re.compile(r"[0-9a-f]{64}")


class ArtefactStore:
    """`url` is a folder or anything that fsspec opens. Names are SHA-256 in hex."""

    def __init__(self, url: str) -> None:
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
            self._files.makedirs(self._root, exist_ok=True)
        except (ImportError, ValueError, OSError) as error:
            raise UserError(f"the artefact store {url!r} cannot be opened: {error}. Check coordinator.toml.") from None
        self._folder = Path(self._root) if "file" in self._files.protocol else None

    def _at(self, sha256: str) -> str:
        return f"{self._root}/{sha256}"

    def put(self, data: Bytes) -> str:
        """Returns the SHA-256. A local file is flushed to the disk before this returns."""
        sha256 = hashlib.sha256(data).hexdigest()
        if not self._files.exists(self._at(sha256)):
            if self._folder:
                write_atomic(self._folder / sha256, data)
            else:
                self._files.pipe_file(self._at(sha256), bytes(data))
        return sha256

    def adopt(self, path: Path, sha256: str) -> None:
        """Take over a local file that was already hashed and flushed."""
        if not self._folder:
            self._files.put_file(str(path), self._at(sha256))
            path.unlink()
        elif path.stat().st_dev == self._folder.stat().st_dev:
            path.replace(self._folder / sha256)
            flush_folder(self._folder)
        else:  # the store lies on another disk
            write_atomic(self._folder / sha256, path.read_bytes())
            path.unlink()

    def is_empty(self) -> bool:
        return not self._files.ls(self._root, detail=False)

    def has(self, sha256: str) -> bool:
        return bool(self._files.exists(self._at(sha256)))

    def num_bytes(self, sha256: str) -> int:
        return int(self._files.size(self._at(sha256)))

    def read(self, sha256: str) -> Bytes:
        """The whole artefact, verified. Raises IntegrityError if it is gone or damaged."""
        data = self.view(sha256)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise IntegrityError(f"artefact {sha256[:12]} is damaged in the store; restore it from a backup")
        return data

    def view(self, sha256: str) -> Bytes:
        """The whole artefact, for who has just seen it verified. A local file is mapped, not copied."""
        try:
            if not self._folder:
                return bytes(self._files.cat_file(self._at(sha256)))
            with (self._folder / sha256).open("rb") as file:
                return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except OSError:
            raise IntegrityError(f"artefact {sha256[:12]} is missing in the store; restore it from a backup") from None
        except ValueError:
            return b""  # an empty file cannot be mapped

    def remove(self, sha256: str) -> None:
        """One artefact that nothing refers to. Harmless if it is gone."""
        if self.has(sha256):
            self._files.rm_file(self._at(sha256))

    def read_part(self, sha256: str, offset: int, length: int) -> bytes:
        """Not verified: the receiver checks the hash of the whole."""
        if self._folder:
            with (self._folder / sha256).open("rb") as file:
                file.seek(offset)
                return file.read(length)
        return bytes(self._files.cat_file(self._at(sha256), start=offset, end=offset + length))

    def sweep(self, keep: Iterable[str]) -> int:
        """Remove what nothing refers to any more; returns how many files went.

        A local file is out of reach at once; the disk's own work on it is left to `remove_swept`.
        """
        kept, gone = set(keep), 0
        for path in map(str, self._files.ls(self._root, detail=False)):
            name = path.rsplit("/", 1)[-1]
            if name in kept or not _NAME.fullmatch(name):  # what is not ours is not touched
                continue
            if self._folder:
                Path(path).rename(path + SWEPT)
            else:
                self._files.rm_file(path)
            gone += 1
        return gone

    def remove_swept(self) -> None:
        for path in self._folder.glob("*" + SWEPT) if self._folder else ():
            path.unlink(missing_ok=True)
