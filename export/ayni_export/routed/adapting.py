"""A routed bundle made ready for a worklist: read the images, choose, mix once; then every image costs a plain answer.

Needs numpy and ONNX Runtime, never torch. E = experts, L = layers, h x w = pixels (d x h x w = voxels), K = channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ayni.tensors import safe
from ayni.tensors.safe import Floats
from ayni_export import bundle as parts
from ayni_export.bundle import Bundle
from ayni_export.bundle_folder import pretty_json, take_back, write_bundle
from ayni_export.patience import Watch
from ayni_export.routed.adapt import Ask, Comparison, Setting, choose
from ayni_export.routed.experts import Experts, read_experts, routed_info, weights_of
from ayni_export.routed.mixed_answers import gradient_of_mixed_answers
from ayni_export.routed.record import (
    ADAPTATION_FILE,
    EXPLAINED_FILE,
    FOLDED_FILE,
    GRADIENT_FILE,
    LOOKING_FILE,
    ROUTED_FILE,
    Adaptation,
    RoutedInfo,
)
from ayni_export.routed.refine import Gradient, Pixels
from ayni_export.routed.start import Places
from ayni_export.routed.words import explained
from ayni_export.routed.worklist import read_worklist, statistics_of
from ayni_export.runtime import Device, Session, open_session, planes


@dataclass(frozen=True, slots=True)
class Reading:
    """How images are read, on what the model runs, and who hears how far that is."""

    resize: bool = False
    allow_burned_in: bool = False
    device: Device | None = None
    num_threads: int = 1
    watch: Watch | None = None


def session_for(
    bundle: Bundle, images: Sequence[Path], reading: Reading, *, refine: bool = False
) -> tuple[Session, Adaptation | None]:
    """The model that answers these images, and how it was mixed (None: the bundle holds one model).

    An adapted bundle stays as it was adapted; a routed one is adapted to these images. Raises as `Session`.
    """
    if bundle.info.routed is None:
        return Session(bundle, device=reading.device, num_threads=reading.num_threads), None
    if bundle.adaptation is not None:
        return _session(bundle, weights_of(bundle, bundle.adaptation), reading), bundle.adaptation
    fitted = adapted(bundle, images, reading, refine=refine)
    return fitted.session, fitted.adaptation


def _session(bundle: Bundle, weights: Mapping[str, Floats], reading: Reading) -> Session:
    return Session(bundle, weights=weights, device=reading.device, num_threads=reading.num_threads)


@dataclass(frozen=True, slots=True)
class Fitted:
    """What was chosen, the weights that it makes, and these ready to be asked."""

    adaptation: Adaptation
    weights: Mapping[str, Floats]
    session: Session


def adapted(bundle: Bundle, images: Sequence[Path], reading: Reading, *, refine: bool = False) -> Fitted:
    """A routing for these images with all that led to it, and the weights that it makes. Nothing is remembered: the
    same images give the same routing, whatever was asked before. Raises BundleError if the bundle will not do."""
    info, experts = routed_info(bundle), read_experts(bundle)
    num_layers = len(experts.layers)
    worklist = read_worklist(
        bundle.info, images, resize=reading.resize, allow_burned_in=reading.allow_burned_in, watch=reading.watch
    )

    def ask_with(routing_LE: Floats) -> Ask:
        session = _session(bundle, experts.fold(routing_LE), reading)
        heard = _heard(reading, "weighing up a mixture", len(worklist.seen))
        return lambda image_hwK: heard(session.run(image_hwK[np.newaxis])[1][0])

    compared = worklist.seen if info.say else []  # nothing is asked of images where no mixture may speak
    looks = _looks(bundle, experts, compared, reading)
    comparison = Comparison(looks, experts.statistics, Places(bundle.info.image.channels, experts.num_features))
    gradient = _gradient(bundle, info, experts, reading) if refine and info.say else None
    dense = bundle.info.task_kind == "segmentation"
    setting = Setting(bundle.info.classes, dense, info.what, say=info.say)
    choice = choose(worklist.seen, comparison, num_layers, ask_with, setting, gradient)
    weights = experts.fold(choice.routing_LE)
    session = _session(bundle, weights, reading)
    adaptation = Adaptation(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        bundle_sha256=bundle.signature_sha256,
        weights_sha256=safe.digest(weights),
        num_images=worklist.num_images,
        num_unreadable=worklist.num_unreadable,
        num_in_part=worklist.num_in_part,
        routing=tuple(tuple(row) for row in choice.routing_LE.tolist()),
        distances=choice.distances,
        chosen=choice.chosen,
        usual=choice.usual,
        tried=choice.tried,
        refinement=choice.refinement,
        device=session.device,
    )
    return Fitted(adaptation, weights, session)


def _looks(bundle: Bundle, experts: Experts, seen: Sequence[Pixels], reading: Reading) -> list[Floats | None]:
    """For each expert that has statistics, those of these images in the global network after that site's normalisation.

    One network is in memory at a time.
    """
    heard = _heard(reading, "comparing", len(seen) * sum(there_2F is not None for there_2F in experts.statistics))
    looks: list[Floats | None] = [None] * len(experts.statistics)
    for number, there_2F in enumerate(experts.statistics):
        if there_2F is None or not seen:
            continue
        session, _ = open_session(
            bundle.files[LOOKING_FILE],
            experts.fold(experts.seeing(number)),
            device=reading.device,
            num_threads=reading.num_threads,
        )

        def look(image_hwK: Pixels, session: Any = session) -> Floats:
            moments_2F: Floats = session.run(["statistics"], {"pixels": planes(image_hwK[np.newaxis])})[0][0]
            return heard(moments_2F)

        looks[number] = statistics_of(seen, look)
    return looks


def _heard(reading: Reading, what: str, total: int) -> Callable[[Floats], Floats]:
    """Hands on what it is given, and says that one more of `total` is done."""
    done = itertools.count(1)

    def heard(answer: Floats) -> Floats:
        if reading.watch is not None:
            reading.watch(what, next(done), total)
        return answer

    return heard


def _gradient(bundle: Bundle, info: RoutedInfo, experts: Experts, reading: Reading) -> Gradient:
    """The loss of one image and its exact gradient; without a gradient graph, those of the experts' mixed answers."""
    if not info.has_gradient:
        return _gradient_of_answers(bundle, experts, reading)
    term_weights_T = np.array(list(info.term_weights.values()), np.float32)
    session, _ = open_session(
        bundle.files[GRADIENT_FILE], experts.stacked, device=reading.device, num_threads=reading.num_threads
    )

    def gradient(image_hwK: Pixels, logits_LE: Floats) -> tuple[float, Floats]:
        loss, slope_LE = session.run(
            ["loss", "gradient"],
            {
                "pixels": planes(image_hwK[np.newaxis]),
                "routing_logits": logits_LE,
                "term_weights": term_weights_T,
            },
        )
        return float(loss), slope_LE

    return gradient


