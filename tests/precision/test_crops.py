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
    calibration_crops,
    check_place,
    samples_from_place,
    split,
    with_ground_truth,
)
from trt_hspan.sizes import ImageSize
from trt_hspan.upscaling.tile_size import ANY_SIZE, SizeRange


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


def test_no_tiles_or_too_small_ones_are_wrong_usage() -> None:
    with pytest.raises(UsageError, match="--tiles: got 0, expected at least 1"):
        TilePlan(count=0)
    with pytest.raises(UsageError, match="--tile: got 15, expected at least 16 pixels"):
        TilePlan(side=15)
    assert TilePlan(count=1, side=16) != TilePlan() == TilePlan(count=32, side=48)


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


def test_the_smallest_picture_and_the_smallest_tile_have_16_pixels(tmp_path: Path) -> None:
    Image.fromarray(picture(16, 40, seed=0)).save(tmp_path / "a.png")
    crops = Crops(samples_from_place(str(tmp_path), 1), TilePlan(count=3, side=16))
    assert [tile.low.shape for tile in crops] == [(16, 16, 3)] * 3
    Image.fromarray(picture(15, 40, seed=0)).save(tmp_path / "b.png")
    with pytest.raises(HspanError, match=r"b\.png: gives an input of 15x40 pixels"):
        Crops(samples_from_place(str(tmp_path), 1), TilePlan(count=3, side=16))


def test_tiles_reach_every_edge_of_a_picture(tmp_path: Path) -> None:
    pixels = np.indices((18, 19)).transpose(1, 2, 0).astype(np.uint8)
    Image.fromarray(np.dstack([pixels, pixels[..., :1]])).save(tmp_path / "a.png")
    tiles = Crops(samples_from_place(str(tmp_path), 1), TilePlan(count=60, side=16))
    assert {tuple(tile.low[0, 0, :2].tolist()) for tile in tiles} == {
        (y, x) for y in range(3) for x in range(4)
    }


def crops_of(
    folder: str | None, held_out: str | None = None, **options: bool
) -> list[tuple[int, set[str], int]]:
    """Pictures, names and the tiles' height, of calibration and measuring."""
    flags = {"hold_out": False, "need_truth": False, **options}
    parts = calibration_crops(folder, held_out, TilePlan(count=20, side=16), 2, ANY_SIZE, **flags)
    found = []
    for crops in parts:
        tiles = list(crops)
        assert all(
            (tile.truth is not None) == (options.get("need_truth", False) and crops is parts[1])
            for tile in tiles
        )
        found.append((crops.count, {tile.name for tile in tiles}, tiles[0].low.shape[0] if tiles else 0))
    return found


def test_measuring_takes_fewer_and_larger_tiles_of_other_pictures(photographs: Path) -> None:
    folder = str(photographs)
    every = {f"{index}.png" for index in range(6)}
    assert crops_of(None) == [(0, set(), 0), (0, set(), 0)]
    assert crops_of(folder) == [(24, every, 16), (0, set(), 0)]
    assert crops_of(folder, hold_out=True) == [(20, every - {"3.png"}, 16), (16, {"3.png"}, 32)]
    assert crops_of(folder, folder, hold_out=True) == [(24, every, 16), (18, every, 32)]
    assert crops_of(None, folder) == [(0, set(), 0), (18, every, 32)]
    # Halved, the pictures are 22x24 pixels, smaller than a tile: each is one itself.
    assert crops_of(folder, folder, need_truth=True)[1] == (6, every, 22)
    fewer = calibration_crops(
        None, folder, TilePlan(count=3, side=16), 2, ANY_SIZE, hold_out=True, need_truth=False
    )[1]
    assert fewer.count == 6


def test_a_place_is_looked_at_before_the_scale_is_known(photographs: Path, tmp_path: Path) -> None:
    for place in ("builtin", str(photographs), str(next(photographs.iterdir()))):
        check_place(place)
    with pytest.raises(HspanError, match="gone: no such"):
        check_place(str(tmp_path / "gone"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(HspanError, match="empty: "):
        check_place(str(tmp_path / "empty"))
    closed = tmp_path / "closed"
    closed.mkdir()
    with read_only(closed):
        closed.chmod(0)
        with pytest.raises(HspanError, match="closed: no permission to read here"):
            check_place(str(closed))


def test_the_hash_follows_the_sizes_that_the_network_takes_and_which_side_a_picture_is(
    photographs: Path,
) -> None:
    samples = samples_from_place(str(photographs), 2)
    plan = TilePlan(count=6, side=20)
    hashes = {
        Crops(samples, plan).sha256,
        Crops(samples, plan, SizeRange(low=ImageSize(4, 4), high=(None, None), step=4)).sha256,
        Crops(with_ground_truth(samples), plan).sha256,
        Crops(samples[::-1], plan).sha256,
        Crops(samples, TilePlan(count=6, side=21)).sha256,
    }
    assert len(hashes) == 5


def test_ground_truth_that_is_there_stays(photographs: Path) -> None:
    plain = samples_from_place(str(photographs), 2)
    once = with_ground_truth(plain)
    assert all(each.low_resolution is None and each.ground_truth is not None for each in once)
    assert with_ground_truth(once) == once


def test_an_installation_without_photographs_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "gone"):
        monkeypatch.setattr("trt_hspan.precision.crops._PHOTOGRAPHS", folder)
        with pytest.raises(HspanError, match="contains no photograph; name a folder with --calibration"):
            check_place("builtin")
