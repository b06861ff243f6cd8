"""The C++ runtime cuts and blends as the Python runtime does: the same plans, the same bits."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from support.tile_networks import BoundedRunner, neighbors_network

from trt_hspan.errors import UsageError
from trt_hspan.runtime.runner import Float32Array
from trt_hspan.sizes import ImageSize
from trt_hspan.upscaling.options import UpscaleOptions
from trt_hspan.upscaling.tile_size import plan_for_picture
from trt_hspan.upscaling.tiling import Span
from trt_hspan.upscaling.upscaler import upscale_array

from .conftest import RuntimeLibrary, StatusError
from .golden_tiles import GOLDEN, golden_document


def _numbers(span: Span) -> tuple[int, ...]:
    rise, fall = (span.rise_start, span.rise_length), (span.fall_start, span.fall_length)
    return (span.start, span.length, *rise, *fall)


def test_a_thousand_random_plans_are_those_of_the_python_runtime(runtime: RuntimeLibrary) -> None:
    draw = random.Random(0)
    compared = refused = cut = 0
    for _ in range(1000):
        least = (draw.randint(1, 40), draw.randint(1, 40))
        largest = (draw.randint(least[0], 400), draw.randint(least[1], 400))
        picture = (draw.randint(1, 3000), draw.randint(1, 3000))
        overlap = draw.choice([None, None, draw.randint(0, 64)])
        sized = draw.random() < 0.5
        tile = (draw.randint(least[0], largest[0]), draw.randint(least[1], largest[1]))
        runner = BoundedRunner(least, largest)
        try:
            plan = plan_for_picture(
                runner, ImageSize(*picture), tile=tile if sized else "auto", overlap=overlap
            )
        except UsageError:
            plan = None
        options = {"tile": tile if sized else (0, 0), "overlap": -1 if overlap is None else overlap}
        if overlap == 0 and not sized:  # the C API's zeroed struct asks for the default overlap
            continue
        with runtime.upscaler(neighbors_network, least=least, largest=largest, **options) as upscaler:
            if plan is None:
                with pytest.raises(StatusError) as failure:
                    upscaler.plan(*picture)
                assert failure.value.status == 2
                refused += 1
                continue
            rows, columns = upscaler.plan(*picture)
        assert rows == [_numbers(span) for span in plan.rows]
        assert columns == [_numbers(span) for span in plan.columns]
        compared += 1
        cut += plan.count > 1
    assert compared > 800
    assert cut > 600
    assert refused > 10


@pytest.mark.parametrize("kind", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiles_are_blended_to_the_same_pixels(
    runtime: RuntimeLibrary, kind: int, dtype: type[np.uint8] | type[np.uint16]
) -> None:
    draw = np.random.default_rng(kind)
    image: npt.NDArray[np.generic] = draw.integers(
        0, np.iinfo(dtype).max, (53, 71, kind), dtype, endpoint=True
    )
    if kind == 4:
        image[:20, :, 3] = np.iinfo(dtype).max  # an opaque part, which is filled in without a run
    if kind in (2, 4):
        image[25:40, 3:60] = 0  # clear; of one color here, of many where single pixels are
        image[draw.random((53, 71)) < 0.3, -1] = 0
    runner = BoundedRunner((8, 8), (24, 32), scale=3)
    options = UpscaleOptions(tile=(24, 32), overlap=9)
    with runner:
        expected = upscale_array(runner, image, options)
    with runtime.upscaler(
        lambda tile: neighbors_network(tile, 3),
        scale=3,
        least=(8, 8),
        largest=(24, 32),
        tile=(24, 32),
        overlap=9,
    ) as upscaler:
        result = upscaler.upscale(image)
    assert np.array_equal(result, expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 3), (31, 2), (33, 65)])
def test_pictures_smaller_than_the_profile_are_reflected(
    runtime: RuntimeLibrary, size: tuple[int, int]
) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    runner = BoundedRunner((16, 16), (40, 40))
    with runner:
        expected = upscale_array(runner, image)
    with runtime.upscaler(neighbors_network, least=(16, 16), largest=(40, 40)) as upscaler:
        assert np.array_equal(upscaler.upscale(image), expected)


def test_out_of_memory_makes_the_tiles_smaller_until_they_fit(runtime: RuntimeLibrary) -> None:
    seen: list[tuple[int, int]] = []

    def small_memory(tile: Float32Array) -> Float32Array:
        seen.append(tile.shape[1:])
        if tile.shape[1] * tile.shape[2] > 600:
            raise MemoryError
        return tile.repeat(2, axis=1).repeat(2, axis=2)

    image = np.random.default_rng(2).integers(0, 256, (60, 60, 3), np.uint8)
    with runtime.upscaler(small_memory, largest=(64, 64)) as upscaler:
        result = upscaler.upscale(image)
    assert np.array_equal(result, image.repeat(2, axis=0).repeat(2, axis=1))
    assert seen[0] == (60, 60)
    assert seen[-1][0] * seen[-1][1] <= 600


def test_without_a_smaller_tile_out_of_memory_is_reported(runtime: RuntimeLibrary) -> None:
    def no_memory(tile: Float32Array) -> Float32Array:
        raise MemoryError

    image = np.zeros((60, 60, 3), np.uint8)
    with runtime.upscaler(no_memory) as upscaler, pytest.raises(StatusError) as failure:
        upscaler.upscale(image)
    assert failure.value.status == 3
    assert "out of memory even with tiles of 16x16" in failure.value.message


def test_a_value_that_is_not_finite_is_an_error_and_no_pixel(runtime: RuntimeLibrary) -> None:
    def spoilt(tile: Float32Array) -> Float32Array:
        output = tile.repeat(2, axis=1).repeat(2, axis=2)
        output[1, 3, 3] = np.nan
        return output

    with runtime.upscaler(spoilt) as upscaler, pytest.raises(StatusError) as failure:
        upscaler.upscale(np.zeros((9, 9, 3), np.uint8))
    assert "NaN" in failure.value.message


def test_values_are_clamped_and_rounded_half_to_even(runtime: RuntimeLibrary) -> None:
    levels = np.float32([-0.5, 0.0, 0.5, 1.5, 2.5, 254.5, 255.0, 400.0]) / np.float32(255)

    def constant(tile: Float32Array) -> Float32Array:
        return np.broadcast_to(levels, (3, 1, 8)).copy()

    with runtime.upscaler(constant, scale=1) as upscaler:
        result = upscaler.upscale(np.zeros((1, 8, 3), np.uint8))
    exact = levels * np.float32(255)
    assert result[0, :, 0].tolist() == np.rint(np.clip(exact, 0, 255)).astype(int).tolist()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"tile": (24, 0)}, "two positive sides"),
        ({"tile": (24, 24), "whole": True}, "exclude each other"),
        ({"largest": (8, 8), "least": (16, 16)}, "limits make no sense"),
        ({"scale": 0}, "limits make no sense"),
    ],
)
def test_requests_that_make_no_sense_are_refused(
    runtime: RuntimeLibrary, arguments: dict[str, object], part: str
) -> None:
    with pytest.raises(StatusError) as failure, runtime.upscaler(neighbors_network, **arguments):  # type: ignore[arg-type]
        pass
    assert failure.value.status == 2
    assert part in failure.value.message


def test_the_golden_file_is_what_the_python_runtime_gives() -> None:
    assert json.loads(GOLDEN.read_text()) == json.loads(json.dumps(golden_document()))


def test_the_native_tests_pass(runtime_folder: Path) -> None:
    program = runtime_folder.parents[1] / "tests" / "cpp" / "runtime" / "test_runtime"
    tests = Path(__file__).parents[2]
    plans, drivers = tests / "upscaling/golden/tile_plans.json", tests / "native/compatibility.json"
    completed = subprocess.run(
        [program, plans, GOLDEN, drivers, program.with_name("libcounting_library.so")],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr


def test_the_c_api_refuses_what_no_call_can_mean_before_it_computes_with_it(runtime_folder: Path) -> None:
    """Under the address and undefined behavior sanitizers, which end the program at their first report."""
    program = runtime_folder.parents[1] / "tests" / "cpp" / "runtime" / "c_api_limits"
    completed = subprocess.run([program], capture_output=True, text=True, check=False, timeout=120)
    assert completed.returncode == 0, completed.stdout + completed.stderr
