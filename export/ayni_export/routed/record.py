"""What a routed bundle says of its experts, and what was chosen between them: frozen, closed, without numpy.

E = experts (0 is the global model), L = layers, S = structures.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ayni.task import Name
from ayni_export.routed.at_home import Told, share_of_the_say

MAX_EXPERTS, MAX_LAYERS = 256, 2000
# one network's graphs take folded weights, without and with statistics; the other two all experts' weights, stacked
PLAIN_FILE, LOOKING_FILE = "models/plain.onnx", "models/plain_with_statistics.onnx"
ROUTED_FILE, GRADIENT_FILE = "models/routed.onnx", "models/gradient.onnx"
EXPERTS_FILE, STATISTICS_FILE = "models/experts.safetensors", "models/statistics.safetensors"
ADAPTATION_FILE, EXPLAINED_FILE, FOLDED_FILE = "adaptation.json", "docs/adaptation.md", "models/weights.safetensors"
ADDED_FILES = (ADAPTATION_FILE, EXPLAINED_FILE, FOLDED_FILE)  # what `ayni adapt` puts beside the signed files
SUM_TOLERANCE = 1e-5  # of a row of 32-bit weights

Form = Literal["fp16", "fp32"]
Chosen = Literal["refined", "start", "global"]
Weight = Annotated[float, Meta(ge=0, le=1)]
Figure = Annotated[float, Meta(ge=0, le=1e9)]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Num = Annotated[int, Meta(ge=0, lt=2**31)]
Gain = Annotated[float, Meta(ge=-1000, le=1000)]
Spread = Annotated[float, Meta(ge=0, le=1000)]


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Closed: what this version does not know is refused."""


class ExpertNote(_Record, frozen=True, kw_only=True):
    """One expert. `num_cases`: training images behind its statistics; 0 if the site gave none. `home_gain`, with
    `home_spread`: by how much it is better than the global model on `num_held_out` images of its own site, in the
    bundle's `home_unit`; 0 images if the site did not tell (`ExpertInfo`)."""

    site: Name
    num_train: Num
    rounds: Num
    num_cases: Num
    num_held_out: Num = 0
    home_gain: Gain = 0.0
    home_spread: Spread = 0.0
    weights_sha256: Digest  # as it was shared, before it was rounded to the bundle's form


class Latency(_Record, frozen=True, kw_only=True):
    """Milliseconds per image on one thread of the machine that exported: medians of `num_runs`."""

    plain_ms: Figure
    routed_ms: Figure
    gradient_ms: Figure | None
    num_runs: Num


class RoutedInfo(_Record, frozen=True, kw_only=True):
    """`tensors`: the names in the order of the network's state; what stands before the last dot is a layer."""

    experts: Annotated[tuple[ExpertNote, ...], Meta(min_length=1, max_length=MAX_EXPERTS)]
    tensors: Annotated[tuple[str, ...], Meta(min_length=1, max_length=10_000)]
    layers: Annotated[tuple[str, ...], Meta(min_length=1, max_length=MAX_LAYERS)]
    form: Form
    reference_digest: Digest  # of the global model in which the statistics were made
    term_weights: dict[str, Figure]  # of the loss that the gradient is of, in this order
    gradient_parity: Figure | None  # largest difference from torch's, of the largest entry; None: there is no gradient
    why_no_gradient: str = ""
    latency: Latency
    dimensions: Literal[2, 3] = 2  # 3 of volumes
    home_unit: Literal["Dice", "nats"] = "nats"

    @property
    def what(self) -> str:
        """One of a worklist, in words."""
        return "image" if self.dimensions == 2 else "volume"

    @property
    def num_held_out(self) -> int:
        """Images on which sites compared their experts with the global model."""
        return sum(expert.num_held_out for expert in self.experts)

    @property
    def home_gain(self) -> float:
        """How much better the experts are at home than the global model, the mean over these images; 0 of none."""
        return sum(expert.num_held_out * expert.home_gain for expert in self.experts) / max(1, self.num_held_out)

    @property
    def say(self) -> float:
        """How much of the say a mixture may have, 0 to 1; the rest is the global model's."""
        return share_of_the_say(Told(e.num_held_out, e.home_gain, e.home_spread) for e in self.experts)

    @property
    def has_gradient(self) -> bool:
        return self.gradient_parity is not None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the experts, as a person reads them.

        >>> expert_name("global"), expert_name("north")
        ('the global model', 'the model of north')
        """
        return tuple(expert_name(expert.site) for expert in self.experts)


def expert_name(site: str) -> str:
    return "the global model" if site == "global" else f"the model of {site}"


class Answers(_Record, frozen=True, kw_only=True):
    """What one routing answers to a worklist, in figures that need no label: means over the images.

    `shares`: of the pixels those inside each structure, or of the images those of each class. `entropy`: 0 (sure) to
    1 (all alike). `agreement` with the global model: Dice of the outlines, or the share of images with the same class.
    """

    shares: tuple[Weight, ...]
    entropy: Annotated[float, Meta(ge=0, le=1.001)]
    agreement: Weight


class Tried(_Record, frozen=True, kw_only=True):
    """A routing that was weighed up, and why the guard refused it (nothing: it passed)."""

    name: Literal["refined", "start"]
    weights: tuple[Weight, ...]  # [E], the mean over the layers
    answers: Answers
    refused: tuple[str, ...]


class Refinement(_Record, frozen=True, kw_only=True):
    """Gradient steps on losses without labels: means over the images of the first step, and over those of the last.
    In the last `num_own` of them each layer was free to have weights of its own.

    Where the bundle has no gradient graph they are steps of `mixed_answers.py`, which leave all layers alike.
    """

    num_steps: Num
    num_own: Num = 0
    loss_first: Annotated[float, Meta(ge=-1e9, le=1e9)]
    loss_last: Annotated[float, Meta(ge=-1e9, le=1e9)]


class Adaptation(_Record, frozen=True, kw_only=True):
    """What was chosen for one worklist, and why. The experts mixed by `routing` are the weights, bit for bit."""

    format: Literal["ayni-adaptation/1"] = "ayni-adaptation/1"
    created: str  # ISO 8601, UTC
    bundle_sha256: Digest  # of the routed bundle's signature.json
    weights_sha256: Digest  # of the mixed weights (ayni.tensors.safe.digest)
    num_images: Num
    num_unreadable: Num
    num_in_part: Num = 0  # volumes of which the network sees but the middle at once, and only that was looked at
    routing: Annotated[tuple[tuple[Weight, ...], ...], Meta(min_length=1, max_length=MAX_LAYERS)]  # [L, E]
    distances: tuple[Figure | None, ...]  # [E] of the worklist's statistics from each expert's; None: it has none
    chosen: Chosen
    usual: Answers | None = None  # of the global model
    tried: Annotated[tuple[Tried, ...], Meta(max_length=8)] = ()  # the best guess first
    refinement: Refinement | None = None
    device: Literal["cpu", "gpu"]

    @property
    def weights(self) -> tuple[float, ...]:
        """[E]: each expert's share, the mean over the layers."""
        return tuple(sum(column) / len(self.routing) for column in zip(*self.routing, strict=True))


def is_routing(routing: tuple[tuple[float, ...], ...], info: RoutedInfo) -> bool:
    """Whether it has one row per layer, each on the simplex of the experts."""
    return len(routing) == len(info.layers) and all(
        len(row) == len(info.experts) and min(row) >= 0 and math.isclose(sum(row), 1, abs_tol=SUM_TOLERANCE)
        for row in routing
    )
