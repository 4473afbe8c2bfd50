"""Whether a mixture's answers can be used: compared with the global model's on the same images, without a label.

S = structures, C = classes, h x w = pixels as the model sees them (d x h x w = voxels), N = images. numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ayni.tensors.safe import Floats
from ayni_export.routed.record import Answers

THRESHOLD = 0.5  # a pixel is inside from this probability on, as in a diagnosis


@dataclass(frozen=True, slots=True)
class Limits:
    """What the guard lets through. A mixture is there to differ from the global model, so they are wide."""

    least_area: float = 1 / 3  # of what the global model outlines of a structure
    most_area: float = 3.0
    least_share: float = 0.002  # of the image: areas below count as this much, they are noise
    most_entropy_rise: float = 0.02  # of 0 (sure) to 1 (all alike)
    least_dice: float = 0.5  # with the global model's outlines
    least_same_class: float = 0.6  # of the images


@dataclass(frozen=True, slots=True)
class Reply:
    """One image's answer in brief. `inside`: the bits of [S, h, w], or of [C] with the one class; packed."""

    inside: bytes
    num_each: tuple[int, ...]  # bits that are set, of each structure or class
    num_places: int  # pixels, or 1
    entropy: float  # 0 to 1


def brief(probabilities: Floats) -> Reply:
    """Of one image: [S, h, w], each pixel's of each structure, or [C], of classes that sum to 1.

    >>> brief(np.array([0.25, 0.75], np.float32)).num_each
    (0, 1)
    """
    p = np.clip(probabilities.astype(np.float64), 1e-12, 1)
    if probabilities.ndim == 1:
        inside = np.arange(len(p)) == p.argmax()
        entropy = float(-(p * np.log(p)).sum() / np.log(len(p)))
    else:
        inside = probabilities >= THRESHOLD
        q = np.clip(1 - p, 1e-12, 1)
        entropy = float(-(p * np.log(p) + q * np.log(q)).mean() / np.log(2))
    num_each = tuple(int(count) for count in inside.reshape(len(inside), -1).sum(axis=1))
    return Reply(np.packbits(inside).tobytes(), num_each, inside[0].size, max(0.0, entropy))


def answers_of(replies: Sequence[Reply], reference: Sequence[Reply]) -> Answers:
    """Means over the images; `reference` are the global model's replies to the same ones."""
    pairs = list(zip(replies, reference, strict=True))
    shares = np.mean([np.array(reply.num_each) / reply.num_places for reply in replies], axis=0)
    return Answers(
        shares=tuple(float(share) for share in shares),
        entropy=float(np.mean([reply.entropy for reply in replies])),
        agreement=float(np.mean([_dice(one, other) for one, other in pairs])),
    )


def _dice(one: Reply, other: Reply) -> float:
    """Over all structures of an image at once; 1 if nothing is outlined by either. Of one class each: same or not."""
    both = np.frombuffer(one.inside, np.uint8) & np.frombuffer(other.inside, np.uint8)
    num_both, num_all = int(np.unpackbits(both).sum()), sum(one.num_each) + sum(other.num_each)
    return 2 * num_both / num_all if num_all else 1.0


def refusals(
    answers: Answers, reference: Answers, names: Sequence[str], *, dense: bool, limits: Limits, what: str = "image"
) -> tuple[str, ...]:
    """Why a mixture is not used, in words; nothing if it may be. `names`: of the structures or classes, in `what`."""
    found = []
    if dense:
        for name, share, usual in zip(names, answers.shares, reference.shares, strict=True):
            ratio = max(share, limits.least_share) / max(usual, limits.least_share)
            if not limits.least_area <= ratio <= limits.most_area:
                less = "less" if ratio < 1 else "more"
                found.append(
                    f"it outlines far {less} of {name}: {100 * share:.1f} % of the {what}, where the global model "
                    f"outlines {100 * usual:.1f} %"
                )
    if answers.entropy > reference.entropy + limits.most_entropy_rise:
        found.append(
            f"its answers are less sure: {answers.entropy:.3f} on a scale from 0 (sure) to 1, where the global model's "
            f"are {reference.entropy:.3f}"
        )
    if answers.agreement < (limits.least_dice if dense else limits.least_same_class):
        found.append(
            f"its outlines overlap with the global model's by only {answers.agreement:.2f} (Dice, 0 to 1)"
            if dense
            else f"it finds the same as the global model in only {100 * answers.agreement:.0f} % of the {what}s"
        )
    return tuple(found)
