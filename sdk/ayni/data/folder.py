"""A folder of images with a `labels.csv`: two columns, `file` and `label`."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from ayni.errors import DataError

LABELS_FILE = "labels.csv"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".npy", ".nii", ".nii.gz", ".dcm", ".dicom")
MASK_SUFFIXES = (".png", ".npy", ".nii", ".nii.gz")
DUAL_KD_ONLY = "Images without one are good only for a task with dual distillation ([dual_kd])."


def read_labels(folder: Path, *, unlabelled: bool = False) -> list[tuple[str, str]]:
    """(file, label) as written, in the order of the lines; with `unlabelled`, a label may be empty. Raises DataError,
    which names the line."""
    path = folder / LABELS_FILE
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            if not {"file", "label"} <= set(reader.fieldnames or ()):
                raise DataError(f"{path} needs the columns 'file' and 'label'; its first line is {reader.fieldnames}.")
            rows = [(row["file"], row["label"], reader.line_num) for row in reader]
    except FileNotFoundError:
        raise DataError(
            f"there is no {LABELS_FILE} in {folder}. Write one line per image: file,label (or give a .npz file); for "
            f"segmentation, give the folders images and masks{labels_hint(folder)}."
        ) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({error}). Save it as CSV in UTF-8.") from None
    pairs = [((name or "").strip(), (label or "").strip()) for name, label, _ in rows]
    for (name, label), (_, _, line) in zip(pairs, rows, strict=True):
        if not name or not (label or unlabelled):
            raise DataError(f"{path}, line {line}: the file or the label is missing. {DUAL_KD_ONLY}")
    return pairs


def labels_hint(folder: Path) -> str:
    """What to say where masks are missing: sets of volumes often call them labels."""
    return ": if the folder labels holds the masks, call it masks" if (folder / "labels").is_dir() else ""


def class_of(label: str, classes: Sequence[str]) -> int | None:
    """The number of a label: a class by its name, else by its number (0 is the first); None if it is neither."""
    if label in classes:
        return classes.index(label)
    return int(label) if label.isdecimal() and len(label) < 6 and int(label) < len(classes) else None
