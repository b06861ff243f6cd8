"""`trt-hspan audit`, and `--audit` and `--keep-fp32` of export and build, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.command_line import CommandLine
from support.export_cache import ExportCache
from support.golden import GOLDEN, GoldenNetwork
from support.loud_network import write_loud_checkpoint
from support.small_networks import write_attention_network
from support.synthetic_pictures import picture

from trt_hspan.engine.manifest import read_manifest
from trt_hspan.evaluation.resize import downscale
from trt_hspan.graph import base_precision_from_model, load_onnx
from trt_hspan.media.writing import write_picture


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark set of two small pictures for scale 4."""
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(2):
        high = picture(96, 80, seed=index)
        write_picture(folder / "HR" / f"{index}.png", high)
        write_picture(folder / "LR_bicubic" / "X4" / f"{index}x4.png", downscale(high, 4))
    return folder


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose residual stream exceeds 65504, with small_x4's outputs."""
    target = tmp_path_factory.mktemp("loud") / "loud.pt"
    return write_loud_checkpoint(GOLDEN / "small_x4.pt", target, factor=2.0**18)


def test_audit_names_the_nodes_and_decides_nothing(run: CommandLine, loud: Path, pictures: Path) -> None:
    result = run("audit", loud, "--pictures", pictures, "--limit", 1, "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert (report["precision"], report["limit"], report["pictures"]) == ("fp16", 65504.0, 1)
    assert "body.0/Add" in report["at_risk"]
    assert set(report["cure"]) > {"body.0/Add", "body.1.body.0.body.0/Conv"}
    table = run("audit", loud, "--pictures", pictures, "--limit", 1)
    assert table.code == 0
    assert "body.0/Add" in table.out
    assert "nodes at risk" in table.out
    assert "--keep-fp32 at-risk" in table.out


def test_audit_of_a_float32_file_is_the_audit_of_its_checkpoint(
    run: CommandLine, exported: ExportCache, small_x4: GoldenNetwork, pictures: Path
) -> None:
    words = ("--pictures", pictures, "--limit", 1, "--precision", "fp16", "--json")
    ours = json.loads(run("audit", exported("small_x4"), *words).out)
    theirs = json.loads(run("audit", small_x4.checkpoint, *words).out)
    assert [node["node"] for node in ours["nodes"]] == [node["node"] for node in theirs["nodes"]]
    for a, b in zip(ours["nodes"], theirs["nodes"], strict=True):
        assert a["largest"] == pytest.approx(b["largest"], rel=1e-5)
        assert a["low"] == b["low"]


@pytest.mark.parametrize("kept", ["at-risk", "budget:0.01"])
def test_nodes_at_risk_stay_float32_on_request_and_the_picture_comes_out_right(
    run: CommandLine, loud: Path, pictures: Path, tmp_path: Path, kept: str
) -> None:
    target = tmp_path / "cured.onnx"
    words = ("export", loud, "-o", target, "--precision", "fp16", "--audit", pictures)
    result = run(*words, "--keep-fp32", kept, "--json")
    assert result.code == 0, result.err
    audit = json.loads(result.out)["range_audit"]
    assert "body.0/Add" in audit["kept_fp32"]
    assert set(audit["kept_fp32"]) <= set(audit["cure"])
    assert base_precision_from_model(load_onnx(target)) == "fp16"
    validated = run(
        "validate", target, "--checkpoint", loud, "--images", pictures, "--min-psnr", 55, "--json"
    )
    assert validated.code == 0, validated.err
    assert abs(json.loads(validated.out)["total"]["psnr_y_loss_db"]) < 0.005


def test_without_a_request_nothing_is_kept_and_the_overflow_is_reported_with_its_cure(
    run: CommandLine, loud: Path, pictures: Path, tmp_path: Path
) -> None:
    target = tmp_path / "naive.onnx"
    result = run("export", loud, "-o", target, "--precision", "fp16", "--audit", pictures, "--json")
    assert json.loads(result.out)["range_audit"]["kept_fp32"] == []
    validated = run("validate", target, "--checkpoint", loud, "--images", pictures)
    assert validated.code == 1
    assert "NaN or infinite; see where with trt-hspan audit" in validated.error_line


def test_engine_stores_the_audit_in_its_manifest(
    run: CommandLine, loud: Path, pictures: Path, tmp_path: Path
) -> None:
    plan = tmp_path / "loud.plan"
    words = ("build", "--checkpoint", loud, "--precision", "fp16", "--max", "32x32", "--target", "sm_86")
    result = run(*words, "--audit", pictures, "--keep-fp32", "at-risk", "-o", plan, "--json")
    assert result.code == 0, result.err
    manifest = read_manifest(plan)
    assert manifest.precision == "fp16"
    audit = manifest.range_audit
    assert audit is not None
    assert audit.pictures == 2
    assert audit.kept_fp32 == audit.cure
    assert any(node.node == "body.0/Add" and node.risks for node in audit.nodes)
    assert json.loads(result.out)["range_audit"]["limit"] == 65504.0


def test_node_that_was_named_stays_float32(run: CommandLine, small_x4: GoldenNetwork, tmp_path: Path) -> None:
    target = tmp_path / "kept.onnx"
    words = ("export", small_x4.checkpoint, "-o", target, "--precision", "fp16")
    assert run(*words, "--keep-fp32", "body.1.body.1.*").code == 0
    typed = load_onnx(target)
    inferred = {v.name: v.type.tensor_type.elem_type for v in typed.graph.value_info}
    types = {node.name: inferred.get(node.output[0]) for node in typed.graph.node}
    assert types["body.1.body.1.conv_match1.0/Conv"] == 1  # float32
    assert types["body.0.body.1.conv_match1.0/Conv"] == 10  # float16


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["audit", "hspan-tiny-x4", "--precision", "int8"], "'int8' has no range to audit"),
        (["audit", "hspan-tiny-x4", "--tile", "8"], "--tile: got 8"),
        (["export", "hspan-tiny-x4", "-o", "a.onnx", "--audit", "builtin"], "--audit: a float32 network"),
        (
            ["export", "a.pt", "-o", "a.onnx", "--precision", "fp16", "--keep-fp32", "at-risk"],
            "at-risk needs an audit",
        ),
        (
            [
                "export",
                "a.pt",
                "-o",
                "a.onnx",
                "--precision",
                "fp16",
                "--audit",
                "d",
                "--keep-fp32",
                "budget:no",
            ],
            "got 'budget:no', expected a positive number of dB",
        ),
        (
            ["export", "hspan-tiny-x4", "-o", "a.onnx", "--precision", "fp16", "--keep-fp32", "nothing"],
            "no node is called 'nothing'",
        ),
        (["build", "--onnx", "a.onnx", "--keep-fp32", "x"], "--keep-fp32: is part of an ONNX file already"),
    ],
)
def test_wrong_usage_is_exit_code_2(
    run: CommandLine, words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*words)
    assert result.code == 2
    assert message in result.error_line
    assert list(tmp_path.iterdir()) == []


def test_bad_files_are_one_line(run: CommandLine, tmp_path: Path) -> None:
    network = write_attention_network(tmp_path / "a.onnx", precision="bf16")
    (tmp_path / "empty").mkdir()
    write_picture(tmp_path / "gray" / "a.png", np.full((20, 20, 3), 7, np.uint8))
    for words, message in [
        (["audit", tmp_path / "none.onnx"], "none.onnx: no such file"),
        (["audit", tmp_path / "none.plan"], "none.plan: no such file"),
        (["audit", network, "--pictures", tmp_path / "none"], "none: no such folder"),
        (["audit", network, "--pictures", tmp_path / "empty"], "empty: contains no pictures"),
        (["audit", network, "--precision", "fp16"], "computes in bf16; give its checkpoint"),
    ]:
        result = run(*words)
        assert result.code in (1, 2), words
        assert message in result.error_line
    constant = run("audit", network, "--pictures", tmp_path / "gray", "--json")
    assert constant.code == 0, constant.err
    assert json.loads(constant.out)["precision"] == "bf16"
