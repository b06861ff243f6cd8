"""HSPAN as PyTorch modules, named so that the state dict has the official keys.

The network is described in Su et al., "High-Similarity-Pass Attention for Single Image Super-Resolution",
IEEE Transactions on Image Processing, 2024.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from trt_hspan.model.config import HspanConfig
from trt_hspan.ops.attention import high_similarity_pass_attention

# Mean color of the DIV2K training pictures, RGB in [0, 1].
DIV2K_MEAN: Final = (0.4488, 0.4371, 0.4040)


class MeanShift(nn.Conv2d):
    """Adds `sign` times the mean color, as a fixed 1x1 convolution. (N, 3, H, W) -> (N, 3, H, W)."""

    def __init__(self, sign: int) -> None:
        super().__init__(3, 3, kernel_size=1)
        with torch.no_grad():
            # By Python: arithmetic on the device "meta" imports PyTorch's compiler, 87 MB in a second or more.
            identity = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
            self.weight.copy_(identity.view(3, 3, 1, 1))
            assert self.bias is not None
            self.bias.copy_(torch.tensor([sign * mean for mean in DIV2K_MEAN]))
        self.requires_grad_(False)


class HighSimilarityPassAttention(nn.Module):
    """The attention block: x + res_scale * attention(query(x), key(x), value(x)).

    Query, key and value are 1x1 convolutions with a PReLU. The block keeps the shape and can be used in any
    convolutional network: (N, channels, H, W) -> (N, channels, H, W).

    Args:
        channels: channels of the input, and of the value.
        reduction: query and key have channels // reduction channels.
        res_scale: factor on the attention's result.

    Raises:
        ValueError: no query channels are left.

    Example:
        >>> import torch
        >>> from trt_hspan import HighSimilarityPassAttention
        >>> block = HighSimilarityPassAttention(channels=16)
        >>> block(torch.rand(1, 16, 6, 8)).shape
        torch.Size([1, 16, 6, 8])
    """

    def __init__(self, channels: int, *, reduction: int = 2, res_scale: float = 1.0) -> None:
        super().__init__()
        if reduction < 1 or channels // reduction < 1:
            raise ValueError(f"{channels} channels with reduction {reduction} leave no query channels")
        self.res_scale = res_scale
        self.conv_match1 = nn.Sequential(nn.Conv2d(channels, channels // reduction, 1), nn.PReLU())
        self.conv_match2 = nn.Sequential(nn.Conv2d(channels, channels // reduction, 1), nn.PReLU())
        self.conv_assembly = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.PReLU())

    def forward(self, features: Tensor) -> Tensor:
        attended = high_similarity_pass_attention(
            self.conv_match1(features), self.conv_match2(features), self.conv_assembly(features)
        )
        return attended * self.res_scale + features


class ResidualBlock(nn.Module):
    """x + conv(ReLU(conv(x))). (N, channels, H, W) -> (N, channels, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv3x3(channels, channels), nn.ReLU(), _conv3x3(channels, channels))

    def forward(self, features: Tensor) -> Tensor:
        residual: Tensor = self.body(features)
        return residual + features


class AttentionModule(nn.Module):
    """Residual blocks, the attention block and a convolution, times res_scale, plus the input."""

    def __init__(self, config: HspanConfig) -> None:
        super().__init__()
        self.res_scale = config.res_scale
        self.body = nn.Sequential(
            *(ResidualBlock(config.n_feats) for _ in range(config.n_blocks)),
            HighSimilarityPassAttention(
                config.n_feats, reduction=config.reduction, res_scale=config.res_scale
            ),
            _conv3x3(config.n_feats, config.n_feats),
        )

    def forward(self, features: Tensor) -> Tensor:
        residual: Tensor = self.body(features)
        return residual * self.res_scale + features


class HSPAN(nn.Module):
    """The network. (N, 3, H, W) float RGB in [0, 1] -> (N, 3, H * scale, W * scale), not clamped.

    Args:
        config: every size. Weights are PyTorch's default initialization until a state dict is loaded.

    Example:
        >>> import torch
        >>> from trt_hspan import HSPAN, HspanConfig
        >>> network = HSPAN(HspanConfig(n_feats=16, n_groups=1, n_blocks=1, scale=3))
        >>> network(torch.rand(1, 3, 6, 8)).shape
        torch.Size([1, 3, 18, 24])
    """

    a: Tensor

    def __init__(self, config: HspanConfig) -> None:
        super().__init__()
        self.config = config
        f = config.n_feats
        self.register_buffer("a", torch.zeros(1))  # in official checkpoints, used by nothing
        self.sub_mean = MeanShift(-1)
        self.add_mean = MeanShift(1)
        self.head = nn.Sequential(_conv3x3(3, f))
        self.body = nn.Sequential(*(AttentionModule(config) for _ in range(config.n_groups)), _conv3x3(f, f))
        upsampler: list[nn.Module] = []
        for factor in config.upsampler_factors:
            upsampler += [_conv3x3(f, f * factor * factor), nn.PixelShuffle(factor)]
        self.tail = nn.Sequential(nn.Sequential(*upsampler), _conv3x3(f, 3))

    def forward(self, image: Tensor) -> Tensor:
        shallow = self.head(self.sub_mean(image))
        upscaled: Tensor = self.add_mean(self.tail(self.body(shallow) + shallow))
        return upscaled


def _conv3x3(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)
