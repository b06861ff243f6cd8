"""The scripts of a checkout: short, and started without an installation and from any folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[2] / "scripts").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_starts_from_any_folder(script: Path, tmp_path: Path) -> None:
    assert len(script.read_text().splitlines()) <= 40
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.run(
        [sys.executable, script, "--help"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=environment,
    )
    assert process.returncode == 0, process.stderr
    assert "usage:" in process.stdout.lower()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_without_its_packages_says_which_line_installs_them(script: Path, tmp_path: Path) -> None:
    """-S leaves site-packages out; the interpreter behind the environment is none itself."""
    python = Path(sys.base_prefix) / "bin" / "python3"
    process = subprocess.run(
        [python, "-S", script, "--help"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
    )
    if process.returncode == 0:  # argparse answers before anything is imported
        assert "usage:" in process.stdout.lower()
        return
    name, _, line = process.stderr.strip().partition(": error: ")
    assert name == script.name
    step = "python3 -m venv .venv && . .venv/bin/activate && pip install -e "
    assert f" is not installed; {step}'{script.parents[1]}[" in f" {line}"
