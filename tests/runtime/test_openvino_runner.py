"""ONNX files under OpenVINO: who gets it, what it computes, and how it is asked for and refused."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from onnx import helper, numpy_helper
from support.command_line import CommandLine
from support.export_cache import ExportCache
from support.golden import GoldenNetwork, load_golden_network
from support.small_networks import attention_network, write_attention_network
from support.synthetic_pictures import picture

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.graph import Precision, save_onnx
from trt_hspan.jobs.cluster.bundle import bundle_from_network
from trt_hspan.jobs.cluster.worker import UpscaleWorker
from trt_hspan.machine.facts import sums_int8_exactly
from trt_hspan.media.pictures import read_image
from trt_hspan.media.pixels import tensor_from_image
from trt_hspan.media.writing import write_picture
from trt_hspan.native import cpu_attention as native
from trt_hspan.precision.crops import TilePlan
from trt_hspan.precision.quantize.pipeline import QuantizationRequest, quantize
from trt_hspan.precision.quantize.source import source_from_path
from trt_hspan.runtime import opening, openvino_runner, openvino_session
from trt_hspan.runtime.opening import RunnerOptions, open_runner
from trt_hspan.runtime.openvino_runner import OpenVinoRunner
from trt_hspan.upscaling.options import UpscaleOptions
from trt_hspan.upscaling.pictures import WriteOptions

OPENVINO, ONNXRUNTIME = "cpu:openvino", "cpu:onnxruntime"
BATCH = tensor_from_image(picture(44, 48, seed=9))


@pytest.fixture(scope="module")
def int8_files(exported: ExportCache, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The golden network small_x2 in INT8, by base type."""
    folder = tmp_path_factory.mktemp("int8")
    for seed in range(2):
        write_picture(folder / "pictures" / f"{seed}.png", picture(36, 40, seed=seed))
    files = {}
    for base in ("fp32", "fp16", "bf16"):
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


def output(path: Path, device: str) -> np.ndarray:
    with open_runner(path, device=device) as runner:
        return runner.run(BATCH)


# Results
# ----------------------------------------------------------------------------------------------


def test_fp32_computes_what_the_official_network_computed(
    exported: ExportCache, golden_network: GoldenNetwork
) -> None:
    with OpenVinoRunner(exported(golden_network.name)) as runner:
        np.testing.assert_allclose(runner.run(golden_network.input), golden_network.output, atol=1e-4)


@pytest.mark.parametrize(("precision", "unit"), [("fp16", 2.0**-11), ("bf16", 2.0**-8)])
def test_short_types_are_as_close_to_fp32_as_their_rounding_allows(
    exported: ExportCache, precision: Precision, unit: float
) -> None:
    exact = output(exported("small_x2"), OPENVINO)
    found = output(exported("small_x2", precision=precision), OPENVINO)
    # Weights and features are rounded, a unit each time; the network adds what passed a dozen layers to its input.
    assert 0 < np.abs(found - exact).max() < 12 * unit * np.abs(exact).max()


@pytest.mark.parametrize("base", ["fp32", "fp16", "bf16"])
def test_int8_is_within_quantization_steps_of_the_exact_emulation(
    int8_files: dict[str, Path], base: str
) -> None:
    exact, found = output(int8_files[base], ONNXRUNTIME), output(int8_files[base], OPENVINO)
    assert np.median(np.abs(found - exact)) < 2.0**-8 * np.abs(exact).max()
    assert np.abs(found - exact).max() < 2.0**-5 * np.abs(exact).max()
    assert not np.array_equal(found, exact)  # something else did run


