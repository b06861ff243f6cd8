"""Which comparisons make sense, and what is opened and compared for one; with networks in numpy and of a few nodes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.runner_doubles import NearestRunner
from support.small_networks import write_attention_network

from trt_hspan.data import DEMO_PHOTOGRAPH
from trt_hspan.errors import HspanError, UsageError
from trt_hspan.evaluation import validation
from trt_hspan.evaluation.datasets import Sample
from trt_hspan.evaluation.validation import (
    ValidationRequest,
    _labels,
    _middle,
    reference_runner,
    validate,
    validate_files,
)
from trt_hspan.export import to_onnx
from trt_hspan.graph import load_onnx
from trt_hspan.media.writing import write_picture
from trt_hspan.runtime.torch_runner import TorchRunner

A, B = Path("a.plan"), Path("b.ONNX")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"files": ()}, "ENGINE_OR_ONNX: nothing to compare"),
        ({"reference": "net.onnx", "files": (), "device": "gpu"}, "ENGINE_OR_ONNX: nothing to compare"),
        ({"reference": "net.ONNX", "precision": "fp16"}, "--precision: is for a checkpoint as the reference"),
        ({"reference": "net.onnx", "res_scale": 0.1}, "--res-scale: is for a checkpoint as the reference"),
        ({"min_psnr_db": float("nan")}, "--min-psnr"),
        *(({"budget_db": bad}, "--budget-db: got") for bad in (-0.1, float("nan"), float("inf"))),
        ({"files": (A, Path("c.pt"))}, "c.pt: is neither an engine nor an ONNX file"),
        ({"files": (B, A, B, A)}, "a.plan: was named twice"),
        ({"precision": "bf16", "report": Path("r")}, "--report: compares layers of ONNX files"),
        ({"report": Path(__file__)}, "is a file, expected a folder"),
        ({"device": "tpu"}, "--device: got 'tpu'"),
        ({"files": (), "device": "gpu", "report": Path("r")}, "--report: compares layers of ONNX files"),
        ({"files": (A, Path("z.plan"), A, Path("z.plan"))}, "a.plan: was named twice"),
    ],
)
def test_comparisons_that_make_no_sense_are_wrong_usage(options: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError, match=re.escape(line)):
        ValidationRequest(**{"reference": "hspan-tiny-x2", "files": (A,), **options})


@pytest.mark.parametrize(
    ("options", "precision"),
    [
        ({}, None),
        ({"files": (A, B), "budget_db": 0.0, "report": Path("r")}, None),
        ({"precision": "bf16"}, "bf16"),
        ({"files": (), "precision": "bf16"}, "bf16"),
        ({"files": (), "device": "gpu:1"}, "fp32"),
        ({"files": (), "device": "gpu", "precision": "fp16"}, "fp16"),
        ({"device": "gpu"}, None),
        ({"reference": "net.onnx", "device": "gpu"}, None),
    ],
)
def test_a_checkpoint_is_compared_itself_where_a_precision_or_a_gpu_alone_is_named(
    options: dict[str, Any], precision: str | None
) -> None:
    request = ValidationRequest(**{"reference": "hspan-tiny-x2", "files": (A,), **options})
    assert request.compared_precision == precision
    assert request.is_onnx_reference is request.reference.endswith(".onnx")


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(60, 190, (height, width, 3), np.uint8)


class Networks:
    """Opens networks in numpy by their names, and notes how."""

    def __init__(self) -> None:
        self.opened: list[tuple[str, dict[str, Any]]] = []
        self.references: list[tuple[str, float | None]] = []
        self.res_scales: dict[str, float] = {}

    def open(self, source: object, **options: Any) -> NearestRunner:
        self.opened.append((str(source), options))
        runner = NearestRunner(offset=2**-9)
        runner.res_scale = self.res_scales.get(str(source))
        return runner

    def reference(self, source: object, *, res_scale: float | None = None) -> NearestRunner:
        self.references.append((str(source), res_scale))
        return NearestRunner()


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> Networks:
    double = Networks()
    monkeypatch.setattr(validation, "open_runner", double.open)
    monkeypatch.setattr(validation, "reference_runner", double.reference)
    return double


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for number in range(3):
        write_picture(tmp_path / "in" / f"{number}.png", picture(12 + number, 14))
    return tmp_path / "in"


def test_each_file_is_compared_on_the_pictures_with_its_progress(networks: Networks, pictures: Path) -> None:
    steps: list[tuple[str, float, float]] = []
    request = ValidationRequest(reference="net.pt", files=(A, B), pictures=pictures, limit=2)
    result = validate_files(request, on_progress=lambda *step: steps.append(step))
    assert result.names == ("a.plan", "b.ONNX")
    assert result.page is None
    assert [[one.name for one in report.pictures] for report in result.reports] == [["0.png", "1.png"]] * 2
    assert steps == [("comparing", 0, 2), ("compared 0.png", 1, 2), ("compared 1.png", 2, 2)]
    assert [source for source, _ in networks.opened] == ["a.plan", "b.ONNX"]
    everything = validate_files(ValidationRequest(reference="net.pt", files=(A,), pictures=pictures))
    assert len(everything.reports[0].pictures) == 3


@pytest.mark.parametrize(
    ("requested", "stored", "expected"),
    [
        (None, {}, None),
        (None, {"b.ONNX": 0.2}, 0.2),
        (None, {"a.plan": 0.3, "b.ONNX": 0.2}, 0.3),
        (0.1, {"a.plan": 0.3}, 0.1),
        (0.0, {"a.plan": 0.3}, 0.0),
    ],
)
def test_the_residual_scale_is_the_requested_one_else_that_of_a_file(
    networks: Networks,
    pictures: Path,
    requested: float | None,
    stored: dict[str, float],
    expected: float | None,
) -> None:
    networks.res_scales = stored
    validate_files(
        ValidationRequest(reference="net.pt", files=(A, B), pictures=pictures, res_scale=requested)
    )
    assert networks.references == [("net.pt", expected)]


def test_a_checkpoint_in_another_precision_is_the_last_network(networks: Networks, pictures: Path) -> None:
    request = ValidationRequest(
        reference="net.pt", files=(A,), pictures=pictures, precision="bf16", device="gpu:1"
    )
    result = validate_files(request)
    assert result.names == ("a.plan", "net.pt in bf16")
    assert len(result.reports) == 2
    assert networks.opened[1] == (
        "net.pt",
        {"device": "gpu:1", "res_scale": None, "precision": "bf16"},
    )


@pytest.mark.parametrize(
    ("file", "device", "opened"),
    [
        (A, "auto", "auto"),
        (A, "cpu:openvino", "cpu:openvino"),
        (B, "auto", "cpu:onnxruntime"),
        (B, "gpu:1", "cpu:onnxruntime"),
        (B, "cpu:openvino", "cpu:openvino"),
    ],
)
def test_an_onnx_file_is_computed_as_an_engine_would_unless_a_library_is_named(
    networks: Networks, pictures: Path, file: Path, device: str, opened: str
) -> None:
    request = ValidationRequest(
        reference="net.pt", files=(file,), pictures=pictures, device=device, plugin=Path("p.so")
    )
    validate_files(request)
    assert networks.opened == [(str(file), {"device": opened, "plugin": Path("p.so")})]


@pytest.mark.parametrize(
    ("images", "names"),
    [
        ("folder", ["0.png", "1.png", "2.png"]),
        ("files", ["1.png", "picture 1"]),
        (None, []),
    ],
)
def test_pictures_are_a_folder_files_arrays_or_the_shipped_one(
    networks: Networks, pictures: Path, images: str | None, names: list[str]
) -> None:
    given: Any = {"folder": pictures, "files": [pictures / "1.png", picture(13, 15)]}.get(str(images))
    networks.res_scales = {"a.plan": 0.3}
    report = validate(A, "net.pt", given, device="cpu", plugin="p.so")
    assert networks.opened == [("a.plan", {"device": "cpu", "plugin": "p.so"})]
    assert networks.references == [("net.pt", 0.3)]
    assert report.passed
    shown = [one.name for one in report.pictures]
    assert shown == (names if images else [DEMO_PHOTOGRAPH.name])


def test_the_reference_is_computed_in_float32(tmp_path: Path) -> None:
    assert isinstance(reference_runner("hspan-tiny-x2"), TorchRunner)
    for name in ("net.onnx", "net2.ONNX"):
        runner = reference_runner(write_attention_network(tmp_path / name))
        assert (runner.precision, isinstance(runner, TorchRunner)) == ("fp32", False)
    half = write_attention_network(tmp_path / "half.onnx", precision="fp16")
    with pytest.raises(HspanError, match=r"half\.onnx: computes in fp16, and a reference in float32"):
        reference_runner(half)


def test_networks_of_one_precision_are_told_apart_by_their_files() -> None:
    runners = [
        NearestRunner(precision="fp16"),
        NearestRunner(precision="fp16"),
        NearestRunner(precision="bf16"),
    ]
    files = [Path("x/a.plan"), Path("b.onnx"), Path("c.onnx")]
    assert _labels(files, runners) == ["FP16 a", "FP16 b", "BF16"]
    assert _labels([Path("x/a.plan"), Path("y/a.plan")], runners[:2]) == ["FP16 x/a.plan", "FP16 y/a.plan"]


@pytest.mark.parametrize(
    ("size", "fixed", "rows", "columns"),
    [
        ((70, 80), (None, 3, None, None), (3, 67), (8, 72)),
        ((70, 50), (1, 3, None, None), (3, 67), (0, 50)),
        ((70, 80), (1, 3, 20, 80), (25, 45), (0, 80)),
        ((70, 80), (1, 3, 70, 30), (0, 70), (25, 55)),
    ],
)
def test_layers_are_measured_on_the_middle_of_a_picture(
    size: tuple[int, int], fixed: tuple[int | None, ...], rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    image, runner = picture(*size), NearestRunner()
    runner.fixed_shape = fixed
    batch = _middle(validation.sample_from_picture(image, 4, 0), runner)
    assert batch is not None
    expected = image[slice(*rows), slice(*columns)].transpose(2, 0, 1)[None]
    np.testing.assert_allclose(batch, expected / 255, atol=2**-24, strict=False)


@pytest.mark.parametrize("fixed", [(1, 3, 71, None), (1, 3, None, 81), (2, 3, None, None)])
def test_a_network_that_takes_larger_inputs_alone_has_no_layers_measured(
    fixed: tuple[int | None, ...],
) -> None:
    runner = NearestRunner()
    runner.fixed_shape = fixed
    assert _middle(validation.sample_from_picture(picture(70, 80), 4, 0), runner) is None


@pytest.mark.parametrize("named", [True, False])
def test_a_report_has_a_row_and_the_layers_of_each_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    reference = write_attention_network(tmp_path / "net.onnx")
    file = write_attention_network(tmp_path / "half.onnx", precision="fp16")
    write_picture(tmp_path / "in" / "a.png", picture(20, 24))
    shipped = [Sample(name="a.png", low_resolution=tmp_path / "in/a.png", ground_truth=None, scale=1)]
    monkeypatch.setattr(validation, "shipped_samples", lambda scale: shipped)
    steps: list[tuple[str, float, float]] = []
    request = ValidationRequest(
        reference=str(reference),
        files=(file,),
        pictures=tmp_path / "in" if named else None,
        report=tmp_path / "out",
        min_psnr_db=0.0,
    )
    result = validate_files(request, on_progress=lambda *step: steps.append(step))
    assert result.page == tmp_path / "out" / "index.html"
    assert steps[-1] == ("writing the report", 1, 1)
    figures = json.loads((tmp_path / "out" / "report.json").read_text())
    assert figures["images"] == (str(tmp_path / "in") if named else "the shipped photograph")
    assert figures["layer_picture"] == "the middle 20\N{MULTIPLICATION SIGN}24 input pixels of a.png"
    (network,) = figures["networks"]
    assert (network["label"], network["file"], network["build_time_seconds"]) == ("FP16", "half.onnx", None)


def test_the_layers_of_an_engine_are_those_of_its_onnx_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Path] = []
    manifest = SimpleNamespace(onnx_file="made.onnx")
    monkeypatch.setattr(validation, "read_manifest", lambda path: manifest)
    monkeypatch.setattr(validation, "load_onnx", loaded.append)
    monkeypatch.setattr(validation, "layer_errors", lambda model, graph, batch: [batch.shape])
    request = ValidationRequest(reference="net.pt", files=(tmp_path / "a.PLAN", tmp_path / "b.onnx"))
    sample = validation.sample_from_picture(picture(20, 24), 4, 0)
    runners: list[Any] = [NearestRunner(), NearestRunner()]
    runners[1].fixed_shape = (1, 3, 30, 30)
    rows, _ = validation._rows(request, runners, [None, None], None, sample)  # type: ignore[list-item, arg-type]
    assert loaded == [tmp_path / "made.onnx"]
    assert [(row.manifest, row.layers) for row in rows] == [(manifest, [(1, 3, 20, 24)]), (None, [])]


def test_the_float32_graph_of_a_checkpoint_is_exported_and_of_an_onnx_file_is_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_attention_network(tmp_path / "net.ONNX")
    assert validation._float32_graph(str(path), None) == load_onnx(path)
    exported: list[tuple[str, float | None]] = []

    def variants(source: str, *, res_scale: float | None) -> Any:
        exported.append((source, res_scale))
        return SimpleNamespace(float32=lambda: "graph")

    monkeypatch.setattr(to_onnx, "variants_from_checkpoint", variants)
    assert str(validation._float32_graph("net.pt", 0.2)) == "graph"
    assert exported == [("net.pt", 0.2)]
