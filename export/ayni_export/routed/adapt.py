"""A routing for one worklist: from the images alone, without labels, and never worse than the guard can tell.

The strategy is one plain function. E = experts (0 is the global model), L = layers, F = channels of the statistics,
h x w = pixels as the model sees them, K = channels. numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ayni.tensors.safe import Floats
from ayni_export.routed.guard import Limits, Reply, answers_of, brief, refusals
from ayni_export.routed.record import Answers, Chosen, Refinement, Tried
from ayni_export.routed.refine import Gradient, Pixels, refined, shared
from ayni_export.routed.start import Places, distance, start_weights

Ask = Callable[[Pixels], Floats]  # an image [h, w, K] -> probabilities [C] or [S, h, w]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the worklist looks like beside each expert's training images: both as the global network sees them, after
    that site's own normalisation of pixels. [2, F] each; None where a site gave no statistics."""

    here: Sequence[Floats | None]
    there: Sequence[Floats | None]
    places: Places

    def distances(self) -> tuple[float | None, ...]:
        """[E], in nats."""
        return tuple(
            None if here_2F is None or there_2F is None else distance(here_2F, there_2F, self.places)
            for here_2F, there_2F in zip(self.here, self.there, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Candidate:
    name: Literal["refined", "start"]
    routing_LE: Floats
    refinement: Refinement | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """What the answers are about: `names` of structures (`dense`) or classes, in images or volumes (`what`); and how
    much of the `say` a mixture may have, 0 to 1."""

    names: Sequence[str]
    dense: bool
    what: str = "image"
    say: float = 1.0
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True)
class Choice:
    """The routing, where it comes from, and all that was weighed up. `usual`: what the global model answers."""

    routing_LE: Floats
    chosen: Chosen
    distances: tuple[float | None, ...]
    usual: Answers | None = None
    tried: tuple[Tried, ...] = ()
    refinement: Refinement | None = None


def candidates(
    comparison: Comparison, seen: Sequence[Pixels], num_layers: int, gradient: Gradient | None, say: float = 1.0
) -> list[Candidate]:
    """The strategy: what to try for this worklist, the best guess first. The guard takes the first that it passes.
    What a mixture may not have of the `say` is the global model's.

    `seen`: its images. `gradient`: for a refinement, if one was asked for.
    """
    start_E = start_weights(comparison.here, comparison.there, comparison.places)
    if say < 1:
        start_E = np.asarray(say * start_E, np.float32)
        start_E[0] += 1 - say
    start = Candidate("start", shared(start_E, num_layers))
    if gradient is None:
        return [start]
    refined_LE, refinement = refined(seen, start_E, gradient, num_layers)
    return [Candidate("refined", refined_LE, refinement), start]


def only_global(num_layers: int, num_experts: int) -> Floats:
    """[L, E]: expert 0 in every layer."""
    return shared(np.eye(1, num_experts, dtype=np.float32)[0], num_layers)


def choose(
    seen: Sequence[Pixels],
    comparison: Comparison,
    num_layers: int,
    ask_with: Callable[[Floats], Ask],
    setting: Setting,
    gradient: Gradient | None = None,
) -> Choice:
    """Weigh up the strategy's candidates; the first that the guard passes, or else the global model. It answers alone
    too where a mixture may not speak: its experts are no better even at home.

    `seen`: the worklist's images. `ask_with(routing_LE)` is a mixture, ready to be asked; one is in memory at a time.
    """
    distances = comparison.distances()
    alone_LE = only_global(num_layers, len(distances))
    if not seen or len(distances) == 1 or setting.say == 0:
        return Choice(alone_LE, "global", distances)

    def replies(routing_LE: Floats) -> list[Reply]:
        ask = ask_with(routing_LE)
        return [brief(ask(image_hwK)) for image_hwK in seen]

    reference = replies(alone_LE)
    usual = answers_of(reference, reference)
    answered = [
        (each, answers_of(replies(each.routing_LE), reference))
        for each in candidates(comparison, seen, num_layers, gradient, setting.say)
    ]
    tried: list[Tried] = []
    chosen: Candidate | None = None
    for number, (each, answers) in enumerate(answered):
        refused = refusals(answers, usual, setting.names, dense=setting.dense, limits=setting.limits, what=setting.what)
        if each.refinement is not None and answers.entropy > min(later.entropy for _, later in answered[number:]):
            refused = (*refused, "the gradient steps made its answers less sure than those that it started from")
        tried.append(Tried(name=each.name, weights=_mean(each), answers=answers, refused=refused))
        chosen = chosen or (None if refused else each)
    refinement = next((each.refinement for each, _ in answered if each.refinement is not None), None)
    if chosen is None:
        return Choice(alone_LE, "global", distances, usual, tuple(tried), refinement)
    return Choice(chosen.routing_LE, chosen.name, distances, usual, tuple(tried), refinement)


def _mean(candidate: Candidate) -> tuple[float, ...]:
    return tuple(float(share) for share in candidate.routing_LE.mean(axis=0, dtype=np.float64))
