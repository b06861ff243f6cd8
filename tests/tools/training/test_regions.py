from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.synthetic_pictures import pairs

from tools.training.attention_kinds import (
    REGION_SHARE,
    REGION_SIDE,
    attention_blocks,
    with_random_regions,
    with_softmax_attention,
)
from tools.training.data import upscaled_pixels
from tools.training.loop import Training, TrainingConfig
from tools.training.regions import KINDS, Comparison, kinds_table, psnr_table, steps_in
from trt_hspan import HSPAN, HspanConfig
from trt_hspan.evaluation.metrics import psnr_y
from trt_hspan.evaluation.resize import bicubic_pixels

CONFIG = TrainingConfig(
    scale=2, n_feats=8, n_groups=1, n_blocks=1, steps=6, batch=2, patch=16, average_decay=0.5
)


def _network() -> HSPAN:
    torch.manual_seed(0)
    return HSPAN(HspanConfig(n_feats=8, n_groups=1, n_blocks=1, scale=2, res_scale=1.0)).eval()


def test_random_regions_are_softmax_over_the_positions_of_a_quarter_of_the_regions() -> None:
    network = _network()
    (block,), (whole,) = map(
        attention_blocks, (with_random_regions(network), with_softmax_attention(network))
    )
    height, width = 2 * REGION_SIDE, 2 * REGION_SIDE + 3  # six regions, two of them narrow
    features = torch.randn(1, 8, height, width, generator=torch.Generator().manual_seed(1))
    parts = (block.conv_match1, block.conv_match2, block.conv_assembly)
    regions = [
        (slice(top, top + REGION_SIDE), slice(left, left + REGION_SIDE))
        for top in range(0, height, REGION_SIDE)
        for left in range(0, width, REGION_SIDE)
    ]
    with torch.no_grad():
        query, key, value = (part(features)[0] for part in parts)

        def attended(first: int, second: int) -> torch.Tensor:
            keys, values = (
                torch.cat([part[(slice(None), *regions[index])].flatten(1) for index in (first, second)], 1)
                for part in (key, value)
            )
            weights = torch.softmax(query.flatten(1).T @ keys, dim=-1)
            return (values @ weights.T).reshape(1, 8, height, width) + features

        assert round(len(regions) * REGION_SHARE) == 2
        results = [attended(a, b) for a in range(len(regions)) for b in range(a + 1, len(regions))]
        drawn = [block(features) for _ in range(6)]
        # Softmax weights sum to 1; 128 terms of float32 numbers of order 10 are rounded.
        matches = [
            [index for index, result in enumerate(results) if torch.allclose(result, one, rtol=0, atol=1e-4)]
            for one in drawn
        ]
        assert [len(match) for match in matches] == [1] * 6
        assert len({match[0] for match in matches}) > 1  # each run draws anew
        assert int(block.draws) == 6
        again = attention_blocks(with_random_regions(network))[0]
        assert torch.equal(again(features), drawn[0])
        assert not torch.allclose(whole(features), drawn[0], rtol=0, atol=1e-4)


def test_all_kinds_start_from_the_same_weights_and_see_the_same_batches(tmp_path: Path) -> None:
    comparison = Comparison(CONFIG, pairs(2), tmp_path)
    states = {kind: training.model.state_dict() for kind, training in comparison.trainings.items()}
    for state in states.values():
        assert all(
            torch.equal(value, states["HSPA"][key]) for key, value in state.items() if "draws" not in key
        )
    batches = [training.sampler.batch(2) for training in comparison.trainings.values()]
    assert all(torch.equal(low, batches[0][0]) for low, _ in batches)
    before = {kind: {k: v.clone() for k, v in state.items()} for kind, state in states.items()}
    comparison.step()
    for kind, training in comparison.trainings.items():
        moved = [k for k, v in training.model.state_dict().items() if not torch.equal(v, before[kind][k])]
        assert any("conv_match1" in name for name in moved) == (kind != "no attention")


def test_a_stopped_comparison_goes_on_and_ends_with_the_weights_of_an_uninterrupted_one(
    tmp_path: Path,
) -> None:
    whole = Comparison(CONFIG, pairs(2), tmp_path / "whole")
    whole.train()
    first = Comparison(CONFIG, pairs(2), tmp_path / "parts")
    first.train(on_step=lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 3 else None)
    assert first.step_count == 3
    second = Comparison(CONFIG, pairs(2), tmp_path / "parts")
    second.train()
    for kind, training in second.trainings.items():
        expected = whole.trainings[kind].averaged.state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in training.averaged.state_dict().items())
    longer = Comparison(replace(CONFIG, steps=8, average_decay=0.9), pairs(2), tmp_path / "parts")
    longer.train()
    assert longer.step_count == 8


def test_the_tables_give_each_kind_against_no_attention(tmp_path: Path) -> None:
    comparison = Comparison(CONFIG, pairs(2), tmp_path)
    pair = pairs(2)[0]
    psnrs = comparison.psnrs_db([pair])
    assert psnrs["bicubic"] == [psnr_y(bicubic_pixels(pair.low, 2), pair.high, 2)]
    hspa = comparison.trainings["HSPA"].averaged_network
    assert psnrs["HSPA"] == [psnr_y(upscaled_pixels(hspa, pair.low), pair.high, 2)]
    figures = {kind: [30.0, 20.0 + index] for index, kind in enumerate(("bicubic", *KINDS))}
    assert psnr_table(figures, ["a", "b"]).splitlines()[2:] == [
        "| a | 30.00 | 30.00 | 30.00 | 30.00 | 30.00 |",
        "| b | 20.00 | 21.00 | 22.00 | 23.00 | 24.00 |",
        "| **mean** | 25.000 | 25.500 | 26.000 | 26.500 | 27.000 |",
    ]
    assert kinds_table(comparison, figures).splitlines()[-1] == "| HSPA | 27.000 | +1.500 | 1 of 2 | 0.0 |"


def test_the_slowest_kind_decides_how_many_steps_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = 0.0

    def step(training: Training) -> None:
        nonlocal seconds
        seconds += 20.0 if attention_blocks(training.averaged_network) else 5.0

    monkeypatch.setattr(Training, "step", step)
    monkeypatch.setattr("tools.training.regions.time.perf_counter", lambda: seconds)
    assert steps_in(1.0, CONFIG, pairs(2)) == 3
