"""What this machine has and can do, and whether an engine can run on it: the library behind `trt-hspan doctor`.

Every finding describes one part, and where something is missing or broken the command that repairs it. No plan is
opened and no plugin library is loaded.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from trt_hspan.engine.spec import Flavor
from trt_hspan.errors import HspanError
from trt_hspan.machine.facts import installed_version, usable_processors
from trt_hspan.machine.install_advice import install_advice, install_command

#: Has CUDA 13.0's toolkit, g++, Python's headers, TensorRT 10.13, PyTorch; 25.03-py3 has CUDA 12.8, TensorRT 10.9.
PYCUDA_CONTAINER: Final = "nvcr.io/nvidia/pytorch:25.10-py3"

State = Literal["ok", "absent", "broken"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One part of the machine; "broken" is installed and does not work."""

    name: str
    state: State
    detail: str  # version, path, or what is wrong
    next_step: str | None = None  # the command that installs or repairs it


@dataclass(frozen=True, kw_only=True)
class EngineVerdict:
    """Whether an engine can run here.

    Attributes:
        engine: the plan.
        runs_on_gpu: this machine gives no reason against it.
        reasons: why it cannot, one line each, with the next step.
        notes: other remarks, one line each.
        can_be_emulated: its ONNX file can run on the CPU under ONNX Runtime.
    """

    engine: str
    runs_on_gpu: bool
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    can_be_emulated: bool


def examine_machine() -> tuple[Finding, ...]:
    """Findings on driver, GPUs, TensorRT, PyCUDA, ONNX Runtime, OpenVINO, PyTorch, plugin, CPU kernel and compilers."""
    return (
        _examined("machine", _machine),
        _examined("driver", _driver),
        *_gpus(),
        _examined("tensorrt", lambda: _tensorrt("tensorrt")),
        _examined("tensorrt-rtx", lambda: _tensorrt("tensorrt-rtx")),
        _examined("PyCUDA", _pycuda),
        _examined("ONNX Runtime", lambda: _package("onnxruntime", install_command("cpu"))),
        _examined("OpenVINO", lambda: _package("openvino", install_command("openvino"))),
        _examined("PyTorch", lambda: _package("torch", install_command("export"))),
        _examined("plugin", _plugin),
        _examined("CPU kernel", _cpu_kernel),
        _examined("GPU kernels of PyTorch", _gpu_kernels),
        _examined("CUDA compiler", _cuda_compiler),
        _examined("C++ compiler", lambda: _tool("find_host_compiler")),
        _examined("CMake", lambda: _tool("find_cmake")),
    )


def abilities(findings: tuple[Finding, ...]) -> dict[str, bool]:
    """What can be done on a machine with these findings: ability -> whether."""
    ok = {finding.name for finding in findings if finding.state == "ok"}
    flavors = ok & {"tensorrt", "tensorrt-rtx"}
    gpu = "GPU 0" in ok
    return {
        "run engines on a GPU": gpu and bool(flavors) and "PyCUDA" in ok,
        "build engines": "tensorrt-rtx" in ok or (gpu and "tensorrt" in ok),
        "run ONNX files on the CPU": "ONNX Runtime" in ok,
        "run INT8 on the CPU in integers": {"OpenVINO", "CPU kernel"} <= ok,
        "run checkpoints": "PyTorch" in ok,
        "compile the plugin": {"CUDA compiler", "C++ compiler", "CMake"} <= ok,
    }


def examine_engine(plan: Path, *, plugin: Path | None = None) -> EngineVerdict:
    """Whether an engine can run here, and if not, why and what to do.

    Raises:
        HspanError: no such file.
    """
    from trt_hspan.engine.manifest import verify_manifest
    from trt_hspan.engine.passport import engine_mismatches, this_machine

    if not plan.is_file():
        raise HspanError(plan, "no such file" if not plan.exists() else "is not a file", "check the path")
    try:
        manifest = verify_manifest(plan)
    except HspanError as error:  # without a manifest that fits nothing may be opened, here or elsewhere
        return EngineVerdict(
            engine=str(plan), runs_on_gpu=False, reasons=(str(error),), notes=(), can_be_emulated=False
        )
    reasons = [str(line) for line in engine_mismatches(plan, manifest, this_machine(), plugin=plugin)]
    reasons += _validity_reasons(plan, manifest)
    if importlib.util.find_spec("pycuda") is None:
        reasons.append(f"PyCUDA: is not installed; {install_advice('pycuda')}")
    notes = list(_memory_notes(manifest))
    if manifest.flavor == "tensorrt-rtx" and manifest.plugin is not None:
        notes.append("NVIDIA documents no plugin support for TensorRT-RTX: whether it executes is unknown")
    return EngineVerdict(
        engine=str(plan),
        runs_on_gpu=not reasons,
        reasons=tuple(dict.fromkeys(reasons)),
        notes=tuple(notes),
        can_be_emulated=importlib.util.find_spec("onnxruntime") is not None,
    )


