from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support.synthetic_pictures import picture

from tools.training.data import Pair, PatchSampler, load_pairs, tensor_from_pixels
from trt_hspan.errors import HspanError


def _repeated(scale: int) -> list[Pair]:
    """Pairs in which every low-resolution pixel is a block of equal pixels above."""
    lows = [picture(20, 17, seed=seed) for seed in range(2)]
    return [Pair(f"p{i}", low, low.repeat(scale, 0).repeat(scale, 1)) for i, low in enumerate(lows)]


@pytest.mark.parametrize("scale", [2, 4])
def test_flips_and_rotations_keep_both_resolutions_aligned(scale: int) -> None:
    sampler = PatchSampler(_repeated(scale), scale=scale, patch=9, seed=1)
    low, high = sampler.batch(64)
    assert low.shape == (64, 3, 9, 9)
    assert high.shape == (64, 3, 9 * scale, 9 * scale)
    torch.testing.assert_close(F.avg_pool2d(high, scale), low, rtol=0, atol=1e-6)


def test_all_eight_orientations_of_a_patch_occur() -> None:
    low = np.arange(9 * 9 * 3, dtype=np.uint8).reshape(9, 9, 3)
    sampler = PatchSampler([Pair("one", low, low.repeat(2, 0).repeat(2, 1))], scale=2, patch=9, seed=0)
    seen = {patch.numpy().tobytes() for patch in sampler.batch(200)[0]}
    assert len(seen) == 8


def test_a_restored_state_repeats_the_same_patches() -> None:
    sampler = PatchSampler(_repeated(2), scale=2, patch=9, seed=1)
    sampler.batch(3)
    state = sampler.state
    expected = sampler.batch(5)
    sampler.state = state
    for patches, reference in zip(sampler.batch(5), expected, strict=True):
        assert torch.equal(patches, reference)


def test_patches_larger_than_every_picture_are_refused() -> None:
    with pytest.raises(HspanError, match="no picture is as large as 32x32"):
        PatchSampler(_repeated(2), scale=2, patch=32, seed=0)


def test_pixels_become_channels_first_in_unit_range() -> None:
    pixels = np.array([[[0, 51, 255]]], dtype=np.uint8)
    torch.testing.assert_close(tensor_from_pixels(pixels), torch.tensor([0.0, 0.2, 1.0]).view(1, 3, 1, 1))


def _write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_pairs_are_read_in_the_layout_of_the_benchmark_sets(tmp_path: Path) -> None:
    low = picture(10, 12, seed=0)
    _write(tmp_path / "HR/b.png", low.repeat(2, 0).repeat(2, 1))
    _write(tmp_path / "LR_bicubic/X2/bx2.png", low)
    (pair,) = load_pairs(tmp_path, 2)
    assert pair.name == "b"
    assert np.array_equal(pair.low, low)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"contains no HR/\*.png"),
        ({"HR/b.png": (20, 24)}, "no such file"),
        ({"HR/b.png": (20, 24), "LR_bicubic/X2/bx2.png": (10, 11)}, "not scale 2"),
    ],
)
def test_an_incomplete_data_set_is_named(
    tmp_path: Path, files: dict[str, tuple[int, int]], message: str
) -> None:
    for name, size in files.items():
        _write(tmp_path / name, picture(*size, seed=0))
    with pytest.raises(HspanError, match=message):
        load_pairs(tmp_path, 2)
