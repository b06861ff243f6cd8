"""The least work of the attention operator, and the peak rates that bound its time: a floor, never a measurement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from trt_hspan.errors import UsageError

_ELEMENT_BYTES: Final = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True, kw_only=True)
class PeakRates:
    """Published rates of one GPU at its boost clock, without structured sparsity.

    Attributes:
        name, architecture: compute capability, 86 being 8.6.
        tensor_tflops: FP16 and BF16 on tensor cores with FP32 accumulation, 10^12 operations per second.
        fp32_tflops: FP32 outside tensor cores.
        memory_gbps: device memory, 10^9 bytes per second.
        source: where NVIDIA publishes them.
    """

    name: str
    architecture: int
    tensor_tflops: float
    fp32_tflops: float
    memory_gbps: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one image costs at least.

    Attributes:
        sparse_flops: 2 L^2 C: each score once, and a support too small to count.
        dense_flops: 2 L^2 (C + D): each score once, and every value row of every position.
        bytes: each element of query, key, value and output moved once.
    """

    sparse_flops: int
    dense_flops: int
    bytes: int


def attention_work(length: int, score_channels: int, value_channels: int, precision: str) -> Work:
    """The least work for L = length positions, C = score_channels, D = value_channels; a multiply-add is 2 FLOPs."""
    if min(length, score_channels, value_channels) < 1:
        raise UsageError(
            "sizes", f"got {length}, {score_channels}, {value_channels}, expected at least 1 each"
        )
    if precision not in _ELEMENT_BYTES:
        raise UsageError("precision", f"got {precision}, expected one of {', '.join(_ELEMENT_BYTES)}")
    scores = 2 * length * length * score_channels
    return Work(
        sparse_flops=scores,
        dense_flops=scores + 2 * length * length * value_channels,
        bytes=2 * (score_channels + value_channels) * length * _ELEMENT_BYTES[precision],
    )
