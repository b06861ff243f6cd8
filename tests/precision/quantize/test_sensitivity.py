"""What one layer costs: measured one by one, sorted, written, and drawn as measured."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from matplotlib.figure import Figure

from trt_hspan.precision.quantize import sensitivity
from trt_hspan.precision.quantize.measure import Measurement
from trt_hspan.precision.quantize.sensitivity import SensitivityReport, sensitivity_report, write_sensitivity

PSNR_DB = {"a/Conv": 50.0, "b/Conv": 30.0, "sum": 40.0, "exact/Conv": math.inf}
LOSS_DB = {"a/Conv": 0.25, "b/Conv": -0.125, "sum": 0.0, "exact/Conv": 0.0}


class KnownLayers:
    """Tiles on which each layer alone has a PSNR that is known."""

    reference_psnr_y_db = 30.0

    def __init__(self, *, has_truth: bool) -> None:
        self.has_truth = has_truth

    def __len__(self) -> int:
        return 7

    def measure(self, names: tuple[str, ...]) -> Measurement:
        psnr = min((PSNR_DB[name] for name in names), default=math.inf)
        loss = sum(LOSS_DB[name] for name in names) if self.has_truth else None
        return Measurement(psnr_db=psnr, worst_psnr_db=psnr, psnr_y_db=None, loss_db=loss)


@pytest.fixture
def report_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sensitivity, "variant", lambda _, nodes, __: tuple(node.name for node in nodes))
    monkeypatch.setattr(sensitivity, "convolution_macs", lambda _: {"a/Conv": 30, "b/Conv": 10, "x": 60})
    source: Any = SimpleNamespace(base=(), where="folder/net.onnx", sha256="0" * 64, precision="fp16")
    table: Any = SimpleNamespace(precision="int8", method="mse")
    nodes: Any = [SimpleNamespace(name=name) for name in PSNR_DB]

    def report(*, has_truth: bool = True) -> SensitivityReport:
        done: list[None] = []
        held_out: Any = KnownLayers(has_truth=has_truth)
        result = sensitivity_report(source, nodes, table, held_out, on_layer=lambda: done.append(None))
        assert len(done) == len(nodes)
        return result

    return report


def test_the_most_sensitive_layer_comes_first_with_its_share_of_the_work(report_of: Any) -> None:
    report = report_of()
    assert [layer.name for layer in report.layers] == ["b/Conv", "sum", "a/Conv", "exact/Conv"]
    assert [layer.mac_share for layer in report.layers] == [0.1, 0.0, 0.3, 0.0]
    assert [layer.loss_db for layer in report.layers] == [-0.125, 0.0, 0.25, 0.0]
    assert (report.base.psnr_db, report.everything.psnr_db, report.tiles) == (math.inf, 30.0, 7)
    assert (report.precision, report.base_precision, report.method) == ("int8", "fp16", "mse")


@pytest.mark.parametrize("has_truth", [True, False])
def test_bars_are_errors_in_levels_and_losses(
    report_of: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, has_truth: bool
) -> None:
    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *words, **options: (drawn.append(self), save(self, *words, **options))
    )
    chart = write_sensitivity(report_of(has_truth=has_truth), tmp_path / "net.json")
    assert chart == tmp_path / "net.png"
    assert chart.read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "net.json").read_text())["layers"][0]["name"] == "b/Conv"
    (figure,) = drawn
    errors, *losses = figure.axes
    # The first bar is the lowest. 30 dB are a root mean square of 255 / 10^1.5.
    assert [label.get_text() for label in errors.get_yticklabels()] == ["exact", "a", "sum", "b"]
    widths = [bar.get_width() for bar in errors.patches]
    assert widths == pytest.approx([0, 255 / 10**2.5, 2.55, 255 / 10**1.5])
    assert [text.get_text() for text in errors.texts] == ["none", "50.0 dB", "40.0 dB", "30.0 dB"]
    assert "error" in errors.get_xlabel()
    assert len(losses) == has_truth
    # Room for each layer, and two charts side by side.
    assert figure.get_size_inches().tolist() == pytest.approx([11.0 if has_truth else 5.5, 1.6 + 4 * 0.26])
    for axes in figure.axes:
        assert axes.lines[0].get_xdata() == [0, 0]
        assert not axes.spines["top"].get_visible()
        assert not axes.spines["right"].get_visible()
        low, high = axes.get_xlim()
        reach = axes.dataLim
        assert high - reach.x1 == pytest.approx(0.2 * reach.width)  # for the labels
        assert low == pytest.approx(reach.x0 - 0.2 * reach.width if reach.x0 else 0.0)
    for axes in losses:
        assert [bar.get_width() for bar in axes.patches] == [0.0, 0.25, 0.0, -0.125]
        assert [text.get_text() for text in axes.texts] == ["+0.0000", "+0.2500", "+0.0000", "-0.1250"]
        assert "loss" in axes.get_xlabel()
    assert "net.onnx: one layer in INT8, the rest in FP16 (7 tiles)" in str(figure.get_suptitle())
