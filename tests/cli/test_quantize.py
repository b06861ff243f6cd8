"""`trt-hspan quantize`, `sensitivity` and the quantized `build`, as a user sees them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.command_line import CommandLine
from support.export_cache import ExportCache
from support.small_networks import attention_network
from support.synthetic_pictures import picture

from trt_hspan.engine.manifest import verify_manifest
from trt_hspan.graph import load_onnx, precision_from_model, save_onnx
from trt_hspan.precision.quantize import pipeline
from trt_hspan.precision.quantize.pipeline import Quantized
from trt_hspan.precision.quantize.sensitivity import SensitivityReport

QUICK = ("--tiles", "4", "--tile", "16", "--method", "minmax", "--rounding", "nearest")
RTX = ("--flavor", "tensorrt-rtx", "--max", "24x24")


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for seed in range(4):
        Image.fromarray(picture(36, 40, seed=seed)).save(folder / f"{seed}.png")
    return folder


@pytest.fixture
def network(exported: ExportCache) -> Path:
    return exported("small_x2")


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"cache"}


def test_the_model_its_recipe_and_its_table_are_written(
    run: CommandLine, network: Path, photographs: Path, tmp_path: Path
) -> None:
    target = tmp_path / "net.onnx"
    result = run("quantize", network, "-o", target, "--calibration", photographs, *QUICK, "--json")
    assert result.code == 0, result.err
    assert files_in(tmp_path) == {"net.onnx", "net.recipe.yaml", "net.calibration.json"}
    report = json.loads(result.out)
    assert precision_from_model(load_onnx(target)) == report["precision"] == "int8"
    assert report["base"] == "fp16"
    assert report["quantized_convolutions"] == report["convolutions"] - 4
    assert report["calibration_pictures"] == 4
    assert not report["calibration_from_cache"]
    again = run("quantize", network, "-o", target, "--calibration", photographs, *QUICK, "--json")
    assert json.loads(again.out) == report | {"calibration_from_cache": True}


def test_an_edited_table_is_fed_back(
    run: CommandLine, network: Path, photographs: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    assert run("quantize", network, "-o", first, "--calibration", photographs, *QUICK).code == 0
    table = tmp_path / "first.calibration.json"
    assert run("quantize", network, "-o", second, "--table", table).code == 0
    assert second.read_bytes() == first.read_bytes()
    document = json.loads(table.read_text())
    document["tensors"]["relu"]["range"] *= 2
    table.write_text(json.dumps(document))
    assert run("quantize", network, "-o", second, "--table", table).code == 0
    assert second.read_bytes() != first.read_bytes()


def test_a_recipe_makes_the_same_file_again(
    run: CommandLine, network: Path, photographs: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    assert (
        run("quantize", network, "-o", first, "--calibration", photographs, "--tiles", 4, "--tile", 16).code
        == 0
    )
    result = run("quantize", network, "-o", second, "--recipe", tmp_path / "first.recipe.yaml")
    assert result.code == 0, result.err
    assert second.read_bytes() == first.read_bytes()


def test_ground_truth_gives_a_loss(
    run: CommandLine, network: Path, photographs: Path, tmp_path: Path
) -> None:
    words = ("--calibration", photographs, "--held-out", photographs, *QUICK, "--json")
    result = run("quantize", network, "-o", tmp_path / "net.onnx", *words)
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert abs(report["loss_db"]) < 3
    assert report["psnr_against_fp32_db"] > 20


def test_a_loss_that_rounds_to_nothing_has_no_sign(
    run: CommandLine, network: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantize = pipeline.quantized_network

    def slightly_better(*arguments: Any, **named: Any) -> Quantized:
        quantized = quantize(*arguments, **named)
        return replace(quantized, recipe=replace(quantized.recipe, loss_db=-1e-5))

    monkeypatch.setattr(pipeline, "quantized_network", slightly_better)
    words = ("--calibration", photographs, *QUICK, "--json")
    result = run("quantize", network, "-o", tmp_path / "net.onnx", *words)
    assert result.code == 0, result.err
    assert '"loss_db": 0.0,' in result.out


def test_sensitivity_too_prints_a_loss_that_rounds_to_nothing_as_none(
    run: CommandLine, network: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = pipeline.network_sensitivity

    def slightly_better(*arguments: Any, **named: Any) -> SensitivityReport:
        report = measure(*arguments, **named)
        base, everything = (replace(m, loss_db=-1e-5) for m in (report.base, report.everything))
        layers = tuple(replace(layer, loss_db=-2e-5) for layer in report.layers)
        return replace(report, base=base, everything=everything, layers=layers)

    monkeypatch.setattr(pipeline, "network_sensitivity", slightly_better)
    words = ("--calibration", "builtin", *QUICK, "--exclude", "body.*")
    result = run("sensitivity", network, "-o", tmp_path / "net.json", *words)
    assert result.code == 0, result.err
    assert result.out.count("loss +0.0000 dB") == 3  # the base type, all layers, and the one layer
    assert "-0.0000" not in result.out


def test_sensitivity_writes_figures_and_a_chart(
    run: CommandLine, network: Path, photographs: Path, tmp_path: Path
) -> None:
    target = tmp_path / "net.json"
    result = run("sensitivity", network, "-o", target, "--calibration", "builtin", *QUICK)
    assert result.code == 0, result.err
    document = json.loads(target.read_text())
    layers = document["layers"]
    assert len(layers) > 10
    psnrs = [layer["psnr_db"] for layer in layers]
    assert psnrs == sorted(psnrs)
    # One quantized layer costs less than all of them; the base type alone less than any.
    assert document["everything"]["psnr_db"] < psnrs[0]
    assert document["base"]["psnr_db"] > psnrs[0]
    assert all(isinstance(layer["loss_db"], float) for layer in layers)
    assert layers[0]["name"] in result.out
    with Image.open(tmp_path / "net.png") as chart:
        chart.load()
        assert chart.width > 800
        assert len(chart.convert("RGB").resize((200, 100)).getcolors(20_000) or []) > 20
    assert files_in(tmp_path) == {"net.json", "net.png"}


def test_pictures_without_ground_truth_give_no_loss(
    run: CommandLine, network: Path, photographs: Path, tmp_path: Path
) -> None:
    target = tmp_path / "net.json"
    words = ("--calibration", photographs, *QUICK, "--exclude", "body.*", "--json")
    result = run("sensitivity", network, "-o", target, *words)
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert [layer["name"] for layer in report["layers"]] == ["tail.0.0/Conv"]
    assert report["layers"][0]["loss_db"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--calibration: is missing: int8 ranges are measured on pictures"),
        (["--calibration", "builtin", "--method", "kl"], "--method: got 'kl', expected one of minmax"),
        (
            ["--calibration", "builtin", "--precision", "fp16"],
            "--precision: got 'fp16', expected int8 or fp8",
        ),
        (["--calibration", "builtin", "--base", "int8"], "--base: got 'int8'"),
        (["--calibration", "builtin", "--budget-db", "0"], "--budget-db: got 0, expected a positive number"),
        (["--calibration", "builtin", "--budget-db", "nan"], "--budget-db: got nan"),
        (["--calibration", "builtin", "--tiles", "0"], "--tiles: got 0"),
        (["--calibration", "builtin", "--tile", "8"], "--tile: got 8"),
        (["--calibration", "builtin", "--rounding", "up"], "--rounding: got 'up'"),
        (
            ["--calibration", "builtin", "--precision", "fp8", "--rounding", "adaptive"],
            "--rounding: adaptive is for",
        ),
        (["--calibration", "builtin", "--exclude", "none"], "--exclude: 'none' matches no"),
        (["--table", "t.json", "--method", "mse"], "--method: is part of the table"),
        (["--table", "t.json", "--budget-db", "1"], "--budget-db: needs pictures to measure on"),
        (["--recipe", "r.yaml", "--budget-db", "1"], "--budget-db: is part of the recipe"),
        (["--calibration", "builtin", "--res-scale", "1"], "--res-scale: is part of an ONNX file already"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    run: CommandLine, network: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    result = run("quantize", network, "-o", tmp_path / "net.onnx", *words)
    assert result.code == 2, result.err
    assert message in result.error_line
    assert not files_in(tmp_path)


def spoiled_folder(folder: Path, kind: str) -> Path:
    """A calibration folder that does not serve."""
    place = folder / "pictures"
    place.mkdir()
    if kind == "text":
        (place / "a.png").write_text("no picture")
    elif kind == "truncated":
        Image.fromarray(picture(64, 64, seed=0)).save(place / "a.png")
        (place / "a.png").write_bytes((place / "a.png").read_bytes()[:400])
    elif kind == "small":
        Image.fromarray(picture(10, 30, seed=0)).save(place / "a.png")
    elif kind == "constant":
        Image.new("RGB", (32, 32), "red").save(place / "a.png")
    return place


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "empty",
            "pictures: contains no pictures; put pictures there, or HR/NAME.png and LR_bicubic/XSCALE/NAMExSCALE.png",
        ),
        ("text", "a.png: not a picture that can be read"),
        ("truncated", "a.png: a damaged or truncated picture"),
        ("small", "a.png: gives an input of 10x30 pixels, expected at least 16x16"),
        ("constant", "the only picture is of a single color"),
    ],
)
def test_pictures_that_do_not_serve_are_one_error_line(
    run: CommandLine, network: Path, tmp_path: Path, kind: str, message: str
) -> None:
    place = spoiled_folder(tmp_path, kind)
    result = run("quantize", network, "-o", tmp_path / "net.onnx", "--calibration", place)
    assert result.code == 1, result.err
    assert message in result.error_line
    assert files_in(tmp_path) == {"pictures"}


def test_one_picture_is_too_few_for_a_budget(run: CommandLine, network: Path, tmp_path: Path) -> None:
    place = spoiled_folder(tmp_path, "empty")
    Image.fromarray(picture(64, 64, seed=0)).save(place / "a.png")
    words = ("--calibration", place, "--budget-db", "0.1")
    result = run("quantize", network, "-o", tmp_path / "net.onnx", *words)
    assert result.code == 1
    assert "one picture cannot be split" in result.error_line


def test_a_model_that_is_quantized_or_has_no_attention_is_refused(
    run: CommandLine, network: Path, photographs: Path, tmp_path: Path
) -> None:
    quantized = tmp_path / "int8.onnx"
    assert run("quantize", network, "-o", quantized, "--calibration", photographs, *QUICK).code == 0
    words = ("--calibration", photographs, "-o", tmp_path / "out.onnx")
    assert "int8.onnx: is quantized already" in run("quantize", quantized, *words).error_line
    bare = tmp_path / "bare.onnx"
    save_onnx(attention_network(blocks=0), bare)
    result = run("quantize", bare, *words)
    assert result.code == 1
    assert "bare.onnx: contains no hspan::HighSimilarityPassAttention node" in result.error_line
    assert not (tmp_path / "out.onnx").exists()


def test_the_whole_chain_builds_for_four_targets_and_the_manifest_counts(
    run: CommandLine, network: Path, photographs: Path, tmp_path: Path
) -> None:
    targets = [word for t in ("sm_80", "sm_86", "sm_89", "sm_120") for word in ("--target", t)]
    first, second = tmp_path / "first.plan", tmp_path / "second.plan"
    words = ("--precision", "int8", "--calibration", photographs, *QUICK, *RTX, *targets)
    result = run("build", "--onnx", network, *words, "-o", first)
    assert result.code == 0, result.err
    manifest = verify_manifest(first)
    record = manifest.quantization
    assert record is not None
    assert (manifest.precision, manifest.base_precision, record.type) == ("int8", "fp16", "int8")
    # Every convolution but mean shifts, first and last; TensorRT-RTX's own log names as many.
    assert record.quantized_convolutions == record.convolutions - 4 == record.builder_convolutions
    assert 0.5 < record.quantized_mac_share < 1
    assert f"int8 in {record.quantized_convolutions} of {record.convolutions} convolutions" in result.out
    assert {"first.recipe.yaml", "first.calibration.json"} <= files_in(tmp_path)
    words = ("--recipe", tmp_path / "first.recipe.yaml", *RTX, "--target", "sm_86", "-o", second)
    result = run("build", "--onnx", network, *words)
    assert result.code == 0, result.err
    assert second.with_suffix(".onnx").read_bytes() == first.with_suffix(".onnx").read_bytes()
    assert verify_manifest(second).quantization == record


def test_after_a_build_that_the_compiler_refused_convolutions_are_quantized_all_the_same(
    run: CommandLine, network: Path, photographs: Path, tmp_path: Path
) -> None:
    words = ("--precision", "int8", "--calibration", photographs, *QUICK, *RTX, "-o", tmp_path / "net.plan")
    refused = run("build", "--onnx", network, *RTX, "--target", "sm_75", "-o", tmp_path / "refused.plan")
    assert refused.code == 1
    assert "Turing" in refused.error_line
    assert run("build", "--onnx", network, *words, "--target", "sm_86").code == 0
    record = verify_manifest(tmp_path / "net.plan").quantization
    assert record is not None
    assert record.builder_convolutions == record.quantized_convolutions > 0


def test_fp8_builds_where_gpus_have_it_and_the_error_names_where_not(
    run: CommandLine, network: Path, photographs: Path, tmp_path: Path
) -> None:
    words = ("--precision", "fp8", "--calibration", photographs, "--tiles", 4, "--tile", 16, *RTX)
    plan = tmp_path / "net.plan"
    result = run("build", "--onnx", network, *words, "--target", "sm_89", "--target", "sm_86", "-o", plan)
    assert result.code == 1
    assert "--target: sm_86 cannot compute in FP8 (E4M3)" in result.error_line
    assert (
        "default set includes sm_80, sm_86" in run("build", "--onnx", network, *words, "-o", plan).error_line
    )
    assert not files_in(tmp_path)
    result = run("build", "--onnx", network, *words, "--target", "sm_89", "--target", "sm_120", "-o", plan)
    assert result.code == 0, result.err
    record = verify_manifest(plan).quantization
    assert record is not None
    assert record.type == "fp8"
    assert record.builder_convolutions == record.quantized_convolutions


def test_a_budget_that_cannot_be_met_builds_no_engine(
    run: CommandLine, network: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trt_hspan.precision.quantize import budget

    monkeypatch.setattr(budget, "fits", lambda *_: False)  # whatever was measured, it is too much
    words = ("--precision", "int8", "--calibration", photographs, "--budget-db", "0.0001", *QUICK, *RTX)
    result = run("build", "--onnx", network, *words, "-o", tmp_path / "net.plan")
    assert result.code == 1
    assert "0.0001 dB cannot be met: the best choice loses" in result.error_line
    assert not files_in(tmp_path)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--precision", "int8"], 2, "computes in fp32; name pictures with --calibration"),
        (["--calibration", "builtin"], 2, "--calibration: is for quantized engines; add --precision"),
        (["--base", "fp16"], 2, "--base: is for quantized engines"),
        (["--precision", "int8", "--calibration", "gone"], 1, "gone: no such folder"),
        (
            ["--precision", "int8", "--calibration", "builtin", "--opset", "21"],
            2,
            "--opset: follows from the precision",
        ),
        (
            ["--precision", "int8", "--calibration", "builtin", "--audit", "builtin"],
            2,
            "--audit: is for float networks",
        ),
        (["--recipe", "gone.yaml"], 1, "gone.yaml: no such file"),
    ],
)
def test_a_quantized_build_that_makes_no_sense_is_one_line(
    run: CommandLine, network: Path, tmp_path: Path, words: list[str], code: int, message: str
) -> None:
    result = run("build", "--onnx", network, *RTX, "-o", tmp_path / "net.plan", *words)
    assert message in result.error_line
    assert result.code == code
    assert not files_in(tmp_path)


def test_export_sends_int8_to_quantize(run: CommandLine, tmp_path: Path) -> None:
    result = run("export", "hspan-tiny-x4", "-o", tmp_path / "net.onnx", "--precision", "int8")
    assert result.code == 2
    assert "int8 needs pictures to measure ranges on; use trt-hspan quantize" in result.error_line