def _validity_reasons(plan: Path, manifest: Any) -> list[str]:
    """TensorRT-RTX's own answer, where that very release is installed."""
    from trt_hspan.engine.tensorrt_api import installed_flavors, load_tensorrt, tensorrt_logger
    from trt_hspan.runtime.engine_loading import engine_validity

    if manifest.flavor != "tensorrt-rtx" or manifest.flavor not in installed_flavors():
        return []
    try:
        trt = load_tensorrt(manifest.flavor)
        engine_validity(trt, trt.Runtime(tensorrt_logger(trt)), plan.read_bytes(), str(plan))
    except HspanError as error:
        return [str(error)]
    return []


def _memory_notes(manifest: Any) -> list[str]:
    from trt_hspan.machine.nvml import gpu_states

    profile = manifest.largest_profile
    needed = profile.activation_memory_bytes
    if needed is None:
        return []
    height, width = profile.max[2:]
    text = f"at its largest shape, {height}x{width}, it takes {needed / 1e6:.1f} MB for activations"
    gpus = gpu_states()
    if gpus and gpus[0].free_bytes is not None:
        free = gpus[0].free_bytes
        text += f"; {free / 1e6:.0f} MB are free"
        if needed > free:
            text += ": give smaller pictures or tiles"
    return [text]


def _examined(part: str, probe: Callable[[], str]) -> Finding:
    """The finding on a part whose probe returns its description, or raises an HspanError."""
    try:
        return Finding(name=part, state="ok", detail=probe())
    except HspanError as error:
        state: State = "absent" if isinstance(error, _AbsentError) else "broken"
        return Finding(name=part, state=state, detail=error.what, next_step=error.next_step)


class _AbsentError(HspanError):
    """Of a part that is not installed."""


def _machine() -> str:
    from trt_hspan.machine.memory import available_memory_bytes

    memory = available_memory_bytes()
    available = "" if memory is None else f", {memory / 1e9:.1f} GB of memory available"
    return f"{platform.machine()}, {usable_processors()} processors{available}, Python {platform.python_version()}"


def _driver() -> str:
    from trt_hspan.machine.gpu import gpu_driver
    from trt_hspan.machine.nvml import driver_version

    driver = gpu_driver()
    if driver.state == "no driver":
        next_step = driver.error.next_step if driver.error else None
        raise _AbsentError("driver", "no NVIDIA driver here", next_step)
    cuda = "unknown" if driver.cuda_version is None else "{}.{}".format(*driver.cuda_version)
    if driver.state == "failed" and driver.error is not None:
        raise HspanError("driver", f"up to CUDA {cuda}: {driver.error.what}", driver.error.next_step)
    return ", ".join(filter(None, (driver_version(), f"up to CUDA {cuda}")))


def _gpus() -> list[Finding]:
    from trt_hspan.machine.gpu import gpu_driver
    from trt_hspan.machine.nvml import gpu_states

    driver = gpu_driver()
    architectures, states = driver.architectures, gpu_states()
    if driver.state == "no driver":
        return [Finding(name="GPU", state="absent", detail="none")]
    if driver.error is not None:
        state: State = "absent" if driver.state == "no GPU" else "broken"
        return [Finding(name="GPU", state=state, detail=driver.error.what, next_step=driver.error.next_step)]
    details = list(architectures)
    if len(states) == len(details) == 1 and states[0].total_bytes:  # the orders of several may differ
        details = [f"{states[0].name}, {details[0]}, {states[0].total_bytes / 1e9:.1f} GB"]
    return [Finding(name=f"GPU {n}", state="ok", detail=detail) for n, detail in enumerate(details)]


def _tensorrt(flavor: Flavor) -> str:
    from trt_hspan.engine.tensorrt_api import installed_flavors, known_targets, load_tensorrt

    if flavor not in installed_flavors():
        raise _AbsentError(flavor, "not installed", install_advice(flavor))
    try:
        trt = load_tensorrt(flavor)
    except HspanError as error:
        raise HspanError(flavor, error.what, error.next_step or install_advice(flavor)) from error
    targets = sorted(known_targets(trt), key=lambda name: int(name.removeprefix("sm_")))
    return str(trt.__version__) + (f", builds for {', '.join(targets)}" if targets else "")


