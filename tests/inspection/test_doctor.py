"""What `trt-hspan doctor` finds, and its verdict on engines."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cuda_standin.build import standin_environment
from support.command_line import CommandLine
from support.small_engine import SmallEngine

from trt_hspan.engine import manifest as manifests
from trt_hspan.engine import passport, tensorrt_api
from trt_hspan.engine.manifest import ProfileRecord
from trt_hspan.errors import HspanError
from trt_hspan.files import write_text
from trt_hspan.inspection import doctor as machine
from trt_hspan.inspection.doctor import Finding, abilities, examine_engine, examine_machine
from trt_hspan.machine import gpu, memory, nvml
from trt_hspan.machine.gpu import GpuDriver, gpu_architectures
from trt_hspan.machine.nvml import GpuState
from trt_hspan.native import compatibility, cpu_attention, cuda_attention, toolchain
from trt_hspan.native import plugin as plugin_library
from trt_hspan.runtime import engine_loading

needs_no_gpu = pytest.mark.skipif(bool(gpu_architectures()), reason="this is about machines without a GPU")


@pytest.fixture(scope="module")
def findings() -> dict[str, Finding]:
    return {finding.name: finding for finding in examine_machine()}


@needs_no_gpu
def test_what_a_machine_without_a_gpu_lacks_is_reported_with_what_to_do(findings: dict[str, Finding]) -> None:
    assert findings["driver"].state == findings["GPU"].state == "absent"
    assert findings["driver"].next_step is not None
    able = abilities(tuple(findings.values()))
    assert not able["run engines on a GPU"]
    assert able["build engines"]
    assert able["run ONNX files on the CPU"]


def test_what_is_installed_is_named_with_its_version(findings: dict[str, Finding]) -> None:
    import onnxruntime

    assert findings["ONNX Runtime"].detail == onnxruntime.__version__
    assert findings["tensorrt-rtx"].detail.startswith("1.")
    assert "sm_86" in findings["tensorrt-rtx"].detail
    assert "ABI" in findings["plugin"].detail


def test_a_spoiled_plugin_is_broken_and_the_exit_code_says_so(
    run: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled = tmp_path / "libhspan_plugin.so"
    spoiled.write_bytes(b"x")
    monkeypatch.setattr(plugin_library, "default_plugin_path", lambda: spoiled)
    result = run("doctor", "--json")
    findings_by_name = {item["name"]: item for item in json.loads(result.out)["findings"]}
    assert result.code == 1
    assert findings_by_name["plugin"]["state"] == "broken"
    assert "is no shared library" in findings_by_name["plugin"]["detail"]


def test_missing_tools_are_reported_with_how_to_get_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def missing(*_: object) -> Path:
        raise HspanError("nvcc", "no CUDA compiler found", "install the CUDA toolkit")

    from trt_hspan.native import toolchain as plugin_toolchain

    monkeypatch.setattr(plugin_toolchain, "find_nvcc", missing)
    monkeypatch.setattr(plugin_library, "default_plugin_path", lambda: tmp_path / "none.so")
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda _: None)
    findings_by_name = {finding.name: finding for finding in examine_machine()}
    assert findings_by_name["CUDA compiler"].next_step == "install the CUDA toolkit"
    assert findings_by_name["plugin"].next_step == "trt-hspan plugin build"
    assert findings_by_name["PyTorch"].next_step == "pip install -e '.[export]'"
    assert not abilities(tuple(findings_by_name.values()))["compile the plugin"]


@pytest.mark.parametrize(
    ("ability", "parts"),
    [
        ("run engines on a GPU", {"GPU 0", "PyCUDA", "tensorrt"}),
        ("run engines on a GPU", {"GPU 0", "PyCUDA", "tensorrt-rtx"}),
        ("build engines", {"tensorrt-rtx"}),
        ("build engines", {"GPU 0", "tensorrt"}),
        ("run ONNX files on the CPU", {"ONNX Runtime"}),
        ("run INT8 on the CPU in integers", {"OpenVINO", "CPU kernel"}),
        ("run checkpoints", {"PyTorch"}),
        ("compile the plugin", {"CUDA compiler", "C++ compiler", "CMake"}),
    ],
)
def test_an_ability_needs_each_of_its_parts_to_work(ability: str, parts: set[str]) -> None:
    found = [Finding(name=part, state="ok", detail="") for part in sorted(parts)]
    assert abilities(tuple(found))[ability]
    for each in found:
        others = [other for other in found if other is not each]
        assert not abilities(tuple(others))[ability]
        broken = dataclasses.replace(each, state="broken")
        assert not abilities((*others, broken))[ability]


@pytest.mark.parametrize(
    ("free", "words"),
    [
        (None, "64x96, it takes 2.0 MB for activations"),
        (2_000_000, "activations; 2 MB are free"),
        (1_999_999, "2 MB are free: give smaller pictures or tiles"),
    ],
)
def test_what_an_engine_takes_is_held_against_what_is_free(
    small_engine: SmallEngine, monkeypatch: pytest.MonkeyPatch, free: int | None, words: str
) -> None:
    small, large = (
        ProfileRecord(min=(1, 3, 1, 1), opt=(1, 3, 1, 1), max=shape, activation_memory_bytes=needed)
        for shape, needed in (((1, 3, 8, 8), 9_000_000), ((1, 3, 64, 96), 2_000_000))
    )
    unknown = dict.fromkeys(field.name for field in dataclasses.fields(GpuState))
    state = GpuState(**(unknown | {"name": "GPU", "free_bytes": free}))
    monkeypatch.setattr(nvml, "gpu_states", lambda: (state,))
    engine = dataclasses.replace(small_engine.manifest, profiles=(small, large))
    monkeypatch.setattr(manifests, "verify_manifest", lambda _: engine)
    notes = examine_engine(small_engine.plan).notes
    assert [note.endswith(words) for note in notes[:1]] == [True]
    assert len(notes) == 1 + (engine.flavor == "tensorrt-rtx" and engine.plugin is not None)
    unknown = dataclasses.replace(small, activation_memory_bytes=None)
    monkeypatch.setattr(
        manifests, "verify_manifest", lambda _: dataclasses.replace(engine, profiles=(unknown,))
    )
    assert len(examine_engine(small_engine.plan).notes) == len(notes) - 1


@needs_no_gpu
def test_the_reasons_why_an_engine_cannot_run_here_are_reported(small_engine: SmallEngine) -> None:
    verdict = examine_engine(small_engine.plan)
    assert not verdict.runs_on_gpu
    assert verdict.can_be_emulated
    assert "needs a GPU: no NVIDIA GPU with a driver here; install the driver" in verdict.reasons[0]


def test_an_engine_of_another_build_is_reported(small_engine: SmallEngine, tmp_path: Path) -> None:
    plan = small_engine.copy_to(tmp_path)
    manifest = dataclasses.replace(small_engine.manifest, tensorrt_version="1.2.3")
    write_text(plan.with_suffix(".json"), manifest.as_json())
    assert any("version 1.2.3, installed is" in reason for reason in examine_engine(plan).reasons)


def test_a_plan_that_was_changed_is_never_opened(small_engine: SmallEngine, tmp_path: Path) -> None:
    plan = small_engine.copy_to(tmp_path)
    plan.write_bytes(b"other")
    verdict = examine_engine(plan)
    assert not verdict.runs_on_gpu
    assert not verdict.can_be_emulated
    assert "SHA-256 is" in verdict.reasons[0]


def test_a_malformed_plan_is_found_by_tensorrt_rtx_itself(small_engine: SmallEngine, tmp_path: Path) -> None:
    """The manifest vouches for it, so only TensorRT-RTX can tell; it does so without a GPU."""
    import hashlib

    plan = small_engine.copy_to(tmp_path)
    plan.write_bytes(b"x" * 300)
    sha256 = hashlib.sha256(b"x" * 300).hexdigest()
    manifest = dataclasses.replace(small_engine.manifest, plan_sha256=sha256)
    write_text(plan.with_suffix(".json"), manifest.as_json())
    reasons = examine_engine(plan).reasons
    assert any("is not an engine of TensorRT-RTX, or damaged" in reason for reason in reasons)


@needs_no_gpu
def test_the_command_gives_json_and_an_exit_code(run: CommandLine, small_engine: SmallEngine) -> None:
    result = run("doctor", small_engine.plan, "--json")
    assert result.code == 1
    assert json.loads(result.out)["runs_on_gpu"] is False
    assert "why not, 1" in run("doctor", small_engine.plan).out


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["none.plan"], 1, "no such file"),
        (["."], 1, "is not a file"),
        (["--plugin", "x.so"], 2, "is for an ENGINE"),
    ],
)
def test_bad_requests_are_one_line(run: CommandLine, words: list[str], code: int, line: str) -> None:
    result = run("doctor", *words)
    assert result.code == code
    assert line in result.error_line


def test_what_compiling_pycuda_needs_is_said_before_pip_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from trt_hspan.native import toolchain

    def missing(*_: object) -> Path:
        raise HspanError("nvcc", "no CUDA compiler found")

    monkeypatch.setattr(toolchain, "find_nvcc", missing)
    monkeypatch.setattr(machine.sysconfig, "get_path", lambda name: "/nonexistent")
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda _: None)
    finding = next(each for each in examine_machine() if each.name == "PyCUDA")
    assert finding.state == "absent"
    assert finding.next_step is not None
    assert (
        "first install CUDA's toolkit (https://developer.nvidia.com/cuda-downloads), Python's headers (apt"
        in (finding.next_step)
    )
    assert "or take the container nvcr.io/nvidia/pytorch:" in finding.next_step
    assert finding.next_step.endswith("pip install -e '.[gpu]' to run engines")


@pytest.mark.parametrize(
    ("settings", "lines"),
    [
        ({}, ("driver ok up to CUDA 13", "GPU 0 ok sm_86", "PyCUDA ok", "plugin ok")),
        (
            {"CUSTANDIN_FAIL": "cuDeviceGetCount:1+"},
            ("driver broken up to CUDA 13.0: cannot be used: a query failed", "GPU broken cannot be used"),
        ),
        ({"CUSTANDIN_CC": "6.1"}, ("GPU 0 ok sm_61", "plugin broken", "built without sm_61")),
    ],
)
def test_a_driver_and_its_gpu_are_found(settings: dict[str, str], lines: tuple[str, ...]) -> None:
    """On the stand-in driver, which has a GPU but no NVML."""
    program = "from trt_hspan.inspection.doctor import examine_machine\n"
    program += "for found in examine_machine(): print(found.name, found.state, found.detail)"
    environment = standin_environment() | settings
    completed = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    for line in lines:
        assert line in completed.stdout


def test_the_cuda_library_is_held_against_driver_and_gpu(tmp_path: Path) -> None:
    fields = {"cubin_architectures": [90], "ptx_architectures": [90], "source_sha256": ""}
    fields |= {"cuda_version": "13.0.88", "ptx_isa_version": "9.0"}
    library = tmp_path / "libhspan_cuda.so"
    library.write_bytes(b"\x7fELF hspan-cuda-info:" + json.dumps(fields).encode() + b"\0")
    program = "from trt_hspan.inspection.doctor import examine_machine\n"
    program += "for found in examine_machine(): print(found.name, found.state, found.detail, found.next_step)"
    environment = standin_environment() | {"TRT_HSPAN_CUDA_LIBRARY": str(library)}
    completed = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    line = f"GPU kernels of PyTorch broken {library}: built without sm_86 rebuild with trt-hspan plugin build --cuda"
    assert line in completed.stdout


def test_a_built_plugin_is_held_against_the_driver_and_gpu_at_hand() -> None:
    command = [sys.executable, "-m", "trt_hspan", "plugin", "build", "--json"]
    completed = subprocess.run(command, env=standin_environment(), capture_output=True, text=True, check=True)
    assert json.loads(completed.stdout)["this_machine"] == ["sm_86: runs, machine code"]


# Parts of machines that this one is not ----------------------------------------------------------------------------

NO_DRIVER = GpuDriver(state="no driver", error=HspanError("GPU", "no driver", "install it"))
NO_GPU = GpuDriver(state="no GPU", cuda_version=(12, 9), error=HspanError("GPU", "no GPU", "plug one in"))
FAILED = GpuDriver(state="failed", error=HspanError("GPU", "a query failed", "see nvidia-smi"))
READY = GpuDriver(state="ready", cuda_version=(13, 1), architectures=("sm_89",))


def state_of(name: str, total_bytes: int | None) -> GpuState:
    unknown: dict[str, Any] = dict.fromkeys(field.name for field in dataclasses.fields(GpuState))
    return GpuState(**(unknown | {"name": name, "total_bytes": total_bytes}))


@pytest.mark.parametrize(
    ("driver", "version", "finding"),
    [
        (NO_DRIVER, None, ("absent", "no NVIDIA driver here", "install it")),
        (FAILED, None, ("broken", "up to CUDA unknown: a query failed", "see nvidia-smi")),
        (NO_GPU, "580.1", ("ok", "580.1, up to CUDA 12.9", None)),
        (READY, "580.1", ("ok", "580.1, up to CUDA 13.1", None)),
        (READY, None, ("ok", "up to CUDA 13.1", None)),
    ],
)
def test_the_driver_is_described_by_its_versions_or_its_error(
    monkeypatch: pytest.MonkeyPatch,
    driver: GpuDriver,
    version: str | None,
    finding: tuple[str, str, str | None],
) -> None:
    monkeypatch.setattr(gpu, "gpu_driver", lambda: driver)
    monkeypatch.setattr(nvml, "driver_version", lambda: version)
    found = machine._examined("driver", machine._driver)
    assert (found.state, found.detail, found.next_step) == finding


@pytest.mark.parametrize(
    ("driver", "states", "expected"),
    [
        (NO_DRIVER, (), [("GPU", "absent", "none", None)]),
        (NO_GPU, (), [("GPU", "absent", "no GPU", "plug one in")]),
        (FAILED, (), [("GPU", "broken", "a query failed", "see nvidia-smi")]),
        (READY, (), [("GPU 0", "ok", "sm_89", None)]),
        (
            READY,
            (state_of("NVIDIA L4", 24_152_000_000),),
            [("GPU 0", "ok", "NVIDIA L4, sm_89, 24.2 GB", None)],
        ),
        (READY, (state_of("NVIDIA Thor", None),), [("GPU 0", "ok", "sm_89", None)]),
        (READY, (state_of("a", 8), state_of("b", 8)), [("GPU 0", "ok", "sm_89", None)]),
        (
            dataclasses.replace(READY, architectures=("sm_89", "sm_120")),
            (state_of("a", 8), state_of("b", 8)),
            [("GPU 0", "ok", "sm_89", None), ("GPU 1", "ok", "sm_120", None)],
        ),
    ],
)
def test_gpus_have_names_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch,
    driver: GpuDriver,
    states: tuple[GpuState, ...],
    expected: list[tuple[str, str, str, str | None]],
) -> None:
    monkeypatch.setattr(gpu, "gpu_driver", lambda: driver)
    monkeypatch.setattr(nvml, "gpu_states", lambda: states)
    found = [(each.name, each.state, each.detail, each.next_step) for each in machine._gpus()]
    assert found == expected


@pytest.mark.parametrize(
    ("available", "words"), [(8_040_000_000, ", 8.0 GB of memory available"), (None, "")]
)
def test_the_machine_is_described_as_far_as_linux_does(
    monkeypatch: pytest.MonkeyPatch, available: int | None, words: str
) -> None:
    monkeypatch.setattr(memory, "available_memory_bytes", lambda: available)
    assert f" processors{words}, Python 3." in machine._machine()


@pytest.mark.parametrize(
    ("error", "next_step"),
    [
        (HspanError("x", "does not load"), r"pip install .*\[rtx\]"),
        (HspanError("x", "does not load", "mend it"), "mend"),
    ],
)
def test_tensorrt_is_described_by_its_targets_or_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, error: HspanError, next_step: str
) -> None:
    monkeypatch.setattr(tensorrt_api, "installed_flavors", lambda: ("tensorrt-rtx",))
    monkeypatch.setattr(tensorrt_api, "load_tensorrt", lambda flavor: SimpleNamespace(__version__="1.4"))
    monkeypatch.setattr(tensorrt_api, "known_targets", lambda trt: {"sm_120", "sm_86"})
    assert machine._tensorrt("tensorrt-rtx") == "1.4, builds for sm_86, sm_120"
    monkeypatch.setattr(tensorrt_api, "known_targets", lambda trt: set())
    assert machine._tensorrt("tensorrt-rtx") == "1.4"

    def broken(flavor: str) -> None:
        raise error

    monkeypatch.setattr(tensorrt_api, "load_tensorrt", broken)
    found = machine._examined("RTX", lambda: machine._tensorrt("tensorrt-rtx"))
    assert (found.state, found.detail) == ("broken", "does not load")
    assert re.match(next_step, str(found.next_step))
    assert machine._examined("TensorRT", lambda: machine._tensorrt("tensorrt")).state == "absent"


@pytest.mark.parametrize("place", ["nvcc", "CUDA_ROOT", "CUDA_HOME", "CUDA_PATH", None])
def test_cudas_headers_are_looked_for_where_people_have_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str | None
) -> None:
    (tmp_path / "cuda" / "include").mkdir(parents=True)
    (tmp_path / "cuda" / "include" / "cuda.h").touch()
    (tmp_path / "Python.h").touch()
    for name in ("CUDA_ROOT", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    if place is not None:
        monkeypatch.setenv(place, str(tmp_path / "cuda"))
    nvcc = tmp_path / ("cuda" if place == "nvcc" else "other") / "bin" / "nvcc"
    monkeypatch.setattr(toolchain, "find_nvcc", lambda: nvcc)
    monkeypatch.setattr(toolchain, "find_host_compiler", lambda: tmp_path / "Python.h")
    monkeypatch.setattr(machine.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(machine, "Path", lambda text: tmp_path if text == "/usr/local/cuda" else Path(text))
    missing = machine._missing_for_pycuda()
    assert [name.partition(" (")[0] for name in missing] == ([] if place else ["CUDA's toolkit"])


def test_the_kernels_for_cpus_are_compiled_missing_or_out_of_date(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "libhspan_cpu.so"
    monkeypatch.setattr(cpu_attention, "PLACES", SimpleNamespace(path=lambda: path))
    monkeypatch.setattr(cpu_attention, "native_library", lambda: None)
    assert machine._examined("CPU kernel", machine._cpu_kernel).state == "absent"
    path.touch()
    found = machine._examined("CPU kernel", machine._cpu_kernel)
    assert (found.state, found.next_step) == ("broken", "trt-hspan plugin build --cpu")
    library = SimpleNamespace(instruction_sets=("avx512", "avx2"))
    monkeypatch.setattr(cpu_attention, "native_library", lambda: library)
    assert machine._cpu_kernel() == f"{path}, avx512, avx2"


def test_the_kernels_for_gpus_are_compiled_missing_or_of_another_library(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "libhspan_cuda.so"
    monkeypatch.setattr(cuda_attention, "PLACES", SimpleNamespace(path=lambda: path))
    monkeypatch.setattr(gpu, "gpu_driver", lambda: READY)
    assert machine._examined("GPU", machine._gpu_kernels).state == "absent"
    path.touch()
    found = machine._examined("GPU", machine._gpu_kernels)
    assert (found.state, found.detail) == ("broken", f"{path} is another library")
    monkeypatch.setattr(cuda_attention, "state_of_library", lambda path: ("", (80, 89)))
    monkeypatch.setattr(cuda_attention, "code_from_library", lambda path: None)
    assert machine._gpu_kernels() == f"{path}, machine code for sm_80, sm_89"
    monkeypatch.setattr(cuda_attention, "code_from_library", lambda path: "code")
    asked: list[tuple[object, list[int], object]] = []
    monkeypatch.setattr(
        compatibility,
        "require_runs",
        lambda code, numbers, driver: asked.append((code, list(numbers), driver)),
    )
    machine._gpu_kernels()
    assert asked == [("code", [89], (13, 1))]


def test_what_a_plugin_was_compiled_for_is_described(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    info = dataclasses.replace(
        plugin_library.plugin_info_from_library(plugin_library.default_plugin_path()),
        cubin_architectures=(86, 89),
        ptx_architectures=(90,),
    )
    monkeypatch.setattr(gpu, "gpu_driver", lambda: READY)
    monkeypatch.setattr(plugin_library, "plugin_info_from_library", lambda path: info)
    assert ", for sm_86, sm_89, compute_90; tools that open it" in machine._plugin()
    monkeypatch.setattr(gpu, "gpu_driver", lambda: dataclasses.replace(READY, architectures=("sm_75",)))
    found = machine._examined("plugin", machine._plugin)
    assert (found.state, "built without sm_75" in found.detail) == ("broken", True)


@pytest.mark.parametrize(
    ("flavor", "with_plugin", "notes"),
    [("tensorrt-rtx", True, 1), ("tensorrt-rtx", False, 0), ("tensorrt", True, 0)],
)
def test_a_plugin_in_tensorrt_rtx_is_remarked_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flavor: str, with_plugin: bool, notes: int
) -> None:
    profile = SimpleNamespace(activation_memory_bytes=None)
    manifest = SimpleNamespace(
        flavor=flavor, plugin=object() if with_plugin else None, largest_profile=profile
    )
    (tmp_path / "a.plan").touch()
    monkeypatch.setattr(manifests, "verify_manifest", lambda plan: manifest)
    monkeypatch.setattr(passport, "this_machine", lambda: None)
    monkeypatch.setattr(passport, "engine_mismatches", lambda *_, **__: [])
    monkeypatch.setattr(machine, "_validity_reasons", lambda *_: [])
    installed = {"pycuda": None, "onnxruntime": object()}
    monkeypatch.setattr(machine.importlib.util, "find_spec", installed.get)
    verdict = examine_engine(tmp_path / "a.plan")
    assert len(verdict.notes) == notes
    assert not verdict.runs_on_gpu
    assert verdict.reasons[0].startswith("PyCUDA: is not installed; pip install")
    assert verdict.can_be_emulated
    installed |= {"pycuda": object(), "onnxruntime": None}
    verdict = examine_engine(tmp_path / "a.plan")
    assert (verdict.runs_on_gpu, verdict.reasons, verdict.can_be_emulated) == (True, (), False)


@pytest.mark.parametrize(
    ("flavor", "installed", "opened"),
    [("tensorrt-rtx", ("tensorrt-rtx",), 1), ("tensorrt-rtx", (), 0), ("tensorrt", ("tensorrt",), 0)],
)
def test_tensorrt_rtx_alone_is_asked_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flavor: str, installed: tuple[str, ...], opened: int
) -> None:
    asked: list[bytes] = []
    trt = SimpleNamespace(Runtime=lambda logger: None)
    monkeypatch.setattr(tensorrt_api, "installed_flavors", lambda: installed)
    monkeypatch.setattr(tensorrt_api, "load_tensorrt", lambda flavor: trt)
    monkeypatch.setattr(tensorrt_api, "tensorrt_logger", lambda trt: None)
    monkeypatch.setattr(
        engine_loading, "engine_validity", lambda trt, runtime, data, name: asked.append(data)
    )
    (tmp_path / "a.plan").write_bytes(b"plan")
    assert machine._validity_reasons(tmp_path / "a.plan", SimpleNamespace(flavor=flavor)) == []
    assert asked == [b"plan"] * opened


def test_a_package_without_a_version_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(machine, "installed_version", lambda name: None)
    assert machine._package("torch", "install it") == "version unknown"
