"""What a foundation model is to us: something with a name that answers images with logits. Add a new kind here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ayni.errors import LineError, UserError
from ayni.task import GuidanceSettings

Pixels = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]


class Source(Protocol):
    """`version` names all that decides an answer (weights, preprocessing): answers are stored under it for ever."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def licence(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def batch_size(self) -> int: ...

    def answer(self, pixels_BHWC: Pixels) -> Logits:
        """Finite logits_BC, B images and C classes; or dense ones [B, S, h, w], S structures of one sigmoid each.

        h and w are the images' own height and width, or half of them. Raises TryLaterError, or an error that no
        retry will mend.
        """
        ...


class TryLaterError(LineError):
    """The source did not answer this time. `answered_perhaps`: it may have done the work, so the images count."""

    def __init__(self, message: str, *, answered_perhaps: bool, after_s: float | None = None) -> None:
        super().__init__(message)
        self.answered_perhaps, self.after_s = answered_perhaps, after_s


def open_source(settings: GuidanceSettings, home: Path) -> Source:
    """The source that the task names; what it caches (a converted model) goes to `home`/guidance."""
    if settings.source not in _OPENERS:
        raise UserError(f"guidance source {settings.source!r} cannot be asked; choose one of {', '.join(_OPENERS)}")
    return _OPENERS[settings.source](settings, home)


def _open_lite0(settings: GuidanceSettings, home: Path) -> Source:
    from ayni_coordinator.guidance.efficientnet_lite0 import open_lite0

    return open_lite0(settings, home)


def _open_lite_medsam(settings: GuidanceSettings, home: Path) -> Source:
    from ayni_coordinator.guidance.lite_medsam import open_lite_medsam

    return open_lite_medsam(settings)


def _open_onnx(settings: GuidanceSettings, home: Path) -> Source:
    from ayni_coordinator.guidance.onnx_model import open_onnx

    return open_onnx(settings)


def _open_http(settings: GuidanceSettings, home: Path) -> Source:
    from ayni_coordinator.guidance.http_endpoint import open_http

    return open_http(settings)


_OPENERS: dict[str, Callable[[GuidanceSettings, Path], Source]] = {
    "efficientnet-lite0": _open_lite0,
    "lite-medsam": _open_lite_medsam,
    "onnx": _open_onnx,
    "http": _open_http,
}
