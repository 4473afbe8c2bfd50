"""What a foundation model is to us: something with a name that answers images with logits. New ones: `models`."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ayni.errors import LineError, UserError
from ayni.task import GuidanceSettings, Kind
from ayni_coordinator.guidance import models

Pixels = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]
DOES: dict[Kind, str] = {"classification": "tells classes", "segmentation": "outlines structures"}


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


def open_source(settings: GuidanceSettings, kind: Kind, home: Path) -> Source:
    """The source that the task of this kind names. Raises UserError if there is none, or none for such a task."""
    source: Source = _module(settings.source, kind).open_model(settings, kind, home)
    return source


def check_source(settings: GuidanceSettings, kind: Kind) -> None:
    """Whether the source that the task names, if it names one, is there and for tasks of this kind; asks nothing."""
    if settings.source != "none":
        _module(settings.source, kind)


def named_classes(settings: GuidanceSettings, own: tuple[str, ...], model: str) -> tuple[str, ...]:
    """The names that the settings give to what the model answers with, else its own. Raises UserError if there are
    more or fewer."""
    if settings.classes and len(settings.classes) != len(own):
        raise UserError(f"guidance.classes names {len(settings.classes)}, and {model} answers with {len(own)}.")
    return settings.classes or own


def known_sources() -> tuple[str, ...]:
    """One module in `models` each; imports none of them."""
    return tuple(sorted(found.name.replace("_", "-") for found in pkgutil.iter_modules(models.__path__)))


def _module(name: str, kind: Kind) -> Any:
    known = known_sources()
    if name not in known:
        raise UserError(f"guidance.source {name!r} cannot be asked; choose one of {', '.join(known)}.")
    module = importlib.import_module(f"{models.__name__}.{name.replace('-', '_')}")
    if kind not in module.KINDS:
        raise UserError(f'guidance.source "{name}" {DOES[module.KINDS[0]]}; it is not for {kind}.')
    return module
