"""What can be proved on the GPU at hand, one step after the other; docs/gpu.md describes the steps.

Each step runs with what is there and says what it skips; a step that fails does not keep the next from running. Written
are report.json, the same as a page, report.md, and the steps' logs.

Exit codes: 0, the kernels ran and nothing failed; 1, a step failed; 3, nothing failed, but the kernels did not run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tools.gpu_report import machine
from tools.gpu_report.machine import ROOT, Python
from tools.gpu_report.page import page_from_report
from trt_hspan.errors import HspanError
from trt_hspan.files import atomic_path

ALL_STEPS: Final = "abcdefgh"
_REHEARSED: Final = "abc"
# Steps a to e together stay below five minutes on a data center GPU: compiling takes about one.
_BUDGETS: Final = {"c": 80.0, "d": 60.0, "e": 20.0, "f": 600.0, "g": 120.0, "h": 120.0}
_SANITIZER_SECONDS: Final = 25
# A process starts, imports torch and ends, beyond what a step allows itself.
_SLACK_SECONDS: Final = 60
_NEEDS: Final = {
    "c": ("torch", "numpy"),
    "d": ("torch", "numpy"),
    "e": ("torch", "numpy"),
    "f": ("tensorrt", "pycuda", "polygraphy", "onnxruntime", "torch", "typer"),
    "g": ("onnx", "typer"),
    "h": ("tritonclient", "onnx", "typer"),
}
_WITH_TORCH_ON_GPU: Final = "cde"


class Skipped(Exception):  # noqa: N818  # it is no error
    """A step cannot run here; the text says why."""


@dataclass(kw_only=True)
class Session:
    """One run of the command."""

    folder: Path
    rehearsal: bool
    pythons: list[Python]

    def python_for(self, key: str) -> Python:
        """Raises Skipped: none has what the step needs."""
        needs = _NEEDS[key]
        for python in self.pythons:
            has_gpu = bool(python.cuda) or self.rehearsal or key not in _WITH_TORCH_ON_GPU
            if has_gpu and all(name in python.modules for name in needs):
                return python
        gpu = " that sees a GPU" if key in _WITH_TORCH_ON_GPU else ""
        raise Skipped(f"no Python here has {', '.join(needs)}{gpu}")

    def library(self) -> Path:
        """Raises Skipped: step b has not made it."""
        if self.rehearsal:
            from tools.kernel_report.interpreter import build_program

            return build_program("library", 80)
        path = self.folder / "libhspan_cuda.so"
        if not path.is_file():
            raise Skipped("the kernel library was not built")
        return path

    def run(
        self, key: str, *words: str, before: tuple[str, ...] = (), limit: float, name: str | None = None
    ) -> Any:
        """The answer of a step that runs in a process of its own.

        Raises:
            HspanError: it ended with an error or took too long; what it printed is in a log.
        """
        log, answer = self.folder / f"{name or key}.log", self.folder / f"{name or key}.json"
        answer.unlink(missing_ok=True)
        command = [
            *before,
            self.python_for(key).path,
            "-m",
            "tools.gpu_report.steps",
            key,
            str(self.folder),
            *words,
        ]
        command += ["--name", name or key]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRT_HSPAN_PLUGIN": str(self.plugin())}
        if before:  # each tensor an allocation of its own, so that the sanitizer sees where it ends
            environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
        with log.open("w") as stream:
            try:
                completed = subprocess.run(
                    command,
                    cwd=ROOT,
                    env=environment,
                    stdout=stream,
                    stderr=stream,
                    check=False,
                    timeout=limit,
                )
            except subprocess.TimeoutExpired as error:
                raise HspanError(f"step {key}", f"did not end within {limit:.0f} s", f"see {log}") from error
        if completed.returncode != 0:
            last = (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
            raise HspanError(
                f"step {key}", f"ended with code {completed.returncode}: {last[:300]}", f"see {log}"
            )
        return json.loads(answer.read_text())

    def plugin(self) -> Path:
        own = self.folder / "libhspan_plugin.so"
        return (
            own
            if own.is_file()
            else Path(os.environ.get("TRT_HSPAN_PLUGIN", ROOT / "build/plugin" / own.name))
        )


def examine(session: Session) -> dict[str, Any]:
    return machine.examine(session.pythons)


def build(session: Session) -> dict[str, Any]:
    if session.rehearsal:
        library = session.library()
        return {
            "library": str(library),
            "bytes": library.stat().st_size,
            "command": "nvcc, and the interpreter of tests/ptx in the driver's place",
            "plugin": {"left_out": "it is not rehearsed"},
        }
    with_requirements = [each for each in session.pythons if {"typer", "onnx"} <= each.modules.keys()]
    return machine.build(session.folder, next(iter(with_requirements), None))


def kernels(session: Session) -> dict[str, Any]:
    words = ["--library", str(session.library()), "--budget", str(_BUDGETS["c"])]
    if session.rehearsal:
        words += ["--quick", "--device", "cpu", "--budget", "3600"]
        return dict(session.run("c", *words, limit=3600.0))
    answer: dict[str, Any] = session.run("c", *words, limit=_BUDGETS["c"] + _SLACK_SECONDS)
    answer["sanitizer"] = {
        tool: _sanitized(session, tool, words, answer) for tool in ("memcheck", "racecheck")
    }
    return answer


def _sanitized(session: Session, tool: str, words: list[str], answer: dict[str, Any]) -> str:
    """What compute-sanitizer says of a quick list; what it finds is a failure, that it runs out of time is said."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return "not installed"
    # What torch asks and CUDA denies is not of these kernels.
    api_errors = ("--report-api-errors", "no") if tool == "memcheck" else ()
    before = (program, "--tool", tool, "--error-exitcode", "9", *api_errors)
    try:
        quick = [*words, "--quick", "--budget", str(_SANITIZER_SECONDS)]
        found = session.run(
            "c", *quick, before=before, limit=_SANITIZER_SECONDS + _SLACK_SECONDS, name=f"c-{tool}"
        )
    except HspanError as error:
        if "did not end" in error.what:
            return error.what
        answer["failures"].append(f"compute-sanitizer {tool}: {error}")
        return "errors"
    return f"no errors in {found['runs']} runs" + (", not all cases in time" if found["not_run"] else "")


