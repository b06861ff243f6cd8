"""The sweep of `trt-hspan bench` on a CPU: figures, plot, bad requests. A GPU's part is with the scenarios."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.command_line import CommandLine
from support.golden import GoldenNetwork
from support.runner_doubles import NearestRunner
from support.small_networks import write_attention_network

from trt_hspan.data import DEMO_PHOTOGRAPH
from trt_hspan.errors import HspanError, UsageError
from trt_hspan.evaluation.speed import bench as module
from trt_hspan.evaluation.speed import peer, plot
from trt_hspan.evaluation.speed.bench import (
    BenchSpec,
    batches_for,
    run_bench,
    sizes_for,
)
from trt_hspan.evaluation.speed.peer import EagerRunner
from trt_hspan.machine.facts import PeakMemory
from trt_hspan.media.pictures import read_image
from trt_hspan.runtime import torch_runner
from trt_hspan.runtime.opening import open_runner
from trt_hspan.runtime.torch_runner import TorchRunner
from trt_hspan.sizes import ImageSize

SMALL = ImageSize(height=8, width=6)
LARGE = ImageSize(height=40, width=40)
BRIEF = 0.02


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return write_attention_network(tmp_path / "net.onnx")


def test_every_size_and_batch_is_measured(network: Path) -> None:
    steps: list[str] = []
    spec = BenchSpec(sources=(str(network),), sizes=(SMALL, LARGE), batches=(1, 3), seconds=BRIEF, threads=1)
    report = run_bench(spec, on_step=steps.append)
    actual = [(m.height, m.width, m.batch) for m in report.measurements]
    assert actual == [(8, 6, 1), (8, 6, 3), (40, 40, 1), (40, 40, 3)]
    assert len(steps) == 4
    small, _, large, _ = report.measurements
    assert large.latency.p50_ms > small.latency.p50_ms  # 33 times the pixels
    for one in report.measurements:
        latency = one.latency
        assert 0 < latency.p50_ms <= latency.p90_ms <= latency.p95_ms <= latency.p99_ms
        assert one.images_per_second == pytest.approx(one.batch * 1e3 / latency.mean_ms)
        assert one.cuda_graph is None
        assert one.gpu_stages_ms is None
        assert (one.end_to_end_ms is not None) == (one.batch == 1)
    assert small.end_to_end_ms is not None
    assert min(small.end_to_end_ms.values()) > 0
    assert report.picked[str(network)].endswith("on the CPU, which runs ONNX files")


def test_without_a_batch_it_is_the_least_that_an_engine_takes(network: Path) -> None:
    spec = BenchSpec(sources=("made.plan",))
    with open_runner(network) as runner:
        assert batches_for(runner, LARGE, spec) == (1,)
        runner.profiles = (((2, 3, 16, 16), (4, 3, 64, 64)), ((3, 3, 96, 96), (3, 3, 96, 96)))
        assert batches_for(runner, LARGE, spec) == (2,)
        assert batches_for(runner, ImageSize(height=96, width=96), spec) == (3,)
        assert sizes_for(runner, spec) == (
            ImageSize(height=48, width=48),
            ImageSize(height=64, width=64),
            ImageSize(height=96, width=96),
        )


def test_peak_memory_is_what_was_taken_inside_and_given_back() -> None:
    size = 64 << 20
    with PeakMemory() as nothing:
        pass
    with PeakMemory() as peak:
        taken = np.ones(size, np.uint8)
        del taken
    with PeakMemory() as after:
        pass
    assert peak.bytes is not None
    assert nothing.bytes is not None
    assert after.bytes is not None
    # Pages of 4 KiB, counted in batches of 64 pages a processor (Documentation/filesystems/proc.rst).
    slack = 8 << 20
    assert size - slack < peak.bytes < size + slack
    assert max(nothing.bytes, after.bytes) < slack


def test_the_peer_is_measured_in_the_same_run_and_compared(small_x4: GoldenNetwork) -> None:
    checkpoint = str(small_x4.checkpoint)
    spec = BenchSpec(sources=(checkpoint,), sizes=(SMALL,), seconds=BRIEF, peer="torch", threads=1)
    peer, own = run_bench(spec).measurements
    assert "eager" in peer.network
    assert peer.speedup_over_peer is None
    assert own.speedup_over_peer == pytest.approx(peer.latency.p50_ms / own.latency.p50_ms)


def test_the_peer_computes_the_same_network_without_our_kernel_and_never_in_tf32(
    small_x4: GoldenNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trt_hspan.ops import attention

    batch = np.random.default_rng(0).random((1, 3, 9, 7), dtype=np.float32)
    with TorchRunner(small_x4.checkpoint, res_scale=small_x4.res_scale) as runner:
        expected = runner.run(batch)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the peer called the native kernel")

    seen: set[bool] = set()
    reference = attention.reference_attention

    def noting(*tensors: torch.Tensor) -> torch.Tensor:
        seen.add(torch.backends.cudnn.allow_tf32)
        return reference(*tensors)

    monkeypatch.setattr(attention, "native_attention", never)
    monkeypatch.setattr(peer, "reference_attention", noting)
    with EagerRunner(small_x4.checkpoint, res_scale=small_x4.res_scale, threads=1) as eager:
        # FP32 sums in another order, a dozen layers deep: 1e-4 is 0.025 of an 8-bit step.
        np.testing.assert_allclose(eager.run(batch), expected, rtol=0, atol=1e-4)
    assert seen == {False}


def test_a_checkpoint_is_measured_in_each_precision(
    run: CommandLine, small_x4: GoldenNetwork, network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_runner, "has_bf16_instructions", lambda device: True)
    words = [
        "bench",
        small_x4.checkpoint,
        network,
        "--size",
        "8x8",
        "--seconds",
        BRIEF,
        "--threads",
        1,
        "--json",
    ]
    result = run(*words, "--precision", "fp32", "--precision", "bf16")
    actual = json.loads(result.out)["measurements"]
    assert [item["network"].split(", ")[1] for item in actual] == ["FP32", "BF16", "FP32"]
    assert [item["source"] for item in actual] == [str(small_x4.checkpoint)] * 2 + [str(network)]
    monkeypatch.setattr(torch_runner, "has_bf16_instructions", lambda device: False)
    refused = run(*words, "--precision", "bf16")
    assert (refused.code, refused.out) == (1, "")
    assert "no BF16 instructions" in refused.error_line


def test_a_checkpoint_is_measured_on_the_gpu(
    run: CommandLine, small_x4: GoldenNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_runner, "gpu_device", lambda index, where: torch.device("cpu"))
    words = ["bench", small_x4.checkpoint, "--device", "gpu", "--precision", "fp16", "--size", "8x8"]
    report = json.loads(run(*words, "--seconds", BRIEF, "--json").out)
    assert [item["network"].split(" on the ")[1] for item in report["measurements"]] == ["GPU, FP16"]
    assert report["picked"][str(small_x4.checkpoint)].endswith(" on the GPU, as requested")


def test_a_fixed_size_is_measured_without_being_named(tmp_path: Path) -> None:
    network = write_attention_network(tmp_path / "net.onnx", shape=(1, 3, 8, 10))
    (actual,) = run_bench(BenchSpec(sources=(str(network),), seconds=BRIEF, threads=1)).measurements
    assert (actual.height, actual.width) == (8, 10)


def test_the_command_prints_json_draws_and_nothing_else(
    run: CommandLine, network: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "plots" / "latency.png"
    words = ["bench", network, "--size", "8x6", "--size", "12x12", "--seconds", BRIEF, "--threads", 1]
    result = run(*words, "--json", "--plot", picture)
    document = json.loads(result.out)
    assert result.code == 0
    assert len(document["measurements"]) == 2
    machine = document["machine"]
    assert machine["versions"]["onnxruntime"]
    assert machine["processor"]
    assert set(machine["clocks"]) == {"before", "after"}
    with Image.open(picture) as image:
        assert (image.format, image.size) == ("PNG", (1080, 720))
        colors = len(image.convert("RGB").getcolors(1 << 24))
        assert colors > 10  # axes, text, a line and its shade
    assert [path.name for path in picture.parent.iterdir()] == ["latency.png"]


def test_two_files_of_one_backend_and_precision_are_distinguished(network: Path, tmp_path: Path) -> None:
    other = Path(shutil.copy(network, tmp_path / "other.onnx"))
    report = run_bench(
        BenchSpec(sources=(str(network), str(other)), sizes=(SMALL,), seconds=BRIEF, threads=1)
    )
    one, two = report.measurements
    assert one.network == two.network
    assert [report.name_of(actual) for actual in (one, two)] == [
        f"{path.name}: {one.network}" for path in (network, other)
    ]
    assert dataclasses.replace(report, measurements=(one,)).name_of(one) == one.network


def test_the_table_says_percentiles_stages_and_what_it_ran_on(run: CommandLine, network: Path) -> None:
    result = run("bench", network, "--size", "8x6", "--seconds", BRIEF, "--threads", 1)
    for word in ("p50", "p99", "images/s", "decode", "infer", "encode", "processor", "onnxruntime"):
        assert word in result.out


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["--size", "8"], 2, "--size: got '8'"),
        (["--size", "0x8"], 2, "--size: got '0x8'"),
        (["--batch", "0"], 2, "--batch: got 0"),
        (["--seconds", "0"], 2, "--seconds: got 0.0"),
        (["--seconds", "nan"], 2, "--seconds: got nan"),
        (["--seconds", "inf"], 2, "--seconds: got inf"),
        (["--threads", "0"], 2, "--threads: got 0"),
        (["--threads", "100000"], 2, "--threads: got 100000, expected 1 to 1024"),
        (["--size", "90000x90000"], 1, "--size 90000x90000, --batch 1: 90000x90000 pixels as a whole need"),
        (["--cuda-graph", "maybe"], 2, "--cuda-graph: got 'maybe'"),
        (["--cuda-graph", "on"], 2, "is for engines on a GPU"),
        (["--peer", "keras"], 2, "--peer: got 'keras'"),
        (["--peer", "torch"], 2, "needs the network's checkpoint"),
        (["--checkpoint", "a.pt"], 2, "is the network of the peer"),
        (["--peer", "torch", "--checkpoint", "none.pt"], 1, "none.pt"),
        (["--peer", "torch", "--checkpoint", "hspan-tiny-x4"], 1, "is not the checkpoint that"),
        (["--plot", "a.jpg"], 2, "--plot: got a.jpg"),
        (["--precision", "bf16"], 2, "--precision: is for checkpoints"),
        (["--plugin", "p.so"], 2, "--plugin: is for engines"),
        (["--device", "tpu"], 2, "--device: got 'tpu'"),
        (["--device", "gpu"], 1, "an ONNX file runs on the CPU here"),
        (["none.onnx"], 1, "none.onnx: no such file"),
    ],
)
def test_bad_requests_are_one_line_before_anything_runs(
    run: CommandLine,
    network: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    code: int,
    line: str,
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("measured all the same")

    monkeypatch.setattr(module, "sample_latency", never)
    result = run("bench", network, *words)
    assert result.code == code
    assert line in result.error_line
    assert result.out == ""


def test_a_size_that_does_not_fit_is_reported_before_anything_runs(
    run: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "sample_latency", None)
    fixed = write_attention_network(tmp_path / "net.onnx", shape=(1, 3, 8, 10))
    result = run("bench", fixed, "--size", "8x10", "--size", "9x9")
    assert "--size 9x9, --batch 1: is 1x3x9x9" in result.error_line


def test_a_plot_without_matplotlib_is_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(HspanError, match=r"matplotlib: is not installed; pip install -e '\.\[plot\]'"):
        plot.require_plot(Path("a.png"))


def test_times_within_one_power_of_ten_have_labels(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    report = run_bench(BenchSpec(sources=(str(network),), sizes=(SMALL,), seconds=BRIEF, threads=1))
    latency = dataclasses.replace(
        report.measurements[0].latency, p50_ms=22.0, p90_ms=60.0, p95_ms=70.0, p99_ms=80.0
    )
    within = dataclasses.replace(report.measurements[0], latency=latency)
    labels: list[str] = []

    def noted(figure: Figure, *_: object) -> None:
        axes = figure.axes[0]
        low, high = axes.get_ylim()
        assert low > 10
        assert high < 100
        ticks = [tick for tick in axes.get_yticks() if low <= tick <= high]
        labels.extend(axes.yaxis.get_major_formatter().format_ticks(ticks))
        every = {round(10 ** (math.log10(tick) % 1), 1) for tick in axes.yaxis.get_major_locator()()}
        assert every <= {1.0, 1.5, 2.0, 3.0, 5.0, 7.0}

    monkeypatch.setattr(Figure, "savefig", noted)
    monkeypatch.setattr(plot, "atomic_path", contextlib.nullcontext)
    plot.write_plot(dataclasses.replace(report, measurements=(within,)), tmp_path / "a.png")
    assert {"30", "50"} <= set(labels)


def test_each_step_from_file_to_file_is_a_median_of_five(monkeypatch: pytest.MonkeyPatch) -> None:
    marks = itertools.accumulate(itertools.cycle([0.25, 0.5, 1.0, 10.0]), initial=3.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(marks)))
    runner = NearestRunner()
    with runner:
        times = module._end_to_end(runner, module._batch((1, 3, 4, 6)))
    assert times == {"decode": 250.0, "infer": 500.0, "encode": 1000.0}
    assert runner.calls == [(1, 3, 4, 6)] * 5


def test_what_is_measured_is_the_shipped_photograph_repeated() -> None:
    photograph = read_image(DEMO_PHOTOGRAPH)
    height, width = photograph.shape[:2]
    batch = module._batch((2, 3, height + 5, width + 7))
    assert batch.dtype == np.float32
    assert batch.flags.c_contiguous
    np.testing.assert_array_equal(batch[0], batch[1])
    expected = np.pad(photograph, ((0, 5), (0, 7), (0, 0)), mode="wrap").transpose(2, 0, 1) / 255
    np.testing.assert_allclose(batch[0], expected, atol=2**-24)


@pytest.mark.parametrize(("there", "gpu"), [(True, 0), (False, None)])
def test_the_peer_runs_on_the_first_gpu_where_pytorch_has_one(
    monkeypatch: pytest.MonkeyPatch, there: bool, gpu: int | None
) -> None:
    given: dict[str, Any] = {}

    def opened(runner: TorchRunner, checkpoint: str, **options: Any) -> None:
        runner.name = "PyTorch"
        given.update(options)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(TorchRunner, "__init__", opened)
    assert EagerRunner("net.pt", res_scale=0.2, threads=3).name == "PyTorch eager"
    assert given == {"res_scale": 0.2, "threads": 3, "gpu": gpu}


def test_a_spec_takes_what_makes_sense() -> None:
    assert BenchSpec(sources=("a.onnx",)).seconds == 3.0
    BenchSpec(sources=("a.onnx",), seconds=0.5, batches=(1,), threads=1)
    with pytest.raises(UsageError, match="nothing to measure"):
        BenchSpec(sources=())
    with pytest.raises(UsageError, match="--batch: got 0"):
        BenchSpec(sources=("a.onnx",), batches=(2, 0, 1))
    assert BenchSpec(sources=("a.pt", "b.onnx"), peer="torch").peer_checkpoint == "a.pt"
    assert BenchSpec(sources=("a.pt", "b.pt")).peer_checkpoint is None
    assert BenchSpec(sources=("a.pt",), peer="torch", checkpoint="c.pt").peer_checkpoint == "c.pt"
    with pytest.raises(UsageError, match="--peer: needs the network's checkpoint"):
        BenchSpec(sources=("a.pt", "b.pt"), peer="torch")


def test_without_sizes_a_network_that_takes_any_is_measured_at_two() -> None:
    sizes = sizes_for(NearestRunner(), BenchSpec(sources=("a.onnx",)))
    assert sizes == (ImageSize(height=48, width=48), ImageSize(height=96, width=96))
