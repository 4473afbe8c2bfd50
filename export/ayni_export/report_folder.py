"""Where a report goes, and writing it: pictures pass through a file, so that thousands of images fit into memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from ayni.artefacts.files import flush_folder, write_atomic
from ayni.errors import UserError

HTML_FILE, JSON_FILE, MASKS = "report.html", "report.json", "masks"
READ_CHARACTERS = 1 << 20


def report_folder(bundle: Path, out: Path | None, *, masks: bool = False) -> Path:
    """The folder to write to; there is no report in it, nor `masks` if such will come. Raises UserError if not.

    A report is a document: none is ever overwritten. And none goes into a bundle, which would no longer be as signed.
    """
    folder = _next_free(f"{bundle.resolve().name}-report") if out is None else out
    if folder.resolve().is_relative_to(bundle.resolve()):
        raise UserError(f"{folder} lies inside the bundle, which must stay as it was signed. Choose another --out.")
    names = (HTML_FILE, JSON_FILE, MASKS) if masks else (HTML_FILE, JSON_FILE)
    taken = any((folder / name).exists() for name in names)
    if (folder.exists() and not folder.is_dir()) or taken:
        raise UserError(f"{folder} already holds something else or a report. Choose another folder with --out.")
    return folder


def _next_free(name: str) -> Path:
    folder, number = Path(name), 1
    while folder.exists():
        number += 1
        folder = Path(f"{name}-{number}")
    return folder


@contextmanager
def sections_file(folder: Path) -> Iterator[TextIO]:
    """A file without a name in `folder` (made if need be) for the sections; nothing is left of it, also after a kill.

    Raises UserError if it cannot be written.
    """
    was_there = folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile("w+", encoding="utf-8", newline="\n", dir=folder) as file:
            yield file
    except OSError as error:  # of this file: what else fails in between has its own words
        raise _not_written(folder, error) from None
    finally:
        if not was_there:
            with suppress(OSError):
                folder.rmdir()  # only if nothing came of it: a folder with a report is not empty


def pieces_of(sections: TextIO) -> Iterator[str]:
    """All that was written to the file, a part at a time."""
    sections.seek(0)
    while piece := sections.read(READ_CHARACTERS):
        yield piece


def write_report(folder: Path, html: Iterable[str], json: bytes) -> None:
    """report.json, then report.html, each whole or not at all. Raises UserError."""
    aside = folder / f".{HTML_FILE}.{os.getpid()}.tmp"
    try:
        write_atomic(folder / JSON_FILE, json)
        with aside.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(html)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(folder / HTML_FILE)
        flush_folder(folder)
    except OSError as error:
        raise _not_written(folder, error) from None
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def _not_written(folder: Path, error: OSError) -> UserError:
    return UserError(f"the report cannot be written to {folder} ({error.strerror}). Choose another --out.")
