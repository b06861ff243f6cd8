"""What the report shows of pictures, against values computed by hand."""

from __future__ import annotations

import base64
import io
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper
from PIL import Image
from support.export_cache import ExportCache
from support.golden import load_golden_network
from support.runner_doubles import NearestRunner

from trt_hspan.errors import HspanError
from trt_hspan.evaluation.compare import validate_all
from trt_hspan.evaluation.datasets import samples_from_folder
from trt_hspan.evaluation.layers import layer_errors
from trt_hspan.evaluation.report.charts import Line, histogram_chart, layer_chart, range_chart
from trt_hspan.evaluation.report.evidence import HISTOGRAM_EDGES, EvidenceCollector
from trt_hspan.evaluation.report.page import require_report_tools
from trt_hspan.evaluation.report.pictures import (
    heat_gradient,
    heat_map,
    heat_uri,
    photograph_uri,
    shown_size,
    worst_window,
)
from trt_hspan.graph import load_onnx
from trt_hspan.media.writing import write_picture


def image_of(uri: str) -> np.ndarray:
    head, _, data = uri.partition(",")
    assert head == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def write_pictures(folder: Path, count: int) -> None:
    for index in range(count):
        low = np.random.default_rng(index).integers(20, 200, (16, 20, 3), dtype=np.uint8)
        write_picture(folder / f"{index}.png", low)


def test_brighter_is_worse_and_the_ends_of_the_scale_hold() -> None:
    levels = np.array([[0.0, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 1000.0, np.inf, np.nan]])
    luma = heat_map(levels)[0].astype(float) @ [0.299, 0.587, 0.114]
    assert luma[0] == luma[1] == luma[2]
    assert (np.diff(luma[2:7]) > 10).all()
    assert luma[6] == luma[7] == luma[8] == luma[9]