def test_int8_on_a_processor_that_saturates_its_sums_is_computed_in_fp32_and_never_chosen(
    int8_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = output(int8_file, ONNXRUNTIME)
    for module in (opening, openvino_runner):
        monkeypatch.setattr(module, "sums_int8_exactly", lambda: False)
    assert open_runner(int8_file).name.startswith("ONNX Runtime")
    assert OpenVinoRunner(int8_file).label.endswith("INT8 computed in FP32")
    # Values on the edge of two steps take the other one, as where the processor adds up integers.
    assert np.median(np.abs(output(int8_file, OPENVINO) - exact)) < 2.0**-8 * np.abs(exact).max()


def test_each_picture_of_a_batch_gets_what_it_gets_alone_at_any_size(int8_file: Path) -> None:
    with OpenVinoRunner(int8_file, threads=2) as runner:
        for height, width in ((44, 48), (37, 5), (8, 8), (1, 1), (44, 48)):
            pair = np.concatenate([BATCH, BATCH[:, :, ::-1]])[:, :, :height, :width]
            both = runner.run(pair)
            assert both.shape == (2, 3, 2 * height, 2 * width)
            for one, alone in zip(both, pair, strict=True):
                np.testing.assert_allclose(one, runner.run(alone[None])[0], atol=2.0**-5)


def test_a_network_of_one_size_runs_at_that_size(exported: ExportCache) -> None:
    path = exported("small_x2", static=(12, 16))
    with OpenVinoRunner(path) as runner, open_runner(path, device=ONNXRUNTIME) as reference:
        batch = BATCH[:, :, :12, :16]
        np.testing.assert_allclose(runner.run(batch), reference.run(batch), atol=1e-4)
        with pytest.raises(HspanError, match=r"1x3x44x48, but .* takes 1x3x12x16"):
            runner.run(BATCH)


def test_threads_that_share_a_network_do_not_disturb_each_other(int8_file: Path) -> None:
    batches = [BATCH[:, :, :height, :width] for height, width in ((44, 48), (20, 33), (9, 9))] * 4
    with OpenVinoRunner(int8_file, threads=1) as runner, ThreadPoolExecutor(4) as pool:
        expected = [runner.run(batch) for batch in batches[:3]]
        for found, wanted in zip(pool.map(runner.run, batches), expected * 4, strict=True):
            np.testing.assert_array_equal(found, wanted)


# Which files get it, and what they are called
# ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(not sums_int8_exactly(), reason="the processor saturates sums of INT8 products")
def test_int8_gets_it_where_it_is_installed(int8_file: Path) -> None:
    import openvino

    runner = open_runner(int8_file)
    assert runner.label == f"OpenVINO {openvino.__version__.split('-')[0]}, INT8"
    assert (runner.precision, runner.emulated) == ("int8", False)
    assert runner.picked == f"{runner.name} on the CPU, which computes INT8 in integers"
    asked = open_runner(int8_file, device=ONNXRUNTIME)
    assert asked.label == f"{asked.name}, INT8, emulated on CPU"
    assert asked.picked == f"{asked.name} on the CPU, as requested"


@pytest.mark.parametrize(
    ("precision", "has_bf16", "label"),
    [
        ("fp32", True, "FP32"),
        ("fp16", True, "FP16 computed in FP32"),
        ("bf16", True, "BF16"),
        ("bf16", False, "BF16 computed in FP32"),
    ],
)
def test_other_types_get_it_on_request(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: Precision,
    has_bf16: bool,
    label: str,
) -> None:
    monkeypatch.setattr(openvino_runner, "has_bf16", lambda: has_bf16)
    path = write_attention_network(tmp_path / "net.onnx", precision=precision)
    assert open_runner(path).name.startswith("ONNX Runtime")
    asked = open_runner(path, device=OPENVINO)
    assert asked.label == f"{asked.name}, {label}"
    assert asked.picked == f"{asked.name} on the CPU, as requested"


def test_without_it_onnxruntime_emulates_and_a_request_says_what_to_install(
    int8_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    runner = open_runner(int8_file)
    assert runner.emulated
    assert runner.picked == f"{runner.name} on the CPU, which runs ONNX files"
    with pytest.raises(HspanError, match=r"OpenVINO: is not installed; pip install .*\[openvino\]"):
        open_runner(int8_file, device=OPENVINO)


def test_without_onnxruntime_it_takes_every_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_attention_network(tmp_path / "net.onnx")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find_spec(name)
    )
    runner = open_runner(path)
    assert isinstance(runner, OpenVinoRunner)
    assert runner.picked == f"{runner.name} on the CPU, which runs ONNX files"
    monkeypatch.setattr(native, "native_library", lambda: None)
    assert open_runner(path).name.startswith("ONNX Runtime")


def test_without_the_native_attention_too(int8_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "native_library", lambda: None)
    assert open_runner(int8_file).emulated
    with pytest.raises(HspanError, match=r"no native library for it; trt-hspan plugin build --cpu"):
        open_runner(int8_file, device=OPENVINO)


@pytest.mark.parametrize(
    ("source", "step"), [("hspan-tiny-x2", "trt-hspan export"), ("net.plan", "that it was built from")]
)
def test_checkpoints_and_engines_are_wrong_usage(source: str, step: str) -> None:
    with pytest.raises(
        UsageError, match=f"--device {OPENVINO}: is for ONNX files, and {source} is none; .*{step}"
    ):
        open_runner(source, device=OPENVINO)


def test_what_it_cannot_load_or_run_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = attention_network()
    *_, last = model.graph.node
    last.output[0] = "before"
    model.graph.node.append(helper.make_node("Add", ["before", "added"], ["output"]))
    # Fits pictures of 8x8 only.
    model.graph.initializer.append(numpy_helper.from_array(np.ones((1, 3, 8, 8), np.float32), "added"))
    save_onnx(model, tmp_path / "run.onnx")
    weight = next(t for t in model.graph.initializer if t.name == "conv0.weight")
    weight.CopyFrom(numpy_helper.from_array(np.zeros((8, 4, 3, 3), np.float32), "conv0.weight"))
    save_onnx(model, tmp_path / "load.onnx")
    for name, what in (("load", "OpenVINO cannot load it"), ("run", "OpenVINO failed")):
        with (
            pytest.raises(HspanError, match=rf"{what}: .*take --device cpu:onnxruntime") as caught,
            OpenVinoRunner(tmp_path / f"{name}.onnx") as runner,
        ):
            runner.run(np.zeros((1, 3, 9, 9), np.float32))
        assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "out of memory; give a smaller picture"),
        (RuntimeError("std::bad_alloc"), "out of memory; give a smaller picture"),
        (RuntimeError("cannot allocate 9 bytes"), "out of memory; give a smaller picture"),
        (
            RuntimeError(400 * "x" + "of two\n  lines"),
            f"{288 * 'x'}of two lines; take --device cpu:onnxruntime",
        ),
    ],
)
def test_what_it_raises_is_one_line_of_its_last_300_letters(error: Exception, line: str) -> None:
    assert str(openvino_session._translated(error, "a", "it failed")) == f"a: it failed: {line}"


