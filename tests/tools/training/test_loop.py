from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.synthetic_pictures import pairs

from tools.training.curve import write_curve
from tools.training.data import tensor_from_pixels
from tools.training.loop import (
    Report,
    Training,
    TrainingConfig,
    export_averaged,
    quick_psnr_db,
    sole_training_in,
    train,
)
from trt_hspan import load_model
from trt_hspan.errors import HspanError

CONFIG = TrainingConfig(
    scale=2,
    n_feats=8,
    n_groups=1,
    n_blocks=1,
    steps=20,
    batch=4,
    patch=12,
    learning_rate=2e-3,
    warmup_steps=2,
    average_decay=0.8,
)


def _weights(training: Training) -> dict[str, torch.Tensor]:
    return {**training.model.state_dict(), **training.averaged.state_dict()}


def _loss(training: Training) -> float:
    """L1 loss of the averaged network over whole pictures."""
    with torch.no_grad():
        losses = [
            F.l1_loss(training.averaged_network(tensor_from_pixels(pair.low)), tensor_from_pixels(pair.high))
            for pair in pairs(2)
        ]
    return float(sum(losses))


def test_twenty_steps_lower_the_loss_and_raise_the_psnr(tmp_path: Path) -> None:
    training = Training(CONFIG, pairs(2))
    before, loss_before = quick_psnr_db(training.averaged_network, pairs(2)), _loss(training)
    reports: list[Report] = []
    train(training, tmp_path, pairs(2), report_steps=5, psnr_steps=10, on_report=reports.append)
    assert [report.step for report in reports] == [5, 10, 15, 20]
    assert _loss(training) < 0.7 * loss_before
    assert reports[-1].psnr_db is not None
    assert reports[-1].psnr_db > before + 0.5
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [
        5,
        10,
        15,
        20,
    ]


def test_a_resumed_run_ends_with_the_very_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = Training(CONFIG, pairs(2))
    for _ in range(8):
        whole.step()
    first = Training(CONFIG, pairs(2))
    for _ in range(5):
        first.step()
    first.save(tmp_path / "checkpoint.pt")
    second = Training(CONFIG, pairs(2))
    second.restore(tmp_path / "checkpoint.pt")
    for _ in range(3):
        second.step()
    expected, got = _weights(whole), _weights(second)
    assert all(torch.equal(got[key], expected[key]) for key in expected)
    assert second.step_count == 8


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_step_and_saves(tmp_path: Path, kind: signal.Signals) -> None:
    training = Training(CONFIG, pairs(2))
    handler = signal.getsignal(kind)
    train(training, tmp_path, [], report_steps=3, on_report=lambda report: os.kill(os.getpid(), kind))
    assert training.step_count == 3
    assert signal.getsignal(kind) is handler
    resumed = Training(CONFIG, pairs(2))
    resumed.restore(tmp_path / "checkpoint.pt")
    assert resumed.step_count == 3


def test_a_longer_schedule_may_continue_a_run_but_another_network_may_not(tmp_path: Path) -> None:
    training = Training(CONFIG, pairs(2))
    training.step()
    training.save(tmp_path / "checkpoint.pt")
    Training(replace(CONFIG, steps=40), pairs(2)).restore(tmp_path / "checkpoint.pt")
    with pytest.raises(HspanError, match="of another run"):
        Training(replace(CONFIG, n_feats=10), pairs(2)).restore(tmp_path / "checkpoint.pt")
    with pytest.raises(HspanError, match="no such checkpoint"):
        training.restore(tmp_path / "missing.pt")


def test_the_learning_rate_rises_then_falls_to_a_hundredth() -> None:
    training = Training(CONFIG, pairs(2))
    rates = []
    for step in range(CONFIG.steps + 1):
        training.step_count = step
        rates.append(training.learning_rate)
    assert rates[0] == pytest.approx(CONFIG.learning_rate / 2)
    assert max(rates) <= CONFIG.learning_rate
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rates[-1] == pytest.approx(CONFIG.learning_rate / 100)


def test_exported_weights_load_with_the_official_factor_and_compute_the_same(tmp_path: Path) -> None:
    training = Training(CONFIG, pairs(2))
    for _ in range(3):
        training.step()
    training.save(tmp_path / "checkpoint.pt")
    metadata = export_averaged(tmp_path / "checkpoint.pt", tmp_path / "tiny.safetensors")
    assert metadata["training_steps"] == "3 of a schedule of 20"
    model = load_model(tmp_path / "tiny.safetensors")
    assert model.config.res_scale == 0.1
    image = torch.rand(1, 3, 9, 10, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = training.averaged_network(image)
        # Folding rounds each weight once more; a dozen layers of sums of 72 products.
        torch.testing.assert_close(model(image), expected, rtol=0, atol=12 * 72 * 2.0**-24)


def test_the_curve_is_a_picture_and_an_empty_log_an_error(tmp_path: Path) -> None:
    from PIL import Image

    train(Training(replace(CONFIG, steps=4), pairs(2)), tmp_path, pairs(2), report_steps=2, psnr_steps=2)
    write_curve(tmp_path / "log.jsonl", tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as curve:
        assert curve.size == (800, 500)
    with pytest.raises(HspanError, match="contains no reports"):
        write_curve(tmp_path / "nothing.jsonl", tmp_path / "other.png")
    assert not (tmp_path / "other.png").exists()


def test_a_folder_takes_one_training_at_a_time(tmp_path: Path) -> None:
    with sole_training_in(tmp_path / "run"):
        with pytest.raises(HspanError, match="another training runs"), sole_training_in(tmp_path / "run"):
            pass
        with sole_training_in(tmp_path / "other"):
            pass
    with sole_training_in(tmp_path / "run"):
        pass
