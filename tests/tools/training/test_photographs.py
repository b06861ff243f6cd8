from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.synthetic_pictures import picture

from tools.training import photographs
from tools.training.data import load_pairs
from tools.training.photographs import HELD_OUT, TRAINING, Photograph, prepare, source_path
from trt_hspan.errors import HspanError
from trt_hspan.evaluation.resize import downscale

PACKAGE = "mate-backgrounds"


def test_no_held_out_picture_is_trained_on() -> None:
    held_out, training = ({(p.package, p.path) for p in group} for group in (HELD_OUT, TRAINING))
    assert not held_out & training
    names = [photograph.name for photograph in (*HELD_OUT, *TRAINING)]
    assert len(set(names)) == len(names)


def test_the_pictures_that_the_figures_are_promised_for_are_held_out() -> None:
    assert {"astronaut", "chelsea", "coffee"} <= {photograph.name for photograph in HELD_OUT}
    assert len(HELD_OUT) >= 8


def _install(packages: Path, name: str, height: int, width: int) -> Photograph:
    path = packages / PACKAGE / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(height, width, seed=len(name))).save(path)
    return Photograph(name, PACKAGE, f"{name}.png")


def test_pictures_are_prepared_in_the_layout_of_the_benchmark_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photographs, "HELD_OUT", (_install(tmp_path, "small", 61, 83),))
    monkeypatch.setattr(photographs, "TRAINING", (_install(tmp_path, "large", 600, 900),))
    reported: list[str] = []
    prepare(tmp_path, tmp_path / "data", report=reported.append)
    assert reported == ["heldout/small", "train/large"]
    for scale in (2, 4):
        (small,) = load_pairs(tmp_path / "data/heldout", scale)
        # Smaller than the limit: cropped to a multiple of 4, not resampled.
        assert np.array_equal(small.high, picture(61, 83, seed=5)[:60, :80])
        assert np.array_equal(small.low, downscale(small.high, scale))
        sizes = {pair.name: pair.high.shape[:2] for pair in load_pairs(tmp_path / "data/train", scale)}
        assert sizes == {"large-1400": (600, 900), "large-800": (532, 800)}


def test_a_missing_package_is_named_with_the_command_that_gets_it(tmp_path: Path) -> None:
    with pytest.raises(HspanError, match="apt-get download mate-backgrounds"):
        source_path(Photograph("x", PACKAGE, "x.jpg"), tmp_path)
    with pytest.raises(HspanError, match=r"pip install -e '\.\[training\]'"):
        source_path(Photograph("x", "no_such_python_package", "x.png"), tmp_path)
