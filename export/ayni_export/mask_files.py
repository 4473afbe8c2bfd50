"""A report's masks: `masks/NAME-STRUCTURE.png`, grey, 255 inside and 0 outside, in the size of the image's file.

Of a volume it is one file, `masks/NAME-mask.nii.gz`: a label map on the volume's own voxels.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from PIL import Image

from ayni.data.images import IMAGE_SUFFIXES
from ayni_export.report_folder import MASKS
from ayni_export.segmentation import Mask, Segmentation, grey_of
from ayni_export.volume_answer import OutlinedVolume

MAX_NAME_BYTES, MAX_STRUCTURE_BYTES = 160, 60  # file systems take 255 in all


class MaskFiles:
    """Writes masks below a report's folder and knows which, so that none is left if there is no report."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / MASKS
        self._written: list[Path] = []

    def write(self, answer: Segmentation | OutlinedVolume) -> tuple[str, ...]:
        """One file per structure, or one of a volume; their names, as seen from the report's folder. Raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if isinstance(answer, OutlinedVolume):
            return (self._write(answer.file.path, "mask", answer.mask_file, ".nii.gz"),)
        return tuple(self._write(answer.path, each.name, png_of(each.mask_HW), ".png") for each in answer.structures)

    def _write(self, image: Path, what: str, data: bytes, ending: str) -> str:
        stem = stem_of(image.name or image.resolve().name)  # "." is a folder of slices, too
        name = f"{plain(stem, MAX_NAME_BYTES)}-{plain(what, MAX_STRUCTURE_BYTES)}"
        number = 1
        while True:
            path = self._folder / (f"{name}{ending}" if number == 1 else f"{name}-{number}{ending}")
            try:
                file = path.open("xb")  # an image of the same name in another folder, or a mask that was here before
            except FileExistsError:
                number += 1
                continue
            self._written.append(path)
            with file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            return f"{MASKS}/{path.name}"

    def remove(self) -> None:
        """Take back what was written."""
        for path in self._written:
            with suppress(OSError):
                path.unlink(missing_ok=True)
        with suppress(OSError):
            self._folder.rmdir()  # only if there is nothing else in it


@contextmanager
def mask_files(folder: Path) -> Iterator[MaskFiles]:
    """If the block fails, its masks go."""
    files = MaskFiles(folder)
    try:
        yield files
    except BaseException:
        files.remove()
        raise


def stem_of(name: str) -> str:
    """Without the ending of an image, if it has one.

    >>> stem_of("chest.PNG"), stem_of("brain.nii.gz"), stem_of("1.2.840.10008")
    ('chest', 'brain', '1.2.840.10008')
    """
    endings = sorted(IMAGE_SUFFIXES, key=len, reverse=True)
    ending = next((ending for ending in endings if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)]


def plain(text: str, max_bytes: int) -> str:
    """As a part of a file name: letters, digits, dots and dashes, and not longer than so many bytes.

    >>> plain("../left lung: 'upper'", 60), plain("pulmón", 5), plain("/", 60)
    ('left_lung_upper', 'pulm', 'unnamed')
    """
    kept = "".join(letter if letter.isalnum() or letter in "-." else " " for letter in text)
    words = "_".join(kept.split()).strip("._")
    return words.encode("utf-8", "ignore")[:max_bytes].decode("utf-8", "ignore") or "unnamed"


def png_of(mask_HW: Mask) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(grey_of(mask_HW)).save(buffer, "PNG")
    return buffer.getvalue()
