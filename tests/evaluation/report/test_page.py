"""The report's page and figures as texts, of networks in numpy; `test_page_in_browser` opens one."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from jinja2 import UndefinedError
from support.runner_doubles import NearestRunner

from trt_hspan.engine.range_record import NodeRange, RangeAudit
from trt_hspan.evaluation.compare import validate_all
from trt_hspan.evaluation.datasets import samples_from_folder
from trt_hspan.evaluation.layers import LayerError
from trt_hspan.evaluation.report import page as page_module
from trt_hspan.evaluation.report.evidence import EvidenceCollector
from trt_hspan.evaluation.report.page import ReportInput, Row, page_from_report, write_report
from trt_hspan.media.writing import write_picture

MINUS = "\N{MINUS SIGN}"


def node(name: str, largest: float | None, **changes: Any) -> NodeRange:
    plain: dict[str, Any] = dict.fromkeys(
        ("rounding_snr_db", "update_snr_db", "largest_weight", "largest_score", "score_error")
    )
    plain |= {"op_type": "Conv", "low": True, "risks": (), "cure": ()}
    return NodeRange(node=name, largest=largest, **(plain | changes))


AUDIT = RangeAudit(
    precision="fp16",
    limit=65504.0,
    pictures=1,
    tile=64,
    nodes=(
        node("first", 10.0, largest_score=7.0),
        node("risky", 60000.0, risks=("activation",), largest_score=8.5),
        node("in float32", 9.0, low=False),
        node("unmeasured", None),
    ),
)


def content(
    folder: Path,
    candidates: list[NearestRunner],
    *,
    truth: bool = True,
    manifests: tuple[Any, ...] = (None, None),
    layers: tuple[tuple[LayerError, ...], ...] = ((), ()),
    pictures: int = 1,
    most: int = 12,
    minimum_db: float = 30.0,
) -> ReportInput:
    for index in range(pictures):
        pixels = np.random.default_rng(index).integers(60, 190, (24, 28, 3), np.uint8)
        if truth:
            write_picture(folder / f"HR/{index}.png", pixels.repeat(2, 0).repeat(2, 1))
        write_picture(folder / (f"LR_bicubic/X2/{index}x2.png" if truth else f"{index}.png"), pixels)
    labels = ["FP32", "FP16"][: len(candidates)]
    evidence = EvidenceCollector(labels, most_pictures=most)
    reports = validate_all(
        candidates,
        NearestRunner(scale=2),
        samples_from_folder(folder, 2),
        on_outputs=evidence,
        min_psnr_db=minimum_db,
    )
    rows = []
    for label, report, manifest, own in zip(labels, reports, manifests, layers, strict=False):
        path = folder.parent / f"{label}.onnx"
        path.write_bytes(b"x" * 1500)
        rows.append(Row(label=label, path=path, manifest=manifest, report=report, layers=own))
    return ReportInput(
        reference="net.pt", images="a folder", rows=rows, evidence=evidence, layer_picture="the middle"
    )


def two(offset: float) -> list[NearestRunner]:
    return [NearestRunner(scale=2), NearestRunner(scale=2, offset=offset)]


def test_the_report_has_passed_where_every_network_has(tmp_path: Path) -> None:
    page = write_report(tmp_path / "good", content(tmp_path / "in", two(2**-8)))
    assert page == tmp_path / "good" / "index.html"
    figures = json.loads((tmp_path / "good" / "report.json").read_text())
    assert (figures["passed"], figures["layer_picture"]) == (True, "the middle")
    assert "<title>Passed: accuracy of net.pt" in page.read_text()
    write_report(tmp_path / "bad", content(tmp_path / "in2", two(0.25)))
    figures = json.loads((tmp_path / "bad" / "report.json").read_text())
    assert [network["passed"] for network in figures["networks"]] == [True, False]
    assert figures["passed"] is False
    assert "<title>Failed" in (tmp_path / "bad" / "index.html").read_text()


def test_without_ground_truth_its_columns_are_empty(tmp_path: Path) -> None:
    report = content(tmp_path / "in", [NearestRunner(scale=2)], truth=False)
    write_report(tmp_path / "out", report)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["bicubic"] is None
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<td>\N{EN DASH}</td>" in page
    assert "Bicubic<small>" not in page
    with_truth = content(tmp_path / "in2", [NearestRunner(scale=2)])
    write_report(tmp_path / "out2", with_truth)
    bicubic = json.loads((tmp_path / "out2" / "report.json").read_text())["bicubic"]
    assert bicubic["psnr_y_db"] == with_truth.rows[0].report.total.bicubic_quality.psnr_y_db  # type: ignore[union-attr]


def test_shares_of_equal_values_and_of_errors_are_shown(tmp_path: Path) -> None:
    page = page_from_report(content(tmp_path / "in", two(2**-8)))
    assert "100.0 % exactly equal" in page
    assert "0.0 % exactly equal" in page
    # All errors of the second network, 1 / 256 of 255 gray levels, are in the cell below 1 gray level.
    (outline,) = re.findall(r'<path class="area series-1" d="([^"]*)"', page)
    assert outline.count("V14.0H") == 1
    assert "100 %</text>" in page


def test_pictures_beyond_the_most_are_counted(tmp_path: Path) -> None:
    assert "more, on which" not in page_from_report(content(tmp_path / "a", two(2**-8), pictures=2, most=2))
    page = page_from_report(content(tmp_path / "b", two(2**-8), pictures=3, most=1))
    assert " 2 more, on which every network does better" in page


def test_modules_of_the_network_with_most_are_the_axis(tmp_path: Path) -> None:
    short = (LayerError(module="head.0", psnr_db=90.0), LayerError(module="tail.0", psnr_db=60.0))
    long = (*short[:1], LayerError(module="body.0", psnr_db=70.0), *short[1:])
    page = page_from_report(content(tmp_path / "a", two(2**-8), layers=(short, long)))
    circles = re.findall(r'<circle class="series-(.)" [^>]*><title>[^,]*, ([^:]*): ([^ ]*) dB', page)
    assert circles == [
        *(("0", "head.0", "90.0"), ("0", "tail.0", "60.0")),
        *(("1", "head.0", "90.0"), ("1", "body.0", "70.0"), ("1", "tail.0", "60.0")),
    ]
    assert 'id="layers"' not in page_from_report(content(tmp_path / "b", two(2**-8)))


def test_an_audit_shows_nodes_of_its_type_and_the_largest_score(tmp_path: Path) -> None:
    def manifest(audit: RangeAudit | None) -> Any:
        return SimpleNamespace(
            range_audit=audit,
            activation_memory_bytes=5_000_000,
            build_time_seconds=100.0,
            largest_profile=SimpleNamespace(max=(1, 3, 64, 96)),
        )

    report = content(tmp_path / "in", two(2**-8), manifests=(manifest(AUDIT), manifest(None)))
    page = page_from_report(report)
    assert re.findall(r'class="stem( risk)?" [^>]*><title>([^<]*)<', page) == [
        ("", "first: 10"),
        (" risk", "risky: 6e+04"),
    ]
    assert "Range audit, FP32" in page
    assert "Range audit, FP16" not in page
    assert "Largest unscaled score of an attention: 8.5." in page
    assert "1 nodes are at risk" in page
    assert "<td>5.0 MB</td>" in page
    assert "<td>100 s</td>" in page
    assert "<td>1.5 kB</td>" in page  # of the file
    write_report(tmp_path / "out", report)
    (first, second) = json.loads((tmp_path / "out" / "report.json").read_text())["networks"]
    assert (first["activation_memory_bytes"], second["build_time_seconds"]) == (5_000_000, 100.0)
    assert first["size_bytes"] == 1500


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("none | db", "\N{EN DASH}"),
        ("nan | db", "NaN"),
        ("inf | db", "\N{INFINITY}"),
        ("(-inf) | db", f"{MINUS}\N{INFINITY}"),
        ("(-1.005) | db", f"{MINUS}1.00"),
        ("38.128 | db", "38.13"),
        ("38.1284 | db(3)", "38.128"),
        ("0.00125 | loss", "+0.0013"),
        ("(-0.00001) | loss", "0.0000"),
        ("0.00001 | loss", "0.0000"),
        ("(-0.5) | loss", f"{MINUS}0.5000"),
        ("0.91234 | ssim", "0.9123"),
        ("0.00049 | ssim_loss", "+0.0005"),
        ("(1 / 255) | levels", "1"),
        ("0.01234 | levels", "3.15"),
        ("none | size", "\N{EN DASH}"),
        ("100000 | size", "0.1 MB"),
        ("99999 | size", "100.0 kB"),
        ("2345678901 | size", "2,345.7 MB"),
        ("none | seconds", "\N{EN DASH}"),
        ("99.994 | seconds", "99.99 s"),
        ("100.0 | seconds", "100 s"),
        ("1234.5 | seconds", "1,234 s"),
        ("0.1234 | percent", "12.3 %"),
    ],
)
def test_figures_are_written_for_readers(expression: str, text: str) -> None:
    template = page_module._environment().from_string(f"{{{{ {expression} }}}}")
    assert template.render(nan=math.nan, inf=math.inf) == text


def test_a_name_that_the_page_misspells_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        page_module._environment().from_string("{{ nothing }}").render()


def test_names_are_text_in_the_page() -> None:
    template = page_module._environment().from_string("  {% if true %}\n  {{ name }}\n  {% endif %}\n")
    assert template.render(name="<b>") == "  &lt;b&gt;\n"
