"""The networks: MONAI ResNets with group normalisation, an extractor and a linear head.

B = images, F = features, C = classes, h x w = the feature map.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
import torch
from monai.networks.nets.resnet import ResNet
from torch import Tensor, nn

from ayni.task import ImageSettings, ResNetSettings, Task
from ayni.tensors.safe import Floats

LARGEST_NUM_GROUPS = 8


class Network(nn.Module):
    """`head` of the mean over h x w of `extractor`."""

    def __init__(self, extractor: nn.Sequential, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.extractor = extractor
        self.head = nn.Linear(num_features, num_classes)

    def features(self, x_BCHW: Tensor) -> Tensor:
        """[B, F]: what a head sees."""
        feature_map_BFhw: Tensor = self.extractor(x_BCHW)
        return feature_map_BFhw.mean(dim=(2, 3))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits [B, C] of normalised images."""
        logits_BC: Tensor = self.head(self.features(x_BCHW))
        return logits_BC


def build_network(settings: ResNetSettings, image: ImageSettings, num_classes: int) -> Network:
    """A network with fresh weights from torch's random state. Its state names are `extractor.*` and `head.*`."""
    resnet = ResNet(
        "basic",
        list(settings.layers),
        list(settings.planes),
        spatial_dims=2,
        n_input_channels=image.channels,
        conv1_t_size=7 if settings.stem_stride == 2 else 3,
        conv1_t_stride=settings.stem_stride,
        no_max_pool=not settings.max_pool,
        feed_forward=False,
        bias_downsample=False,
    )
    parts: OrderedDict[str, nn.Module] = OrderedDict(stem=resnet.conv1, norm=resnet.bn1, act=resnet.act)
    if settings.max_pool:
        parts["pool"] = resnet.maxpool
    parts.update({f"stage{i}": getattr(resnet, f"layer{i}") for i in range(1, 5)})
    extractor = nn.Sequential(parts)
    _use_group_norm(extractor)
    return Network(extractor, settings.planes[-1], num_classes)


def _use_group_norm(module: nn.Module) -> None:
    """MONAI's ResNet hands `norm` to its stem alone; its blocks would keep batch normalisation."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(num_groups_of(child.num_features), child.num_features))
        else:
            _use_group_norm(child)


def num_groups_of(num_channels: int) -> int:
    """The most groups, up to 8, of at least two channels: one channel of one pixel would be normalised to nothing."""
    fitting = (n for n in range(LARGEST_NUM_GROUPS, 0, -1) if num_channels % n == 0 and num_channels // n >= 2)
    return next(fitting, 1)


def seeded_network(settings: ResNetSettings, task: Task, seed: int) -> Network:
    """The same seed gives the same weights, whatever else the process has drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_network(settings, task.image, len(task.classes))


def initial_weights(task: Task) -> dict[str, Floats]:
    """The small network that round 1 starts from; half precision holds its values exactly."""
    weights = weights_of(seeded_network(task.networks.small, task, task.seed))
    return {name: tensor.astype(np.float16).astype(np.float32) for name, tensor in weights.items()}


def weights_of(module: nn.Module) -> dict[str, Floats]:
    """A copy of the weights, float32, by the names of the state."""
    return {name: tensor.detach().numpy().copy() for name, tensor in module.state_dict().items()}


def load_weights(module: nn.Module, weights: Mapping[str, Floats]) -> None:
    """Names and shapes must be exactly the module's (callers check what came from outside)."""
    module.load_state_dict({name: torch.from_numpy(np.array(tensor, np.float32)) for name, tensor in weights.items()})


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
