"""Choices at the edge of what makes sense."""

from __future__ import annotations

import re
from typing import Any

import pytest

from trt_hspan.errors import UsageError
from trt_hspan.sizes import ImageSize
from trt_hspan.upscaling.options import UpscaleOptions


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"overlap": 0},
        {"overlap": 500},
        {"tile": "none", "self_ensemble": True},
        {"tile": (32, 40), "overlap": 16},
        {"tile": (1, 1), "overlap": 0},
        {"protocol": "official", "self_ensemble": True},
    ],
)
def test_choices_that_make_sense_are_kept(options: dict[str, Any]) -> None:
    made = UpscaleOptions(**options)
    assert {name: getattr(made, name) for name in options} == options
    assert isinstance(made.tile, str | ImageSize)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"protocol": "chop"}, "--protocol: got 'chop', expected one of tiles, official"),
        ({"tile": "some"}, "--tile: got 'some', expected auto, none or a size"),
        ({"tile": "none", "overlap": 0}, "--overlap: is for tiles, and --tile none makes none"),
        ({"tile": (0, 5)}, "--tile: got (0, 5), expected a height and a width of at least 1"),
        ({"tile": (5, 0)}, "--tile: got (5, 0), expected"),
        ({"tile": (5, 5, 5)}, "--tile: got (5, 5, 5), expected"),
        ({"tile": (32, 40), "overlap": 17}, "--overlap: 17 pixels are more than half of the tile 32x40"),
        ({"tile": (40, 33), "overlap": 17}, "--overlap: 17 pixels are more than half of the tile 40x33"),
        ({"overlap": -1}, "--overlap: "),
        ({"protocol": "official", "overlap": 0}, "--protocol official"),
        ({"protocol": "official", "tile": "none"}, "--protocol official"),
        ({"protocol": "official", "tile": (64, 64)}, "--protocol official"),
    ],
)  # fmt: skip
def test_choices_that_make_none_are_wrong_usage(options: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError, match=re.escape(line)):
        UpscaleOptions(**options)


def test_without_choices_tiles_are_chosen_and_nothing_is_turned() -> None:
    options = UpscaleOptions()
    assert (options.tile, options.overlap, options.protocol) == ("auto", None, "tiles")
    assert not options.self_ensemble
    assert options.official_min_size == 120_000  # of the official code's `forward_chop`
