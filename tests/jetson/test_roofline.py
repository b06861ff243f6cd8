"""The roofline: its work counted one multiplication at a time, its floors by hand."""

from __future__ import annotations

import pytest

from trt_hspan.errors import UsageError
from trt_hspan.jetson.roofline import GPUS, LENGTHS, attention_work, floor_ms


def test_work_is_what_a_loop_over_all_pairs_counts() -> None:
    length, score_channels, value_channels = 7, 3, 5
    scores = values = moved = 0
    for _row in range(length):
        for _key in range(length):
            scores += sum(2 for _channel in range(score_channels))
            values += sum(2 for _channel in range(value_channels))
    for channels in (score_channels, score_channels, value_channels, value_channels):
        moved += channels * length * 2
    work = attention_work(length, score_channels, value_channels, "fp16")
    assert (work.sparse_flops, work.dense_flops, work.bytes) == (scores, scores + values, moved)
    assert attention_work(length, score_channels, value_channels, "fp32").bytes == 2 * moved


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


@pytest.mark.parametrize(
    ("length", "channels", "precision"), [(0, 96, "fp16"), (1, 0, "fp16"), (1, 1, "int8")]
)
def test_sizes_and_precisions_that_make_no_sense_are_usage_errors(
    length: int, channels: int, precision: str
) -> None:
    with pytest.raises(UsageError):
        attention_work(length, channels, 192, precision)


def test_an_unknown_precision_has_no_floor() -> None:
    with pytest.raises(UsageError, match="got int8"):
        floor_ms(1, 1, GPUS[0], "int8")
