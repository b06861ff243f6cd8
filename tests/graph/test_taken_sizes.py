"""What a few runs show about the sizes that a network takes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from trt_hspan.graph import OnnxMetadata
from trt_hspan.graph.taken_sizes import NotTakenError, SizeRun, TakenSizes, taken_sizes
from trt_hspan.sizes import ImageSize


def network(takes: Callable[[int], bool], output: Callable[[int], int]) -> SizeRun:
    def run(size: ImageSize) -> ImageSize:
        if not all(map(takes, size)):
            raise NotTakenError("network", f"does not run on {size}")
        return ImageSize(*map(output, size))

    return run


@pytest.mark.parametrize("multiple", [*range(1, 11), 12, 14, 16, 20, 24, 28, 32, 48, 64])
@pytest.mark.parametrize("scale", [1, 3])
def test_scale_and_multiple_are_those_of_the_network(multiple: int, scale: int) -> None:
    run = network(lambda side: side % multiple == 0, lambda side: side * scale)
    assert taken_sizes(run) == TakenSizes(scale=scale, size_multiple=multiple, min_size=multiple)


@pytest.mark.parametrize("multiple", [11, 13, 15, 17, 18, 22, 30, 40, 56, 80])
def test_network_of_an_unusual_multiple_is_asked_for_it(multiple: int) -> None:
    run = network(lambda side: side % multiple == 0, lambda side: side)
    with pytest.raises(NotTakenError, match="does not run on 23x25"):
        taken_sizes(run)
    assert taken_sizes(run, size_multiple=multiple).size_multiple == multiple


def test_network_that_loses_a_remainder_takes_multiples() -> None:
    run = network(lambda _: True, lambda side: side // 4 * 4)
    assert taken_sizes(run) == TakenSizes(scale=1, size_multiple=4, min_size=4)


@pytest.mark.parametrize(
    ("multiple", "above", "smallest"),
    [(1, 1, 2), (1, 7, 8), (1, 9, 16), (1, 16, 23), (2, 17, 22), (5, 5, 10), (5, 20, 25)],
)
def test_smallest_size_is_taken_and_a_smaller_half_is_not(multiple: int, above: int, smallest: int) -> None:
    run = network(lambda side: side > above and side % multiple == 0, lambda side: side)
    assert taken_sizes(run) == TakenSizes(scale=1, size_multiple=multiple, min_size=smallest)


def test_recorded_is_what_is_not_usual() -> None:
    usual = OnnxMetadata(size_multiple=7, min_size=7)
    taken = TakenSizes(scale=3, size_multiple=1, min_size=1).recorded_in(usual)
    assert (taken.scale, taken.size_multiple, taken.min_size) == (3, None, None)
    taken = TakenSizes(scale=None, size_multiple=2, min_size=2).recorded_in(usual)
    assert (taken.scale, taken.size_multiple, taken.min_size) == (None, 2, 2)


@pytest.mark.parametrize("output", [lambda side: side - 4, lambda side: side // 2], ids=["cut", "half"])
def test_output_that_is_no_whole_multiple_has_no_scale(output: Callable[[int], int]) -> None:
    taken = taken_sizes(network(lambda side: side > 4, output))
    assert taken == TakenSizes(scale=None, size_multiple=taken.size_multiple, min_size=8)


def test_declared_multiple_and_fixed_size_are_held_to() -> None:
    every = network(lambda _: True, lambda side: 2 * side)
    assert taken_sizes(every, size_multiple=6).size_multiple == 6
    fixed = ImageSize(40, 56)
    of_one_size = network(lambda side: side in fixed, lambda side: 2 * side)
    assert taken_sizes(of_one_size, fixed=fixed) == TakenSizes(scale=2, size_multiple=1, min_size=1)
    with pytest.raises(NotTakenError, match="does not run on 23x25"):
        taken_sizes(network(lambda _: False, lambda side: side))
