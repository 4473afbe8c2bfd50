"""The layers that experts are mixed by: all tensors of one leaf module are one layer, and every tensor is in one.

A layer is what stands before the last dot of a state's names, in the order of the state. Needs no numpy, no torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Layer:
    """`tensors` are the names in the state: `head.weight` and `head.bias` of the layer `head`."""

    name: str
    tensors: tuple[str, ...]


def layers_of(names: Iterable[str]) -> tuple[Layer, ...]:
    """The layers of a state, in its order. A tensor of no module (no dot in its name) is a layer by itself.

    >>> [layer.name for layer in layers_of(["stem.weight", "norm.weight", "norm.bias", "head.weight", "head.bias"])]
    ['stem', 'norm', 'head']
    """
    tensors_of: dict[str, list[str]] = {}
    for name in names:
        module, dot, _ = name.rpartition(".")
        tensors_of.setdefault(module if dot else name, []).append(name)
    return tuple(Layer(name, tuple(tensors)) for name, tensors in tensors_of.items())


def check_cover(layers: Iterable[Layer], names: Iterable[str]) -> None:
    """Raises ValueError unless every name is in exactly one layer: else an expert would be silently left out of it."""
    covered, wanted = sorted(name for layer in layers for name in layer.tensors), sorted(names)
    if covered != wanted:
        raise ValueError(f"the layers do not hold every tensor once: {set(covered) ^ set(wanted) or 'one twice'}")
