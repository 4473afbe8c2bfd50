"""The answer to one volume: a label map in the file's own voxels and each structure's size, or a finding; and pictures.

S = structures, D x H x W = voxels of the file, turned (slices from feet to head, rows from back to front, columns from
left to right, see `ayni.data.volumes`). numpy only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ayni_export.segmentation import SURE, THRESHOLD
from ayni_export.three_planes import Plane

MAX_BYTE_LABEL = 255

Floats = np.ndarray[Any, np.dtype[np.float32]]
Labels = np.ndarray[Any, np.dtype[Any]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, slots=True)
class VolumeFile:
    """The file, or the folder of slices. `voxel_mm` are the steps along the file's axes, which may be aslant."""

    path: Path
    sha256: str
    shape: tuple[int, ...]  # of the file's axes
    voxel_mm: tuple[float, ...]
    voxel_mm3: float
    source: str  # "NIfTI" or "DICOM"
    is_oriented: bool  # whether the file says how the patient lies in it


@dataclass(frozen=True, slots=True)
class VolumeStructure:
    """One structure. It has all voxels in which it is likely, also those that the label map gives to a likelier one."""

    name: str
    label: int  # its number in the label map
    num_voxels: int
    num_sure: int  # of these, those with a probability of at least SURE
    highest: float  # the highest probability in the volume
    share: float  # of the volume, 0 to 1

    @property
    def sure_share(self) -> float | None:
        """Of the structure, 0 to 1; None if nothing is outlined."""
        return self.num_sure / self.num_voxels if self.num_voxels else None


@dataclass(frozen=True, slots=True)
class OutlinedVolume:
    """What the model outlines in one volume. `mask_file` is the label map as a NIfTI file."""

    file: VolumeFile
    structures: tuple[VolumeStructure, ...]
    num_shared: int  # voxels of several structures at once
    mask_file: bytes
    planes: tuple[Plane, ...]
    num_windows: int  # that the model was asked about
    is_larger: bool  # than any volume that the model was trained on


@dataclass(frozen=True, slots=True)
class VolumeFinding:
    """What the model says of one volume."""

    file: VolumeFile
    classes: tuple[str, ...]
    logits_C: Floats
    probabilities_C: Floats
    planes: tuple[Plane, ...]
    least_confidence: float | None  # of this finding, with the one place hidden that lowers it most; None: not asked

    @property
    def finding(self) -> str:
        return self.classes[int(np.argmax(self.probabilities_C))]

    @property
    def confidence(self) -> float:
        """The calibrated probability of the finding, 0 to 1."""
        return float(self.probabilities_C.max())


@dataclass(frozen=True, slots=True)
class Outlined:
    """`labels_DHW`: 0, or the number of the likeliest structure from 1; `masks`: each structure's by itself."""

    labels_DHW: Labels
    masks: tuple[Mask, ...]
    structures: tuple[VolumeStructure, ...]
    num_shared: int


def outlined(probabilities: Iterable[Floats], names: tuple[str, ...]) -> Outlined:
    """From each structure's probabilities [D, H, W], one after the other: all at once they would fill the memory.

    >>> some = outlined([np.array([[[0.7, 0.6, 0.1]]]), np.array([[[0.6, 0.95, 0.4]]])], ("a", "b"))
    >>> some.labels_DHW.tolist(), some.num_shared, [each.num_voxels for each in some.structures]
    ([[[1, 2, 0]]], 2, [2, 2])
    """
    masks: list[Mask] = []
    structures = []
    dtype = np.uint8 if len(names) <= MAX_BYTE_LABEL else np.uint16
    labels_DHW, likeliest_DHW, times_DHW = _nothing(), _nothing(), _nothing()
    for label, (name, probability_DHW) in enumerate(zip(names, probabilities, strict=True), start=1):
        mask_DHW = probability_DHW >= THRESHOLD
        if label == 1:
            labels_DHW = np.zeros(mask_DHW.shape, dtype)
            times_DHW, likeliest_DHW = labels_DHW.copy(), np.zeros(mask_DHW.shape, np.float32)
        likelier_DHW = mask_DHW & (probability_DHW > likeliest_DHW)
        labels_DHW[likelier_DHW] = label
        likeliest_DHW[likelier_DHW] = probability_DHW[likelier_DHW]
        times_DHW += mask_DHW
        masks.append(mask_DHW)
        structures.append(_structure(name, label, probability_DHW, mask_DHW))
    return Outlined(labels_DHW, tuple(masks), tuple(structures), int(np.count_nonzero(times_DHW > 1)))


def _nothing() -> Any:
    return np.zeros((0, 0, 0), np.uint8)


def _structure(name: str, label: int, probability_DHW: Floats, mask_DHW: Mask) -> VolumeStructure:
    num_voxels = int(np.count_nonzero(mask_DHW))
    num_sure = int(np.count_nonzero(probability_DHW >= SURE))
    return VolumeStructure(name, label, num_voxels, num_sure, float(probability_DHW.max()), num_voxels / mask_DHW.size)
