"""An expert: one small network of a federation with who made it, and the statistics of what it has seen.

The form in which a site that agreed shares its personal model, and in which a routed bundle is packed.
F = the channels of which there are statistics (`ayni.learning.statistics` says which).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta

from ayni.errors import IntegrityError
from ayni.task import Name
from ayni.tensors import safe
from ayni.tensors.safe import Array, Floats

MIN_CASES = 5  # statistics of fewer training images, or figures on fewer held-out ones, could tell of one patient
LARGEST_STATISTIC = 1e12  # squares of what `LARGEST_WEIGHT` allows
Form = Literal["fp32", "fp16"]
Num = Annotated[int, Meta(ge=0, lt=2**31)]
PixelMean = Annotated[float, Meta(ge=0, le=1)]
PixelStd = Annotated[float, Meta(gt=0, le=1)]
Digest = Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?\Z")]
LARGEST_GAIN = 1000.0
Gain = Annotated[float, Meta(ge=-LARGEST_GAIN, le=LARGEST_GAIN)]
Spread = Annotated[float, Meta(ge=0, le=LARGEST_GAIN)]

_WEIGHTS, _STATISTICS = "weights.", "statistics"


class ExpertInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose it is and how it was made; the global model's `site` is "global".

    After `rounds` of the federation: a running mean with `decay` (0 if it is no mean); `num_train` private training
    images. `pixel_mean` and `pixel_std` normalise an image's channels. The statistics are of `num_cases` training
    images (0: none) in the global model whose tensors have the digest `reference_digest`, so that those of all sites
    can be compared. On the `num_held_out` images that its site trained nothing on (0: it told nothing) it is better
    than that global model by `home_gain`, in the mean: in Dice, or in nats of what it gives to the true class;
    `home_spread` is the standard deviation between these images.
    """

    site: Name
    task: Name
    rounds: Num
    decay: Annotated[float, Meta(ge=0, le=1)]
    num_train: Num
    pixel_mean: Annotated[tuple[PixelMean, ...], Meta(min_length=1, max_length=16)]
    pixel_std: Annotated[tuple[PixelStd, ...], Meta(min_length=1, max_length=16)]
    reference_digest: Digest = ""
    num_cases: Num = 0
    num_held_out: Num = 0
    home_gain: Gain = 0.0
    home_spread: Spread = 0.0


@dataclass(frozen=True, slots=True)
class Expert:
    """`statistics_2F`: in row 0 each channel's mean over pixels and training images, in row 1 its variance."""

    info: ExpertInfo
    weights: dict[str, Floats]
    statistics_2F: Floats | None = None


def encode_expert(expert: Expert, form: Form = "fp32") -> bytes:
    """A safetensors file; the statistics are 32-bit in both forms. Raises IntegrityError for what cannot be one."""
    kind = np.float16 if form == "fp16" else np.float32
    with np.errstate(over="ignore"):  # refused by _checked
        tensors: dict[str, Array] = {
            _WEIGHTS + name: tensor.astype(kind) for name, tensor in expert.weights.items() if _is_float(name, tensor)
        }
    if expert.statistics_2F is not None:
        tensors[_STATISTICS] = np.asarray(expert.statistics_2F, np.float32)
    _checked(expert.info, tensors)
    return safe.encode(tensors, {"expert": msgspec.json.encode(expert.info).decode(), "form": form})


def decode_expert(data: safe.Bytes) -> Expert:
    """Weights and statistics as 32-bit floats. Raises IntegrityError, and nothing else, whatever the bytes.

    That the weights fit the task's network is for the caller to check (`safe.check_like`).
    """
    tensors = safe.decode(data)
    try:
        info = msgspec.json.decode(safe.read_metadata(data)["expert"], type=ExpertInfo)
    except (KeyError, msgspec.MsgspecError, RecursionError) as error:
        raise IntegrityError(f"this is no expert: {error}") from None
    return _checked(info, tensors)


def _is_float(name: str, tensor: Array) -> bool:
    if tensor.dtype.kind != "f":
        raise IntegrityError(f"tensor {name!r} of an expert has type {tensor.dtype}, not floating point")
    return True


def _checked(info: ExpertInfo, tensors: dict[str, Array]) -> Expert:
    statistics = tensors.get(_STATISTICS)
    weights: dict[str, Floats] = {}
    for full_name, tensor in tensors.items():
        name = full_name.removeprefix(_WEIGHTS)
        if full_name == _STATISTICS:
            continue
        if name == full_name or not name or not _is_float(name, tensor) or tensor.dtype.itemsize > 4:
            raise IntegrityError(f"an expert with an unexpected tensor {full_name!r} of type {tensor.dtype}")
        safe.check_floats(name, tensor, largest=safe.LARGEST_WEIGHT)
        weights[name] = tensor.astype(np.float32)
    if not weights:
        raise IntegrityError("an expert without weights")
    told = (info.home_gain, info.home_spread) != (0, 0)
    if 0 < info.num_held_out < MIN_CASES or (told and not info.num_held_out):
        raise IntegrityError(f"an expert that is better on fewer than {MIN_CASES} images")
    if info.num_held_out and not info.reference_digest:
        raise IntegrityError("an expert that is better than an unknown model")
    if not (abs(info.home_gain) <= LARGEST_GAIN and 0 <= info.home_spread <= LARGEST_GAIN):
        raise IntegrityError(f"an expert with a gain of {info.home_gain} and a spread of {info.home_spread}")
    if len(info.pixel_mean) != len(info.pixel_std):
        raise IntegrityError("an expert whose normalisation has unequal numbers of means and deviations")
    if statistics is None:
        if info.num_cases or (info.reference_digest and not info.num_held_out):
            raise IntegrityError("an expert whose statistics are missing")
        return Expert(info, weights)
    if info.num_cases < MIN_CASES or not info.reference_digest:
        raise IntegrityError(f"an expert with statistics of fewer than {MIN_CASES} cases, or of an unknown model")
    if statistics.dtype != np.float32 or statistics.ndim != 2 or statistics.shape[0] != 2 or not statistics.size:
        raise IntegrityError(f"an expert with statistics of type {statistics.dtype} and shape {list(statistics.shape)}")
    safe.check_floats(_STATISTICS, statistics, largest=LARGEST_STATISTIC)
    if float(statistics[1].min()) < 0:
        raise IntegrityError("an expert with a variance below zero")
    return Expert(info, weights, statistics.astype(np.float32))
