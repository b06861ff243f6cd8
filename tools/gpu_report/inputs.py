"""Queries, keys and values that lead the kernels into each of their routes, and those of a photograph.

The regimes are those of tests/ptx/cases/inputs.cpp, with a generator of torch's.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from trt_hspan.model.config import config_from_shapes
from trt_hspan.model.hspan import HSPAN, AttentionModule, HighSimilarityPassAttention

_HERE: Final = Path(__file__).parent
_WEIGHTS: Final = _HERE.parents[1] / "trt_hspan" / "model" / "weights" / "hspan-tiny-x4.safetensors"
#: Of trt_hspan/data/chelsea.png, (256, 256, 3) uint8.
PHOTOGRAPH: Final = _HERE / "photograph.npy"

# Standard deviation of the scores by regime; beside it, what that does of 1,200 keys or more.
_SPREADS: Final = {
    "sparse": 5.0,  # a list that keeps two or three
    "mid": 0.15,  # a list that keeps dozens
    "long": 0.005,  # a list that keeps hundreds
    "dense": 0.0002,  # every key has a weight: beyond 1,024 keys the lists overflow, and the dense route takes over
    "flat": 0.0002,  # all scores of a row are equal
    "ties": 0.5,  # four kinds of keys
    "huge": 1e4,  # FP32 scores are refined
    "offset": 0.0002,  # dense rows far from zero: refined and dense
    "mixed": 0.3,  # sparse and dense rows in one tile, and NaN
    "nan": 5.0,  # NaN and infinity in queries
    "keynan": 0.5,  # NaN in a key: all rows of its image, none of another
    "keyinf": 5.0,  # a key of weight 0 by -inf
    "valspecial": 0.5,  # infinities and NaN in values that count
}
REGIMES: Final = tuple(_SPREADS)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """N images, C channels of query and key, D of value, L positions."""

    images: int
    score_channels: int
    value_channels: int
    positions: int

    def __str__(self) -> str:
        return f"N {self.images} C {self.score_channels} D {self.value_channels} L {self.positions}"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """query and key (N, L, C), value (N, L, D), of the element type that the kernels get."""

    query: Tensor
    key: Tensor
    value: Tensor

    @property
    def sizes(self) -> Sizes:
        images, positions, channels = self.query.shape
        return Sizes(
            images=images,
            score_channels=channels,
            value_channels=self.value.shape[2],
            positions=positions,
        )


def random_inputs(sizes: Sizes, regime: str, dtype: torch.dtype, device: str) -> Inputs:
    """The same numbers for every device: they are drawn on the CPU."""
    generator = torch.Generator().manual_seed(1234 + 7 * sizes.positions + sizes.score_channels)
    n, c, d, length = sizes.images, sizes.score_channels, sizes.value_channels, sizes.positions
    scale = math.sqrt(_SPREADS[regime] / math.sqrt(max(1, c)))
    query = scale * torch.randn(n, length, c, generator=generator)
    key = scale * torch.randn(n, length, c, generator=generator)
    value = torch.randn(n, length, d, generator=generator)
    _apply_regime(regime, query, key, value)
    return Inputs(query=query.to(device, dtype), key=key.to(device, dtype), value=value.to(device, dtype))


def _apply_regime(regime: str, query: Tensor, key: Tensor, value: Tensor) -> None:
    length = query.shape[1]
    rows = torch.arange(length)
    if regime == "flat":
        key[:] = key[:, :1].clone()
    elif regime == "ties":
        key[:] = key[:, (rows * 7 % 4).clamp(max=length - 1)].clone()
    elif regime == "offset":
        key[:, :, 0] = 100
        query[:, :, 0] = 100.0 + rows % 3
    elif regime == "mixed":
        query *= torch.where(rows % 64 < 32, 1e-3, 50.0)[:, None]
        query[:, (rows % 64 == 41) | (rows % 64 == 3), -1] = torch.nan
    elif regime == "nan":
        key[:, :, 0] = key[:, :, 0].abs() + 0.01
        query[:, 0, -1] = torch.nan
        if length > 11:
            query[:, 9, 0] = -torch.inf  # all scores are -inf
            query[:, 11, 0] = torch.inf
    elif regime == "keynan":
        key[0, length // 2, 0] = torch.nan
    elif regime == "keyinf" and length > 2:
        query[:, :, 0] = query[:, :, 0].abs() + 0.01
        key[:, 2, 0] = -torch.inf
        value[:, 2, 0] = torch.nan  # must not count
    elif regime == "valspecial" and length > 6:
        channels = value.shape[2]
        value[:, 4, 0] = torch.inf
        value[:, 5, 1 % channels] = -torch.inf
        value[:, 4, 2 % channels], value[:, 5, 2 % channels] = torch.inf, -torch.inf
        value[:, 6, 3 % channels] = torch.nan


def photograph_inputs(
    side: int, dtype: torch.dtype, device: str, *, published_channels: bool = False
) -> Inputs:
    """Query, key and value of the shipped network's first attention on a crop of side x side pixels.

    They have C 16 and D 32. `published_channels` lifts them to 96 and 192 by matrices with orthonormal rows: the
    scores, and with them every row's support, stay what they were.
    """
    tensors = _tensors_of_photograph(side)
    if published_channels:
        lift = {16: _orthonormal_rows(16, 96), 32: _orthonormal_rows(32, 192)}
        tensors = tuple(tensor @ lift[tensor.shape[2]] for tensor in tensors)
    query, key, value = (tensor.contiguous().to(device, dtype) for tensor in tensors)
    return Inputs(query=query, key=key, value=value)


@functools.cache
def _tensors_of_photograph(side: int) -> tuple[Tensor, ...]:
    """Query, key and value (1, side * side, channels) in float32 on the CPU."""
    model = shipped_network()
    module = next(iter(model.body))
    assert isinstance(module, AttentionModule)
    *blocks, attention, _ = module.body
    assert isinstance(attention, HighSimilarityPassAttention)
    with torch.inference_mode():
        features = model.head(model.sub_mean(photograph(side)))
        for block in blocks:
            features = block(features)
        return tuple(
            layer(features).flatten(2).transpose(1, 2)
            for layer in (attention.conv_match1, attention.conv_match2, attention.conv_assembly)
        )


def photograph(side: int) -> Tensor:
    """(1, 3, side, side) RGB in [0, 1]: the middle of the photograph."""
    pixels = np.load(PHOTOGRAPH)
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    crop = np.ascontiguousarray(pixels[top : top + side, left : left + side])
    return torch.from_numpy(crop).permute(2, 0, 1)[None].float() / 255


def shipped_network() -> HSPAN:
    """hspan-tiny-x4. The file is read here: the package safetensors may not be installed where this runs."""
    data = _WEIGHTS.read_bytes()
    header_bytes = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + header_bytes])
    state = {}
    for name, entry in header.items():
        if name != "__metadata__":
            assert entry["dtype"] == "F32"
            first, last = (8 + header_bytes + offset for offset in entry["data_offsets"])
            state[name] = torch.frombuffer(bytearray(data[first:last]), dtype=torch.float32).view(
                entry["shape"]
            )
    model = HSPAN(
        config_from_shapes({name: tuple(tensor.shape) for name, tensor in state.items()}, where=_WEIGHTS)
    )
    model.load_state_dict(state)
    return model.eval()


def _orthonormal_rows(rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    basis: Tensor = torch.linalg.qr(torch.randn(columns, rows, generator=generator)).Q
    return basis.T.contiguous()
