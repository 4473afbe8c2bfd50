"""The experts of a routed bundle, and the weights that a routing makes of them. numpy only.

E = experts (0 is the global model), L = layers, F = channels of the statistics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ayni.errors import IntegrityError
from ayni.tensors import safe
from ayni.tensors.safe import Array, Floats
from ayni_export.bundle import Bundle
from ayni_export.routed.fold import folded
from ayni_export.routed.layers import Layer, layers_of
from ayni_export.routed.record import EXPERTS_FILE, STATISTICS_FILE, Adaptation, RoutedInfo
from ayni_export.signature import BundleError

NORMALISATION = "normalise"  # the layer of a site's pixel mean and deviation


@dataclass(frozen=True, slots=True)
class Experts:
    """`stacked`: each tensor of all experts, [E, ...], looking into the bundle's bytes. `statistics`: [2, F] of each
    expert's training images, None where a site gave none."""

    stacked: Mapping[str, Array]
    layers: tuple[Layer, ...]
    statistics: tuple[Floats | None, ...]

    @property
    def num_features(self) -> int:
        """That the head sees: the last channels of the statistics."""
        return int(self.stacked["head.weight"].shape[2])

    def fold(self, routing_LE: Floats) -> dict[str, Floats]:
        """The weights of one network."""
        return folded(self.stacked, routing_LE, self.layers)

    def seeing(self, expert: int) -> Floats:
        """[L, E]: the global model, with the normalisation of pixels of one expert's site."""
        routing_LE = np.zeros((len(self.layers), len(self.statistics)), np.float32)
        routing_LE[:, 0] = 1
        for number, layer in enumerate(self.layers):
            if layer.name == NORMALISATION:
                routing_LE[number] = np.eye(1, len(self.statistics), expert)[0]
        return routing_LE


def routed_info(bundle: Bundle) -> RoutedInfo:
    """Raises BundleError if it is not a routed bundle."""
    if bundle.info.routed is None:
        raise BundleError(f"the bundle {bundle.info.name} holds one model, and there is nothing to adapt in it.")
    return bundle.info.routed


def read_experts(bundle: Bundle) -> Experts:
    """Raises BundleError if the signed files contradict each other."""
    info = routed_info(bundle)
    try:
        stacked = safe.decode(bundle.files[EXPERTS_FILE], largest=safe.LARGEST_WEIGHT)
        found = safe.decode(bundle.files[STATISTICS_FILE])
    except (KeyError, IntegrityError) as error:
        raise BundleError(
            f"the experts of the bundle {bundle.info.name} are damaged: {error}. Copy it again."
        ) from None
    statistics = [found.get(expert.site) for expert in info.experts]
    layers, num_experts = layers_of(info.tensors), len(info.experts)
    fits = (
        set(stacked) == set(info.tensors)
        and tuple(layer.name for layer in layers) == info.layers
        and all(tensor.ndim and len(tensor) == num_experts for tensor in stacked.values())
        and all(
            (there is not None) == bool(note.num_cases) for there, note in zip(statistics, info.experts, strict=True)
        )
        and len({there.shape for there in statistics if there is not None}) <= 1
    )
    if not fits:
        raise BundleError(f"the experts of the bundle {bundle.info.name} are not those it names. Export it again.")
    floats = (None if there is None else there.astype(np.float32) for there in statistics)
    return Experts({name: stacked[name] for name in info.tensors}, layers, tuple(floats))


def weights_of(bundle: Bundle, adaptation: Adaptation) -> dict[str, Floats]:
    """The experts mixed again as an adapted bundle says. Raises BundleError if its weights are not these bits."""
    weights = read_experts(bundle).fold(np.array(adaptation.routing, np.float32))
    if safe.encode(weights) != bundle.folded or safe.digest(weights) != adaptation.weights_sha256:
        raise BundleError(
            f"the bundle {bundle.info.name} was changed: its mixed weights are not those of its experts and its "
            "adaptation.json. Adapt the routed bundle again (`ayni adapt`)."
        )
    return weights
