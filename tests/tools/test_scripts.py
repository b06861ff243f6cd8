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
