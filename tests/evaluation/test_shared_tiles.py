"""One cut for several networks."""

from __future__ import annotations

import pytest
from support.runner_doubles import NearestRunner

from trt_hspan.errors import HspanError
from trt_hspan.evaluation import shared_tiles as shared_tiles_module
from trt_hspan.evaluation.shared_tiles import shared_tiles
from trt_hspan.sizes import ImageSize
from trt_hspan.upscaling.options import UpscaleOptions


def limited(*profiles: tuple[tuple[int, int], tuple[int, int]], memory: int = 0) -> NearestRunner:
    """An engine whose profiles are for one picture of these sizes."""
    runner = NearestRunner(memory=memory)
    runner.profiles = tuple(((1, 3, *low), (1, 3, *high)) for low, high in profiles)
    return runner


def test_ranges_of_several_networks_meet_where_all_take_an_input() -> None:
    first = limited(((4, 4), (20, 30)), ((40, 40), (50, 50)))
    second = limited(((8, 2), (44, 44)))
    free = NearestRunner()
    together = shared_tiles_module._Together([first, free, second])
    assert together.shape_ranges == (
        ((None, 3, 8, 4), (None, 3, 20, 30)),
        ((None, 3, 40, 40), (None, 3, 44, 44)),
    )
    assert shared_tiles_module._Together([free, NearestRunner()]).shape_ranges == (
        ((None, 3, 1, 1), (None, 3, None, None)),
    )


def test_a_range_without_a_common_multiple_is_none() -> None:
    first, second = limited(((13, 13), (23, 24)), ((1, 1), (12, 12))), NearestRunner()
    first.size_multiple, second.size_multiple = 4, 6
    together = shared_tiles_module._Together([first, second])
    assert together.size_multiple == 12
    assert together.shape_ranges == (((None, 3, 6, 6), (None, 3, 12, 12)),)
    exact = limited(((12, 13), (12, 24)))
    exact.size_multiple = 12
    assert shared_tiles_module._Together([exact]).shape_ranges == (((None, 3, 12, 24), (None, 3, 12, 24)),)


def test_networks_together_are_on_a_gpu_where_all_are_and_need_what_the_largest_needs() -> None:
    first, second = NearestRunner(memory=5), NearestRunner(memory=7)
    first.on_gpu = True
    second.name = "other"
    together = shared_tiles_module._Together([first, second, first])
    assert (together.name, together.on_gpu) == ("numpy, other", False)
    assert together.memory_bytes((1, 3, 4, 4)) == 7
    second.on_gpu = True
    assert shared_tiles_module._Together([first, second]).on_gpu


def test_the_official_cut_is_the_same_for_all_and_must_fit_each() -> None:
    options = UpscaleOptions(protocol="official")
    size = ImageSize(height=60, width=70)
    tiles = shared_tiles([NearestRunner(), NearestRunner()], size, options, what="a.png")
    assert (tiles.options, tiles.size) == (options, size)
    with pytest.raises(HspanError, match=r"a\.png"):
        shared_tiles([NearestRunner(), limited(((4, 4), (8, 8)))], size, options, what="a.png")


def test_a_picture_is_whole_where_tiles_are_not_asked_for() -> None:
    size = ImageSize(height=60, width=70)
    tiles = shared_tiles([NearestRunner()], size, UpscaleOptions(tile="none"), what="a.png")
    assert (tiles.options.tile, tiles.size) == ("none", size)
