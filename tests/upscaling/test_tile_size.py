"""The size of tiles: free memory, profiles of an engine, and what a lack of memory makes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support.torch_function_runner import ROUNDING, TorchFunctionRunner, batch, convolutions, untiled

from trt_hspan.errors import HspanError, OutOfMemoryError, UsageError
from trt_hspan.runtime import memory
from trt_hspan.runtime.runner import ShapeLimit
from trt_hspan.sizes import ImageSize, TileChoice
from trt_hspan.upscaling import tile_size
from trt_hspan.upscaling.options import UpscaleOptions
from trt_hspan.upscaling.upscaler import Upscaler, is_out_of_memory, upscale_batch

# Memory
# ---------------------------------------------------------------------------------------------------------


FAILURES = [
    MemoryError,
    lambda: OutOfMemoryError("gpu", "the device has 0 bytes left"),
    lambda: HspanError("x.plan", "failed on the GPU: cuMemAlloc failed: out of memory"),
    lambda: RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 99 bytes"),
]


@pytest.mark.parametrize("failure", FAILURES, ids=["MemoryError", "ours", "driver", "PyTorch"])
def test_out_of_memory_steps_down_goes_on_and_is_reported(failure: Callable[[], Exception]) -> None:
    network = convolutions(2)
    x = batch(70, 90)
    runner = TorchFunctionRunner(network, 2, most_pixels=40 * 40, failure=failure)
    notes: list[str] = []
    result = upscale_batch(runner, x, on_shrink=notes.append)
    np.testing.assert_allclose(result, untiled(network, x), rtol=0, atol=ROUNDING)
    assert notes[0].startswith("out of memory with tiles of 70x90, going on with ")
    assert runner.shapes[-1][2] * runner.shapes[-1][3] <= 40 * 40


@pytest.mark.parametrize("tile", [(64, 64), "auto"])
def test_an_overlap_that_was_given_shrinks_with_the_tiles_and_is_reported(tile: TileChoice) -> None:
    network = convolutions(2)
    x = batch(100, 130)
    runner = TorchFunctionRunner(network, 2, most_pixels=32 * 32)
    notes: list[str] = []
    result = upscale_batch(runner, x, UpscaleOptions(tile=tile, overlap=32), on_shrink=notes.append)
    np.testing.assert_allclose(result, untiled(network, x), rtol=0, atol=ROUNDING)
    assert notes[-1].endswith((" with 32x32 and an overlap of 16", " with 24x32 and an overlap of 12"))


def test_a_lesson_in_memory_is_kept_for_the_next_picture() -> None:
    runner = TorchFunctionRunner(convolutions(2), 2, most_pixels=40 * 40)
    upscaler = Upscaler(runner, UpscaleOptions())
    upscaler.batch(batch(70, 90))
    first = len(upscaler.shrinks)
    upscaler.batch(batch(70, 90))
    assert first > 0
    assert len(upscaler.shrinks) == first


def test_memory_that_runs_out_in_the_middle_does_not_spoil_the_result() -> None:
    network = convolutions(2)
    runner = TorchFunctionRunner(network, 2)
    calls = 0

    def sometimes(x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise MemoryError
        return network(x)

    runner._function = sometimes
    x = batch(70, 90)
    result = upscale_batch(runner, x, UpscaleOptions(tile=(40, 40), overlap=8))
    np.testing.assert_allclose(result, untiled(network, x), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(
    "options", [UpscaleOptions(tile="none"), UpscaleOptions(protocol="official"), UpscaleOptions()]
)
def test_out_of_memory_with_nothing_smaller_to_try_is_an_error(options: UpscaleOptions) -> None:
    runner = TorchFunctionRunner(convolutions(2), 2, most_pixels=10)
    with pytest.raises(OutOfMemoryError, match=r"function: a tile of .* does not fit in memory"):
        upscale_batch(runner, batch(40, 40), options)


def test_other_failures_are_not_taken_for_a_lack_of_memory() -> None:
    assert not is_out_of_memory(HspanError("a.plan", "CUDA error: an illegal memory access"))
    assert not is_out_of_memory(ValueError("out of memory"))
    runner = TorchFunctionRunner(
        convolutions(2), 2, most_pixels=1, failure=lambda: HspanError("a.plan", "illegal access")
    )
    with pytest.raises(HspanError, match="illegal access"):
        upscale_batch(runner, batch(40, 40))
    assert len(runner.shapes) == 1


# Size of tiles
# --------------------------------------------------------------------------------------------------


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    def set_free(size: int | None) -> None:
        for module in (memory, tile_size):
            monkeypatch.setattr(module, "available_memory_bytes", lambda: size)

    return set_free


def auto_tile(runner: TorchFunctionRunner, picture: ImageSize) -> ImageSize:
    return tile_size.auto_tile(runner, tile_size.size_ranges(runner), picture)[0]


def test_auto_takes_a_small_picture_as_a_whole(free: Callable[[int | None], None]) -> None:
    free(None)
    assert auto_tile(TorchFunctionRunner(convolutions(2), 2), ImageSize(250, 260)) == (250, 260)


@pytest.mark.parametrize("on_gpu", [True, False])
def test_what_must_be_cut_is_cut_smaller_on_a_cpu(free: Callable[[int | None], None], on_gpu: bool) -> None:
    free(None)
    runner = TorchFunctionRunner(convolutions(2), 2)
    runner.on_gpu = on_gpu
    assert auto_tile(runner, ImageSize(300, 300)) == ((256, 256) if on_gpu else (64, 64))
    # Thin pictures get long tiles of as many pixels.
    assert auto_tile(runner, ImageSize(16, 100_000)) == ((16, 4096) if on_gpu else (16, 256))


def test_auto_keeps_to_half_of_free_memory(free: Callable[[int | None], None]) -> None:
    runner = TorchFunctionRunner(convolutions(2), 2, memory=1000)
    runner.on_gpu = True
    free(2 * 1000 * 100 * 100)
    height, width = auto_tile(runner, ImageSize(240, 240))
    assert height * width <= 100 * 100 < (height + 8) * (width + 8)


def test_auto_keeps_to_the_profile_and_fills_it(free: Callable[[int | None], None]) -> None:
    free(None)
    runner = TorchFunctionRunner(convolutions(2), 2, low=(1, 3, 64, 64), high=(1, 3, 512, 384))
    assert auto_tile(runner, ImageSize(512, 384)) == (512, 384)
    assert auto_tile(runner, ImageSize(2000, 2000)) == (512, 384)
    assert auto_tile(runner, ImageSize(10, 2000)) == (64, 384)
    plan = tile_size.plan_for_picture(runner, ImageSize(600, 10))
    # Two tiles are needed, and they need not be 512 high: 600 + 32 shared, halved, up to the next multiple of 8.
    assert [(span.start, span.length) for span in plan.rows] == [(0, 320), (280, 320)]


def test_a_fixed_size_is_the_size_of_every_tile(free: Callable[[int | None], None]) -> None:
    free(None)
    runner = TorchFunctionRunner(convolutions(2), 2, low=(1, 3, 32, 48), high=(1, 3, 32, 48))
    for size in ((1, 1), (32, 48), (100, 100)):
        result = upscale_batch(runner, batch(*size), UpscaleOptions(overlap=8))
        assert result.shape[2:] == (2 * size[0], 2 * size[1])
    assert {shape[2:] for shape in runner.shapes} == {(32, 48)}


class SeveralProfiles(TorchFunctionRunner):
    """Takes what lies in one of some ranges of (height, width), as an engine with several profiles."""

    def __init__(self, *ranges: tuple[tuple[int, int], tuple[int, int]], **arguments: Any) -> None:
        super().__init__(convolutions(2), 2, **arguments)
        self.ranges = ranges

    @property
    def shape_ranges(self) -> tuple[tuple[ShapeLimit, ShapeLimit], ...]:
        return tuple(((1, 3, *low), (1, 3, *high)) for low, high in self.ranges)

    def require_shape(self, shape: tuple[int, ...], what: object) -> None:
        assert any(
            low[0] <= shape[2] <= high[0] and low[1] <= shape[3] <= high[1] for low, high in self.ranges
        ), shape


def test_tiles_fit_one_of_several_profiles(free: Callable[[int | None], None]) -> None:
    free(None)
    runner = SeveralProfiles(((16, 16), (64, 64)), ((128, 128), (256, 256)))
    sizes: list[tuple[object, tuple[int, int], tuple[int, int]]] = [
        ("auto", (50, 60), (50, 60)),  # as a whole in the small one
        ("auto", (5, 60), (16, 60)),
        ("auto", (100, 70), (128, 128)),  # between both: grows to the large one
        ("auto", (200, 256), (200, 256)),
        ("auto", (600, 600), (224, 224)),  # the large one, trimmed
        ("auto", (600, 20), (224, 128)),
        ((64, 48), (600, 600), (64, 48)),
        ("none", (130, 5), (130, 128)),
    ]
    for tile, picture, expected in sizes:
        plan = tile_size.plan_for_picture(runner, ImageSize(*picture), tile=tile)  # type: ignore[arg-type]
        assert plan.tile == expected, (tile, picture)
    network = untiled(convolutions(2), batch(100, 70))
    result = upscale_batch(runner, batch(100, 70))
    # Grown by reflection, which the network sees at the edge only.
    np.testing.assert_allclose(result[..., :190, :130], network[..., :190, :130], rtol=0, atol=ROUNDING)


def test_out_of_memory_steps_down_into_a_smaller_profile(free: Callable[[int | None], None]) -> None:
    free(None)
    runner = SeveralProfiles(((16, 16), (64, 64)), ((128, 128), (256, 256)), most_pixels=50 * 64)
    result = upscale_batch(runner, batch(250, 250), UpscaleOptions(overlap=8))
    assert result.shape == (1, 3, 500, 500)
    assert [shape[2:] for shape in dict.fromkeys(runner.shapes)] == [
        (250, 250),
        (128, 250),
        (128, 128),
        (64, 64),
        (32, 64),
    ]


def test_smaller_tiles_end_at_the_least_size() -> None:
    runner = TorchFunctionRunner(convolutions(2), 2, low=(1, 3, 24, 16))
    sizes = [ImageSize(256, 200)]
    while (smaller := tile_size.smaller_tile(runner, sizes[-1])) is not None:
        sizes.append(smaller)
    assert sizes[-1] == (24, 16)
    assert sizes == sorted(sizes, key=lambda size: -size.pixels)


@pytest.mark.parametrize("more", [1, 32, 64, 900])
def test_an_overlap_of_more_than_half_of_the_tile_that_is_chosen_is_wrong_usage(more: int) -> None:
    runner, picture = TorchFunctionRunner(convolutions(2), 2), ImageSize(2000, 2000)
    half = min(tile_size.plan_for_picture(runner, picture).tile) // 2
    assert tile_size.plan_for_picture(runner, picture, overlap=half).count > 1
    with pytest.raises(UsageError, match="do not suit a tile side"):
        tile_size.plan_for_picture(runner, picture, overlap=half + more)
