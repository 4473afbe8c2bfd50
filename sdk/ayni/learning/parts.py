"""The state of networks and optimisers as named tensors, and back: what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from ayni.tensors.safe import Array

Parts = Mapping[str, nn.Module | torch.optim.Optimizer]


def tensors_of(parts: Parts) -> dict[str, Array]:
    """A copy of every parameter, buffer and moment, named `part.name`."""
    return {
        f"{part_name}.{name}": tensor.detach().cpu().numpy().copy()
        for part_name, part in parts.items()
        for name, tensor in _tensors(part).items()
    }


def load_parts(parts: Parts, tensors: Mapping[str, Array]) -> None:
    """The counterpart of `tensors_of`. A part of which nothing was stored stays as it is."""
    for part_name, part in parts.items():
        own = {name: torch.from_numpy(np.array(array)) for name, array in under(tensors, part_name).items()}
        if not own:
            continue
        if isinstance(part, nn.Module):
            part.load_state_dict(own)
        else:
            _load_moments(part, own)


def under(tensors: Mapping[str, Array], part_name: str) -> dict[str, Array]:
    """The tensors of one part, by their names within it."""
    prefix = f"{part_name}."
    return {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}


def _tensors(part: nn.Module | torch.optim.Optimizer) -> dict[str, Tensor]:
    if isinstance(part, nn.Module):
        return dict(part.state_dict())
    moments = part.state_dict()["state"].items()
    return {f"{number}.{key}": value for number, values in moments for key, value in values.items()}


def _load_moments(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Learning rate and the other settings stay the optimiser's own."""
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, key = name.split(".", 1)
        moments.setdefault(int(number), {})[key] = tensor
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
