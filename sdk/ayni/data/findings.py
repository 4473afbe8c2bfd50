"""What every look at images counts, with labels or with masks: files that cannot be read, sizes, equal pixels.

D, H, W, C = slices (volumes only), height, width, channels.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ayni.data.eight_bits import Pixels, Values
from ayni.data.images import read_image
from ayni.data.volume_file import Volume, read_volume, size_text, spacing_text

FEW_IMAGES = 10
TRAINED_ON = "train"  # of the parts of a .npz file


class UnreadableFile(msgspec.Struct, frozen=True):
    file: str
    reason: str


@dataclass(frozen=True, slots=True)
class Looked:
    """One image that can be read: pixels [H, W, C], or a volume's values [D, H, W], whose spacing a .npz lacks."""

    pixels: Values
    is_volume: bool = False
    spacing_mm: tuple[float, float, float] | None = None
    is_oriented: bool = True

    @classmethod
    def of(cls, image: Pixels | Volume) -> Looked:
        if isinstance(image, Volume):
            return cls(image.values_DHW, True, image.spacing_mm, image.is_oriented)
        return cls(image[..., 0], True) if image.ndim == 4 else cls(image)

    @property
    def size(self) -> str:
        if self.is_volume:
            return f"{size_text(self.pixels.shape)} voxels"
        height, width, channels = self.pixels.shape
        return f"{width} x {height}, {'grey' if channels == 1 else 'colour'}"

    @property
    def voxel_mm3(self) -> float | None:
        return None if self.spacing_mm is None else self.spacing_mm[0] * self.spacing_mm[1] * self.spacing_mm[2]


def look_at(path: Path, volumes: bool) -> Looked:
    """Raises DataError."""
    return Looked.of(read_volume(path) if volumes else read_image(path))


class Sizes:
    """Counts of sizes and spacings; `largest_mm` are the longest sides that any volume has."""

    def __init__(self) -> None:
        self.sizes: Counter[str] = Counter()
        self.spacings: Counter[str] = Counter()
        self.largest_mm: tuple[float, ...] = ()
        self.num_unoriented = 0

    def add(self, looked: Looked) -> None:
        self.sizes[looked.size] += 1
        self.num_unoriented += not looked.is_oriented
        if looked.spacing_mm is not None:
            self.spacings[f"{spacing_text(looked.spacing_mm)} mm"] += 1
            sides = [length * step for length, step in zip(looked.pixels.shape, looked.spacing_mm, strict=True)]
            known = self.largest_mm or (0.0,) * 3
            self.largest_mm = tuple(round(max(pair), 3) for pair in zip(sides, known, strict=True))

    def warnings(self, volumes: bool) -> list[str]:
        warnings = []
        if len(self.sizes) > 1 and not volumes:
            warnings.append(f"images of {len(self.sizes)} sizes: the task must allow scaling (resize = true).")
        if len(self.spacings) > 1:
            warnings.append(f"volumes of {len(self.spacings)} spacings: the task must have an image.spacing_mm.")
        if self.num_unoriented:
            warnings.append(
                f"{self.num_unoriented} volumes do not say which way round they lie (no qform, no sform): left and "
                "right are assumed."
            )
        return warnings


def digest_of(pixels: Values) -> bytes:
    """The same for arrays of the same shape and pixels alone."""
    return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).digest()


def only_train_counts(num_per_part: dict[str, int], what: str) -> str:
    counts = ", ".join(f"{part}: {count}" for part, count in num_per_part.items())
    return f"only the part {TRAINED_ON} is trained on and counted per {what} ({counts} images)."


def good_for_dual_kd_only(num_images: int, what: str) -> str:
    return (
        f"{num_images} {'images' if num_images > 1 else 'image'} without a {what}: good only for a task with dual "
        "distillation ([dual_kd]); `ayni data check --unlabelled` checks for one."
    )


def twins_warning(num_images: int, what: str) -> str:
    return (
        f"{num_images} images occur with a {what} and without: the model would be checked on images that it has seen. "
        "Take one of each away."
    )
