"""The roofline of the attention operator: a bound by arithmetic and by memory traffic, never a measurement.

No GPU, and no kernel of this project, reaches these times: they follow from the operator's sizes and from the rates
that NVIDIA publishes, whatever the implementation. A measured time stands beside them as "x times the floor".
"""

from __future__ import annotations

from typing import Final

from trt_hspan.errors import UsageError
from trt_hspan.jetson.roofline import PeakRates

PRECISIONS: Final = ("fp32", "fp16", "bf16")
#: Sizes the report shows: 48x48, 64x64, 96x96, 128x128, 192x192 and 256x256 positions.
LENGTHS: Final = (2304, 4096, 9216, 16384, 36864, 65536)
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


def floor_ms(flops: int, moved_bytes: int, gpu: PeakRates, precision: str) -> float:
    """The greater of arithmetic at the peak rate and traffic at the peak bandwidth, in milliseconds.

    Raises:
        UsageError: a precision other than fp32, fp16 and bf16.
    """
    if precision not in PRECISIONS:
        raise UsageError("precision", f"got {precision}, expected one of {', '.join(PRECISIONS)}")
    tflops = gpu.fp32_tflops if precision == "fp32" else gpu.tensor_tflops
    return max(flops / (tflops * 1e9), moved_bytes / (gpu.memory_gbps * 1e6))
