"""The ways to answer an unseen site's images that are compared, by the names of their rows."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ayni_coordinator.simulation.unseen import merging, plain, refreshing, routing
from ayni_coordinator.simulation.unseen.site import UnseenSite

Way = Callable[[UnseenSite], Tensor]  # the logits of all of the site's images

WAYS: dict[str, Way] = {
    "global": plain.global_model,
    "soup": plain.soup,
    "ensemble": plain.ensemble,
    "oracle": plain.oracle,
    "oracle_half": plain.oracle_half,
    "norm_refresh": refreshing.norm_refresh,
    "tent": refreshing.tent,
    "fine_tune": refreshing.fine_tune,
    "entropy_merge": merging.entropy_merge,
    "js_interpolation": merging.js_interpolation,
    "routed": routing.routed,
    "routed_refined": routing.routed_refined,
    "routed_refined_long": routing.routed_refined_long,
    "routed_refined_answers": routing.routed_refined_answers,
    "routed_losses": routing.routed_losses,
    "routed_learned": routing.routed_learned,
}
NUM_MODELS = {"global": 1, "norm_refresh": 1, "tent": 1, "fine_tune": 1}  # that the site has to fetch; else all experts
