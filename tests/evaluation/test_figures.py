"""The side-by-side picture: every panel where it belongs, the detail enlarged without smoothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from trt_hspan.errors import HspanError
from trt_hspan.evaluation.figures import Crop, Panel, save_comparison
from trt_hspan.media.pictures import read_image

CROP = Crop(top=5, left=20, height=10, width=30)


def panels(count: int, height: int = 40, width: int = 60) -> list[Panel]:
    rng = np.random.default_rng(0)
    return [
        Panel(title=f"title {i}", note="note", image=rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for i in range(count)
    ]


def positions(figure: np.ndarray, part: np.ndarray) -> list[tuple[int, int]]:
    """Where `part` stands in the figure, pixel for pixel."""
    height, width, _ = part.shape
    starts = np.argwhere((figure == part[0, 0]).all(axis=-1))
    return [
        (int(y), int(x))
        for y, x in starts
        if figure[y : y + height, x : x + width].shape == part.shape
        and (figure[y : y + height, x : x + width] == part).all()
    ]


@pytest.mark.parametrize("count", [1, 4])
def test_panels_stand_in_a_row_with_their_details_below(tmp_path: Path, count: int) -> None:
    shown = panels(count)
    path = save_comparison(tmp_path / "new" / "figure.png", shown, CROP)
    figure = read_image(path)
    columns = []
    for panel in shown:
        # The frame around the detail covers the panel's rows 5 to 15; below it the panel is whole.
        ((top, left),) = positions(figure, panel.image[CROP.top + CROP.height :])
        detail = panel.image[5:15, 20:50].repeat(2, axis=0).repeat(2, axis=1)
        ((detail_top, detail_left),) = positions(figure, detail)
        # Margins of 16 pixels, labels of 54, a detail twice as large: 20 rows.
        assert (top, detail_left, detail_top) == (16 + 54 + 15, left, 16 + 54 + 40 + 16)
        columns.append(left)
        # A frame of two pixels lies around the detail.
        framed = figure[70 + 5 : 70 + 15, left + 20 : left + 50]
        around = np.ones((10, 30), bool)
        around[2:-2, 2:-2] = False
        assert (framed[around] == (255, 196, 0)).all()
        np.testing.assert_array_equal(framed[~around].reshape(6, 26, 3), panel.image[7:13, 22:48])
        # Title and note stand above the picture, below each other.
        labels = (figure[:70, left : left + 60] != figure[0, 0]).any(axis=(1, 2))
        assert not labels[:16].any()
        assert labels[16:42].any()
        assert labels[42:].any()
        # Where a stroke covers a pixel whole, it has the text's color.
        assert figure[16:42, left : left + 60].max(axis=(0, 1)).tolist() == [236, 236, 236]
        assert figure[42:70, left : left + 60].max(axis=(0, 1)).tolist() == [160, 166, 174]
    assert figure[0, 0].tolist() == [24, 26, 30]
    assert columns == [16 + 76 * index for index in range(count)]
    assert figure.shape == (16 + 54 + 40 + 16 + 20 + 16, 16 + 76 * count, 3)


def test_labels_are_drawn(tmp_path: Path) -> None:
    (panel,) = panels(1)
    one = read_image(save_comparison(tmp_path / "a.png", [panel], CROP))
    other = read_image(save_comparison(tmp_path / "b.png", [dataclasses.replace(panel, title="x")], CROP))
    third = read_image(save_comparison(tmp_path / "c.png", [dataclasses.replace(panel, note="x")], CROP))
    assert one.shape == other.shape == third.shape
    assert (one != other).any()
    assert (one != third).any()


def test_folder_as_output_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(HspanError, match="is a folder"):
        save_comparison(tmp_path, panels(1), CROP)
