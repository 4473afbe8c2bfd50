"""A volume in, a label map or a finding out. Needs numpy and ONNX Runtime, never torch.

D x H x W = voxels as the model's rules make them, K = channels, C = classes, S = structures.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ayni.data.resample import resampled
from ayni.data.volumes import Volume, as_seen, at_least, padded, place_in, read_volume
from ayni.errors import DataError
from ayni_export.bundle import BundleInfo
from ayni_export.heat_map import heat
from ayni_export.label_map import nifti_of
from ayni_export.occlusion import MAX_HIDDEN_VOXELS, occlusion
from ayni_export.patience import Watch
from ayni_export.three_planes import centre_of, hottest, three_planes
from ayni_export.volume_answer import OutlinedVolume, VolumeFile, VolumeFinding, outlined
from ayni_export.windows import ask_in_windows, windows_of

Floats = np.ndarray[Any, np.dtype[np.float32]]
Voxels = np.ndarray[Any, np.dtype[np.uint8]]
Ask = Callable[[Voxels], tuple[Floats, Floats]]  # volumes [B, D, H, W, K] to logits and probabilities


def diagnose_volume(
    info: BundleInfo, ask: Ask, path: Path, *, allow_burned_in: bool, watch: Watch | None = None
) -> OutlinedVolume | VolumeFinding:
    """`ask` checks that answers are finite; `watch` hears of the windows.

    Raises DataError, which names the file, or MissingExtraError.
    """
    volume = read_volume(path, allow_burned_in=allow_burned_in)
    voxels_DHW = as_seen(volume, info.image, str(path))
    if info.task_kind == "segmentation":
        return _outlined(info, ask, path, volume, voxels_DHW, watch)
    return _found(info, ask, path, volume, voxels_DHW)


def _found(info: BundleInfo, ask: Ask, path: Path, volume: Volume, voxels_DHW: Voxels) -> VolumeFinding:
    """The planes cross where hiding a part lowers the answer most; of a large volume, which is not asked about so
    often, in its middle."""
    whole_DHWK = _with_channels(padded(voxels_DHW, info.image, str(path)), info)
    (logits_C,), (probabilities_C,) = ask(whole_DHWK[np.newaxis])
    values_DHW, warm_DHW, least = volume.values_DHW, None, None
    at = tuple(length // 2 for length in values_DHW.shape)
    if math.prod(info.image.size) <= MAX_HIDDEN_VOXELS:
        falls_DHW, least = occlusion(
            lambda hidden_BDHWK: ask(hidden_BDHWK)[0],
            whole_DHWK,
            int(np.argmax(probabilities_C)),
            temperature=info.temperature,
        )
        warm_DHW = heat(falls_DHW)[place_in(voxels_DHW.shape, info.image.size)]
        at = hottest(warm_DHW, values_DHW.shape)
    planes = three_planes(values_DHW, (), volume.spacing_mm, at, warm_DHW)
    return VolumeFinding(_file(path, volume), info.classes, logits_C, probabilities_C, planes, least)


def _outlined(
    info: BundleInfo, ask: Ask, path: Path, volume: Volume, voxels_DHW: Voxels, watch: Watch | None
) -> OutlinedVolume:
    """A volume that is larger than those of training is asked about in windows, too: nothing is cut off."""
    whole_DHW, place = at_least(voxels_DHW, info.image.size)
    windows = len(windows_of(whole_DHW.shape, info.image.seen))
    logits_SDHW = ask_in_windows(
        lambda part_dhwK: ask(part_dhwK[np.newaxis])[0][0],
        _with_channels(whole_DHW, info),
        info.image.seen,
        None if watch is None else functools.partial(watch, f"looking at parts of {path.name}"),
    )
    found = outlined(
        (
            resampled(_probability(logits_DHW[place], info.temperature), volume.values_DHW.shape)
            for logits_DHW in logits_SDHW
        ),
        info.classes,
    )
    at = centre_of(found.labels_DHW > 0, volume.spacing_mm)
    return OutlinedVolume(
        file=_file(path, volume),
        structures=found.structures,
        num_shared=found.num_shared,
        mask_file=nifti_of(found.labels_DHW, volume, path, info.classes),
        planes=three_planes(volume.values_DHW, found.masks, volume.spacing_mm, at),
        num_windows=windows,
        is_larger=whole_DHW.shape != info.image.size,
    )


def _with_channels(voxels_DHW: Voxels, info: BundleInfo) -> Voxels:
    return np.repeat(voxels_DHW[..., np.newaxis], info.image.channels, axis=3)


def _probability(logits_DHW: Floats, temperature: float) -> Floats:
    """The sigmoid; half of it each way, so that nothing overflows."""
    return np.asarray(0.5 + 0.5 * np.tanh(logits_DHW / np.float32(2 * temperature)), np.float32)


def _file(path: Path, volume: Volume) -> VolumeFile:
    steps_mm = tuple(volume.spacing_mm[2 - axis] for axis, _ in volume.turn)
    directions = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    return VolumeFile(
        path=path,
        sha256=_sha256(path),
        shape=volume.file_shape,
        voxel_mm=steps_mm,
        voxel_mm3=float(abs(np.linalg.det(directions)) * np.prod(steps_mm)),
        source=volume.source,
        is_oriented=volume.is_oriented,
    )


def _sha256(path: Path) -> str:
    """Of the file, or of a folder's files one after the other, by their names."""
    whole = hashlib.sha256()
    try:
        for part in sorted(path.iterdir()) if path.is_dir() else [path]:
            if part.is_file():
                with part.open("rb") as file:
                    while piece := file.read(1 << 20):
                        whole.update(piece)
    except OSError as error:
        raise DataError(f"{path} was taken away while it was read ({error.strerror}). Give it again.") from None
    return whole.hexdigest()
