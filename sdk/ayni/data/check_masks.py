"""Images with masks, looked at before anything is trained. Needs no torch and no task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from ayni.data.eight_bits import Pixels, Values
from ayni.data.findings import FEW_IMAGES, TRAINED_ON, UnreadableFile, digest_of, only_train_counts, size_of
from ayni.data.images import read_image
from ayni.data.mask_file import read_mask
from ayni.data.npz import read_npz_masks, splits_of
from ayni.data.pairs import find_pairs
from ayni.data.seen import check_same_size
from ayni.errors import DataError

MANY_VALUES = 16  # more structures than anybody outlines by hand


class MaskValue(msgspec.Struct, frozen=True):
    """One number above 0 in the masks: how many images have it, and the share of their area that it takes."""

    num_images: int
    mean_share: float


class MaskReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was found. `mask_values` and `foreground` (all above 0) count what would be trained on: of a .npz with
    parts, the part `train` alone. `duplicates` are groups of images of equal pixels."""

    path: str
    num_images: int  # with a mask of their size, both readable
    num_per_part: dict[str, int] = {}  # of a .npz file with train, val or test
    foreground: MaskValue
    mask_values: dict[str, MaskValue]
    sizes: dict[str, int]
    duplicates: list[list[str]]
    empty_masks: list[str]
    unreadable: list[UnreadableFile]
    images_without_mask: list[str]
    masks_without_image: list[str]
    wrong_sizes: list[str]
    warnings: list[str]

    @property
    def usable(self) -> bool:
        """Whether training will accept these data as they are."""
        alone = self.images_without_mask or self.masks_without_image
        return self.foreground.num_images > 0 and not (alone or self.unreadable or self.wrong_sizes)


def check_segmented(path: Path, on_progress: Callable[[int, int], None]) -> MaskReport:
    """A folder with `images/` and `masks/`, or a .npz file with masks. Raises DataError only if that cannot be
    looked into."""
    return _check_folder(path, on_progress) if path.is_dir() else _check_npz(path, on_progress)


