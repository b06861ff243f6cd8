"""The least work of the attention, counted one multiplication at a time."""

from __future__ import annotations

import pytest

from trt_hspan.errors import UsageError
from trt_hspan.jetson.roofline import attention_work


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


@pytest.mark.parametrize(
    ("length", "channels", "precision"), [(0, 96, "fp16"), (1, 0, "fp16"), (1, 1, "int8")]
)
def test_sizes_and_precisions_that_make_no_sense_are_usage_errors(
    length: int, channels: int, precision: str
) -> None:
    with pytest.raises(UsageError):
        attention_work(length, channels, 192, precision)
