"""Images with labels, looked at before anything is trained. Needs no torch and no task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec

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
from ayni.data.folder import IMAGE_SUFFIXES, read_labels
from ayni.data.npz import read_npz, read_npz_unlabelled, splits_of
from ayni.errors import DataError


class DataReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was found. `num_per_class` counts what would be trained on: of a .npz with parts, the part `train` alone.

    `sizes` counts images by "width x height, grey" or "..., colour", volumes by their voxels; `duplicates` are groups
    of equal pixels. `unlabelled` are lines without a label: no fault if they are allowed. `num_unlabelled` counts them,
    or those of a .npz file.
    """

    path: str
    num_images: int
    num_per_part: dict[str, int] = {}  # of a .npz file with train, val or test
    num_per_class: dict[str, int]
    is_of_volumes: bool = False
    sizes: dict[str, int]
    spacings: dict[str, int] = {}
    largest_mm: tuple[float, ...] = ()  # the longest sides of all volumes
    duplicates: list[list[str]]
    unreadable: list[UnreadableFile]
    num_unlabelled: int = 0
    unlabelled: list[str] = []
    unlabelled_allowed: bool = False
    images_without_label: list[str]  # in the folder, and in no line
    labels_without_image: list[str]
    warnings: list[str]

    @property
    def usable(self) -> bool:
        """Whether training will accept these data as they are."""
        if self.unlabelled and not self.unlabelled_allowed:
            return False
        return len(self.num_per_class) > 1 and not (self.unreadable or self.labels_without_image)


def check_labelled(
    path: Path, on_progress: Callable[[int, int], None], *, volumes: bool = False, unlabelled: bool = False
) -> DataReport:
    """A folder with `labels.csv`, or a .npz file with labels. Raises DataError only if that cannot be looked into."""
    tally = _Tally(volumes, unlabelled)
    return _check_folder(path, on_progress, tally) if path.is_dir() else _check_npz(path, on_progress, tally)


class _Tally:
    """Counts over images that could be read; those of other parts than `train` count in no class."""

    def __init__(self, volumes: bool, unlabelled: bool) -> None:
        self.volumes, self.unlabelled_allowed = volumes, unlabelled
        self.classes: Counter[str] = Counter()
        self.parts: Counter[str] = Counter()
        self.sizes = Sizes()
        self.same: dict[bytes, list[tuple[str, str]]] = {}
        self.unlabelled: list[str] = []
        self.num_unlabelled = 0

    def add(self, name: str, label: str, looked: Looked, part: str = TRAINED_ON) -> None:
        """Without a label it counts in no part and no class."""
        self.num_unlabelled += not label
        self.parts[part] += bool(label)
        if label and part == TRAINED_ON:
            self.classes[label] += 1
        self.sizes.add(looked)
        self.same.setdefault(digest_of(looked.pixels), []).append((name, label))

    def report(
        self,
        path: Path,
        unreadable: list[UnreadableFile],
        without_label: list[str],
        without_image: list[str],
    ) -> DataReport:
        groups = [group for group in self.same.values() if len(group) > 1]
        return DataReport(
            path=str(path),
            num_images=self.parts.total(),
            num_per_part=dict(self.parts) if set(self.parts) - {TRAINED_ON} else {},
            num_per_class=dict(sorted(self.classes.items())),
            is_of_volumes=self.volumes,
            sizes=dict(self.sizes.sizes.most_common()),
            spacings=dict(self.sizes.spacings.most_common()),
            largest_mm=self.sizes.largest_mm,
            duplicates=[[name for name, _ in group] for group in groups],
            unreadable=unreadable,
            num_unlabelled=self.num_unlabelled,
            unlabelled=self.unlabelled,
            unlabelled_allowed=self.unlabelled_allowed,
            images_without_label=without_label,
            labels_without_image=without_image,
            warnings=self._warnings(groups),
        )

    def _warnings(self, groups: list[list[tuple[str, str]]]) -> list[str]:
        warnings = []
        if self.num_unlabelled and not self.unlabelled_allowed:
            warnings.append(good_for_dual_kd_only(self.num_unlabelled, "label"))
        if set(self.parts) - {TRAINED_ON}:
            warnings.append(only_train_counts(self.parts, "class"))
        if not self.classes:
            warnings.append("there is no image to train on.")
        if len(self.classes) == 1:
            warnings.append(
                f"all images are of one class ({next(iter(self.classes))}): nothing can be learned from them. "
                "Add images of another class."
            )
        warnings += [
            f"only {count} image{'s' if count > 1 else ''} of class {label}; fewer than {FEW_IMAGES} teach little."
            for label, count in sorted(self.classes.items())
            if count < FEW_IMAGES
        ]
        warnings += self.sizes.warnings(self.volumes)
        contradictions = sum(len({label for _, label in group if label}) > 1 for group in groups)
        if contradictions:
            warnings.append(f"{contradictions} images occur under different labels.")
        twins = sum(len({bool(label) for _, label in group}) > 1 for group in groups)
        if twins:
            warnings.append(twins_warning(twins, "label"))
        return warnings


def _check_folder(folder: Path, on_progress: Callable[[int, int], None], tally: _Tally) -> DataReport:
    labelled = read_labels(folder, unlabelled=True)
    unreadable, missing = [], []
    for number, (name, label) in enumerate(labelled, start=1):
        if not (folder / name).exists():
            missing.append(name)
        else:
            try:
                tally.add(name, label, look_at(folder / name, tally.volumes))
                tally.unlabelled += [] if label else [name]
            except DataError as error:
                unreadable.append(UnreadableFile(name, str(error)))
        on_progress(number, len(labelled))
    known = {(folder / name).resolve() for name, _ in labelled}
    images = (file for file in sorted(folder.rglob("*")) if file.name.lower().endswith(IMAGE_SUFFIXES))
    without_label = [
        str(file.relative_to(folder)) for file in images if not {file.resolve(), file.resolve().parent} & known
    ]
    return tally.report(folder, unreadable, without_label, missing)


def _check_npz(path: Path, on_progress: Callable[[int, int], None], tally: _Tally) -> DataReport:
    for split in splits_of(path) or [TRAINED_ON]:
        images, labels_N = read_npz(path, split, volumes=tally.volumes)
        for index, (pixels, label) in enumerate(zip(images, labels_N, strict=True)):
            tally.add(f"{split}[{index}]", str(label), Looked.of(pixels), split)
            on_progress(index + 1, len(images))
    for index, pixels in enumerate(read_npz_unlabelled(path, volumes=tally.volumes)):
        tally.add(f"unlabelled[{index}]", "", Looked.of(pixels))
    return tally.report(path, [], [], [])
