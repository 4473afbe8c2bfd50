"""The networks: MONAI's ResNet (classification) and U-Net (segmentation) with group normalisation, and a
linear head; or for few images a few layers on top of what ImageNet taught.

B = images, F = features, C = classes or structures, H x W = pixels, h x w = the feature map. Of volumes the pixels are
D x H x W, and every layer has one dimension more.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
import torch
from monai.networks.layers.simplelayers import SkipConnection
from monai.networks.nets.resnet import ResNet
from monai.networks.nets.unet import UNet
from torch import Tensor, nn

from ayni.learning.pretrained import frozen_stem
from ayni.task import Architecture, ImageSettings, PretrainedSettings, ResNetSettings, Task, UNetSettings
from ayni.tensors.safe import Floats

LARGEST_NUM_GROUPS = 8


class Network(nn.Module):
    """`head` of the features: the mean over h x w of what a classifier extracts, each pixel's of a U-Net's."""

    def __init__(
        self,
        extractor: nn.Sequential,
        num_features: int,
        num_outputs: int,
        *,
        seen: tuple[int, ...],
        dense: bool = False,
    ) -> None:
        """`seen`: the size of what it sees at once, two numbers or three."""
        super().__init__()
        self.extractor = extractor
        self.num_features, self.seen, self.dense = num_features, seen, dense
        self.head = self.new_head(num_outputs)

    def new_head(self, num_outputs: int) -> nn.Module:
        """One more head for these features, with fresh weights."""
        if not self.dense:
            return nn.Linear(self.num_features, num_outputs)
        convolution = nn.Conv2d if len(self.seen) == 2 else nn.Conv3d
        return convolution(self.num_features, num_outputs, kernel_size=1)

    @property
    def bottleneck(self) -> nn.Module:
        """What gives the deepest features: the middle of a U-Net, the end of a classifier's extractor."""
        levels = [name for name, module in self.named_modules() if isinstance(module, SkipConnection)]
        return self.get_submodule(f"{levels[-1]}.submodule") if levels else self.extractor

    def features(self, x_BCHW: Tensor) -> Tensor:
        """What a head sees: [B, F], or [B, F, H, W] of a U-Net."""
        feature_map_BFhw: Tensor = self.extractor(x_BCHW)
        return feature_map_BFhw if self.dense else feature_map_BFhw.flatten(2).mean(dim=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits of normalised images: [B, C] of classes, or [B, C, H, W] of structures."""
        logits: Tensor = self.head(self.features(x_BCHW))
        return logits


def build_network(settings: Architecture, image: ImageSettings, num_outputs: int) -> Network:
    """A network with fresh weights from torch's random state. Its state names are `extractor.*` and `head.*`."""
    if isinstance(settings, UNetSettings):
        return _build_unet(settings, image, num_outputs)
    if isinstance(settings, PretrainedSettings):
        return _build_pretrained(settings, image, num_outputs)
    return _build_resnet(settings, image, num_outputs)


def _build_resnet(settings: ResNetSettings, image: ImageSettings, num_outputs: int) -> Network:
    resnet = ResNet(
        "basic",
        list(settings.layers),
        list(settings.planes),
        spatial_dims=len(image.size),
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
    return Network(extractor, settings.planes[-1], num_outputs, seen=image.seen)


def _build_pretrained(settings: PretrainedSettings, image: ImageSettings, num_outputs: int) -> Network:
    """Without normalisation of its own: in few images the level of a colour may be what tells them apart, and each
    image's own would take that away."""
    stem = frozen_stem(settings.blocks, image)
    parts: OrderedDict[str, nn.Module] = OrderedDict(stem=stem)
    num_channels = stem.num_features
    for number, num_planes in enumerate(settings.planes, start=1):
        parts[f"convolution{number}"] = nn.Conv2d(num_channels, num_planes, kernel_size=3, padding=1)
        parts[f"act{number}"] = nn.ReLU()
        num_channels = num_planes
    return Network(nn.Sequential(parts), num_channels, num_outputs, seen=image.seen)


def _build_unet(settings: UNetSettings, image: ImageSettings, num_outputs: int) -> Network:
    """Batch normalisation first, replaced as in the ResNet: MONAI wants one number of groups for all layers."""
    unet = UNet(
        spatial_dims=len(image.size),
        in_channels=image.channels,
        out_channels=settings.features,
        channels=settings.channels,
        strides=[2] * (len(settings.channels) - 1),
        num_res_units=settings.residual_units,
        act=("leakyrelu", {"negative_slope": 0.1}),
        norm="batch",
    )
    norm = nn.BatchNorm3d(settings.features) if image.depth else nn.BatchNorm2d(settings.features)
    parts = OrderedDict(unet=unet, norm=norm, act=nn.LeakyReLU(0.1))  # MONAI ends in a bare convolution
    extractor = nn.Sequential(parts)
    _use_group_norm(extractor)
    return Network(extractor, settings.features, num_outputs, seen=image.seen, dense=True)


def _use_group_norm(module: nn.Module) -> None:
    """MONAI's ResNet hands `norm` to its stem alone, and its U-Net one number of groups to all its layers."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d | nn.BatchNorm3d):
            setattr(module, name, nn.GroupNorm(num_groups_of(child.num_features), child.num_features))
        else:
            _use_group_norm(child)


def num_groups_of(num_channels: int) -> int:
    """The most groups, up to 8, of at least two channels: one channel of one pixel would be normalised to nothing."""
    fitting = (n for n in range(LARGEST_NUM_GROUPS, 0, -1) if num_channels % n == 0 and num_channels // n >= 2)
    return next(fitting, 1)


def seeded_network(settings: Architecture, task: Task, seed: int) -> Network:
    """The same seed gives the same weights, whatever else the process has drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_network(settings, task.image, len(task.classes))


def initial_weights(task: Task) -> dict[str, Floats]:
    """The small network that round 1 starts from; half precision holds its values exactly."""
    return rounded_to_half(weights_of(seeded_network(task.small_network, task, task.seed)))


def rounded_to_half(weights: Mapping[str, Floats]) -> dict[str, Floats]:
    """As first weights travel, so that all sides begin with the same bits."""
    return {name: tensor.astype(np.float16).astype(np.float32) for name, tensor in weights.items()}


def weights_of(module: nn.Module) -> dict[str, Floats]:
    """A copy of the weights, float32, by the names of the state."""
    return {name: tensor.detach().numpy().copy() for name, tensor in module.state_dict().items()}


def load_weights(module: nn.Module, weights: Mapping[str, Floats]) -> None:
    """Names and shapes must be exactly the module's (callers check what came from outside)."""
    module.load_state_dict({name: torch.from_numpy(np.array(tensor, np.float32)) for name, tensor in weights.items()})


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
