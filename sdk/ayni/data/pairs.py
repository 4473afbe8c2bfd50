"""A folder for segmentation: `images/`, and in `masks/` one mask per image, of the same name without its ending.

A folder in `images/` is one image if it holds the DICOM slices of a volume. Needs no numpy: the agent looks at once
whether the files are there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ayni.data.folder import DUAL_KD_ONLY, IMAGE_SUFFIXES, MASK_SUFFIXES, labels_hint
from ayni.errors import DataError

IMAGES, MASKS = "images", "masks"
NUM_NAMED = 3


@dataclass(frozen=True, slots=True)
class Pairs:
    """What was found, each in the order of the names."""

    pairs: tuple[tuple[Path, Path], ...]
    images_without_mask: tuple[Path, ...]
    masks_without_image: tuple[Path, ...]


def find_pairs(folder: Path) -> Pairs:
    """Raises DataError if a folder is missing, or if two files have the same name but for their endings."""
    images = _by_stem(folder / IMAGES, IMAGE_SUFFIXES)
    masks = _by_stem(folder / MASKS, (*MASK_SUFFIXES, *IMAGE_SUFFIXES))  # other kinds are found, then refused
    return Pairs(
        tuple((images[stem], masks[stem]) for stem in sorted(images.keys() & masks.keys())),
        tuple(images[stem] for stem in sorted(images.keys() - masks.keys())),
        tuple(masks[stem] for stem in sorted(masks.keys() - images.keys())),
    )


def check_complete(folder: Path, found: Pairs, *, unlabelled: bool = False) -> None:
    """Raises DataError, which names the first files that stand alone; `unlabelled` images may."""
    if found.images_without_mask and not unlabelled:
        raise DataError(
            f"{_named(found.images_without_mask)} in {folder / IMAGES}: no mask of that name in {folder / MASKS}. "
            f"Add it (all 0 if nothing is there), or take the image away. {DUAL_KD_ONLY}"
        )
    if found.masks_without_image:
        raise DataError(
            f"{_named(found.masks_without_image)} in {folder / MASKS}: no image of that name in {folder / IMAGES}. "
            "Add it, or take the mask away."
        )


def _named(files: tuple[Path, ...]) -> str:
    more = len(files) - NUM_NAMED
    return ", ".join(file.name for file in files[:NUM_NAMED]) + (f" and {more} more" if more > 0 else "")


def is_series(path: Path) -> bool:
    """Whether it is a folder that holds DICOM files."""
    if not path.is_dir():
        return False
    files = (file for file in sorted(path.iterdir()) if file.is_file() and not file.name.startswith("."))
    return any(_is_dicom(file) for file in files)


def _is_dicom(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"there is no folder {folder}. Segmentation needs the folders {IMAGES} and {MASKS}, with one mask of the "
            f"same name per image (or a .npz file){labels_hint(folder.parent)}."
        ) from None
    found: dict[str, Path] = {}
    for entry in entries:
        stem = entry.name if is_series(entry) else _stem(entry, suffixes)
        if stem is not None:
            if stem in found:
                raise DataError(f"{found[stem]} and {entry} have the same name but for their endings. Keep one.")
            found[stem] = entry
    return found


def _stem(file: Path, suffixes: tuple[str, ...]) -> str | None:
    """The name without the longest of these endings; None if it has none of them, or is no file."""
    longest_first = sorted(suffixes, key=len, reverse=True)
    suffix = next((ending for ending in longest_first if file.name.lower().endswith(ending)), None)
    return file.name[: -len(suffix)] if suffix and file.is_file() else None
