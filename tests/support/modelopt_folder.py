"""NVIDIA ModelOpt, in a folder of its own: it pins an older ONNX than this project's development environment has."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from trt_hspan.files import locked_folder

ROOT = Path(__file__).resolve().parents[2]
# ModelOpt's extra "onnx", without what needs CUDA and without what the development environment has.
PACKAGES = (
    *("nvidia-modelopt==0.47.0", "onnx==1.21.0", "onnxruntime==1.24.4", "onnxconverter-common==1.16.0"),
    *(
        "lief==1.0.0",
        "cppimport==26.4.17",
        "mako==1.4.3",
        "omegaconf==2.4.0",
        "antlr4-python3-runtime==4.9.3",
    ),
    *("pulp==3.3.2", "regex==2026.11.19", "tqdm==4.70.1"),
)


def modelopt_folder() -> Path:
    """build/modelopt, filled by pip when these packages are not there yet."""
    folder = ROOT / "build" / "modelopt"
    ready, listed = folder / ".complete", "\n".join(PACKAGES)
    with locked_folder(folder):
        if not ready.is_file() or ready.read_text() != listed:
            install = [
                sys.executable,
                "-m",
                "pip",
                "install",
                "-q",
                "--no-deps",
                "--upgrade",
                "--target",
                str(folder),
            ]
            completed = subprocess.run([*install, *PACKAGES], capture_output=True, text=True, check=False)
            assert completed.returncode == 0, completed.stderr
            ready.write_text(listed)
    return folder


def run_with_modelopt(arguments: Sequence[str | os.PathLike[str]], folder: Path) -> None:
    """Runs this Python with ModelOpt and trt_hspan in a folder, where ModelOpt leaves files of its own."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(modelopt_folder()), str(ROOT)])}
    command = [sys.executable, *map(os.fspath, arguments)]
    completed = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, cwd=folder
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
