"""The CPU benchmarks measure what they say, on sizes that take a moment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    import importlib

    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for each in ("measuring", name):
        monkeypatch.delitem(sys.modules, each, raising=False)
    return importlib.import_module(name)


@pytest.mark.parametrize(("regime", "least", "most"), [("sparse", 2, 5), ("mid", 30, 50), ("dense", 45, 55)])
def test_regimes_have_the_supports_they_claim(
    monkeypatch: pytest.MonkeyPatch, regime: str, least: float, most: float
) -> None:
    attention = module("attention", monkeypatch)
    query, key, _, claimed = attention.tokens(100, regime)
    weights = attention.sparsemax_by_sorting(query[attention.sampled(100)].double() @ key.double().T)
    torch.testing.assert_close(weights.sum(-1), torch.ones(attention.SAMPLED_ROWS, dtype=torch.float64))
    assert least <= float((weights > 0).double().sum(-1).mean()) <= most
    assert least <= claimed <= most


def test_peer_and_package_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = module("attention", monkeypatch)
    tensors = attention.tokens(150, "dense")[:3]
    outputs = [attention.form(name, *tensors)() for name in ("native", "entmax")]
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)


def test_a_measurement_reports_time_memory_and_error(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = module("attention", monkeypatch)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    report = attention.measure("native", 150, "mid", 1)
    assert 0 < report["seconds"] < 60
    assert 0 <= report["extra_bytes"] < 50e6
    assert report["error"] < 1e-5


def test_peak_memory_sees_what_a_call_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    measuring = module("measuring", monkeypatch)
    result, peak = measuring.peak_memory_bytes(lambda: (b"x" * 50_000_000).count(b"y"))
    assert result == 0
    assert 45e6 < peak < 60e6


def test_dense_eager_network_is_the_same_network(monkeypatch: pytest.MonkeyPatch) -> None:
    end_to_end = module("end_to_end", monkeypatch)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, c, 7, 9, generator=generator) for c in (4, 4, 6))
    from trt_hspan.ops import high_similarity_pass_attention

    torch.testing.assert_close(
        end_to_end.dense_attention(q, k, v), high_similarity_pass_attention(q, k, v), rtol=1e-4, atol=1e-5
    )
    assert end_to_end.picture(48).shape == (1, 3, 48, 48)


@pytest.mark.parametrize("name", ["attention", "end_to_end"])
def test_help_answers(name: str) -> None:
    command = [sys.executable, BENCHMARKS / f"{name}.py", "--help"]
    assert "--json" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
