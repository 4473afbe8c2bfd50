"""How much of a volume a network may see at once while it trains, for the memory that the task allows."""

from __future__ import annotations

import math

import msgspec
import torch
from torch import Tensor, nn

from ayni.errors import UserError
from ayni.learning.networks import Network, build_network
from ayni.task import Architecture, Task, UNetSettings

BASE_MB = 450  # interpreter, torch and MONAI
COPIES = 3.0  # of every layer's output: itself, its gradient, and what a layer keeps for the way back


def estimated_mb(task: Task, architecture: Architecture, patch: tuple[int, ...]) -> int:
    """Of training this network with batches of such patches, twice: labelled and unlabelled images. From the sizes of
    all layers' outputs; nothing is computed."""
    with torch.device("meta"):
        image = msgspec.structs.replace(task.image, patch=None)
        network = build_network(architecture, image, len(task.classes))
        pixels = torch.empty(task.training.batch_size, task.image.channels, *patch)
    floats = _num_floats(network, pixels) + pixels.numel()
    weights = 4 * sum(parameter.numel() for parameter in network.parameters())
    return BASE_MB + math.ceil(4 * (2 * COPIES * floats + weights) / 2**20)


def _num_floats(network: Network, pixels: Tensor) -> int:
    sizes: list[int] = []

    def note(module: nn.Module, inputs: object, output: Tensor) -> None:
        sizes.append(output.numel())

    leaves = [module for module in network.modules() if not list(module.children())]
    handles = [module.register_forward_hook(note) for module in leaves]
    with torch.no_grad():
        network(pixels)
    for handle in handles:
        handle.remove()
    return sum(sizes)


def chosen_patch(task: Task) -> tuple[int, int, int] | None:
    """The task's own patch if it names one; None if whole volumes fit `training.memory_mb`; else the largest patch that
    does. Its sides are as alike as the volume and the networks' halvings allow. Raises UserError if none fits."""
    image = task.image
    if not image.depth or image.patch:
        return image.patch
    architectures = [task.small_network, task.large_network, *([task.teacher_network] if task.dual_kd else [])]
    if _largest(task, architectures, image.size) <= task.training.memory_mb:
        return None
    if task.kind == "classification":
        raise UserError(
            f"training on whole volumes of {' x '.join(map(str, image.size))} takes more than training.memory_mb = "
            f"{task.training.memory_mb}. Make the volumes, the networks or the batch smaller, or allow more."
        )
    step = max(one.smallest_step for one in architectures if isinstance(one, UNetSettings))
    for side in range(max(image.size) // step * step, 0, -step):
        patch = tuple(min(side, whole // step * step) for whole in image.size)
        if _largest(task, architectures, patch) <= task.training.memory_mb:
            depth, height, width = patch
            return depth, height, width
    raise UserError(
        f"training.memory_mb = {task.training.memory_mb} is too little for these networks, even with patches of "
        f"{step} voxels a side. Make the batch or the networks smaller, or allow more."
    )


def _largest(task: Task, architectures: list[Architecture], patch: tuple[int, ...]) -> int:
    return max(estimated_mb(task, one, patch) for one in architectures)
