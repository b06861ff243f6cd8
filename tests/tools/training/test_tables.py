from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tools.training.figures import AttentionSample, Quality
from tools.training.tables import (
    attention_table,
    quality_table,
    support_table,
    write_attention_picture,
    write_support_picture,
)


def _sample(block: int) -> AttentionSample:
    support = np.arange(1, 201)
    return AttentionSample(
        "cat",
        block,
        400,
        support,
        np.float32(support) / 8,
        np.float32(support) / 10,
        np.float32(support) / 400,
        support * 2,
        np.float32(support) / 200,
    )


def test_the_last_line_of_a_quality_table_contains_the_means() -> None:
    results = [
        Quality(
            name=name,
            bicubic_psnr_db=bicubic,
            network_psnr_db=bicubic + gain,
            without_attention_psnr_db=bicubic + gain - 0.25,
            softmax_psnr_db=bicubic + gain - 0.5,
            bicubic_ssim=0.5,
            network_ssim=0.75,
        )
        for name, bicubic, gain in (("a", 20.0, 1.0), ("b", 30.0, 2.0))
    ]
    lines = quality_table(results).splitlines()
    assert lines[2] == "| a | 20.00 | 21.00 | +1.00 | 20.75 | 20.50 | 0.5000 | 0.7500 |"
    assert lines[-1] == "| **mean** | 25.00 | 26.50 | +1.50 | 26.25 | 26.00 | 0.5000 | 0.7500 |"


def test_an_attention_table_gives_quantiles_of_the_sampled_rows() -> None:
    lines = attention_table([_sample(0), _sample(1)]).splitlines()
    assert len(lines) == 4
    # Supports 1..200 of 400 positions: median 100.5, 95th percentile 190.05, 72 of 200 above 128.
    assert lines[2] == "| cat | 0 | 400 | 1 | 100 | 190 | 200 | 25.12% | 36.0% | 12.56 | 25.00 | 20.00 |"


def test_the_attention_picture_is_written_whole(tmp_path: Path) -> None:
    write_attention_picture([_sample(0), _sample(1)], tmp_path / "statistics.png")
    with Image.open(tmp_path / "statistics.png") as image:
        assert image.size == (900, 675)


def test_a_support_table_holds_softmax_against_sparsemax() -> None:
    assert support_table([_sample(0)]).splitlines()[2] == (
        "| cat | 0 | 400 | 100 (25.1%) | 400 | 0.0025 | 201 (50.2%) | 50.2% |"
    )


def test_the_picture_of_one_position_is_small_and_whole(tmp_path: Path) -> None:
    low = np.zeros((20, 30, 3), np.uint8)
    softmax = np.full((20, 30), 1 / 600, np.float32)
    sparse = np.zeros((20, 30), np.float32)
    sparse[3, 4:6] = 0.5
    write_support_picture(low, (3, 4), (sparse, softmax), tmp_path / "support.png")
    with Image.open(tmp_path / "support.png") as image:
        assert image.size == (960, 256)
