"""The network of LiteMedSAM: box prompts on one 256 x 256 image, logits of the same size. For inference only.

Written anew after the LiteMedSAM branch of bowang-lab/MedSAM (Apache-2.0), which is made of Segment Anything's prompt
encoder and mask decoder (Meta, Apache-2.0) and of TinyViT (Microsoft, MIT). The packages that carry its code want timm
and with it torchvision, for four small functions; here it needs torch alone, and nothing but numbers is taken from
the weights file. Parameters have the names of that file. What box prompts do not use (points, mask prompts, the
masks for ambiguous points, the quality estimate) is left out.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

SIZE = 256  # height and width of the image that it takes
GRID = 64  # height and width of the image's embedding
DIM = 256  # channels of the embedding
NUM_HEADS = 8  # of the mask decoder's attention


class LiteMedSam(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = ImageEncoder()
        self.prompt_encoder = PromptEncoder()
        self.mask_decoder = MaskDecoder()

    def embed(self, image_1CHW: Tensor) -> Tensor:
        """[1, 256, 64, 64] of an image [1, 3, 256, 256] with values 0..1: the costly part, once per image."""
        return cast(Tensor, self.image_encoder(image_1CHW))

    def segment(self, embedding_1DGG: Tensor, boxes_N4: Tensor) -> Tensor:
        """Logits [N, 256, 256], one mask for each box (left, top, right, bottom in pixels of the 256 x 256 image)."""
        prompts_N2D = self.prompt_encoder.boxes(boxes_N4)
        plain_1D11 = self.prompt_encoder.no_mask_embed.weight.reshape(1, DIM, 1, 1)
        position_1DGG = self.prompt_encoder.grid()
        return cast(Tensor, self.mask_decoder(embedding_1DGG + plain_1D11, position_1DGG, prompts_N2D))


class ImageEncoder(nn.Module):
    """TinyViT: convolutions at full size, then attention in windows at 128 x 128 and twice at 64 x 64."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"seq": nn.Sequential(ConvNorm(3, 32), nn.GELU(), ConvNorm(32, 64))})
        self.layers = nn.ModuleList(
            [
                Stage([InvertedBottleneck(64) for _ in range(2)], Merging(64, 128, stride=2)),
                Stage([WindowBlock(128, 4, window=7) for _ in range(2)], Merging(128, 160, stride=2)),
                Stage([WindowBlock(160, 5, window=14) for _ in range(6)], Merging(160, 320, stride=1)),
                Stage([WindowBlock(320, 10, window=7) for _ in range(2)], None),
            ]
        )
        self.neck = nn.Sequential(
            nn.Conv2d(320, DIM, 1, bias=False),
            ChannelNorm(DIM),
            nn.Conv2d(DIM, DIM, 3, padding=1, bias=False),
            ChannelNorm(DIM),
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.patch_embed["seq"](x_BCHW)
        for layer in self.layers:
            x_BCHW = layer(x_BCHW)
        return cast(Tensor, self.neck(x_BCHW))


class Stage(nn.Module):
    def __init__(self, blocks: list[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for block in self.blocks:
            x_BCHW = block(x_BCHW)
        return x_BCHW if self.downsample is None else cast(Tensor, self.downsample(x_BCHW))


class ConvNorm(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, size: int = 1, *, stride: int = 1, groups: int = 1) -> None:
        conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
        super().__init__(OrderedDict[str, nn.Module](c=conv, bn=nn.BatchNorm2d(outputs)))


class InvertedBottleneck(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, 4 * channels)
        self.conv2 = ConvNorm(4 * channels, 4 * channels, 3, groups=4 * channels)
        self.conv3 = ConvNorm(4 * channels, channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        inner = functional.gelu(self.conv2(functional.gelu(self.conv1(x_BCHW))))
        return functional.gelu(x_BCHW + self.conv3(inner))


class Merging(nn.Module):
    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inputs, outputs)
        self.conv2 = ConvNorm(outputs, outputs, 3, stride=stride, groups=outputs)
        self.conv3 = ConvNorm(outputs, outputs)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        inner = functional.gelu(self.conv2(functional.gelu(self.conv1(x_BCHW))))
        return cast(Tensor, self.conv3(inner))


class WindowBlock(nn.Module):
    """Attention inside windows, a convolution across their borders, and a small network per pixel."""

    def __init__(self, channels: int, num_heads: int, *, window: int) -> None:
        super().__init__()
        self.window = window
        self.attn = WindowAttention(channels, num_heads, window)
        self.local_conv = ConvNorm(channels, channels, 3, groups=channels)
        self.mlp = nn.Sequential(
            OrderedDict[str, nn.Module](
                norm=nn.LayerNorm(channels),
                fc1=nn.Linear(channels, 4 * channels),
                act=nn.GELU(),
                fc2=nn.Linear(4 * channels, channels),
            )
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BHWC = x_BCHW.permute(0, 2, 3, 1)
        x_BHWC = x_BHWC + self._in_windows(x_BHWC)
        x_BHWC = self.local_conv(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return cast(Tensor, (x_BHWC + self.mlp(x_BHWC)).permute(0, 3, 1, 2))

    def _in_windows(self, x_BHWC: Tensor) -> Tensor:
        (num_images, height, width, channels), side = x_BHWC.shape, self.window
        padded = functional.pad(x_BHWC, (0, 0, 0, -width % side, 0, -height % side))
        rows, columns = padded.shape[1] // side, padded.shape[2] // side
        tiles = padded.view(num_images, rows, side, columns, side, channels).transpose(2, 3)
        attended = self.attn(tiles.reshape(-1, side * side, channels))
        tiles = attended.view(num_images, rows, columns, side, side, channels).transpose(2, 3)
        return cast(Tensor, tiles.reshape(padded.shape)[:, :height, :width])


class WindowAttention(nn.Module):
    """Self-attention over a window's pixels, with a learned bias for each distance (rows, columns) between two."""

    def __init__(self, channels: int, num_heads: int, window: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, window * window))
        row_L = torch.arange(window).repeat_interleave(window)
        column_L = torch.arange(window).repeat(window)
        distance_LL = (row_L[:, None] - row_L).abs() * window + (column_L[:, None] - column_L).abs()
        self.register_buffer("distance_LL", distance_LL, persistent=False)

    def forward(self, x_BLC: Tensor) -> Tensor:
        parts = self.qkv(self.norm(x_BLC)).unflatten(2, (self.num_heads, 3, -1)).permute(3, 0, 2, 1, 4)
        bias_HLL = self.attention_biases[:, cast(Tensor, self.distance_LL)]
        attended = functional.scaled_dot_product_attention(parts[0], parts[1], parts[2], attn_mask=bias_HLL)
        return cast(Tensor, self.proj(attended.transpose(1, 2).flatten(2)))


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of [B, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BHWC = x_BCHW.permute(0, 2, 3, 1)
        return functional.layer_norm(x_BHWC, self.weight.shape, self.weight, self.bias, 1e-6).permute(0, 3, 1, 2)


class PromptEncoder(nn.Module):
    """Where something is, as waves of random frequencies; a box is its two corners."""

    def __init__(self) -> None:
        super().__init__()
        self.pe_layer = nn.Module()
        self.pe_layer.register_buffer("positional_encoding_gaussian_matrix", torch.zeros(2, DIM // 2))
        self.point_embeddings = nn.ModuleList([nn.Embedding(1, DIM) for _ in range(4)])
        self.no_mask_embed = nn.Embedding(1, DIM)

    def boxes(self, boxes_N4: Tensor) -> Tensor:
        """[N, 2, DIM]: top left and bottom right."""
        corners_N22 = self._encode((boxes_N4 + 0.5).reshape(-1, 2, 2) / SIZE)
        kinds_2D = torch.cat([cast(nn.Embedding, self.point_embeddings[kind]).weight for kind in (2, 3)])
        return corners_N22 + kinds_2D

    def grid(self) -> Tensor:
        """[1, DIM, GRID, GRID]: the place of each cell of the embedding."""
        middle_G = (torch.arange(GRID) + 0.5) / GRID
        y_GG, x_GG = torch.meshgrid(middle_G, middle_G, indexing="ij")
        return self._encode(torch.stack([x_GG, y_GG], dim=-1)).permute(2, 0, 1)[None]

    def _encode(self, places: Tensor) -> Tensor:
        frequencies = cast(Tensor, self.pe_layer.positional_encoding_gaussian_matrix)
        angles = 2 * math.pi * ((2 * places - 1) @ frequencies)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class MaskDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.iou_token = nn.Embedding(1, DIM)
        self.mask_tokens = nn.Embedding(4, DIM)
        self.transformer = TwoWayTransformer()
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(DIM, DIM // 4, 2, stride=2),
            ChannelNorm(DIM // 4),
            nn.GELU(),
            nn.ConvTranspose2d(DIM // 4, DIM // 8, 2, stride=2),
            nn.GELU(),
        )
        widths = [(DIM, DIM), (DIM, DIM), (DIM, DIM // 8)]
        layers = nn.ModuleList([nn.Linear(inputs, outputs) for inputs, outputs in widths])
        self.output_hypernetworks_mlps = nn.ModuleList([nn.ModuleDict({"layers": layers})])

    def forward(self, embedding_1DGG: Tensor, position_1DGG: Tensor, prompts_N2D: Tensor) -> Tensor:
        """Logits [N, 4 GRID, 4 GRID] of the first of its four masks: the one that is meant for boxes."""
        num_boxes = len(prompts_N2D)
        own_TD = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens_NTD = torch.cat([own_TD.expand(num_boxes, -1, -1), prompts_N2D], dim=1)
        image_NLD = embedding_1DGG.flatten(2).transpose(1, 2).expand(num_boxes, -1, -1)
        tokens_NTD, image_NLD = self.transformer(image_NLD, position_1DGG.flatten(2).transpose(1, 2), tokens_NTD)
        large_NCHW = self.output_upscaling(image_NLD.transpose(1, 2).unflatten(2, (GRID, GRID)))
        mask_NC = tokens_NTD[:, 1]
        first = cast(nn.ModuleDict, self.output_hypernetworks_mlps[0])["layers"]
        for number, layer in enumerate(cast(nn.ModuleList, first)):
            mask_NC = layer(functional.relu(mask_NC) if number else mask_NC)
        return torch.einsum("nc,nchw->nhw", mask_NC, large_NCHW)


class TwoWayTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([TwoWayBlock(first=True), TwoWayBlock(first=False)])
        self.final_attn_token_to_image = CrossAttention(DIM // 2)
        self.norm_final_attn = nn.LayerNorm(DIM)

    def forward(self, image_NLD: Tensor, position_1LD: Tensor, prompts_NTD: Tensor) -> tuple[Tensor, Tensor]:
        tokens_NTD = prompts_NTD
        for layer in self.layers:
            tokens_NTD, image_NLD = layer(tokens_NTD, image_NLD, prompts_NTD, position_1LD)
        found = self.final_attn_token_to_image(tokens_NTD + prompts_NTD, image_NLD + position_1LD, image_NLD)
        return self.norm_final_attn(tokens_NTD + found), image_NLD


class TwoWayBlock(nn.Module):
    """Tokens look at each other, then at the image, think, and the image looks at them."""

    def __init__(self, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = CrossAttention(DIM)
        self.cross_attn_token_to_image = CrossAttention(DIM // 2)
        self.cross_attn_image_to_token = CrossAttention(DIM // 2)
        self.mlp = nn.Sequential(
            OrderedDict[str, nn.Module](lin1=nn.Linear(DIM, 2048), act=nn.ReLU(), lin2=nn.Linear(2048, DIM))
        )
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(DIM) for _ in range(4))

    def forward(
        self, tokens_NTD: Tensor, image_NLD: Tensor, prompts_NTD: Tensor, position_1LD: Tensor
    ) -> tuple[Tensor, Tensor]:
        placed = tokens_NTD + prompts_NTD
        own = self.self_attn(tokens_NTD, tokens_NTD, tokens_NTD) if self.first else None
        own = tokens_NTD + self.self_attn(placed, placed, tokens_NTD) if own is None else own
        tokens_NTD = self.norm1(own)
        placed_image = image_NLD + position_1LD
        found = self.cross_attn_token_to_image(tokens_NTD + prompts_NTD, placed_image, image_NLD)
        tokens_NTD = self.norm2(tokens_NTD + found)
        tokens_NTD = self.norm3(tokens_NTD + self.mlp(tokens_NTD))
        told = self.cross_attn_image_to_token(placed_image, tokens_NTD + prompts_NTD, tokens_NTD)
        return tokens_NTD, self.norm4(image_NLD + told)


class CrossAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(DIM, width) for _ in range(3))
        self.out_proj = nn.Linear(width, DIM)

    def forward(self, query_NTD: Tensor, key_NSD: Tensor, value_NSD: Tensor) -> Tensor:
        query, key, value = self.q_proj(query_NTD), self.k_proj(key_NSD), self.v_proj(value_NSD)
        heads = [part.unflatten(2, (NUM_HEADS, -1)).transpose(1, 2) for part in (query, key, value)]
        attended = functional.scaled_dot_product_attention(heads[0], heads[1], heads[2])
        return cast(Tensor, self.out_proj(attended.transpose(1, 2).flatten(2)))
