"""INT8 files in ONNX Runtime's integer kernels, as the runner, `upscale`, `bench` and a cluster's worker run them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from support.command_line import CommandLine
from support.export_cache import ExportCache
from support.small_networks import write_attention_network
from support.synthetic_pictures import picture

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.graph import Precision, integer_cpu, load_onnx, save_onnx
from trt_hspan.jobs.cluster.bundle import bundle_from_network
from trt_hspan.jobs.cluster.worker import UpscaleWorker
from trt_hspan.media.pictures import read_image
from trt_hspan.media.pixels import tensor_from_image
from trt_hspan.media.writing import write_picture
from trt_hspan.native import cpu_attention as native
from trt_hspan.precision.crops import TilePlan
from trt_hspan.precision.quantize.pipeline import QuantizationRequest, quantize
from trt_hspan.precision.quantize.source import source_from_path
from trt_hspan.runtime.onnxruntime_runner import OnnxRuntimeRunner
from trt_hspan.runtime.opening import RunnerOptions, open_runner
from trt_hspan.upscaling.options import UpscaleOptions
from trt_hspan.upscaling.pictures import WriteOptions

OPTION = "--integer-kernels"
BATCH = tensor_from_image(picture(44, 48, seed=9))


@pytest.fixture(scope="module")
def int8_files(exported: ExportCache, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The golden network small_x2 in INT8, by base type."""
    folder = tmp_path_factory.mktemp("int8")
    for seed in range(2):
        write_picture(folder / "pictures" / f"{seed}.png", picture(36, 40, seed=seed))
    files = {}
    for base in ("fp32", "fp16"):
        request = QuantizationRequest(
            precision="int8",
            calibration=str(folder / "pictures"),
            method="minmax",
            rounding="nearest",
            tiles=TilePlan(count=2, side=20),
            use_cache=False,
        )
        files[base] = folder / f"{base}.onnx"
        save_onnx(quantize(source_from_path(exported("small_x2"), base=base), request).model, files[base])
    return files


@pytest.fixture
def int8_file(int8_files: dict[str, Path]) -> Path:
    return int8_files["fp32"]


def output(path: Path, *, integer_kernels: bool) -> np.ndarray:
    with open_runner(path, integer_kernels=integer_kernels) as runner:
        return runner.run(BATCH)


@pytest.mark.parametrize("base", ["fp32", "fp16"])
@pytest.mark.parametrize("cut", [True, False], ids=["cut at the attention", "whole"])
def test_result_is_within_quantization_steps_of_the_exact_emulation(
    int8_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, base: str, cut: bool
) -> None:
    if not cut:
        monkeypatch.setattr(native, "native_library", lambda: None)
    exact = output(int8_files[base], integer_kernels=False)
    found = output(int8_files[base], integer_kernels=True)
    assert np.median(np.abs(found - exact)) < 2.0**-9 * np.abs(exact).max()
    assert np.abs(found - exact).max() < 2.0**-5 * np.abs(exact).max()
    assert not np.array_equal(found, exact)  # something else did run