def _gradient_of_answers(bundle: Bundle, experts: Experts, reading: Reading) -> Gradient:
    session, _ = open_session(
        bundle.files[ROUTED_FILE], experts.stacked, device=reading.device, num_threads=reading.num_threads
    )
    num_layers, num_experts = len(experts.layers), len(experts.statistics)

    def ask(image_hwK: Pixels, number: int) -> Floats:
        alone_LE = np.repeat(np.eye(1, num_experts, number, dtype=np.float32), num_layers, axis=0)
        (logits,) = session.run(["logits"], {"pixels": planes(image_hwK[np.newaxis]), "routing": alone_LE})
        answer: Floats = logits[0]
        return answer

    return gradient_of_mixed_answers(ask, num_experts, temperature=bundle.info.temperature)


def write_adapted(bundle: Bundle, source: Path, fitted: Fitted, out: Path) -> None:
    """The routed bundle of the folder `source` again, with what was adapted beside what the coordinator signed.

    The signature still holds for every file that it names. Raises UserError if `out` will not do.
    """
    take_back(out)
    parts.check_replaceable(out)
    files = {
        **bundle.files,
        parts.SIGNATURE_FILE: (source / parts.SIGNATURE_FILE).read_bytes(),
        ADAPTATION_FILE: pretty_json(fitted.adaptation),
        EXPLAINED_FILE: explained(routed_info(bundle), fitted.adaptation).encode(),
        FOLDED_FILE: safe.encode(fitted.weights),
    }
    write_bundle(out, files)
