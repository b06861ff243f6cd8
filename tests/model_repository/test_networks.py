"""What Triton is told of a raw model."""

from __future__ import annotations

import pytest

from trt_hspan.engine.manifest import ProfileRecord
from trt_hspan.model_repository.networks import RawModel, raw_model_config
from trt_hspan.serving.limits import ServingLimits

Shape = tuple[int, int, int, int]


@pytest.mark.parametrize(
    ("low", "high", "sides", "grown"),
    [
        ((1, 3, 24, 32), (1, 3, 24, 32), [24, 32], [72, 96]),
        ((1, 3, 24, 16), (1, 3, 24, 32), [24, -1], [72, -1]),
        ((1, 3, 16, 32), (1, 3, 24, 32), [-1, 32], [-1, 96]),
        ((1, 3, 1, 1), (1, 3, 24, 32), [-1, -1], [-1, -1]),
    ],
)
@pytest.mark.parametrize("dynamic_batch", [True, False])
def test_sides_that_are_fixed_are_fixed_in_the_result_too(
    low: Shape, high: Shape, sides: list[int], grown: list[int], dynamic_batch: bool
) -> None:
    raw = RawModel(
        name="net",
        backend="python",
        profiles=(ProfileRecord(min=low, opt=high, max=high, activation_memory_bytes=None),),
        dynamic_batch=dynamic_batch,
        files={},
        plans={},
        parameters={},
    )
    config = raw_model_config(raw, scale=3, limits=ServingLimits())
    batch = [] if dynamic_batch else [1]
    assert list(config.input[0].dims) == [*batch, 3, *sides]
    assert list(config.output[0].dims) == [*batch, 3, *grown]
    assert config.max_batch_size == int(dynamic_batch)
