"""Images in, diagnoses out; one bad file does not stop the others. Needs numpy and ONNX Runtime, never torch.

H x W = pixels, h x w = pixels as the model sees them, K = channels, C = classes, S = structures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ayni.data.images import prepare, read_image
from ayni.errors import AyniError, DataError
from ayni.task import ImageSettings
from ayni_export.bundle import Bundle, BundleInfo, read_bundle
from ayni_export.calibration import images_word
from ayni_export.diagnose_volume import diagnose_volume
from ayni_export.occlusion import occlusion
from ayni_export.patience import Watch
from ayni_export.routed.adapting import Reading, session_for
from ayni_export.runtime import Device, Session
from ayni_export.segmentation import Segmentation, shown, structures_of
from ayni_export.spacing import read_spacing
from ayni_export.volume_answer import OutlinedVolume, VolumeFinding

SHOWN_PIXELS = 448  # the longer side of the picture in the report is at most this, or what the model takes
OTHER_SIZE = "Scale it first, or ask for it (--resize)."
FEW_HELD_OUT = 100  # a calibration on fewer images is called rough

Floats = np.ndarray[Any, np.dtype[np.float32]]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Ask = Callable[[Pixels], tuple[Floats, Floats]]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What the model says of one image. `shown_HWK` is the image as the model's view frames it, in more detail."""

    path: Path
    sha256: str
    width: int  # of the file, in pixels
    height: int
    classes: tuple[str, ...]
    logits_C: Floats
    probabilities_C: Floats
    falls_hw: Floats  # nats: how far the log-odds of the finding fall where the image is hidden
    least_confidence: float  # of this finding, with the one patch hidden that lowers it most
    shown_HWK: Pixels

    @property
    def predicted(self) -> int:
        return int(np.argmax(self.probabilities_C))

    @property
    def finding(self) -> str:
        return self.classes[self.predicted]

    @property
    def confidence(self) -> float:
        """The calibrated probability of the finding, 0 to 1."""
        return float(self.probabilities_C[self.predicted])


@dataclass(frozen=True, slots=True)
class FileError:
    """A file that could not be diagnosed, and why; the text names the next step."""

    path: Path
    reason: str


Answer = Diagnosis | Segmentation | VolumeFinding | OutlinedVolume | FileError


def diagnose(
    bundle: Path | Bundle,
    images: Sequence[Path],
    *,
    resize: bool = False,
    signer: str | None = None,
    allow_burned_in: bool = False,
    num_threads: int = 1,
    device: Device | None = None,
) -> list[Answer]:
    """One answer per image, in their order: a Diagnosis, or a Segmentation if that is the bundle's task; of volumes a
    VolumeFinding or an OutlinedVolume.

    A routed bundle is first adapted to these images, all together. `device`: None takes a GPU if this installation can.

    Raises UserError or BundleError if the bundle will not do.
    """
    opened = bundle if isinstance(bundle, Bundle) else read_bundle(bundle, signer=signer)
    reading = Reading(resize=resize, allow_burned_in=allow_burned_in, device=device, num_threads=num_threads)
    session, _ = session_for(opened, images, reading)
    return list(answers(opened.info, session, images, resize=resize, allow_burned_in=allow_burned_in))


def answers(
    info: BundleInfo,
    session: Session,
    images: Sequence[Path],
    *,
    resize: bool,
    allow_burned_in: bool,
    watch: Watch | None = None,
) -> Iterator[Answer]:
    """As `diagnose`, one by one: a program can show how far it is. `watch` hears how far a large volume is."""
    for path in images:
        try:
            yield _diagnose_one(info, session, path, resize or info.image.resize, allow_burned_in, watch)
        except AyniError as error:
            yield FileError(path, str(error))


