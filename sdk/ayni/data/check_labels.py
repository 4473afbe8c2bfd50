"""Images with labels, looked at before anything is trained. Needs no torch and no task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec

from ayni.data.findings import FEW_IMAGES, TRAINED_ON, UnreadableFile, digest_of, only_train_counts, size_of
from ayni.data.folder import read_labels
from ayni.data.images import IMAGE_SUFFIXES, Pixels, read_image
from ayni.data.npz import read_npz, splits_of
from ayni.errors import DataError


class DataReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was found. `num_per_class` counts what would be trained on: of a .npz with parts, the part `train` alone.

    `sizes` counts images by "width x height, grey" or "..., colour"; `duplicates` are groups of equal pixels.
    """

    path: str
    num_images: int
    num_per_part: dict[str, int] = {}  # of a .npz file with train, val or test
    num_per_class: dict[str, int]
    sizes: dict[str, int]
    duplicates: list[list[str]]
    unreadable: list[UnreadableFile]
    images_without_label: list[str]
    labels_without_image: list[str]
    warnings: list[str]

    @property
    def usable(self) -> bool:
        """Whether training will accept these data as they are."""
        return len(self.num_per_class) > 1 and not (self.unreadable or self.labels_without_image)


def check_labelled(path: Path, on_progress: Callable[[int, int], None]) -> DataReport:
    """A folder with `labels.csv`, or a .npz file with labels. Raises DataError only if that cannot be looked into."""
    return _check_folder(path, on_progress) if path.is_dir() else _check_npz(path, on_progress)


class _Tally:
    """Counts over images that could be read; those of other parts than `train` count in no class."""

    def __init__(self) -> None:
        self.classes: Counter[str] = Counter()
        self.parts: Counter[str] = Counter()
        self.sizes: Counter[str] = Counter()
        self.same: dict[bytes, list[tuple[str, str]]] = {}

    def add(self, name: str, label: str, pixels_HWC: Pixels, part: str = TRAINED_ON) -> None:
        self.parts[part] += 1
        if part == TRAINED_ON:
            self.classes[label] += 1
        self.sizes[size_of(pixels_HWC)] += 1
        self.same.setdefault(digest_of(pixels_HWC), []).append((name, label))

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
            sizes=dict(self.sizes.most_common()),
            duplicates=[[name for name, _ in group] for group in groups],
            unreadable=unreadable,
            images_without_label=without_label,
            labels_without_image=without_image,
            warnings=self._warnings(groups),
        )

    def _warnings(self, groups: list[list[tuple[str, str]]]) -> list[str]:
        warnings = []
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
        if len(self.sizes) > 1:
            warnings.append(f"images of {len(self.sizes)} sizes: the task must allow scaling (resize = true).")
        contradictions = sum(len({label for _, label in group}) > 1 for group in groups)
        if contradictions:
            warnings.append(f"{contradictions} images occur under different labels.")
        return warnings


def _check_folder(folder: Path, on_progress: Callable[[int, int], None]) -> DataReport:
    labelled = read_labels(folder)
    tally, unreadable, missing = _Tally(), [], []
    for number, (name, label) in enumerate(labelled, start=1):
        if not (folder / name).is_file():
            missing.append(name)
        else:
            try:
                tally.add(name, label, read_image(folder / name))
            except DataError as error:
                unreadable.append(UnreadableFile(name, str(error)))
        on_progress(number, len(labelled))
    known = {(folder / name).resolve() for name, _ in labelled}
    images = (file for file in sorted(folder.rglob("*")) if file.name.lower().endswith(IMAGE_SUFFIXES))
    without_label = [str(file.relative_to(folder)) for file in images if file.resolve() not in known]
    return tally.report(folder, unreadable, without_label, missing)


def _check_npz(path: Path, on_progress: Callable[[int, int], None]) -> DataReport:
    tally = _Tally()
    for split in splits_of(path) or [TRAINED_ON]:
        images_NHWC, labels_N = read_npz(path, split)
        for index, (pixels_HWC, label) in enumerate(zip(images_NHWC, labels_N, strict=True)):
            tally.add(f"{split}[{index}]", str(label), pixels_HWC, split)
            on_progress(index + 1, len(images_NHWC))
    return tally.report(path, [], [], [])
