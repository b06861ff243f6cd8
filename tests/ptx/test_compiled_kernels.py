"""The kernels as nvcc compiles them, run by the interpreter. `make ptx` runs all cases and makes all mistakes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ptx.mistakes import MISTAKES, Mistake, broken_source, is_noticed
from tools.kernel_report.interpreter import build_program, missing_for_interpreter

MISSING = missing_for_interpreter()
needs_interpreter = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


def failures(target: int, *words: str) -> str:
    """The lines of the cases that fail, the first 20."""
    command = [build_program("run_cases", target), str(target), *words]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in process.stdout.splitlines() if " runs " in line]
    assert lines, process.stderr
    return "\n".join([line for line in lines if not line.endswith(" ok")][:20])


@needs_interpreter
def test_every_regime_type_layout_and_configuration_keeps_its_bounds_under_three_schedules() -> None:
    assert failures(80, "quick") == ""


@needs_interpreter
def test_code_for_hopper_does_too() -> None:
    assert failures(90, "quick", "--config", "2") == ""


@needs_interpreter
@pytest.mark.parametrize(
    "mistake", [each for each in MISTAKES if each.quick], ids=lambda mistake: mistake.what.replace(" ", "_")
)
def test_mistakes_are_noticed(mistake: Mistake, tmp_path: Path) -> None:
    noticed, _ = is_noticed(mistake, tmp_path)
    assert noticed


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.what.replace(" ", "_"))
def test_every_mistake_can_be_made_in_the_kernels_as_they_are(mistake: Mistake) -> None:
    assert mistake.wrong in broken_source(mistake)