def _diagnose_one(
    info: BundleInfo, session: Session, path: Path, resize: bool, allow_burned_in: bool, watch: Watch | None
) -> Diagnosis | Segmentation | VolumeFinding | OutlinedVolume:
    def ask(pixels_BhwK: Pixels) -> tuple[Floats, Floats]:
        logits, probabilities = session.run(pixels_BhwK)
        if not (np.isfinite(logits).all() and np.isfinite(probabilities).all()):
            raise DataError(
                f"{path}: the model's answer is not a number. Do not use it; report it to the site {info.site}."
            )
        return logits, probabilities

    if info.image.depth:
        return diagnose_volume(info, ask, path, allow_burned_in=allow_burned_in, watch=watch)
    pixels_HWK = read_image(path, allow_burned_in=allow_burned_in)
    seen_hwK = prepare(pixels_HWK, info.image, resize=resize, name=str(path), remedy=OTHER_SIZE)
    if info.task_kind == "segmentation":
        height, width, picture_HWK = *pixels_HWK.shape[:2], shown(pixels_HWK)
        del pixels_HWK  # a large X-ray's pixels, its masks and the network's maps are never in memory all at once
        (_,), (probabilities_Shw,) = ask(seen_hwK[np.newaxis])
        return Segmentation(
            path=path,
            sha256=_sha256(path),
            width=width,
            height=height,
            structures=structures_of(probabilities_Shw, info.classes, info.image, height, width),
            spacing=read_spacing(path),
            shown_HWK=picture_HWK,
        )
    return _classified(info, path, pixels_HWK, seen_hwK, ask)


def _classified(info: BundleInfo, path: Path, pixels_HWK: Pixels, seen_hwK: Pixels, ask: Ask) -> Diagnosis:
    (logits_C,), (probabilities_C,) = ask(seen_hwK[np.newaxis])
    falls_hw, least_confidence = occlusion(
        lambda hidden_BhwK: ask(hidden_BhwK)[0],
        seen_hwK,
        int(np.argmax(probabilities_C)),
        temperature=info.temperature,
    )
    return Diagnosis(
        path=path,
        sha256=_sha256(path),
        width=pixels_HWK.shape[1],
        height=pixels_HWK.shape[0],
        classes=info.classes,
        logits_C=logits_C,
        probabilities_C=probabilities_C,
        falls_hw=falls_hw,
        least_confidence=least_confidence,
        shown_HWK=_shown(pixels_HWK, info.image),
    )


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} was taken away while it was read ({error.strerror}). Give it again.") from None


def _shown(pixels_HWK: Pixels, image: ImageSettings) -> Pixels:
    """The image framed as the model sees it, but as large as it is and as the report needs, so that a heat map fits."""
    height, width = pixels_HWK.shape[:2]
    detail = max(height / image.height, width / image.width)
    factor = max(1, min(int(detail), SHOWN_PIXELS // max(image.height, image.width)))
    frame = msgspec.structs.replace(image, height=image.height * factor, width=image.width * factor)
    return prepare(pixels_HWK, frame, resize=True)


def in_words(confidence: float) -> str:
    """A calibrated confidence as a person would say it.

    >>> [in_words(share) for share in (0.99, 0.9, 0.7, 0.52)]
    ['high confidence', 'moderate confidence', 'low confidence', 'undecided']
    """
    for least, words in ((0.95, "high confidence"), (0.80, "moderate confidence"), (0.60, "low confidence")):
        if confidence >= least:
            return words
    return "undecided"


def confidence_sentence(info: BundleInfo, confidence: float) -> str:
    """What the number means, and on how many images that rests."""
    if info.routed is not None:
        return "The probability that the mixed model itself gives: it was not calibrated for this place."
    num_held_out = sum(info.num_holdout_per_class.values())
    images = images_word(info)
    share = f"Of 100 {images} answered with this confidence, about {min(99, round(100 * confidence))} should be right"
    if num_held_out < FEW_HELD_OUT:
        return f"{share}; with only {num_held_out} {images} to calibrate on, that is rough."
    return f"{share}, as calibrated on {num_held_out} held-out {images} of the site."
