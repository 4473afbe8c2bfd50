"""Images with masks, looked at before anything is trained. Needs no torch and no task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from ayni.data.eight_bits import Values
from ayni.data.findings import (
    FEW_IMAGES,
    TRAINED_ON,
    Looked,
    Sizes,
    UnreadableFile,
    digest_of,
    good_for_dual_kd_only,
    look_at,
    only_train_counts,
    twins_warning,
)
from ayni.data.images import read_image
from ayni.data.mask_file import read_mask
from ayni.data.npz import read_npz_masks, read_npz_unlabelled, splits_of
from ayni.data.pairs import find_pairs
from ayni.data.seen import check_same_size
from ayni.data.volume_file import check_same_grid, read_label_map, read_volume
from ayni.errors import DataError

FEWEST_TAUGHT = 4  # beside a teacher; docs/results.md has figures of four
MANY_VALUES = 16  # more structures than anybody outlines by hand


class MaskValue(msgspec.Struct, frozen=True, omit_defaults=True):
    """One number above 0 in the masks: how many images have it, and the share of their area that it takes; of volumes
    with a spacing also how large it is."""

    num_images: int
    mean_share: float
    mean_mm3: float | None = None


class MaskReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was found. `mask_values` and `foreground` (all above 0) count what would be trained on: of a .npz with
    parts, the part `train` alone. `duplicates` are groups of images of equal pixels. With `unlabelled_allowed`, images
    without a mask are no fault, and are looked at too; those of volumes are looked at in any case. `num_unlabelled`
    counts them, or those of a .npz file."""

    path: str
    num_images: int  # with a mask of their size, both readable
    num_per_part: dict[str, int] = {}  # of a .npz file with train, val or test
    foreground: MaskValue
    mask_values: dict[str, MaskValue]
    is_of_volumes: bool = False
    sizes: dict[str, int]
    spacings: dict[str, int] = {}
    largest_mm: tuple[float, ...] = ()  # the longest sides of all volumes
    duplicates: list[list[str]]
    empty_masks: list[str]
    unreadable: list[UnreadableFile]
    num_unlabelled: int = 0
    images_without_mask: list[str]
    masks_without_image: list[str]
    wrong_sizes: list[str]
    unlabelled_allowed: bool = False
    warnings: list[str]

    @property
    def usable(self) -> bool:
        """Whether training will accept these data as they are."""
        alone = self.masks_without_image or (self.images_without_mask and not self.unlabelled_allowed)
        return self.foreground.num_images > 0 and not (alone or self.unreadable or self.wrong_sizes)


def check_segmented(
    path: Path, on_progress: Callable[[int, int], None], *, volumes: bool = False, unlabelled: bool = False
) -> MaskReport:
    """A folder with `images/` and `masks/`, or a .npz file with masks. Raises DataError only if that cannot be
    looked into."""
    tally = _Tally(volumes, unlabelled)
    if path.is_dir():
        return _check_folder(path, on_progress, tally)
    return _check_npz(path, on_progress, tally)


class _Tally:
    """Counts over images that can be used with their masks; of other parts than `train`, their masks do not count."""

    def __init__(self, volumes: bool, unlabelled: bool) -> None:
        self.volumes, self.unlabelled = volumes, unlabelled
        self.parts: Counter[str] = Counter()
        self.sizes = Sizes()
        self.found: dict[int, list[tuple[float, float | None]]] = {}  # of each value, for each image that has it
        self.foreground: list[tuple[float, float | None]] = []  # share of the image, and mm3
        self.empty: list[str] = []
        self.same: dict[bytes, list[tuple[str, bytes]]] = {}
        self.unreadable: list[UnreadableFile] = []
        self.wrong_sizes: list[str] = []

    def add(self, name: str, looked: Looked, mask: Values, part: str = TRAINED_ON) -> None:
        """`mask` is [(D,) H, W], or one plane per structure [S, (D,) H, W]: plane k counts as value k + 1."""
        self.parts[part] += 1
        self.add_image(name, looked, digest_of(np.asarray(mask, np.int64)))
        if mask.ndim == (3 if looked.is_volume else 2):
            numbers, counts = np.unique(mask, return_counts=True)
            found = {int(number): int(count) for number, count in zip(numbers, counts, strict=True) if number > 0}
            num_foreground, num_pixels = sum(found.values()), mask.size
        else:
            found = {k: int(plane.sum()) for k, plane in enumerate(mask != 0, start=1) if plane.any()}
            num_foreground, num_pixels = int(mask.any(axis=0).sum()), mask[0].size
        if not found:
            self.empty.append(name)
        elif part == TRAINED_ON:
            voxel_mm3 = looked.voxel_mm3
            self.foreground.append((num_foreground / num_pixels, voxel_mm3 and num_foreground * voxel_mm3))
            for number, count in found.items():
                self.found.setdefault(number, []).append((count / num_pixels, voxel_mm3 and count * voxel_mm3))

    def add_image(self, name: str, looked: Looked, mask_digest: bytes = b"") -> None:
        """Its size, and whether there are equal ones; all that counts of an image without a mask."""
        self.sizes.add(looked)
        self.same.setdefault(digest_of(looked.pixels), []).append((name, mask_digest))

    def report(
        self, path: Path, images_without_mask: list[str], masks_without_image: list[str], num_unlabelled: int
    ) -> MaskReport:
        groups = [group for group in self.same.values() if len(group) > 1]
        return MaskReport(
            path=str(path),
            num_images=self.parts.total(),
            num_per_part=dict(self.parts) if set(self.parts) - {TRAINED_ON} else {},
            foreground=_value(self.foreground),
            mask_values={str(number): _value(found) for number, found in sorted(self.found.items())},
            is_of_volumes=self.volumes,
            sizes=dict(self.sizes.sizes.most_common()),
            spacings=dict(self.sizes.spacings.most_common()),
            largest_mm=self.sizes.largest_mm,
            duplicates=[[name for name, _ in group] for group in groups],
            empty_masks=self.empty,
            unreadable=self.unreadable,
            num_unlabelled=num_unlabelled,
            images_without_mask=images_without_mask,
            masks_without_image=masks_without_image,
            wrong_sizes=self.wrong_sizes,
            unlabelled_allowed=self.unlabelled,
            warnings=self._warnings(groups, 0 if self.unlabelled else num_unlabelled),
        )

    def _warnings(self, groups: list[list[tuple[str, bytes]]], num_to_explain: int) -> list[str]:
        warnings = [good_for_dual_kd_only(num_to_explain, "mask")] if num_to_explain else []
        if set(self.parts) - {TRAINED_ON}:
            warnings.append(only_train_counts(self.parts, "value"))
        num_trained_on = self.parts[TRAINED_ON]
        if not num_trained_on:
            warnings.append("there is no image with a mask to train on.")
        elif not self.foreground:
            warnings.append("all masks are empty: nothing can be learned from them. Add images with structures.")
        elif num_trained_on < (FEWEST_TAUGHT if self.unlabelled else FEW_IMAGES):
            kind, few = "volumes" if self.volumes else "images", FEWEST_TAUGHT if self.unlabelled else FEW_IMAGES
            warnings.append(f"only {num_trained_on} {kind} with masks; fewer than {few} teach little.")
        if self.found and sorted(self.found) != list(range(1, len(self.found) + 1)):
            warnings.append(
                "the values above 0 are not 1, 2, 3 ...: good for a task of one structure, where all above 0 is it; "
                "with several, value k is the k-th."
            )
        elif len(self.found) > MANY_VALUES:
            warnings.append(
                f"{len(self.found)} values above 0, as if each thing had its own number: good for a task of one "
                "structure, where all above 0 is it."
            )
        warnings += self.sizes.warnings(self.volumes)
        contradictions = sum(len({mask for _, mask in group if mask}) > 1 for group in groups)
        if contradictions:
            warnings.append(f"{contradictions} images occur with different masks.")
        twins = sum(len({bool(mask) for _, mask in group}) > 1 for group in groups)
        if twins:
            warnings.append(twins_warning(twins, "mask"))
        return warnings