def test_weights_of_processors_without_vnni_give_the_same(
    int8_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = output(int8_file, integer_kernels=True)
    monkeypatch.setattr(integer_cpu, "has_vnni", lambda: False)
    np.testing.assert_array_equal(output(int8_file, integer_kernels=True), here)


def test_runner_says_what_runs(int8_file: Path) -> None:
    model = load_onnx(int8_file)
    integer, count = integer_cpu.model_with_integer_kernels(model)
    assert count == [node.op_type for node in integer.graph.node].count("QLinearConv") > 0
    runner = open_runner(int8_file, integer_kernels=True)
    assert isinstance(runner, OnnxRuntimeRunner)
    assert runner.integer_kernels is not None
    fitting, quantized = runner.integer_kernels
    assert (fitting, runner.precision, runner.emulated) == (count, "int8", False)
    assert count < quantized
    assert runner.label == f"{runner.name}, INT8, integer kernels in {count} of {quantized} convolutions"
    assert runner.picked.endswith("which runs ONNX files, INT8 in integer kernels as requested")
    exact = open_runner(int8_file)
    assert exact.label == f"{exact.name}, INT8, emulated on CPU"
    assert exact.emulated


# Refusals
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_files_that_are_not_quantized_are_refused(tmp_path: Path, precision: Precision) -> None:
    path = write_attention_network(tmp_path / "net.onnx", precision=precision)
    with pytest.raises(HspanError, match=r"\.onnx: is not quantized, and integer kernels compute INT8; see"):
        open_runner(path, integer_kernels=True)


def with_zero_points_off_zero(model: onnx.ModelProto) -> None:
    zeros = {n.input[2] for n in model.graph.node if n.op_type == "QuantizeLinear"}
    for tensor in model.graph.initializer:
        if tensor.name in zeros:
            tensor.CopyFrom(numpy_helper.from_array(np.array(3, np.int8), tensor.name))


def with_computed_biases(model: onnx.ModelProto) -> None:
    for node in [node for node in model.graph.node if node.op_type == "Conv"]:
        if len(node.input) > 2:
            name = f"{node.name}/bias"
            made = onnx.helper.make_node("Identity", [node.input[2]], [name], name=f"{name}/Identity")
            node.input[2] = name
            model.graph.node.insert(0, made)


@pytest.mark.parametrize("spoil", [with_zero_points_off_zero, with_computed_biases])
def test_graphs_that_the_kernels_would_compute_wrongly_are_refused(
    int8_file: Path, tmp_path: Path, spoil
) -> None:
    model = load_onnx(int8_file)
    spoil(model)
    save_onnx(model, tmp_path / "foreign.onnx")
    with pytest.raises(
        HspanError, match=r"foreign\.onnx: none of its INT8 convolutions fits an integer kernel"
    ):
        open_runner(tmp_path / "foreign.onnx", integer_kernels=True)


@pytest.mark.parametrize("source", ["hspan-tiny-x2", "net.pt", "net.plan"])
def test_checkpoints_and_engines_are_wrong_usage(source: str) -> None:
    step = "the engine was built from" if source.endswith(".plan") else "trt-hspan quantize makes one"
    with pytest.raises(UsageError, match=f"{OPTION}: is for INT8 ONNX files, and {source} is none; .*{step}"):
        open_runner(source, integer_kernels=True)


# Commands
# ----------------------------------------------------------------------------------------------


def test_upscale_runs_them_and_says_so(run: CommandLine, int8_file: Path, tmp_path: Path) -> None:
    write_picture(tmp_path / "in.png", picture(20, 24, seed=3))
    words = ["upscale", tmp_path / "in.png", "--onnx", int8_file, "--json", "-o"]
    exact = json.loads(run(*words, tmp_path / "exact.png").out)
    report = json.loads(run(*words, tmp_path / "fast.png", OPTION).out)
    assert "integer kernels in" in report["backend"]
    assert (report["emulated"], exact["emulated"]) == (False, True)
    assert "integer kernels" not in exact["backend"]
    difference = read_image(tmp_path / "fast.png").astype(int) - read_image(tmp_path / "exact.png")
    assert 0 < np.abs(difference).max() <= 8
    assert np.abs(difference).mean() < 1


def test_a_folder_made_without_them_is_not_passed_off_as_made_with_them(
    run: CommandLine, int8_file: Path, tmp_path: Path
) -> None:
    write_picture(tmp_path / "in" / "a.png", picture(8, 9, seed=3))
    words = ["upscale", tmp_path / "in", "-o", tmp_path / "out", "--onnx", int8_file]
    assert run(*words).code == 0
    refused = run(*words, OPTION)
    assert refused.code == 1
    assert "was written with another network or other options" in refused.err
    assert run(*words, OPTION, "--overwrite").code == 0
    assert json.loads(run(*words, OPTION, "--json").out)["skipped"] == 1


def test_upscale_refuses_other_networks_and_writes_nothing(
    run: CommandLine, exported: ExportCache, tmp_path: Path
) -> None:
    write_picture(tmp_path / "in.png", picture(8, 9, seed=3))
    words = ["upscale", tmp_path / "in.png", "-o", tmp_path / "out.png", OPTION]
    for network, code, message in (
        ((), 2, "is for INT8 ONNX files, and hspan-tiny-x4 is none"),
        (("--engine", "net.plan"), 2, "name the one that the engine was built from"),
        (("--onnx", exported("small_x2")), 1, "is not quantized"),
    ):
        refused = run(*words, *network)
        assert refused.code == code
        assert message in refused.error_line
    assert not (tmp_path / "out.png").exists()


def test_bench_measures_int8_files_with_them_beside_others(
    run: CommandLine, int8_file: Path, exported: ExportCache
) -> None:
    plain = exported("small_x2")
    words = ["bench", "--size", "8x8", "--seconds", 0.02, "--threads", 1, "--json", OPTION]
    found = json.loads(run(*words, plain, int8_file).out)
    labels = [one["network"] for one in found["measurements"]]
    assert ["integer kernels" in label for label in labels] == [False, True]
    assert [one["emulated"] for one in found["measurements"]] == [False, False]
    assert found["picked"][str(int8_file)].endswith("INT8 in integer kernels as requested")
    refused = run(*words, plain)
    assert (refused.code, refused.out) == (2, "")
    assert f"{OPTION}: is for ONNX files in INT8, and none of" in refused.error_line
    assert f"{OPTION}: is for INT8 ONNX files, and" in run(*words, "hspan-tiny-x2").error_line


def test_a_workers_network_keeps_them(int8_file: Path, exported: ExportCache, tmp_path: Path) -> None:
    write_picture(tmp_path / "in.png", picture(20, 24, seed=3))
    for name, asked in (("exact", False), ("fast", True)):
        bundle = bundle_from_network(int8_file, RunnerOptions(threads=1, integer_kernels=asked))
        worker = UpscaleWorker(bundle, UpscaleOptions(), WriteOptions(), attempts=1)
        done = worker(
            {"index": 0, "source": str(tmp_path / "in.png"), "target": str(tmp_path / f"{name}.png")}
        )
        assert done["error"] == ""
    assert not np.array_equal(read_image(tmp_path / "exact.png"), read_image(tmp_path / "fast.png"))
    with pytest.raises(HspanError, match="is not quantized"):
        bundle_from_network(exported("small_x2"), RunnerOptions(integer_kernels=True))