class _Tally:
    """Counts over images that can be used with their masks; of other parts than `train`, their masks do not count."""

    def __init__(self) -> None:
        self.parts: Counter[str] = Counter()
        self.sizes: Counter[str] = Counter()
        self.shares: dict[int, list[float]] = {}  # of each value, one for each image that has it
        self.foreground: list[float] = []
        self.empty: list[str] = []
        self.same: dict[bytes, list[tuple[str, bytes]]] = {}
        self.unreadable: list[UnreadableFile] = []
        self.wrong_sizes: list[str] = []

    def add(self, name: str, pixels_HWC: Pixels, mask: Values, part: str = TRAINED_ON) -> None:
        """`mask` is [H, W], or one plane per structure [S, H, W]: plane k counts as value k + 1."""
        self.parts[part] += 1
        self.sizes[size_of(pixels_HWC)] += 1
        self.same.setdefault(digest_of(pixels_HWC), []).append((name, digest_of(np.asarray(mask, np.int64))))
        if mask.ndim == 2:
            numbers, counts = np.unique(mask, return_counts=True)
            found = {int(number): int(count) for number, count in zip(numbers, counts, strict=True) if number > 0}
            num_foreground = sum(found.values())
        else:
            found = {k: int(plane.sum()) for k, plane in enumerate(mask != 0, start=1) if plane.any()}
            num_foreground = int(mask.any(axis=0).sum())
        num_pixels = mask.shape[-1] * mask.shape[-2]
        if not found:
            self.empty.append(name)
        elif part == TRAINED_ON:
            self.foreground.append(num_foreground / num_pixels)
            for number, count in found.items():
                self.shares.setdefault(number, []).append(count / num_pixels)

    def report(self, path: Path, images_without_mask: list[str], masks_without_image: list[str]) -> MaskReport:
        groups = [group for group in self.same.values() if len(group) > 1]
        return MaskReport(
            path=str(path),
            num_images=self.parts.total(),
            num_per_part=dict(self.parts) if set(self.parts) - {TRAINED_ON} else {},
            foreground=_value(self.foreground),
            mask_values={str(number): _value(shares) for number, shares in sorted(self.shares.items())},
            sizes=dict(self.sizes.most_common()),
            duplicates=[[name for name, _ in group] for group in groups],
            empty_masks=self.empty,
            unreadable=self.unreadable,
            images_without_mask=images_without_mask,
            masks_without_image=masks_without_image,
            wrong_sizes=self.wrong_sizes,
            warnings=self._warnings(groups),
        )

    def _warnings(self, groups: list[list[tuple[str, bytes]]]) -> list[str]:
        warnings = []
        if set(self.parts) - {TRAINED_ON}:
            warnings.append(only_train_counts(self.parts, "value"))
        num_trained_on = self.parts[TRAINED_ON]
        if not num_trained_on:
            warnings.append("there is no image with a mask to train on.")
        elif not self.foreground:
            warnings.append("all masks are empty: nothing can be learned from them. Add images with structures.")
        elif num_trained_on < FEW_IMAGES:
            warnings.append(f"only {num_trained_on} images with masks; fewer than {FEW_IMAGES} teach little.")
        if self.shares and sorted(self.shares) != list(range(1, len(self.shares) + 1)):
            warnings.append(
                "the values above 0 are not 1, 2, 3 ...: good for a task of one structure, where all above 0 is it; "
                "with several, value k is the k-th."
            )
        elif len(self.shares) > MANY_VALUES:
            warnings.append(
                f"{len(self.shares)} values above 0, as if each thing had its own number: good for a task of one "
                "structure, where all above 0 is it."
            )
        if len(self.sizes) > 1:
            warnings.append(f"images of {len(self.sizes)} sizes: the task must allow scaling (resize = true).")
        contradictions = sum(len({mask for _, mask in group}) > 1 for group in groups)
        if contradictions:
            warnings.append(f"{contradictions} images occur with different masks.")
        return warnings


def _value(shares: list[float]) -> MaskValue:
    return MaskValue(len(shares), sum(shares) / len(shares) if shares else 0.0)


def _check_folder(folder: Path, on_progress: Callable[[int, int], None]) -> MaskReport:
    found, tally = find_pairs(folder), _Tally()
    for number, (image_file, mask_file) in enumerate(found.pairs, start=1):
        file = image_file
        try:
            pixels_HWC = read_image(image_file)
            file = mask_file
            values_HW = read_mask(mask_file)
        except DataError as error:
            tally.unreadable.append(UnreadableFile(str(file.relative_to(folder)), str(error)))
        else:
            try:
                check_same_size(pixels_HWC.shape, values_HW.shape, image_file.name, f"masks/{mask_file.name}")
                tally.add(image_file.name, pixels_HWC, values_HW)
            except DataError as error:
                tally.wrong_sizes.append(str(error))
        on_progress(number, len(found.pairs))
    return tally.report(
        folder, [file.name for file in found.images_without_mask], [file.name for file in found.masks_without_image]
    )


def _check_npz(path: Path, on_progress: Callable[[int, int], None]) -> MaskReport:
    tally = _Tally()
    for split in splits_of(path) or [TRAINED_ON]:
        images_NHWC, masks = read_npz_masks(path, split)
        for index, (pixels_HWC, mask) in enumerate(zip(images_NHWC, masks, strict=True)):
            name = f"{split}[{index}]"
            if mask.min() < 0 or (mask.ndim == 3 and mask.max() > 1):
                tally.unreadable.append(
                    UnreadableFile(name, f"its mask holds values from {mask.min()} to {mask.max()}")
                )
            else:
                tally.add(name, pixels_HWC, mask, split)
            on_progress(index + 1, len(images_NHWC))
    return tally.report(path, [], [])