def test_one_stream_takes_all_threads_and_is_bound_to_no_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, given = openvino_session._core(), []

    def compile_model(model: object, device: str, options: dict[str, object]) -> object:
        given.append(options)
        return core.compile_model(model, device, options)

    noting = SimpleNamespace(read_model=core.read_model, compile_model=compile_model)
    monkeypatch.setattr(openvino_session, "_core", lambda: noting)
    monkeypatch.setattr(openvino_runner, "has_bf16", lambda: True)
    path = write_attention_network(tmp_path / "net.onnx")
    # As much as four tensors of the last features, of float32.
    assert OpenVinoRunner(path).memory_bytes((2, 3, 5, 7)) == 4 * 4 * 2 * 8 * 5 * 7
    with OpenVinoRunner(path, threads=3) as runner:
        runner.run(np.zeros((1, 3, 8, 8), np.float32))
    assert {options.pop("INFERENCE_NUM_THREADS") for options in given} == {1, 3}
    expected = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
    assert all(options == expected for options in given)


_INTERRUPTED = """
import os, resource, signal, sys, threading
from pathlib import Path
import numpy as np
from trt_hspan.errors import HspanError
from trt_hspan.runtime.openvino_runner import OpenVinoRunner

small, large, huge = (np.zeros((1, 3, side, side), np.float32) for side in (8, 2000, 8000))
with OpenVinoRunner(sys.argv[1], threads=1) as runner:
    runner.run(small)
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        runner.run(large)
    except KeyboardInterrupt:
        print("interrupted", runner.run(small).shape)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 50_000_000, -1))
    try:
        runner.run(huge)
    except HspanError as error:
        print(str(error).partition(": ")[2])
    print(runner.run(small).shape)
"""


