"""The roofline: its floors by hand."""

from __future__ import annotations

import pytest

from tools.kernel_report.roofline import GPUS, LENGTHS, floor_ms
from trt_hspan.errors import UsageError
from trt_hspan.jetson.roofline import attention_work


def test_arithmetic_bounds_long_sequences_and_traffic_short_ones() -> None:
    gpu = next(each for each in GPUS if each.name.startswith("A100"))
    long = attention_work(65536, 96, 192, "fp16")
    assert floor_ms(long.sparse_flops, long.bytes, gpu, "fp16") == pytest.approx(
        2 * 65536**2 * 96 / 312e12 * 1e3
    )
    short = attention_work(16, 96, 192, "fp16")
    assert floor_ms(short.sparse_flops, short.bytes, gpu, "fp16") == pytest.approx(
        2 * 288 * 16 * 2 / 2039e9 * 1e3
    )
    assert floor_ms(long.sparse_flops, long.bytes, gpu, "fp32") == pytest.approx(
        2 * 65536**2 * 96 / 19.5e12 * 1e3
    )


def test_the_gpus_and_lengths_are_those_that_the_report_promises() -> None:
    assert [gpu.architecture for gpu in GPUS] == [80, 89, 87, 90]
    assert (LENGTHS[0], LENGTHS[-1]) == (2304, 65536)
    for gpu in GPUS:
        assert gpu.source
        assert gpu.tensor_tflops > gpu.fp32_tflops > 0


def test_an_unknown_precision_has_no_floor() -> None:
    with pytest.raises(UsageError, match="got int8"):
        floor_ms(1, 1, GPUS[0], "int8")
