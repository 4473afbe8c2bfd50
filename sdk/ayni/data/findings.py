"""What every look at images counts, with labels or with masks: files that cannot be read, sizes, equal pixels."""

from __future__ import annotations

import hashlib

import msgspec

from ayni.data.eight_bits import Pixels

FEW_IMAGES = 10
TRAINED_ON = "train"  # of the parts of a .npz file


class UnreadableFile(msgspec.Struct, frozen=True):
    file: str
    reason: str


def size_of(pixels_HWC: Pixels) -> str:
    height, width, channels = pixels_HWC.shape
    return f"{width} x {height}, {'grey' if channels == 1 else 'colour'}"


def digest_of(pixels: Pixels) -> bytes:
    """The same for arrays of the same shape and pixels alone."""
    return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).digest()


def only_train_counts(num_per_part: dict[str, int], what: str) -> str:
    counts = ", ".join(f"{part}: {count}" for part, count in num_per_part.items())
    return f"only the part {TRAINED_ON} is trained on and counted per {what} ({counts} images)."