def test_an_interrupt_and_a_lack_of_memory_end_one_run_and_not_the_network(tmp_path: Path) -> None:
    path = write_attention_network(tmp_path / "net.onnx")
    printed = subprocess.check_output([sys.executable, "-c", _INTERRUPTED, path], text=True, timeout=120)
    assert printed.splitlines() == [
        "interrupted (1, 3, 8, 8)",
        "OpenVINO failed: out of memory; give a smaller picture",
        "(1, 3, 8, 8)",
    ]


def test_its_telemetry_is_never_imported_and_a_program_that_uses_it_keeps_it() -> None:
    script = (
        "import sys{}; from trt_hspan.runtime.openvino_session import imported_openvino as get;"
        "print(get().convert_model.__name__, sorted(n for n in sys.modules if n.startswith('openvino_telemetry.b')))"
    )
    for before, found in (
        ("", "convert_model []"),
        (", openvino_telemetry", "convert_model ['openvino_telemetry.b"),
    ):
        printed = subprocess.check_output([sys.executable, "-c", script.format(before)], text=True)
        assert printed.startswith(found)


# Commands
# ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(not sums_int8_exactly(), reason="the processor saturates sums of INT8 products")
def test_upscale_runs_it_and_says_so(run: CommandLine, int8_file: Path, tmp_path: Path) -> None:
    write_picture(tmp_path / "in.png", picture(20, 24, seed=3))
    words = ["upscale", tmp_path / "in.png", "--onnx", int8_file, "--json", "-o"]
    report = json.loads(run(*words, tmp_path / "fast.png").out)
    exact = json.loads(run(*words, tmp_path / "exact.png", "--device", ONNXRUNTIME).out)
    assert report["backend"].startswith("OpenVINO")
    assert (report["emulated"], exact["emulated"]) == (False, True)
    difference = read_image(tmp_path / "fast.png").astype(int) - read_image(tmp_path / "exact.png")
    assert 0 < np.abs(difference).max() <= 8
    assert np.abs(difference).mean() < 1


@pytest.mark.skipif(not sums_int8_exactly(), reason="the processor saturates sums of INT8 products")
def test_a_folder_done_without_it_is_not_passed_off_as_done_with_it(
    run: CommandLine, int8_file: Path, tmp_path: Path
) -> None:
    write_picture(tmp_path / "in" / "a.png", picture(8, 9, seed=3))
    words = ["upscale", tmp_path / "in", "-o", tmp_path / "out", "--onnx", int8_file]
    assert run(*words, "--device", ONNXRUNTIME).code == 0
    refused = run(*words)
    assert refused.code == 1
    assert "was written with another network or other options" in refused.err
    assert run(*words, "--overwrite").code == 0
    assert json.loads(run(*words, "--device", OPENVINO, "--json").out)["skipped"] == 1


@pytest.mark.skipif(not sums_int8_exactly(), reason="the processor saturates sums of INT8 products")
def test_bench_and_validate_say_who_computes(run: CommandLine, int8_file: Path) -> None:
    words = ["bench", int8_file, "--size", "8x8", "--seconds", 0.02, "--threads", 1, "--json"]
    found = json.loads(run(*words).out)
    assert found["measurements"][0]["network"].startswith("OpenVINO")
    assert found["picked"][str(int8_file)].endswith("which computes INT8 in integers")
    golden = load_golden_network("small_x2")
    checked = ["validate", int8_file, "--checkpoint", golden.checkpoint, "--min-psnr", 1, "--limit", 1]
    for device, library in (((), "ONNX Runtime"), (("--device", OPENVINO), "OpenVINO")):
        assert library in run(*checked, "--res-scale", golden.res_scale, *device).out


def test_a_workers_network_keeps_the_library(int8_file: Path, tmp_path: Path) -> None:
    write_picture(tmp_path / "in.png", picture(20, 24, seed=3))
    for name, device in (("exact", ONNXRUNTIME), ("fast", OPENVINO)):
        bundle = bundle_from_network(int8_file, RunnerOptions(threads=1, device=device))
        worker = UpscaleWorker(bundle, UpscaleOptions(), WriteOptions(), attempts=1)
        done = worker(
            {"index": 0, "source": str(tmp_path / "in.png"), "target": str(tmp_path / f"{name}.png")}
        )
        assert done["error"] == ""
    assert not np.array_equal(read_image(tmp_path / "exact.png"), read_image(tmp_path / "fast.png"))
