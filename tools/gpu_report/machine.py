"""Steps a and b: what is here, and the libraries compiled for the GPU at hand. Needs the standard library only."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from trt_hspan.errors import HspanError
from trt_hspan.machine.gpu import gpu_driver
from trt_hspan.native.toolchain import find_nvcc, supported_architectures

ROOT: Final = Path(__file__).resolve().parents[2]
_PROGRAMS: Final = ("compute-sanitizer", "trtexec", "tritonserver", "hspan-upscale", "cmake", "g++")
_MODULES: Final = (
    "torch",
    "numpy",
    "tensorrt",
    "pycuda",
    "polygraphy",
    "onnx",
    "onnxruntime",
    "typer",
    "tritonclient",
)
_GPU_FIELDS: Final = (
    "name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"
)
_PROBE: Final = """
import importlib.metadata, importlib.util, json, sys
modules = [name for name in sys.argv[1:] if importlib.util.find_spec(name) is not None]
def version(name):
    try:
        return importlib.metadata.version(name)
    except Exception:  # a half-removed installation fails in many ways, and the report goes on
        return "version unknown"
answer = {"prefix": sys.prefix, "version": sys.version.split()[0], "cuda": ""}
answer["modules"] = {name: version(name) for name in modules}
if "torch" in modules:
    import torch
    answer["cuda"] = torch.version.cuda or "" if torch.cuda.is_available() else ""
print(json.dumps(answer))
"""


@dataclass(frozen=True, kw_only=True)
class Python:
    """An interpreter, and which of the packages that steps need it has; `cuda`: the CUDA of a torch that sees a GPU."""

    path: str
    prefix: str
    version: str
    modules: dict[str, str]
    cuda: str


def pythons() -> list[Python]:
    """This interpreter, the virtual environment's and the system's, those that run."""
    candidates = [sys.executable, str(ROOT / ".venv" / "bin" / "python"), shutil.which("python3")]
    answers: dict[str, Python] = {}
    for path in dict.fromkeys(each for each in candidates if each and os.access(each, os.X_OK)):
        command = [path, "-c", _PROBE, *_MODULES]
        try:
            completed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        except subprocess.TimeoutExpired:
            continue
        if completed.returncode == 0:
            answer = Python(path=path, **json.loads(completed.stdout))
            answers.setdefault(answer.prefix, answer)
    return list(answers.values())


def examine(found: list[Python]) -> dict[str, Any]:
    """Step a."""
    driver = gpu_driver()
    facts: dict[str, Any] = {
        "platform": platform.platform(),
        "driver_runs_cuda_up_to": driver.cuda_version and "{}.{}".format(*driver.cuda_version),
        "gpus": list(driver.architectures),
        "nvidia_smi": _first_lines(["nvidia-smi", f"--query-gpu={_GPU_FIELDS}", "--format=csv"]),
        "nvcc": _nvcc(),
        "programs": {name: shutil.which(name) for name in _PROGRAMS},
        "pythons": [asdict(each) for each in found],
    }
    return {**facts, "no_gpu": gpu_error()}


def gpu_error() -> str | None:
    """Why there is no GPU to work with."""
    error = gpu_driver().error
    return None if error is None else str(error)


def commit() -> list[str]:
    """Hash and date of what runs, as one line; nothing where this is no checkout."""
    return _first_lines(["git", "-C", str(ROOT), "log", "-1", "--format=%H %cs"])


def build(folder: Path, python: Python | None) -> dict[str, Any]:
    """Step b: the kernel library with nvcc alone, and the plugin where a Python has what its build needs.

    Raises:
        HspanError: no nvcc, or it fails on the kernels; its output is in the folder.
    """
    (architecture,) = {int(name.removeprefix("sm_")) for name in gpu_driver().architectures[:1]}
    nvcc = find_nvcc()
    known = [number for number in supported_architectures(nvcc) if number <= architecture]
    if not known:
        raise HspanError(
            nvcc, f"compiles for nothing that runs on sm_{architecture}", "install a newer CUDA toolkit"
        )
    code = f"code=[sm_{architecture},compute_{architecture}]"
    if architecture not in known:  # the driver compiles the newest PTX that this nvcc makes
        code = f"code=compute_{known[-1]}"
    library = folder / "libhspan_cuda.so"
    command: list[str | Path] = [nvcc, "--options-file", "plugins/cuda/nvcc.options"]
    command += [f"--generate-code=arch=compute_{min(architecture, known[-1])},{code}", "-o", library]
    log = folder / "nvcc.log"
    with log.open("w") as stream:
        completed = subprocess.run(command, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT, check=False)
    if completed.returncode != 0:
        raise HspanError("nvcc", f"fails with code {completed.returncode}", f"see {log}")
    report = {
        "library": str(library),
        "bytes": library.stat().st_size,
        "command": " ".join(map(str, command)),
    }
    return report | {"plugin": _plugin(folder, python, architecture)}


def _plugin(folder: Path, python: Python | None, architecture: int) -> dict[str, Any]:
    if python is None:
        return {"left_out": "no Python here has this package's requirements: make setup"}
    command = [python.path, "-m", "trt_hspan", "plugin", "build", "--arch", str(architecture), "--json"]
    command += ["-o", str(folder / "libhspan_plugin.so")]
    completed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if completed.returncode != 0:
        return {"left_out": (completed.stderr.strip().splitlines() or ["plugin build fails"])[-1]}
    report: dict[str, Any] = json.loads(completed.stdout)
    return report


def _nvcc() -> str:
    try:
        nvcc = find_nvcc()
    except HspanError as error:
        return str(error)
    return f"{nvcc}: {(_first_lines([str(nvcc), '--version']) or ['does not run'])[-1]}"


def _first_lines(command: list[str]) -> list[str]:
    try:
        completed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return []
    return completed.stdout.strip().splitlines()[:9]
