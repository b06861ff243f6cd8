"""Which pictures are taken, and how tiles are cut from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.permissions import read_only
from support.synthetic_pictures import picture

from trt_hspan import HspanError, UsageError
from trt_hspan.precision.crops import (
    Crops,
    TilePlan,
    samples_from_place,
    split,
    with_ground_truth,
)
from trt_hspan.sizes import ImageSize
from trt_hspan.upscaling.tile_size import SizeRange


def test_every_picture_gives_tiles_and_the_same_ones_each_time(photographs: Path) -> None:
    samples = samples_from_place(str(photographs), 2)
    for wanted, expected in ((1, 6), (6, 6), (13, 18)):
        plan = TilePlan(count=wanted, side=20)
        tiles = list(Crops(samples, plan))
        assert len(tiles) == Crops(samples, plan).count == expected
        assert all(tile.low.shape == (20, 20, 3) for tile in tiles)
        again = Crops(samples, plan)
        assert all((a.low == b.low).all() for a, b in zip(tiles, again, strict=True))


def test_a_tile_is_part_of_its_picture_and_of_its_ground_truth(photographs: Path) -> None:
    samples = with_ground_truth(samples_from_place(str(photographs), 2))
    tile = next(iter(Crops(samples, TilePlan(count=6, side=16))))
    low, truth = samples[0].load()
    assert truth is not None
    assert tile.truth is not None
    places = [
        (y, x)
        for y in range(low.shape[0] - 15)
        for x in range(low.shape[1] - 15)
        if (low[y : y + 16, x : x + 16] == tile.low).all()
    ]
    assert any((truth[2 * y : 2 * y + 32, 2 * x : 2 * x + 32] == tile.truth).all() for y, x in places)


@pytest.mark.parametrize("mode", ["RGBA", "L", "I;16", "CMYK", "P"])
def test_pictures_of_every_color_mode_serve(tmp_path: Path, mode: str) -> None:
    pixels = picture(24, 24, seed=1)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(pixels).convert(mode)
    path = tmp_path / ("p.tif" if mode == "CMYK" else "p.png")
    image.save(path)
    (tile,) = Crops(samples_from_place(str(tmp_path), 2), TilePlan())
    assert tile.low.shape == (24, 24, 3)
    assert tile.low.dtype == np.uint8
    assert tile.low.std() > 5


def test_every_fourth_picture_is_held_out_and_one_cannot_be_split(photographs: Path) -> None:
    samples = samples_from_place(str(photographs), 2)
    kept, held_out = split(samples, "there")
    assert [sample.name for sample in held_out] == ["3.png"]
    assert len(kept) == 5
    assert [len(part) for part in split(samples[:2], "there")] == [1, 1]
    with pytest.raises(HspanError, match="there: one picture cannot be split"):
        split(samples[:1], "there")


def test_the_shipped_photographs_are_shrunk_and_none_of_them_is_a_test_picture() -> None:
    samples = samples_from_place("builtin", 4)
    names = {sample.name for sample in samples}
    assert len(names) >= 5
    assert not names & {"chelsea.png", "astronaut.png", "coffee.png", "rocket.jpg"}
    kept, held_out = split(samples, "builtin")
    assert kept
    assert held_out
    low, truth = samples[0].load()
    assert truth is not None
    assert truth.shape[0] == 4 * low.shape[0]
    assert min(min(sample.size()) for sample in samples) >= 48


def test_the_hash_follows_contents_and_plan_and_not_names(photographs: Path, tmp_path: Path) -> None:
    samples = samples_from_place(str(photographs), 2)
    plan = TilePlan(count=6, side=20)
    for path in sorted(photographs.iterdir()):
        (tmp_path / f"renamed{path.name}").write_bytes(path.read_bytes())
    renamed = samples_from_place(str(tmp_path), 2)
    assert Crops(samples, plan).sha256 == Crops(renamed, plan).sha256
    assert Crops(samples, TilePlan(count=7, side=20)).sha256 != Crops(samples, plan).sha256
    assert Crops(samples[1:], plan).sha256 != Crops(samples, plan).sha256


@pytest.mark.parametrize("options", [{"count": 0}, {"side": 8}])
def test_no_tiles_or_too_small_ones_are_wrong_usage(options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="expected at least"):
        TilePlan(**options)


def test_a_folder_that_may_not_be_read_is_one_error_line(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir()
    with read_only(folder):
        folder.chmod(0)
        with pytest.raises(HspanError, match="closed: no permission to read here"):
            samples_from_place(str(folder), 2)


@pytest.mark.parametrize(
    ("sizes", "tile"),
    [
        (SizeRange(low=ImageSize(12, 12), high=(None, None), step=12), (24, 24)),
        (SizeRange(low=ImageSize(20, 50), high=(20, 50)), (20, 50)),
    ],
    ids=["multiples", "fixed and wider than the pictures"],
)
def test_tiles_have_sizes_that_the_network_takes(
    photographs: Path, sizes: SizeRange, tile: tuple[int, int]
) -> None:
    samples = with_ground_truth(samples_from_place(str(photographs), 1))
    crops = Crops(samples, TilePlan(count=12, side=32), sizes)
    tiles = list(crops)
    assert len(tiles) == crops.count == 12
    for each in tiles:
        assert each.low.shape == (*tile, 3)
        assert each.truth is not None
        height, width, _ = each.truth.shape
        assert (height, width) == (min(44, tile[0]), min(48, tile[1]))
        np.testing.assert_array_equal(each.low[:height, :width], each.truth)
    assert crops.sha256 != Crops(samples, TilePlan(count=12, side=32)).sha256


def test_a_picture_that_is_too_small_is_named(tmp_path: Path) -> None:
    Image.fromarray(picture(12, 40, seed=0)).save(tmp_path / "small.png")
    samples = samples_from_place(str(tmp_path), 2)
    with pytest.raises(
        HspanError, match=r"small\.png: gives an input of 12x40 pixels, expected at least 16x16"
    ):
        Crops(samples, TilePlan())
