"""`make gpu` as a command: steps go on after a failing one, what is skipped says why, the exit code tells."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tools.gpu_report import __main__ as command
from tools.gpu_report import machine
from tools.gpu_report.__main__ import Session, outcome_of
from tools.gpu_report.machine import Python
from tools.gpu_report.page import page_from_report
from tools.kernel_report.interpreter import missing_for_interpreter
from trt_hspan.errors import HspanError
from trt_hspan.machine.gpu import GpuDriver, gpu_architectures

MISSING = missing_for_interpreter()
ROOT = Path(__file__).parents[3]
BARE = Python(
    path=sys.executable, prefix=sys.prefix, version="3.12", modules={"torch": "2", "numpy": "2"}, cuda="13.0"
)


def session(folder: Path, *pythons: Python) -> Session:
    return Session(folder=folder, rehearsal=False, pythons=list(pythons))


def run(folder: Path, *words: str) -> tuple[int, dict[str, Any], str]:
    completed = subprocess.run(
        [sys.executable, "-m", "tools.gpu_report", "-o", str(folder), *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    report = json.loads((folder / "report.json").read_text())
    return completed.returncode, report, (folder / "report.md").read_text()


@pytest.mark.skipif(bool(gpu_architectures()), reason="this is about machines without a GPU")
def test_without_a_gpu_everything_is_skipped_with_the_reason_and_the_exit_code_is_3(tmp_path: Path) -> None:
    code, report, page = run(tmp_path)
    assert code == 3
    assert report["steps"]["a"]["verdict"] == "passed"
    for key in "bcdefgh":
        assert report["steps"][key]["verdict"] == "skipped"
        assert "no NVIDIA GPU with a driver here" in report["steps"][key]["why"]
    assert page.startswith("# On a GPU\n")
    assert "| c. The kernels against float64 | skipped |" in page


@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
def test_steps_a_to_c_are_rehearsed_on_the_interpreter(tmp_path: Path) -> None:
    code, report, page = run(tmp_path, "--rehearse", "--steps", "abc")
    assert {key: step["verdict"] for key, step in report["steps"].items()} == dict.fromkeys(
        "abc", "passed"
    ), report
    assert code == 0
    answer = report["steps"]["c"]["answer"]
    assert answer["failures"] == []
    assert len(answer["runs_by_configuration"]) > 2
    assert {"automatic"} < answer["runs_by_configuration"].keys()
    assert page.startswith("# Rehearsal without a GPU")


def test_a_step_that_fails_does_not_keep_the_next_from_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Session) -> dict[str, Any]:
        raise HspanError("nvcc", "fails with code 1", "see nvcc.log")

    monkeypatch.setitem(command._STEPS, "b", broken)
    monkeypatch.setitem(command._STEPS, "d", lambda _: {"failures": [], "not_run": ["L 65536"]})
    monkeypatch.setitem(command._STEPS, "e", lambda _: {"failures": ["float16: 12.0 dB"]})
    here = session(tmp_path, BARE)
    outcomes = {key: outcome_of(key, here, None) for key in "bcde"}
    assert {key: outcome["verdict"] for key, outcome in outcomes.items()} == {
        "b": "failed",
        "c": "skipped",
        "d": "partly",
        "e": "failed",
    }
    assert outcomes["b"]["why"] == "nvcc: fails with code 1; see nvcc.log"
    assert outcomes["c"]["why"] == "the kernel library was not built"
    assert outcomes["d"]["why"] == "1 left out, the first: L 65536"
    assert outcomes["e"]["why"] == "1 failures, the first: float16: 12.0 dB"


def test_a_process_that_crashes_or_hangs_is_a_failed_step_with_its_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "libhspan_cuda.so").write_bytes(b"no library")
    crashed = outcome_of("c", session(tmp_path, BARE), None)
    assert crashed["verdict"] == "failed"
    assert "cannot be loaded" in crashed["why"]
    assert (tmp_path / "c.log").is_file()
    with pytest.raises(HspanError, match=r"step c: did not end within 0 s; see .*c\.log"):
        session(tmp_path, BARE).run("c", limit=0.01)


def test_each_step_takes_the_first_python_that_has_what_it_needs(tmp_path: Path) -> None:
    full = Python(
        path="/venv/python",
        prefix="/venv",
        version="3.12",
        modules=dict.fromkeys(
            ("torch", "numpy", "tensorrt", "pycuda", "polygraphy", "onnxruntime", "typer"), "1"
        ),
        cuda="",
    )
    here = session(tmp_path, full, BARE)
    assert here.python_for("c") is BARE  # the other one's torch sees no GPU
    assert here.python_for("f") is full
    with pytest.raises(command.Skipped, match="no Python here has tritonclient, onnx, typer"):
        here.python_for("h")
    with pytest.raises(command.Skipped, match="no Python here has torch, numpy that sees a GPU"):
        session(tmp_path, full).python_for("c")


@pytest.mark.parametrize(
    ("architecture", "code"),
    [
        ("sm_90", "arch=compute_90,code=[sm_90,compute_90]"),
        ("sm_150", "arch=compute_121,code=compute_121"),  # newer than the compiler: PTX of its newest
    ],
)
def test_nvcc_is_called_for_the_gpu_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, code: str
) -> None:
    nvcc = tmp_path / "nvcc"
    listed = "\\n".join(f"compute_{number}" for number in (75, 90, 121))
    nvcc.write_text(
        f'#!/bin/sh\n[ "$1" = --list-gpu-arch ] && {{ printf "{listed}"; exit; }}\n'
        f'echo "$@" > {tmp_path}/words\nfor last; do :; done\necho x > "$last"\n'
    )
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDACXX", str(nvcc))
    driver = GpuDriver(state="ready", cuda_version=(13, 0), architectures=(architecture,))
    monkeypatch.setattr(machine, "gpu_driver", lambda: driver)
    answer = machine.build(tmp_path, None)
    words = (tmp_path / "words").read_text()
    assert words.startswith("--options-file plugins/cuda/nvcc.options")
    assert f"--generate-code={code}" in words
    assert answer["plugin"] == {"left_out": "no Python here has this package's requirements: make setup"}


def test_compute_sanitizers_findings_are_failures_and_its_slowness_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command.shutil, "which", lambda _: "/usr/bin/compute-sanitizer")
    here = session(tmp_path, BARE)
    for message, line, count in (
        ("did not end within 100 s", "did not end within 100 s", 0),
        ("ended with code 9: ERROR SUMMARY: 3 errors", "errors", 1),
    ):

        def refuse(*_: object, message: str = message, **__: object) -> Any:
            raise HspanError("step c", message)

        monkeypatch.setattr(here, "run", refuse)
        answer: dict[str, Any] = {"failures": []}
        assert command._sanitized(here, "memcheck", [], answer) == line
        assert len(answer["failures"]) == count


def test_the_page_shows_times_what_was_left_out_and_failures() -> None:
    row = {"positions": 576, "score_channels": 16, "value_channels": 32, "type": "float16", "data": "random"}
    answer = {
        "rates": {"copy_gb_per_s": 1234.5},
        "rows": [
            {
                **row,
                "form": "this, automatic",
                "floor_ms": 0.5,
                "median_ms": 2.0,
                "least_ms": 1.9,
                "runs": 30,
            },
            {**row, "form": "softmax, flash", "floor_ms": 0.5, "left_out": "No available kernel."},
        ],
        "not_run": ["L 65536 C 96 float32 random"],
    }
    step = {"verdict": "failed", "why": "1 failures", "seconds": 3.2, "failures": ["a | b"], "answer": answer}
    report = {"when": "today", "command": "c", "rehearsal": False, "commit": ["abc"], "steps": {"d": step}}
    page = page_from_report(report)
    assert "| 576, 16/32 | float16 | random | this, automatic | 2.000 | 4.0 | 30 |" in page
    assert "| 576, 16/32 | float16 | random | softmax, flash | - | - | No available kernel. |" in page
    assert "Not run for lack of time: L 65536 C 96 float32 random." in page
    assert "- a | b" in page


def test_make_gpu_needs_no_setup() -> None:
    planned = subprocess.run(
        [
            "make",
            "-n",
            "--no-print-directory",
            "gpu",
            "GPU_OPTIONS=--steps a",
            "BIN=/nowhere",
            "PYTHON=python3",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert planned.stdout.strip() == "PYTHONPATH=. python3 -m tools.gpu_report --steps a"


def test_the_command_and_its_steps_import_neither_the_packages_requirements_nor_its_extras() -> None:
    """As on a machine with torch and numpy alone."""
    program = (
        "import sys\n"
        "for name in ('typer', 'rich', 'onnx', 'onnx_graphsurgeon', 'yaml', 'PIL', 'pynvml', 'safetensors',"
        " 'polygraphy', 'onnxruntime', 'tensorrt', 'pycuda'):\n"
        "    sys.modules[name] = None\n"
        "import tools.gpu_report.__main__, tools.gpu_report.steps, tools.gpu_report.kernels\n"
        "import tools.gpu_report.timing, tools.gpu_report.network\n"
        "tools.gpu_report.inputs.photograph_inputs(4, tools.gpu_report.inputs.torch.float16, 'cpu')\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
