"""Compiling for real, and what is said when something is missing or wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command_line import CommandLine

from trt_hspan.errors import HspanError
from trt_hspan.files import cache_folder
from trt_hspan.native import build as plugin_build
from trt_hspan.native.build import build_cuda_library, build_plugin
from trt_hspan.native.cuda_attention import CudaLibrary, state_of_library
from trt_hspan.native.plugin import plugin_info_from_library
from trt_hspan.native.progress import BuildProgress
from trt_hspan.native.sources import cuda_sources_sha256, plugin_sources_sha256, sources_folder
from trt_hspan.native.toolchain import find_cmake, find_nvcc, find_tensorrt_headers


def test_an_up_to_date_library_is_left_alone(plugin_library: Path) -> None:
    before = plugin_library.stat().st_mtime_ns
    result = build_plugin()
    assert (result.path, result.compiled) == (plugin_library, False)
    assert plugin_library.stat().st_mtime_ns == before
    info = plugin_info_from_library(plugin_library)
    assert not build_plugin(plugin_library, architectures=info.cubin_architectures).compiled


def build_folder_of(architecture: int) -> Path:
    """Where CMake compiled these sources for one architecture."""
    expected = {
        f"CMAKE_HOME_DIRECTORY:INTERNAL={sources_folder()}",
        f"HSPAN_ARCHITECTURES:STRING={architecture}",
    }
    for cache in (cache_folder() / "build").glob("*/cmake/CMakeCache.txt"):
        if expected <= set(cache.read_text().splitlines()):
            return cache.parent
    raise AssertionError(f"nothing was compiled for {architecture}")


#: What may be called while a stream is captured, and what nvcc itself adds.
HARMLESS = {
    *(
        "cudaLaunchKernel",
        "cudaMemsetAsync",
        "cudaFuncSetAttribute",
        "cudaGetDevice",
        "cudaDeviceGetAttribute",
    ),
    *("cudaGetErrorName", "cudaGetErrorString"),
    *(
        "__cudaRegisterFatBinary",
        "__cudaRegisterFatBinaryEnd",
        "__cudaUnregisterFatBinary",
        "__cudaInitModule",
    ),
    *("__cudaRegisterFunction", "__cudaRegisterVar", "__cudaGetKernel", "__cudaLaunchKernel"),
    *("__cudaPushCallConfiguration", "__cudaPopCallConfiguration"),
}


def test_one_architecture_is_compiled_and_reported(tmp_path: Path) -> None:
    """And what came out calls nothing that allocates, waits or copies: `enqueue` can be captured in a CUDA graph."""
    states: list[BuildProgress] = []
    result = build_plugin(tmp_path / "new" / "mine.so", architectures=["sm_89"], on_progress=states.append)
    assert result.compiled
    info = plugin_info_from_library(result.path)
    assert (info.cubin_architectures, info.ptx_architectures) == ((89,), (89,))
    assert info.source_sha256 == plugin_sources_sha256(sources_folder())
    assert [path.name for path in result.path.parent.iterdir()] == ["mine.so"]
    fractions = [state.fraction for state in states]
    assert fractions == sorted(fractions)
    assert not build_plugin(result.path, architectures=[89]).compiled
    objects = list(build_folder_of(89).rglob("*.o"))
    assert {"attention_plugin.cpp.o", "plain_attention_half.cu.o"} <= {path.name for path in objects}
    undefined = subprocess.run(["nm", "-u", *objects], capture_output=True, text=True, check=True).stdout
    called = set(re.findall(r"U (?:_?_?)(\w*cuda[A-Z]\w*)", undefined))
    assert "cudaLaunchKernel" in called
    assert called <= {name.lstrip("_") for name in HARMLESS}
    assert any("attention" in state.phase for state in states) or len(states) == 1
    kernels = {path: path.stat().st_mtime_ns for path in objects if path.name.endswith(".cu.o")}
    cuda = build_cuda_library(tmp_path / "cuda.so", architectures=[89])
    assert cuda.compiled
    assert state_of_library(cuda.path) == (cuda_sources_sha256(sources_folder()), (89,))
    assert not build_cuda_library(cuda.path, architectures=[89]).compiled
    assert {path: path.stat().st_mtime_ns for path in kernels} == kernels, (
        "the kernels are compiled once for both"
    )
    library = CudaLibrary(cuda.path)
    library.check_runs(89, None)
    with pytest.raises(HspanError, match=r"86|8\.6"):
        library.check_runs(86, None)
    exported = subprocess.run(
        ["nm", "-D", "--defined-only", cuda.path], capture_output=True, text=True, check=True
    )
    assert {line.split()[-1].startswith("hspanCuda") for line in exported.stdout.splitlines()} == {True}


def test_a_compile_error_is_one_line_with_the_kept_log(
    run: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(sources_folder() / "plugins", tmp_path / "sources" / "plugins")
    shutil.copy(sources_folder() / "CMakeLists.txt", tmp_path / "sources")
    (tmp_path / "sources" / "plugins" / "tensorrt" / "report.cpp").write_text(
        "int wrong() { return nothing; }\n"
    )
    for kernel in (tmp_path / "sources" / "plugins" / "kernels").glob("*.cu"):
        kernel.write_text("")  # the real ones would only take time
    headers = find_tensorrt_headers()
    monkeypatch.setattr(plugin_build, "sources_folder", lambda: tmp_path / "sources")
    monkeypatch.setenv("TensorRT_ROOT", str(headers))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    result = run("plugin", "build", "-o", tmp_path / "out.so", "--arch", "86")
    assert (result.code, result.out) == (1, "")
    line = result.error_line
    assert "does not compile:" in line
    assert "nothing" in line
    log = Path(line.rsplit("the whole log is ", 1)[1])
    assert "wrong" in log.read_text()
    assert not (tmp_path / "out.so").exists()


def test_an_architecture_the_compiler_does_not_know_is_reported(run: CommandLine, tmp_path: Path) -> None:
    result = run("plugin", "build", "-o", tmp_path / "out.so", "--arch", "999")
    assert result.code == 1
    assert "cannot compile for sm_999; choose among 75, 80," in result.error_line
    assert not list(tmp_path.iterdir())


def test_what_is_no_architecture_is_wrong_usage(run: CommandLine, tmp_path: Path) -> None:
    result = run("plugin", "build", "-o", tmp_path / "out.so", "--arch", "ampere")
    assert result.code == 2
    assert "got 'ampere', expected a compute capability" in result.error_line


def test_an_output_that_cannot_be_written_shows_before_compiling(run: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    result = run("plugin", "build", "-o", tmp_path / "file" / "out.so")
    assert result.code == 1
    assert "file" in result.error_line


def test_build_command_prints_json_and_nothing_else(run: CommandLine, plugin_library: Path) -> None:
    result = run("plugin", "build", "--json")
    assert (result.code, result.err) == (0, "")
    printed = json.loads(result.out)
    assert (printed["path"], printed["compiled"]) == (str(plugin_library), False)


def test_cmake_refuses_what_is_no_architecture(tmp_path: Path) -> None:
    command = [find_cmake(), "-S", sources_folder(), "-B", tmp_path, "-DHSPAN_ARCHITECTURES=86;ampere"]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert completed.returncode != 0
    assert '"ampere" is no architecture' in completed.stderr


@pytest.fixture(scope="module")
def configure(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs CMake with options, each time in the same folder, so that it examines the compilers once.

    Its nvcc lists the architectures of CUDA 12.4.
    """
    folder = tmp_path_factory.mktemp("configured")
    known = "\n".join(f"compute_{number}" for number in (75, 80, 86, 87, 89, 90))
    older = folder / "bin" / "nvcc"
    older.parent.mkdir()
    older.write_text(
        f'#!/bin/sh\n[ "$1" = --list-gpu-arch ] && {{ echo "{known}"; exit; }}\nexec {find_nvcc()} "$@"\n'
    )
    older.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if "tensorrt" not in name.lower()}

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [find_cmake(), "-S", sources_folder(), "-B", folder / "build", *options]
        command += [f"-DCMAKE_CUDA_COMPILER={older}"]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    return run


@pytest.mark.parametrize(
    ("architectures", "outcome"),
    [("", "Architectures: 75;80;86;89;90"), ("86;100", "cannot compile for 100; choose among 75, 80, 86,")],
)
def test_cmake_leaves_out_of_the_default_what_an_older_nvcc_does_not_know(
    architectures: str, outcome: str, configure: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    completed = configure(
        f"-DHSPAN_ARCHITECTURES={architectures}", f"-DHSPAN_TENSORRT_INCLUDE={find_tensorrt_headers()}"
    )
    printed = " ".join((completed.stdout + completed.stderr).split())
    assert (completed.returncode == 0) == (architectures == "")
    assert re.search(re.escape(outcome) + r"(?!;)", printed), printed


def test_cmake_says_which_headers_are_missing(
    configure: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    completed = configure(
        "-UHSPAN_TENSORRT_INCLUDE", "-DHSPAN_ARCHITECTURES=86", "-DCMAKE_SYSTEM_IGNORE_PATH=/usr/include"
    )
    assert completed.returncode != 0
    assert "TensorRT headers not found (NvInferRuntime.h)" in completed.stderr
