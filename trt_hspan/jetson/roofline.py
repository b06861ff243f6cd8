"""The roofline of the attention operator: a bound by arithmetic and by memory traffic, never a measurement.

No GPU, and no kernel of this project, reaches these times: they follow from the operator's sizes and from the rates
that NVIDIA publishes, whatever the implementation. A measured time stands beside them as "x times the floor".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from trt_hspan.errors import UsageError

#: Sizes the report shows: 48x48, 64x64, 96x96, 128x128, 192x192 and 256x256 positions.
LENGTHS: Final = (2304, 4096, 9216, 16384, 36864, 65536)

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


GPUS: Final = (
    PeakRates(
        name="A100 80GB SXM",
        architecture=80,
        tensor_tflops=312.0,
        fp32_tflops=19.5,
        memory_gbps=2039.0,
        source="NVIDIA A100 Tensor Core GPU data sheet",
    ),
    PeakRates(
        name="GeForce RTX 4090",
        architecture=89,
        tensor_tflops=165.2,
        fp32_tflops=82.6,
        memory_gbps=1008.0,
        source="NVIDIA Ada GPU Architecture, appendix A (FP32 accumulation)",
    ),
    PeakRates(
        name="Jetson AGX Orin 64GB",
        architecture=87,
        tensor_tflops=42.5,
        fp32_tflops=5.3,
        memory_gbps=204.8,
        source="Jetson AGX Orin Series technical brief; FP16 is half of the dense half of 170 sparse INT8 TOPS",
    ),
    PeakRates(
        name="H100 SXM",
        architecture=90,
        tensor_tflops=989.4,
        fp32_tflops=66.9,
        memory_gbps=3352.0,
        source="NVIDIA H100 Tensor Core GPU Architecture (SXM5)",
    ),
)


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
    """The least work for L = length positions, C = score_channels, D = value_channels; a multiply-add is 2 FLOPs.

    Raises:
        UsageError: a size below 1, or a precision other than fp32, fp16 and bf16.
    """
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


def floor_ms(flops: int, moved_bytes: int, gpu: PeakRates, precision: str) -> float:
    """The greater of arithmetic at the peak rate and traffic at the peak bandwidth, in milliseconds.

    Raises:
        UsageError: a precision other than fp32, fp16 and bf16.
    """
    if precision not in _ELEMENT_BYTES:
        raise UsageError("precision", f"got {precision}, expected one of {', '.join(_ELEMENT_BYTES)}")
    tflops = gpu.fp32_tflops if precision == "fp32" else gpu.tensor_tflops
    return max(flops / (tflops * 1e9), moved_bytes / (gpu.memory_gbps * 1e6))
