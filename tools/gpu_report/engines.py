"""Step f: TensorRT's engines on this GPU, by the commands and the runner that users have.

Engines in every precision, of two profiles and of static shape, with the plugin in every format and with every
tactic; each against PyTorch by `trt-hspan validate`. Then one engine through interleaved shapes of both profiles, with
CUDA graphs and without, bit for bit, and 1,000 runs in which memory may not grow.

Formats and tactics are forced by the plugin's attributes of a node; without them TensorRT chooses, and the page lists
what the inspector says of the attention's layer.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from trt_hspan.names import OP_TYPE

NETWORK: Final = "hspan-tiny-x4"
PRECISIONS: Final = ("fp32", "fp16", "bf16", "int8", "fp8")
# Rows of channels without padding are FP32's alone, rows of eights the 16-bit types'.
FORMATS: Final = (("fp32", "linear"), ("fp16", "linear"), ("fp32", "hwc"), ("fp16", "hwc8"))
CONFIGURATIONS: Final = ("automatic", "plain-32x128", "tiled-two-looks")  # tactics are these
_PROFILES: Final = ("--min", "16x16", "--max", "64x64", "--profile", "min=32x32,opt=96x96,max=2x128x96")
_STATIC: Final = ("--min", "96x96", "--opt", "96x96", "--max", "96x96")
# In both profiles, in one alone, of other batches; none twice in a row.
_SHAPES: Final = ((1, 16, 16), (1, 48, 64), (1, 64, 64), (2, 96, 96), (1, 128, 96), (2, 33, 47), (1, 40, 40))
_RUNS: Final = 1000
# CUDA allocates in units of 2 MiB (CUDA C++ Programming Guide, "Virtual Memory Management").
_GROWTH_BYTES: Final = 2 << 20


class Checks:
    """Named results, failures, and what was left out."""

    def __init__(self) -> None:
        self.results: dict[str, str] = {}
        self.failures: list[str] = []
        self.left_out: list[str] = []

    def passed(self, name: str, result: str) -> None:
        self.results[name] = result

    def failed(self, name: str, why: str) -> None:
        self.results[name] = f"FAILED: {why}"
        self.failures.append(f"{name}: {why}")

    def skipped(self, name: str, why: str) -> None:
        self.results[name] = f"left out: {why}"
        self.left_out.append(f"{name}: {why}")

    def as_json(self) -> dict[str, Any]:
        return {"checks": self.results, "failures": self.failures, "left_out": self.left_out}


def run(folder: Path, *, budget_seconds: float) -> dict[str, Any]:
    """The step; engines stay in the folder, where steps g and h take them."""
    checks, deadline = Checks(), time.monotonic() + budget_seconds
    builds: list[tuple[str, tuple[str, ...]]] = [
        (precision, ("--checkpoint", NETWORK, "--precision", precision, *_PROFILES))
        for precision in PRECISIONS
    ]
    builds.append(("fp16-static", ("--checkpoint", NETWORK, "--precision", "fp16", *_STATIC)))
    for precision, form in FORMATS:
        onnx = folder / f"{precision}-{form}.onnx"
        builds.append((onnx.stem, ("--onnx", str(onnx), *_PROFILES)))
        write_model_with_attribute(checks, onnx, precision, "io_format", form)
    for configuration in CONFIGURATIONS:
        for precision in ("fp32", "fp16"):
            onnx = folder / f"{precision}-{configuration}.onnx"
            builds.append((onnx.stem, ("--onnx", str(onnx), *_STATIC)))
            write_model_with_attribute(checks, onnx, precision, "configuration", configuration)
    for name, words in builds:
        if time.monotonic() > deadline:
            checks.skipped(f"engine {name}", "no time was left")
        else:
            check_engine(checks, folder / "engines" / f"{name}.plan", (*words, "--flavor", "tensorrt"))
    plan = folder / "engines" / "fp16.plan"
    if plan.is_file():
        check_runs(checks, plan)
    return checks.as_json()


def command_line(*words: object) -> subprocess.CompletedProcess[str]:
    """`trt-hspan` with these words, in a process of its own."""
    command = [sys.executable, "-m", "trt_hspan", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))


def last_line(completed: subprocess.CompletedProcess[str]) -> str:
    """What an unsuccessful command said last."""
    return (completed.stderr.strip().splitlines() or [f"ended with code {completed.returncode}"])[-1]


def check_engine(checks: Checks, plan: Path, words: tuple[str, ...], *, device: str = "gpu") -> None:
    """Builds an engine with the words of `trt-hspan build`, and compares it with PyTorch."""
    plan.parent.mkdir(exist_ok=True)
    name = f"engine {plan.stem}"
    built = command_line("build", *words, "-o", plan, "--json")
    if built.returncode != 0:
        checks.failed(name, last_line(built))
        return
    validated = command_line("validate", plan, "--checkpoint", NETWORK, "--device", device, "--json")
    if not validated.stdout.strip():
        checks.failed(name, last_line(validated))
        return
    report = json.loads(validated.stdout)
    result = (
        f"{report['total']['worst_psnr_db']:.1f} dB against PyTorch, {report['min_psnr_db']:.0f} are the bar"
    )
    (checks.passed if report["passed"] else checks.failed)(name, f"{report['candidate']}: {result}")


def write_model_with_attribute(checks: Checks, target: Path, precision: str, name: str, text: str) -> None:
    """The network's ONNX file with an attribute of the plugin on every attention."""
    import onnx

    exported = command_line("export", NETWORK, "--precision", precision, "-o", target)
    if exported.returncode != 0:
        checks.failed(f"export {target.name}", last_line(exported))
        return
    model = onnx.load(target)
    for node in model.graph.node:
        if node.op_type == OP_TYPE:
            del node.attribute[:]
            node.attribute.append(onnx.helper.make_attribute(name, text))
    onnx.save(model, target)