def _pycuda() -> str:
    from trt_hspan.runtime.cuda_device import pycuda_driver

    missing = _missing_for_pycuda()
    next_step = f"{install_advice('pycuda')} to run engines"
    if missing:
        next_step = (
            f"it has no wheels, pip compiles it: first install {', '.join(missing)}, or take the container "
            f"{PYCUDA_CONTAINER}; then {next_step}"
        )
    version = _package("pycuda", next_step)
    pycuda_driver()
    return version


def _missing_for_pycuda() -> list[str]:
    """What compiling PyCUDA needs and this machine has not."""
    from trt_hspan.native.toolchain import find_host_compiler, find_nvcc

    def has_toolkit() -> bool:
        named = [os.environ.get(name) for name in ("CUDA_ROOT", "CUDA_HOME", "CUDA_PATH")]
        roots = [find_nvcc().parents[1], Path("/usr/local/cuda"), *map(Path, filter(None, named))]
        return any((root / "include" / "cuda.h").is_file() for root in roots)

    headers = Path(sysconfig.get_path("include")) / "Python.h"
    missing = []
    for name, is_there in (
        ("CUDA's toolkit (https://developer.nvidia.com/cuda-downloads)", has_toolkit),
        ("g++ (apt install g++)", lambda: find_host_compiler().is_file()),
        ("Python's headers (apt install python3-dev)", headers.is_file),
    ):
        try:
            is_present = is_there()
        except HspanError:
            is_present = False
        if not is_present:
            missing.append(name)
    return missing


def _package(module: str, install: str) -> str:
    if importlib.util.find_spec(module) is None:
        raise _AbsentError(module, "not installed", install)
    return installed_version(module) or "version unknown"


def _plugin() -> str:
    from trt_hspan.machine.gpu import gpu_driver
    from trt_hspan.native.plugin import check_plugin_serves, default_plugin_path, plugin_info_from_library

    path = default_plugin_path()
    if not path.is_file():
        raise _AbsentError("plugin", f"{path} does not exist", "trt-hspan plugin build")
    try:
        info = plugin_info_from_library(path)
        driver = gpu_driver()
        check_plugin_serves(info, driver.architectures, driver.cuda_version)
    except HspanError as error:
        raise HspanError("plugin", f"{error.where}: {error.what}", error.next_step) from error
    codes = [f"sm_{number}" for number in info.cubin_architectures]
    codes += [f"compute_{number}" for number in info.ptx_architectures]
    cuda = f"CUDA {info.cuda_version}, PTX {info.ptx_isa_version}"
    return (
        f"{path}, version {info.version}, ABI {info.abi_version}, {cuda}, for {', '.join(codes)}; tools that open it "
        "before TensorRT, as polygraphy --plugins does, need LD_PRELOAD=libnvinfer.so.11 (or .10)"
    )


def _cpu_kernel() -> str:
    from trt_hspan.native.cpu_attention import PLACES, native_library

    path, build = PLACES.path(), "trt-hspan plugin build --cpu"
    library = native_library()
    if library is not None:
        return f"{path}, {', '.join(library.instruction_sets)}"
    if path.is_file():
        raise HspanError("CPU kernel", f"{path} does not load or is out of date", build)
    raise _AbsentError("CPU kernel", "not compiled", build)


def _gpu_kernels() -> str:
    from trt_hspan.machine.gpu import gpu_driver
    from trt_hspan.native.compatibility import require_runs
    from trt_hspan.native.cuda_attention import PLACES, code_from_library, state_of_library
    from trt_hspan.native.plugin import architecture_from_target

    path, build = PLACES.path(), "trt-hspan plugin build --cuda"
    if not path.is_file():
        raise _AbsentError("GPU kernels", "not compiled", build)
    state = state_of_library(path)
    if state is None:
        raise HspanError("GPU kernels", f"{path} is another library", build)
    code, driver = code_from_library(path), gpu_driver()
    try:
        if code is not None:
            require_runs(code, map(architecture_from_target, driver.architectures), driver.cuda_version)
    except HspanError as error:
        raise HspanError("GPU kernels", f"{error.where}: {error.what}", error.next_step) from error
    return f"{path}, machine code for {', '.join(f'sm_{number}' for number in state[1])}"


def _cuda_compiler() -> str:
    from trt_hspan.native.toolchain import supported_architectures

    compiler = _tool("find_nvcc")
    names = ", ".join(f"sm_{number}" for number in supported_architectures(Path(compiler)))
    return f"{compiler}, compiles for {names}"


def _tool(find: str) -> str:
    """The path that a function of `native.toolchain` finds."""
    from trt_hspan.native import toolchain

    try:
        return str(getattr(toolchain, find)())
    except HspanError as error:
        raise _AbsentError(error.where, error.what, error.next_step) from error
