"""A site that never trained, with all that may be fitted to it: the experts, and its images in worklists.

E = experts (0 is the global model), L = layers, N = images, B = images of one worklist, K = channels, H x W = pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ayni.learning.batches import Normaliser
from ayni.learning.networks import Network
from ayni.learning.scores import score, score_masks
from ayni.learning.site_data import OwnImages
from ayni.learning.statistics import gathered, statistics_of
from ayni.task import Task
from ayni.tensors.safe import Floats
from ayni.trained_model import Scores
from ayni_export.routed.answers import Answering, answering, answers, normalised, with_normalisation
from ayni_export.routed.at_home import Told, share_of_the_say
from ayni_export.routed.layers import Layer, layers_of
from ayni_export.routed.mixing import mixed, stacked
from ayni_export.routed.start import Places

WORKLIST = 16  # images that a clinic brings at once
LONG_WORKLIST = 64  # about as many as a routing looks at; up to 95 are not cut in two
BATCH = 32  # images that are answered at once; it changes nothing but memory


@dataclass(frozen=True)
class Participant:
    """A site that trained: what it has, and what it lets others know (`statistics_2F`: None below the least number;
    `at_home`: how its expert does beside the global model on its held-out images)."""

    name: str
    own: OwnImages
    statistics_2F: Tensor | None
    at_home: Told


@dataclass(frozen=True)
class UnseenSite:
    """`pixels_NKHW` (8 bits) are to be answered; a few labelled images are there for who asks for labels."""

    task: Task
    network: Network  # the global one
    normalise: Normaliser
    states: Sequence[Mapping[str, Tensor]]  # each expert's weights
    participants: Sequence[Participant]  # experts 1 to E - 1
    pixels_NKHW: Tensor
    truth: Tensor
    few: OwnImages

    @property
    def num_experts(self) -> int:
        return len(self.states)

    @property
    def say(self) -> float:
        """How much of it a mixture may have, as of a routed bundle."""
        return share_of_the_say(one.at_home for one in self.participants)

    @cached_property
    def asked(self) -> Answering:
        return answering(self.network)

    @cached_property
    def stack(self) -> dict[str, Tensor]:
        mean, std = self.normalise.mean, self.normalise.std
        return stacked([with_normalisation(state, mean, std) for state in self.states])

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        return layers_of(tuple(self.stack))

    @property
    def places(self) -> Places:
        return Places(self.task.image.channels, self.network.num_features)

    def worklists(self, length: int = WORKLIST) -> list[slice]:
        """All images in lists of about that many, in their order."""
        number = max(1, round(len(self.pixels_NKHW) / length))
        cuts = [round(i * len(self.pixels_NKHW) / number) for i in range(number + 1)]
        return [slice(start, end) for start, end in itertools.pairwise(cuts)]

    def weights(self, routing_LE: Tensor) -> dict[str, Tensor]:
        return mixed(self.stack, routing_LE, self.layers)

    def shared(self, weights_E: Sequence[float] | Tensor) -> Tensor:
        """[L, E]: the same row in every layer."""
        row_E = torch.as_tensor(weights_E, dtype=torch.float32)
        return row_E.expand(len(self.layers), -1).contiguous()

    def one(self, expert: int) -> dict[str, Tensor]:
        """That expert's weights."""
        return self.weights(self.shared(torch.eye(self.num_experts)[expert]))

    def soup(self, first: int = 0) -> dict[str, Tensor]:
        """The arithmetic mean of the experts from `first` on."""
        number = self.num_experts - first
        return self.weights(self.shared([0.0] * first + [1 / number] * number))

    def logits(self, weights: Mapping[str, Tensor], pixels_BKHW: Tensor) -> Tensor:
        """Of 8-bit images."""
        with torch.no_grad():
            parts = torch.split(pixels_BKHW, BATCH)
            return torch.cat([answers(self.asked, weights, normalised(part, weights))[0] for part in parts])

    def looks(self, pixels_BKHW: Tensor) -> Tensor:
        """[2, F]: how the global network sees these images."""
        with torch.no_grad():
            return gathered(statistics_of(self.network, self.normalise(pixels_BKHW)))

    def figures(self, logits: Tensor, truth: Tensor, *, distances: bool = False) -> Scores:
        dense = self.task.kind == "segmentation"
        return score_masks(logits, truth, distances=distances) if dense else score(logits, truth)

    def probabilities(self, logits: Tensor) -> Floats:
        dense = self.task.kind == "segmentation"
        found: Floats = (torch.sigmoid(logits) if dense else torch.softmax(logits, dim=1)).numpy()
        return found