def _value(found: list[tuple[float, float | None]]) -> MaskValue:
    shares, mm3 = [share for share, _ in found], [size for _, size in found if size is not None]
    return MaskValue(
        len(found), sum(shares) / len(shares) if shares else 0.0, round(sum(mm3) / len(mm3), 3) if mm3 else None
    )


def _check_folder(folder: Path, on_progress: Callable[[int, int], None], tally: _Tally) -> MaskReport:
    found = find_pairs(folder)
    others = found.images_without_mask if tally.volumes or tally.unlabelled else ()
    num_images = len(found.pairs) + len(others)
    for number, (image_file, mask_file) in enumerate(found.pairs, start=1):
        _look_at_pair(folder, image_file, mask_file, tally)
        on_progress(number, num_images)
    for number, file in enumerate(others, start=len(found.pairs) + 1):
        try:
            tally.add_image(file.name, look_at(file, tally.volumes))
        except DataError as error:
            tally.unreadable.append(UnreadableFile(str(file.relative_to(folder)), str(error)))
        on_progress(number, num_images)
    without_mask = [file.name for file in found.images_without_mask]
    return tally.report(folder, without_mask, [file.name for file in found.masks_without_image], len(without_mask))


def _look_at_pair(folder: Path, image_file: Path, mask_file: Path, tally: _Tally) -> None:
    names = image_file.name, f"masks/{mask_file.name}"
    file = image_file
    try:
        if tally.volumes:
            volume, file = read_volume(image_file), mask_file
            labels = read_label_map(mask_file)
        else:
            pixels_HWC, file = read_image(image_file), mask_file
            values_HW = read_mask(mask_file)
    except DataError as error:
        tally.unreadable.append(UnreadableFile(str(file.relative_to(folder)), str(error)))
        return
    try:
        if tally.volumes:
            check_same_grid(volume, labels, *names)
            tally.add(image_file.name, Looked.of(volume), labels.values_DHW)
        else:
            check_same_size(pixels_HWC.shape, values_HW.shape, *names)
            tally.add(image_file.name, Looked.of(pixels_HWC), values_HW)
    except DataError as error:
        tally.wrong_sizes.append(str(error))


def _check_npz(path: Path, on_progress: Callable[[int, int], None], tally: _Tally) -> MaskReport:
    for split in splits_of(path) or [TRAINED_ON]:
        images, masks = read_npz_masks(path, split, volumes=tally.volumes)
        for index, (pixels, mask) in enumerate(zip(images, masks, strict=True)):
            looked = Looked.of(pixels)
            is_planes = mask.ndim > (3 if tally.volumes else 2)
            name = f"{split}[{index}]"
            if mask.min() < 0 or (is_planes and mask.max() > 1):
                tally.unreadable.append(
                    UnreadableFile(name, f"its mask holds values from {mask.min()} to {mask.max()}")
                )
            else:
                tally.add(name, looked, mask, split)
            on_progress(index + 1, len(images))
    others = read_npz_unlabelled(path, volumes=tally.volumes)
    for index, pixels in enumerate(others):
        tally.add_image(f"unlabelled[{index}]", Looked.of(pixels))
    return tally.report(path, [], [], len(others))
