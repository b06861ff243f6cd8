"""Parts of real networks around the attention block: what torch.onnx exports correctly stays correct."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from support.around_block import Around, require_same
from torch import Tensor, nn
from torch.nn import functional as F

from trt_hspan import onnx_from_model
from trt_hspan.graph import base_precision_from_model, variants_from_model


def windows(features: Tensor) -> Tensor:
    """(N, C, H, W) to (windows of 2x2, 4, C)."""
    n, c, h, w = features.shape
    return features.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, c)


def from_windows(tokens: Tensor, like: Tensor) -> Tensor:
    n, c, h, w = like.shape
    return tokens.reshape(n, h // 2, w // 2, 2, 2, c).permute(0, 5, 1, 3, 2, 4).reshape(n, c, h, w)


def attention_of_rank_3(features: Tensor) -> Tensor:
    tokens = windows(features)
    mask = torch.eye(4, dtype=torch.bool).roll(1, 0) | torch.eye(4, dtype=torch.bool)
    return from_windows(F.scaled_dot_product_attention(tokens, tokens, tokens, mask, scale=0.3), features)


def attention_of_rank_4(features: Tensor) -> Tensor:
    heads = windows(features).unflatten(2, (2, 4)).transpose(1, 2)
    result = F.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
    return from_windows(result.transpose(1, 2).flatten(2), features)


def attention_of_rank_5(features: Tensor) -> Tensor:
    n, _, h, w = features.shape
    heads = windows(features).unflatten(2, (2, 4)).transpose(1, 2).reshape(n, h * w // 4, 2, 4, 4)
    result = F.scaled_dot_product_attention(heads, heads, heads, torch.eye(4) * 3)
    return from_windows(result.flatten(0, 1).transpose(1, 2).flatten(2), features)


class WindowAttention(nn.Module):
    """Windows, a normalization, torch's attention module, the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, features: Tensor) -> Tensor:
        tokens = self.norm(windows(features))
        return features + from_windows(self.attention(tokens, tokens, tokens)[0], features)


class ChannelsLastNorm(nn.Module):
    def __init__(self, affine: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8, elementwise_affine=affine)

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.norm(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return result


class BlockThatEndsInAnotherModule(nn.Module):
    """What its own operations compute is not what it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(8, 8, 1)

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.convolution(2 * features + 1)
        return result


class Together(nn.Module):
    """The sum of what several parts return."""

    def __init__(self, *parts: nn.Module | Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.modules_inside = nn.ModuleList(part for part in parts if isinstance(part, nn.Module))
        self.parts = parts

    def forward(self, features: Tensor) -> Tensor:
        return torch.stack([part(features) for part in self.parts]).sum(0)


MODES = (
    *({"mode": mode} for mode in ("nearest", "nearest-exact", "bilinear", "bicubic", "area")),
    *({"mode": mode, "align_corners": True} for mode in ("bilinear", "bicubic")),
    *({"mode": mode, "antialias": True} for mode in ("bilinear", "bicubic")),
)


def resized(factor: float) -> nn.Module:
    return Together(*(partial(F.interpolate, scale_factor=factor, **mode) for mode in MODES))


def doubled_by_size(features: Tensor, mode: dict[str, Any]) -> Tensor:
    height, width = features.shape[2:]
    return F.interpolate(features, size=(2 * height, 2 * width), **mode)


def padded(**how: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: F.pad(x, (1, 2, 2, 1), **how)


def normalizations(affine: bool) -> nn.Module:
    """All kinds, whose weights and statistics are those of a trained network: none is 0 or 1."""
    kinds = (nn.GroupNorm(2, 8, affine=affine), nn.BatchNorm2d(8, affine=affine))
    instances = (nn.InstanceNorm2d(8, affine=affine, track_running_stats=track) for track in (False, True))
    all_kinds = Together(*kinds, *instances, ChannelsLastNorm(affine=affine))
    for name, tensor in (*all_kinds.named_parameters(), *all_kinds.named_buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.3, 1.5 if name.endswith("var") else 0.9)
    return all_kinds


def half_as_bright_in_frequencies(features: Tensor) -> Tensor:
    return torch.fft.irfft2(torch.fft.rfft2(features) * 0.5, s=features.shape[2:])


PARTS: dict[str, Callable[[], nn.Module]] = {
    "larger by scale": lambda: resized(2),
    "larger by size": lambda: Together(*(partial(doubled_by_size, mode=mode) for mode in MODES)),
    "smaller by scale": lambda: resized(0.5),
    "borders": lambda: Together(
        padded(), padded(value=0.3), *(padded(mode=mode) for mode in ("reflect", "replicate", "circular"))
    ),
    "convolutions with borders": lambda: Together(
        *(
            nn.Conv2d(8, 8, 3, padding=1, padding_mode=mode)
            for mode in ("zeros", "reflect", "replicate", "circular")
        )
    ),
    "grouped, depthwise and dilated convolutions": lambda: Together(
        nn.Conv2d(8, 8, 3, padding=1, groups=4),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2),
    ),
    "transposed and strided convolutions": lambda: nn.Sequential(
        nn.ConvTranspose2d(8, 8, 4, stride=2, padding=1), nn.Conv2d(8, 8, 3, stride=2, padding=1)
    ),
    "shuffle and unshuffle": lambda: nn.Sequential(
        nn.PixelShuffle(2), nn.Conv2d(2, 2, 3, padding=1), nn.PixelUnshuffle(2)
    ),
    "normalizations": lambda: normalizations(affine=True),
    "normalizations without affine": lambda: normalizations(affine=False),
    "attention in windows": lambda: Together(
        attention_of_rank_3, attention_of_rank_4, attention_of_rank_5, WindowAttention()
    ),
    "channel attention and einsum": lambda: Together(
        lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
        lambda x: torch.einsum("nchw,cd->ndhw", x, torch.eye(8).roll(1, 0)),
        lambda x: torch.einsum("nchw,nchv->nhvc", x, x).mean((1, 2))[:, :, None, None] + x,
    ),
    "Fourier transform": lambda: Together(half_as_bright_in_frequencies),
    "another module last": BlockThatEndsInAnotherModule,
}


# Their graph for a fixed size is another one.
COMPUTES_SIZES = ("larger by size", "borders", "attention in windows", "Fourier transform")


@pytest.mark.parametrize("name", PARTS)
def test_part_of_a_real_network_is_exported_as_it_computes_and_written_in_each_type(name: str) -> None:
    torch.manual_seed(0)
    network = Around(PARTS[name]()).eval()
    model = onnx_from_model(network)
    require_same(network, model, (2, 3, 18, 14))
    for precision in ("fp16", "bf16"):
        typed = variants_from_model(model, name).model(precision)
        assert base_precision_from_model(typed) == precision
    if name in COMPUTES_SIZES:
        require_same(network, onnx_from_model(network, static=(12, 10)), (1, 3, 12, 10))
