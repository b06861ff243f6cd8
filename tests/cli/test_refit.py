"""`trt-hspan refit`: a checkpoint's weights go into an engine as the engine's own model was exported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.classic_machine import machine_with_tensorrt
from support.command_line import CommandLine
from support.golden import GOLDEN
from support.tensorrt_double import Release

from trt_hspan.engine.manifest import verify_manifest
from trt_hspan.graph import load_onnx, metadata_from_model
from trt_hspan.graph.precision import float32_nodes

CHECKPOINT = GOLDEN / "small_x2.pt"


@pytest.fixture(autouse=True)
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> Release:
    """A machine with TensorRT 10.3 and one GPU."""
    return machine_with_tensorrt(monkeypatch)


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    """A checkpoint of the same architecture with other weights."""
    state = {name: 1.25 * tensor for name, tensor in torch.load(CHECKPOINT, weights_only=True).items()}
    torch.save(state, tmp_path / "tuned.pt")
    return tmp_path / "tuned.pt"


def build(run: CommandLine, plan: Path, *words: object) -> None:
    words = ("--flavor", "tensorrt", "--attention", "function", "--max", "32x32", "-o", plan, *words)
    result = run("build", "--checkpoint", CHECKPOINT, *words)
    assert result.code == 0, result.err


@pytest.mark.parametrize(
    "words",
    [(), ("--precision", "fp16", "--keep-fp32", "*body.0*"), ("--opset", 20)],
)
def test_a_checkpoint_goes_into_an_engine_of_any_float_type(
    run: CommandLine, tmp_path: Path, tuned: Path, words: tuple[object, ...]
) -> None:
    plan, other = tmp_path / "e" / "net.plan", tmp_path / "e" / "tuned.plan"
    build(run, plan, "--refittable", "--res-scale", 0.2, *words)
    result = run("refit", plan, "--checkpoint", tuned, "-o", other, "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    before, after = verify_manifest(plan), verify_manifest(other)
    assert report["plan"] == str(other)
    assert report["plan_sha256"] == after.plan_sha256 != before.plan_sha256
    assert after.source_sha256 not in (None, before.source_sha256)
    assert (after.traits, after.precision) == (("refittable",), before.precision)
    old, new = load_onnx(plan.with_suffix(".onnx")), load_onnx(other.with_suffix(".onnx"))
    assert metadata_from_model(new).res_scale == metadata_from_model(old).res_scale == 0.2
    assert float32_nodes(new) == float32_nodes(old)
    assert [node.SerializeToString() for node in new.graph.node] == [
        node.SerializeToString() for node in old.graph.node
    ]


def test_the_engine_itself_is_replaced_unless_another_name_is_given(
    run: CommandLine, tmp_path: Path, tuned: Path
) -> None:
    plan = tmp_path / "net.plan"
    build(run, plan, "--refittable")
    before = verify_manifest(plan)
    result = run("refit", plan, "--checkpoint", tuned)
    assert result.code == 0, result.err
    assert f"Refitted {plan}" in result.out
    assert verify_manifest(plan).onnx_sha256 != before.onnx_sha256
    assert run("refit", plan, "--checkpoint", CHECKPOINT).code == 0
    assert verify_manifest(plan).onnx_sha256 == before.onnx_sha256


def test_what_does_not_fit_is_one_line_and_leaves_the_engine(run: CommandLine, tmp_path: Path) -> None:
    plan = tmp_path / "net.plan"
    build(run, plan, "--refittable")
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    result = run("refit", plan, "--checkpoint", GOLDEN / "small_x4.pt")
    assert (result.code, result.out) == (1, "")
    assert "its graph is another than that of these weights" in result.err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    build(run, tmp_path / "fixed.plan")
    result = run("refit", tmp_path / "fixed.plan", "--checkpoint", CHECKPOINT)
    assert result.code == 1
    assert "was built without --refittable" in result.err
