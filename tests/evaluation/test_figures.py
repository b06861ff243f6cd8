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
        assert detail_left == left
        assert detail_top > top
        columns.append(left)
    assert columns == sorted(columns)
    assert len(set(columns)) == count


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
