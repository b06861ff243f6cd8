"""Which runner a file gets, and engines that cannot run here."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support.golden import GoldenNetwork
from support.small_engine import SmallEngine
from support.small_networks import write_attention_network

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.machine.gpu import gpu_architectures
from trt_hspan.media.writing import write_picture
from trt_hspan.runtime import opening, tensorrt_runner, torch_runner
from trt_hspan.runtime.onnxruntime_runner import OnnxRuntimeRunner
from trt_hspan.runtime.opening import (
    Device,
    RunnerOptions,
    device_from_text,
    devices_from_text,
    open_runner,
    require_threads,
)
from trt_hspan.runtime.tensorrt_runner import TensorRtRunner
from trt_hspan.runtime.torch_runner import TorchRunner
from trt_hspan.sizes import ImageSize
from trt_hspan.upscaling.options import UpscaleOptions
from trt_hspan.upscaling.pictures import upscale_picture_file
from trt_hspan.upscaling.upscaler import Upscaler

needs_no_gpu = pytest.mark.skipif(bool(gpu_architectures()), reason="a GPU would run the engine itself")


def test_checkpoint_opens_in_pytorch(small_x4: GoldenNetwork) -> None:
    runner = open_runner(small_x4.checkpoint, res_scale=0.25)
    assert isinstance(runner, TorchRunner)
    assert runner.res_scale == 0.25
    assert runner.picked == f"{runner.name} on the CPU, which runs checkpoints"


def test_checkpoint_opens_in_the_requested_precision(
    small_x4: GoldenNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_runner, "has_bf16_instructions", lambda device: True)
    assert open_runner(small_x4.checkpoint, precision="bf16").precision == "bf16"
    assert open_runner(small_x4.checkpoint).precision == "fp32"
    for name in ("a.onnx", "a.plan"):
        with pytest.raises(UsageError, match=r"--precision: is for checkpoints, a\..* contains its own"):
            open_runner(name, precision="bf16")


def test_onnx_file_opens_in_onnxruntime(tmp_path: Path) -> None:
    path = tmp_path / "A.ONNX"
    shutil.copy(write_attention_network(tmp_path / "a.onnx"), path)
    runner = open_runner(path)
    assert isinstance(runner, OnnxRuntimeRunner)
    assert runner.why_emulated is None
    assert runner.picked == f"{runner.name} on the CPU, which runs ONNX files"


def test_other_suffix_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("no network")
    with pytest.raises(UsageError, match="not a checkpoint's name"):
        open_runner(tmp_path / "a.txt")


@needs_no_gpu
def test_engine_without_a_gpu_is_emulated_from_its_onnx_file(small_engine: SmallEngine) -> None:
    runner = open_runner(small_engine.plan)
    assert isinstance(runner, OnnxRuntimeRunner)
    assert runner.emulated
    assert runner.why_emulated == "no NVIDIA GPU with a driver here"
    assert (
        runner.picked == f"{runner.name} on the CPU, emulating the engine: no NVIDIA GPU with a driver here"
    )
    assert runner.where == str(small_engine.plan)
    image = np.random.default_rng(0).random((1, 3, 16, 16), dtype=np.float32)
    with runner, open_runner(small_engine.onnx) as same:
        np.testing.assert_array_equal(runner.run(image), same.run(image))


@needs_no_gpu
def test_an_emulated_engine_takes_what_its_profiles_take(small_engine: SmallEngine, tmp_path: Path) -> None:
    with open_runner(small_engine.plan) as runner:
        assert runner.shape_ranges == (((1, 3, 16, 16), (1, 3, 32, 32)),)
        for shape in ((2, 3, 16, 16), (1, 3, 33, 32), (1, 3, 16, 15)):
            with pytest.raises(
                HspanError, match=r"takes 1x3x16x16 to 1x3x32x32 .*; build the engine for larger"
            ):
                runner.run(np.zeros(shape, np.float32))
        picture = np.random.default_rng(0).integers(0, 256, (40, 9, 3), np.uint8)
        plan = Upscaler(runner).plan(ImageSize(*picture.shape[:2]))
        assert plan.count > 1  # as on the GPU
        write_picture(tmp_path / "a.png", picture)
        report = upscale_picture_file(Upscaler(runner), tmp_path / "a.png", tmp_path / "b.png")
        assert report.tiles == plan.count
        whole = Upscaler(runner, UpscaleOptions(tile="none"))
        with pytest.raises(HspanError, match="takes 1x3x16x16 to 1x3x32x32"):
            upscale_picture_file(whole, tmp_path / "a.png", tmp_path / "b.png")


def test_engine_with_another_onnx_file_is_refused(small_engine: SmallEngine, tmp_path: Path) -> None:
    plan = small_engine.copy_to(tmp_path)
    plan.with_suffix(".onnx").write_bytes(b"another")
    with pytest.raises(HspanError, match="not of one build"):
        open_runner(plan)


def test_engine_without_manifest_or_with_a_changed_plan_is_refused(
    small_engine: SmallEngine, tmp_path: Path
) -> None:
    plan = small_engine.copy_to(tmp_path)
    plan.write_bytes(plan.read_bytes() + b"x")
    with pytest.raises(HspanError, match="not of one build"):
        open_runner(plan)
    plan.with_suffix(".json").unlink()
    with pytest.raises(HspanError, match=r"its manifest .* is missing"):
        open_runner(plan)
    with pytest.raises(HspanError, match="no such file"):
        open_runner(tmp_path / "none.plan")


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("auto", Device(kind="auto")),
        ("cpu", Device(kind="cpu")),
        ("gpu", Device(kind="gpu")),
        ("gpu:1", Device(kind="gpu", index=1)),
        ("gpu:012", Device(kind="gpu", index=12)),
        ("cpu:onnxruntime", Device(kind="cpu", library="onnxruntime")),
        ("cpu:openvino", Device(kind="cpu", library="openvino")),
    ],
)
def test_devices_are_read(text: str, device: Device) -> None:
    assert device_from_text(text) == device


def test_several_gpus_are_named_at_once() -> None:
    for text in ("auto", "cpu", "gpu", "gpu:3", "cpu:openvino"):
        assert devices_from_text(text) == (text,)
    assert devices_from_text("gpu:0,2,1") == ("gpu:0", "gpu:2", "gpu:1")
    with pytest.raises(UsageError, match="which names a GPU twice"):
        devices_from_text("gpu:1,0,1")
    for text in ("cpu,cpu", "gpu,1", "gpu:0,", "gpu:0,gpu:1", "auto,1"):
        with pytest.raises(UsageError, match="--device: got"):
            devices_from_text(text)


@pytest.mark.parametrize(("threads", "is_possible"), [(0, False), (1, True), (1024, True), (1025, False)])
def test_a_run_takes_1_to_1024_threads(threads: int, is_possible: bool) -> None:
    if is_possible:
        require_threads(threads)
        return
    with pytest.raises(UsageError, match=f"--threads: got {threads}, expected 1 to 1024"):
        open_runner("none.onnx", threads=threads)


@pytest.mark.parametrize("text", ["", "GPU", "cuda", "gpu:", "gpu:-1", "cpu:0", "gpu:1 ", "1"])
def test_other_devices_are_wrong_usage(text: str, small_x4: GoldenNetwork) -> None:
    with pytest.raises(UsageError, match="--device: got"):
        open_runner(small_x4.checkpoint, device=text)


def test_what_was_picked_is_logged(small_x4: GoldenNetwork, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="trt_hspan.runtime.opening"):
        runner = open_runner(small_x4.checkpoint)
    assert caplog.messages == [f"{small_x4.checkpoint}: {runner.picked}"]


def test_gpu_for_a_file_that_runs_on_the_cpu_is_refused(tmp_path: Path, small_x4: GoldenNetwork) -> None:
    network = write_attention_network(tmp_path / "a.onnx")
    with pytest.raises(HspanError, match=r"a\.onnx: --device gpu: .* trt-hspan build --onnx .*a\.onnx$"):
        open_runner(network, device="gpu")


@pytest.mark.parametrize("device", ["gpu", "gpu:1"])
def test_gpu_for_a_checkpoint_runs_pytorch_there(
    small_x4: GoldenNetwork, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    index = device.count("1")
    monkeypatch.setattr(torch_runner, "gpu_device", lambda number, where: torch.device("cpu"))
    runner = open_runner(small_x4.checkpoint, device=device, precision="fp16")
    place = f"PyTorch {torch.__version__.split('+')[0]} on the GPU" + (" 1" if index else "")
    assert (runner.name, runner.precision) == (place, "fp16")
    assert runner.picked == f"{place}, as requested"


@needs_no_gpu
def test_gpu_for_a_checkpoint_that_pytorch_cannot_give_is_refused(small_x4: GoldenNetwork) -> None:
    with pytest.raises(
        HspanError, match=r"--device gpu: PyTorch .* trt-hspan build --checkpoint .*small_x4\.pt$"
    ):
        open_runner(small_x4.checkpoint, device="gpu")


@needs_no_gpu
def test_gpu_for_an_engine_that_cannot_run_here_is_refused(small_engine: SmallEngine) -> None:
    with pytest.raises(
        HspanError, match=r"cannot run on a GPU: no NVIDIA GPU with a driver here; see trt-hspan doctor"
    ):
        open_runner(small_engine.plan, device="gpu")


@pytest.mark.parametrize("device", ["auto", "gpu", "gpu:1"])
def test_engine_that_can_run_here_runs_on_the_gpu(
    small_engine: SmallEngine, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setattr(tensorrt_runner, "engine_can_execute", lambda *_, **__: (True, ""))
    runner = open_runner(small_engine.plan, device=device)
    assert isinstance(runner, TensorRtRunner)
    assert runner.picked == f"{runner.name} on the GPU" + (" 1" if device == "gpu:1" else "")


def test_cpu_for_an_engine_is_honored_beside_a_gpu(
    small_engine: SmallEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_runner, "engine_can_execute", lambda *_, **__: (True, ""))
    runner = open_runner(small_engine.plan, device="cpu")
    assert isinstance(runner, OnnxRuntimeRunner)
    assert runner.why_emulated == "the CPU was requested"


@needs_no_gpu
def test_package_that_is_missing_is_named(
    small_engine: SmallEngine, small_x4: GoldenNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(HspanError, match=r"PyTorch, .* is not installed; pip install -e '\.\[export\]'"):
        open_runner(small_x4.checkpoint)
    with pytest.raises(
        HspanError, match=r"no NVIDIA GPU .*, and ONNX Runtime, .* not installed; pip install -e '\.\[cpu"
    ):
        open_runner(small_engine.plan)


def test_options_that_are_passed_on_whole_are_those_of_the_function(
    small_x4: GoldenNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, object]] = []
    monkeypatch.setattr(opening, "open_runner", lambda source, **options: seen.append(options))
    given = {"device": "gpu:1", "res_scale": 0.5, "threads": 3, "plugin": Path("a.so"), "precision": "bf16"}
    RunnerOptions().open("a.pt")
    RunnerOptions(**given).open("a.pt")  # type: ignore[arg-type]
    defaults = {name: "auto" if name == "device" else None for name in given}
    assert seen == [defaults, given]


@pytest.fixture
def without_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else find_spec(name)
    )


@pytest.mark.usefixtures("without_pytorch")
@pytest.mark.parametrize("precision", [None, "fp32"])
def test_a_shipped_preset_needs_no_pytorch(precision: str | None) -> None:
    runner = open_runner("hspan-tiny-x2", precision=precision)
    assert isinstance(runner, OnnxRuntimeRunner)
    assert runner.picked == (
        f"{runner.name} on the CPU: PyTorch is not installed, and hspan-tiny-x2 ships as ONNX too"
    )


@pytest.mark.usefixtures("without_pytorch")
@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"device": "gpu"}])
def test_what_onnx_cannot_give_of_a_preset_needs_pytorch(options: dict[str, str]) -> None:
    with pytest.raises(HspanError, match="PyTorch, which runs checkpoints, is not installed"):
        open_runner("hspan-tiny-x2", **options)
