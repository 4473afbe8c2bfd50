"""A folder that came as a zip file, taken out with care: the names and sizes inside are the sender's word only."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from ayni.errors import IntegrityError, UserError

MAX_FILES = 1000
MAX_BYTES = 4 << 30


def unpack(archive: Path, folder: Path) -> None:
    """`folder` stands whole or not at all. Raises UserError if it is there, IntegrityError for a bad archive."""
    if folder.exists():
        raise UserError(f"{folder} is there already. Choose another name, or remove it first.")
    aside = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = opened.infolist()
            if len(entries) > MAX_FILES or sum(entry.file_size for entry in entries) > MAX_BYTES:
                raise IntegrityError(
                    f"the archive holds more than {MAX_FILES} files or {MAX_BYTES} bytes; not unpacked"
                )
            for entry in entries:
                name = PurePosixPath(entry.filename)
                if name.is_absolute() or ".." in name.parts or "\\" in entry.filename or entry.is_dir():
                    raise IntegrityError(f"the archive holds a file with the name {entry.filename!r}; not unpacked")
                path = aside / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(entry) as packed, path.open("wb") as file:
                    shutil.copyfileobj(packed, file)  # zipfile stops at the declared size, and checks the CRC
        aside.replace(folder)
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        RuntimeError,
    ) as error:  # RuntimeError: encrypted, or packed oddly
        raise IntegrityError(f"the archive is damaged: {error}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