def check_runs(
    checks: Checks, plan: Path, *, shapes: Sequence[tuple[int, int, int]] = _SHAPES, runs: int = _RUNS
) -> None:
    """One engine through interleaved shapes with and without CUDA graphs, and through many runs."""
    from trt_hspan.runtime.tensorrt_runner import TensorRtRunner

    generator = np.random.default_rng(0)
    batches = [generator.random((n, 3, h, w), dtype=np.float32) for n, h, w in shapes]
    with TensorRtRunner(plan, use_graphs=False) as plain:
        expected = [plain.run(batch) for batch in batches]
        layers = json.loads(plain.layer_information()).get("Layers", [])
    attention = [layer for layer in layers if OP_TYPE in json.dumps(layer)]
    checks.passed(
        "the attention's layer", json.dumps(attention[0])[:300] if attention else "the inspector names none"
    )
    order = random.Random(0)
    with TensorRtRunner(plan) as runner:
        wrong = 0
        for _ in range(6):
            for index in order.sample(range(len(batches)), len(batches)):
                wrong += not np.array_equal(runner.run(batches[index]), expected[index])
        session = runner.session
        result = f"{session.graph_launches} graph launches, {session.graph_count} graphs kept"
        name = "interleaved shapes with CUDA graphs, bit for bit against runs without"
        if wrong:
            checks.failed(name, f"{wrong} of {6 * len(batches)} runs differ; {result}")
        elif session.capture_failures or not session.graph_launches:
            checks.failed(name, f"no graphs: {list(session.capture_failures.values())[:1]}; {result}")
        else:
            checks.passed(name, result)

        def free_bytes() -> int:
            with runner.device.current():
                return int(runner.device.memory_bytes()[0])

        before, held = free_bytes(), session.memory
        for index in range(runs):
            runner.run(batches[index % len(batches)])
        grown = before - free_bytes()
        name = f"{runs} runs without growth of memory"
        if grown > _GROWTH_BYTES or session.memory != held:
            checks.failed(name, f"{grown} bytes more are in use")
        else:
            checks.passed(name, f"{max(0, grown)} bytes more are in use")