def test_smaller_heat_maps_keep_the_largest_error_of_each_cell() -> None:
    error = np.zeros((700, 1200))
    error[333, 777] = 10.0
    shown = image_of(heat_uri(error)).astype(float).sum(axis=2)
    assert max(shown.shape) <= 512
    y, x = np.unravel_index(int(shown.argmax()), shown.shape)
    assert (y, x) == (333 // 3, 777 // 3)


@pytest.mark.parametrize("shape", [(200, 300), (40, 300), (20, 10)])
def test_worst_window_is_the_one_with_the_largest_sum(shape: tuple[int, int]) -> None:
    error = np.random.default_rng(1).random(shape) ** 8
    rows, columns = worst_window(error, side=40)
    side = tuple(min(40, size) for size in shape)
    windows = np.lib.stride_tricks.sliding_window_view(error, side)
    assert (rows.stop - rows.start, columns.stop - columns.start) == side
    assert error[rows, columns].sum() == pytest.approx(windows.sum(axis=(2, 3)).max())


def test_size_on_the_page_keeps_the_aspect_ratio() -> None:
    assert shown_size(300, 400) == (300, 400)
    assert shown_size(1536, 2048) == (768, 1024)
    assert shown_size(1, 4096) == (1, 1024)
    assert shown_size(4096, 1) == (1024, 1)


def test_colors_of_the_map_are_those_of_its_key() -> None:
    """Six colors, evenly spaced on the logarithmic scale from a thousandth of a gray level to ten."""
    key = [(8, 8, 24), (66, 21, 100), (150, 42, 97), (222, 84, 58), (250, 160, 30), (252, 246, 180)]
    levels = np.array([[10 ** (-3 + 4 * place / 5) for place in range(6)]])
    assert [tuple(color) for color in heat_map(levels)[0].tolist()] == key
    assert heat_gradient() == f"linear-gradient(90deg, {', '.join(f'rgb{color}' for color in key)})"


@pytest.mark.parametrize(("side", "shown"), [(1024, 1024), (1030, 1024)])
def test_a_large_photograph_is_shown_smaller(side: int, shown: int) -> None:
    assert image_of(photograph_uri(np.zeros((8, side, 3), np.uint8))).shape == (8, shown, 3)


@pytest.mark.parametrize(("side", "shown"), [(512, 512), (513, 257), (1025, 342)])
def test_a_large_heat_map_has_cells(side: int, shown: int) -> None:
    assert image_of(heat_uri(np.ones((3, side)))).shape[1] == shown
    assert image_of(heat_uri(np.ones((side, 3)))).shape[0] == shown


def test_values_that_are_no_numbers_are_the_worst_window() -> None:
    error = np.ones((60, 60))
    error[50, 55] = np.nan
    rows, columns = worst_window(error, side=8)
    assert rows.start <= 50 < rows.stop
    assert columns.start <= 55 < columns.stop


def test_an_error_lies_in_the_cell_of_its_decade_and_beyond_the_ends_in_the_outer_ones() -> None:
    assert (HISTOGRAM_EDGES[0], HISTOGRAM_EDGES[-1], len(HISTOGRAM_EDGES)) == (1e-5, 100.0, 71)
    evidence = EvidenceCollector(["a"])
    evidence._count(0, np.array([0.0, 1e-9, 1.1e-5, 0.11, 99.0, 1e9, np.nan]))
    counts = {
        int(index): int(evidence.histograms[0][index]) for index in np.flatnonzero(evidence.histograms[0])
    }
    assert counts == {0: 2, 40: 1, 69: 2}
    assert (evidence.equal_values, evidence.values) == ([1], [7])


def test_histogram_counts_every_value_once(tmp_path: Path) -> None:
    write_pictures(tmp_path, 2)
    evidence = EvidenceCollector(["a", "b"])
    candidates = [NearestRunner(offset=1 / 255), NearestRunner()]
    validate_all(candidates, NearestRunner(), samples_from_folder(tmp_path, 4), on_outputs=evidence)
    values = 2 * 3 * 64 * 80
    assert evidence.values == [values, values]
    assert evidence.equal_values == [0, values]
    assert evidence.histograms[0].sum() == values
    assert evidence.histograms[1].sum() == 0
    one = np.searchsorted(HISTOGRAM_EDGES, 1.0)
    assert evidence.histograms[0][one - 1 : one + 1].sum() == values  # 1 gray level, rounded either way


def test_most_telling_pictures_are_kept_and_all_are_counted(tmp_path: Path) -> None:
    write_pictures(tmp_path, 3)
    evidence = EvidenceCollector(["a"], most_pictures=2)

    class Worsening(NearestRunner):
        def infer(self, batch: np.ndarray) -> np.ndarray:
            self.offset += 2**-12
            return super().infer(batch)

    validate_all([Worsening()], NearestRunner(), samples_from_folder(tmp_path, 4), on_outputs=evidence)
    assert evidence.seen == 3
    assert [picture.name for picture in evidence.pictures] == ["2.png", "1.png"]


def test_values_that_are_not_finite_are_magenta(tmp_path: Path) -> None:
    write_pictures(tmp_path, 1)
    evidence = EvidenceCollector(["a"])
    candidate = NearestRunner(spoil=math.nan)
    validate_all([candidate], NearestRunner(), samples_from_folder(tmp_path, 4), on_outputs=evidence)
    (shown,) = evidence.pictures
    crop = next(layer for layer in shown.details[0].crops if layer.key == "network")
    assert (shown.details[0].top, shown.details[0].left) == (0, 0)
    assert image_of(crop.uri)[0, 0].tolist() == [255, 0, 255]
    assert math.isnan(shown.reports[0].agreement.psnr_db)


def test_a_picture_has_its_layers_maps_and_details(tmp_path: Path) -> None:
    low = np.random.default_rng(0).integers(20, 200, (16, 20, 3), dtype=np.uint8)
    write_picture(tmp_path / "HR" / "a.png", low.repeat(4, 0).repeat(4, 1))
    write_picture(tmp_path / "LR_bicubic" / "X4" / "ax4.png", low)
    evidence = EvidenceCollector(["one", "two"])
    candidates = [NearestRunner(offset=2 / 255), NearestRunner(offset=-3 / 255)]
    validate_all(candidates, NearestRunner(), samples_from_folder(tmp_path, 4), on_outputs=evidence)
    (shown,) = evidence.pictures
    assert (shown.height, shown.width) == (64, 80)
    assert [(layer.key, layer.label) for layer in shown.layers] == [
        *(("bicubic", "Bicubic"), ("fp32", "FP32 reference"), ("truth", "Ground truth")),
        *(("network0", "one"), ("network1", "two")),
    ]
    assert [(layer.key, layer.label) for layer in shown.heat_maps] == [
        ("network0", "one"),
        ("network1", "two"),
    ]
    for detail, label, level in zip(shown.details, ("one", "two"), (2, 3), strict=True):
        assert (detail.label, detail.side_rows, detail.side_columns) == (label, 40, 40)
        # Values below 1 in float32 are off by 2^-24 at most, a hundred-thousandth of a gray level.
        assert detail.mean_error_levels == pytest.approx(level, abs=1e-4)
        assert [layer.key for layer in detail.crops] == ["bicubic", "fp32", "truth", "network", "error"]
        assert image_of(detail.crops[0].uri).shape == (40, 40, 3)


def test_a_dozen_pictures_are_kept_and_a_broken_one_before_all(tmp_path: Path) -> None:
    write_pictures(tmp_path, 14)

    class Changing(NearestRunner):
        def infer(self, batch: np.ndarray) -> np.ndarray:
            number = len(self.calls)
            self.spoil = math.nan if number == 5 else None
            self.offset = 2**-12 * (number + 1)
            return super().infer(batch)

    evidence = EvidenceCollector(["a"])
    validate_all([Changing()], NearestRunner(), samples_from_folder(tmp_path, 4), on_outputs=evidence)
    names = [path.stem for path in sorted(tmp_path.iterdir())]
    kept = [picture.name.removesuffix(".png") for picture in evidence.pictures]
    assert kept == [names[number] for number in (5, 13, 12, 11, 10, 9, 8, 7, 6, 4, 3, 2)]
    assert evidence.seen == 14


def test_of_equally_bad_pictures_the_first_is_kept(tmp_path: Path) -> None:
    write_pictures(tmp_path, 2)
    evidence = EvidenceCollector(["a"], most_pictures=1)
    validate_all([NearestRunner()], NearestRunner(), samples_from_folder(tmp_path, 4), on_outputs=evidence)
    assert [picture.name for picture in evidence.pictures] == ["0.png"]


@pytest.mark.parametrize(
    ("precision", "low", "high"), [("fp32", 400, math.inf), ("fp16", 60, 100), ("bf16", 40, 80)]
)
def test_error_of_a_module_has_the_digits_of_its_type(
    exported: ExportCache, precision: str, low: float, high: float
) -> None:
    # One rounding relative to the largest value: 24, 11 and 8 bits are 144, 66 and 48 dB, more for smaller values.
    golden = load_golden_network("small_x4")
    reference = load_onnx(exported("small_x4"))
    batch = np.ascontiguousarray(golden.input[:1])
    errors = layer_errors(load_onnx(exported("small_x4", precision=precision)), reference, batch, threads=1)
    names = [layer.module for layer in errors]
    assert names[0] == "head.0"
    assert names[-1] == "add_mean"
    assert (
        names.index("body.0.body.0") < names.index("body.0") < names.index("body.1") < names.index("tail.1")
    )
    for layer in errors[1:]:
        assert low < layer.psnr_db <= high, layer


def test_module_whose_weights_were_changed_is_where_the_error_begins(exported: ExportCache) -> None:
    golden = load_golden_network("small_x4")
    reference = load_onnx(exported("small_x4"))
    weights = {tensor.name: tensor for tensor in reference.graph.initializer}
    changed = weights["body.1.body.0.body.0.weight"]
    changed.CopyFrom(numpy_helper.from_array(1.5 * numpy_helper.to_array(changed), changed.name))
    batch = np.ascontiguousarray(golden.input[:1])
    errors = {
        layer.module: layer.psnr_db
        for layer in layer_errors(load_onnx(exported("small_x4")), reference, batch, threads=1)
    }
    assert errors["body.0"] > 110
    assert errors["body.1.body.0"] < 60
    assert errors["add_mean"] < 90


def test_charts_leave_out_what_they_cannot_draw() -> None:
    line = Line(label="<FP16>", values=(math.inf, 60.0, math.nan, None, 50.0))
    chart = layer_chart(["head.0", "body.0", "body.1", "body.2", "add_mean"], [line])
    assert chart.count("<circle") == 3
    assert "&lt;FP16&gt;, body.0: 60.0 dB" in chart
    assert "head.0: equal" in chart
    assert "nan" not in chart.lower().replace("&lt;", "")
    assert layer_chart(["head.0"], [Line(label="a", values=(math.nan,))]) == ""
    assert histogram_chart(HISTOGRAM_EDGES, ["a"], [[0.0] * (len(HISTOGRAM_EDGES) - 1)]) == ""
    ranges = range_chart(["a", "b"], [1.0, 70000.0], 65504.0, [False, True])
    assert ranges.count('class="stem risk"') == 1
    assert "limit 65504" in ranges


def test_modules_lie_side_by_side_and_decibels_above_each_other() -> None:
    """Between 14 and 330 - 92 units from the top are 70 and 40 dB, between 64 and 936 from the left five modules."""
    modules = ["head.0", "body.0", "body.0.body.0", "body.1", "add_mean"]
    lines = [Line(label=name, values=(math.inf, 60.0, None, -math.inf, 50.0)) for name in "abcdefg"]
    chart = layer_chart(modules, lines)
    assert re.findall(r'y1="([^"]+)" y2="[^"]+"/><text [^>]*>([^<]+)</text>', chart) == [
        *(("238.0", "40"), ("163.3", "50"), ("88.7", "60"), ("14.0", "70 dB")),
        *(("238", name) for name in modules if name != "body.0.body.0"),
    ]
    assert re.findall(r'class="tick" x1="([^"]+)"', chart) == ["64.0", "282.0", "718.0", "936.0"]
    circles = re.findall(r'class="series-(.)" cx="([^"]+)" cy="([^"]+)"', chart)
    places = [("64.0", "14.0"), ("282.0", "88.7"), ("718.0", "238.0"), ("936.0", "163.3")]
    assert circles == [(number, *place) for number in "0123450" for place in places]
    curves = re.findall(
        r'<polyline class="line series-(.)"( stroke-dasharray)?[^>]* points="([^"]+)"/>', chart
    )
    assert [(number, bool(dashed)) for number, dashed, _ in curves[::2]] == [
        (number, number != "0") for number in "0123450"
    ]
    assert {points for _, _, points in curves} == {"64.0,14.0 282.0,88.7", "718.0,238.0 936.0,163.3"}
    # A range of more than 80 dB has half of the lines.
    wide = layer_chart(["a"], [Line(label="a", values=(150.0,)), Line(label="b", values=(62.0,))])
    assert re.findall(r">([0-9]+)(?: dB)?</text>", wide) == ["60", "80", "100", "120", "140", "160"]


@pytest.mark.parametrize(
    ("value", "ticks"),
    [(48.0, ["40", "50"]), (49.0, ["40", "50", "60"]), (51.0, ["40", "50", "60"]), (52.0, ["50", "60"])],
)
def test_two_decibels_are_left_above_and_below_all_values(value: float, ticks: list[str]) -> None:
    chart = layer_chart(["a"], [Line(label="a", values=(value,))])
    assert re.findall(r">([0-9]+)(?: dB)?</text>", chart) == ticks


def test_shares_of_errors_are_steps_over_a_logarithmic_axis() -> None:
    chart = histogram_chart((0.1, 1.0, 10.0), ["a", "b"], [[0.25, 0.5], [0.0, 0.0]])
    assert 'd="M64.0 224.0V119.0H500.0V14.0H936.0V224.0Z"><title>a</title>' in chart
    assert re.findall(r'y="([^"]+)">([0-9]+) %<', chart) == [
        *(("228.0", "0"), ("177.6", "12"), ("127.2", "24"), ("76.8", "36"), ("26.4", "48"))
    ]
    assert re.findall(r'text-anchor="middle" x="([^"]+)" y="242">([^<]+)<', chart) == [
        *(("64.0", "10\u207b\u00b9"), ("500.0", "1"), ("936.0", "10"))
    ]
    odd = histogram_chart((10**1.5, 100.0, 1000.0), ["a"], [[0.001, 0.0]])
    assert re.findall(r'y="242">([^<]+)<', odd) == ["100", "10\u00b3"]
    assert re.findall(r">([0-9]+) %<", odd) == ["0", "1", "2"]


def test_the_limit_of_a_type_lies_among_the_ranges() -> None:
    chart = range_chart(["a", "b", "c"], [1.0, 70000.0, 0.0], 65504.0, [False, True, False])
    assert re.findall(r'class="(stem[^"]*)" x1="([^"]+)" x2="[^"]+" y1="([^"]+)" y2="([^"]+)"', chart) == [
        ("stem", "64.0", "232.0", "232.0"),
        ("stem risk", "500.0", "232.0", "56.0"),
    ]
    assert re.findall(r'class="limit" [^>]* y1="([^"]+)"', chart) == ["57.0"]
    assert "b: 7e+04" in chart
    names = [f"10{exponent}" for exponent in "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076"]
    assert re.findall(r">(10[^<]+)</text>", chart) == names
    # float16's limit is shown above all values, bfloat16's is not.
    assert "limit 65504" in range_chart(["a"], [10.0], 65504.0, [False])
    for limit in (1.1e6, 3e38):
        assert ">limit" not in range_chart(["a"], [10.0], limit, [False])
    assert "limit 1e+06" in range_chart(["a"], [10.0], 1e6, [False])
    tall = range_chart(["a", "b"], [1e-3, 1e12], 65504.0, [False, False])
    assert len(re.findall(r">10[^<]+</text>", tall)) == 9
    assert range_chart(["a"], [0.0], 65504.0, [False]) == ""


def test_missing_package_is_reported_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(HspanError, match=r"Jinja2: is not installed; pip install -e '\.\[export\]'"):
        require_report_tools()