def timing(session: Session) -> dict[str, Any]:
    words = ["--library", str(session.library()), "--budget", str(_BUDGETS["d"])]
    return dict(session.run("d", *words, limit=_BUDGETS["d"] + _SLACK_SECONDS))


def in_pytorch(session: Session) -> dict[str, Any]:
    return dict(session.run("e", "--library", str(session.library()), limit=_BUDGETS["e"] + _SLACK_SECONDS))


def _with_gpu(key: str) -> Callable[[Session], dict[str, Any]]:
    def step(session: Session) -> dict[str, Any]:
        return dict(session.run(key, "--budget", str(_BUDGETS[key]), limit=_BUDGETS[key] + _SLACK_SECONDS))

    return step


_STEPS: Final[dict[str, Callable[[Session], dict[str, Any]]]] = {
    "a": examine,
    "b": build,
    "c": kernels,
    "d": timing,
    "e": in_pytorch,
    "f": _with_gpu("f"),
    "g": _with_gpu("g"),
    "h": _with_gpu("h"),
}


def outcome_of(key: str, session: Session, gpu_error: str | None) -> dict[str, Any]:
    """Runs a step: its verdict is passed, partly (something was left out), failed or skipped, and why."""
    started, answer = time.monotonic(), {}
    verdict, why, failures = "passed", "", list[str]()
    try:
        if gpu_error is not None and key != "a" and not session.rehearsal:
            raise Skipped(gpu_error)
        if session.rehearsal and key not in _REHEARSED:
            raise Skipped("it is not rehearsed")
        answer = _STEPS[key](session)
        failures = list(answer.get("failures", []))
        left_out = [*answer.get("not_run", []), *answer.get("warnings", []), *answer.get("left_out", [])]
        if failures:
            verdict, why = "failed", f"{len(failures)} failures, the first: {failures[0]}"
        elif left_out:
            verdict, why = "partly", f"{len(left_out)} left out, the first: {left_out[0]}"
    except Skipped as reason:
        verdict, why = "skipped", str(reason)
    except Exception as error:  # noqa: BLE001  # whatever it is, the next step runs
        verdict, why = "failed", str(error) or type(error).__name__
    seconds = time.monotonic() - started
    return {"verdict": verdict, "why": why, "seconds": seconds, "failures": failures, "answer": answer}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.gpu_report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=ROOT / "gpu-report", help="the folder (gpu-report)"
    )
    parser.add_argument("--steps", default=ALL_STEPS, help="which of a to h (all)")
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="steps a to c without a GPU, on interpreted PTX; proves nothing of a GPU",
    )
    options = parser.parse_args()
    if not set(options.steps) <= set(ALL_STEPS):
        parser.error(f"--steps: {options.steps!r} has letters that are none of {ALL_STEPS}")
    options.output.mkdir(parents=True, exist_ok=True)
    session = Session(folder=options.output.resolve(), rehearsal=options.rehearse, pythons=machine.pythons())
    report: dict[str, Any] = {
        "when": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python -m tools.gpu_report", *sys.argv[1:]]),
        "rehearsal": options.rehearse,
        "commit": machine.commit(),
        "steps": {},
    }
    gpu_error = machine.gpu_error()
    for key in sorted(options.steps):
        outcome = outcome_of(key, session, gpu_error)
        report["steps"][key] = outcome
        print(f"{key}  {outcome['verdict']:8}{outcome['seconds']:6.0f} s  {outcome['why']}", flush=True)
        _write(session.folder, report)
    print(f"{session.folder / 'report.md'}")
    verdicts = {key: outcome["verdict"] for key, outcome in report["steps"].items()}
    if "failed" in verdicts.values():
        return 1
    return 0 if verdicts.get("c") in {"passed", "partly"} else 3


def _write(folder: Path, report: dict[str, Any]) -> None:
    """After every step, so that a machine that goes away leaves what was found."""
    for name, text in (
        ("report.json", json.dumps(report, indent=1)),
        ("report.md", page_from_report(report)),
    ):
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text)


if __name__ == "__main__":
    sys.exit(main())
