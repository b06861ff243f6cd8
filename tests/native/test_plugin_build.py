"""Compiling the libraries with nvcc, and what is said when something is wrong."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support.command_line import CommandLine

from tools.kernel_report.plugin_code import kernel_sources
from trt_hspan.errors import HspanError
from trt_hspan.files import cache_folder
from trt_hspan.native import build as plugin_build
from trt_hspan.native.build import build_cuda_library, build_plugin
from trt_hspan.native.cuda_attention import CudaLibrary, state_of_library
from trt_hspan.native.plugin import plugin_info_from_library
from trt_hspan.native.progress import BuildProgress
from trt_hspan.native.sources import cuda_sources_sha256, plugin_sources_sha256, sources_folder
from trt_hspan.native.toolchain import (
    find_tensorrt_headers,
)


def test_an_up_to_date_library_is_left_alone(plugin_library: Path) -> None:
    before = plugin_library.stat().st_mtime_ns
    result = build_plugin()
    assert (result.path, result.compiled) == (plugin_library, False)
    assert plugin_library.stat().st_mtime_ns == before
    info = plugin_info_from_library(plugin_library)
    assert not build_plugin(plugin_library, architectures=info.cubin_architectures).compiled


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


@pytest.fixture
def unoptimized(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache in which kernels are compiled in half the time; the code for the host is the same."""
    folder = cache_folder() / "tests" / "unoptimized"
    monkeypatch.setenv("TensorRT_ROOT", str(find_tensorrt_headers()))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setenv("CUDAFLAGS", "-Xcicc -O0 -Xptxas -O0")
    return folder


def objects_below(folder: Path) -> list[Path]:
    """What CMake compiled of these sources at last."""
    home = f"CMAKE_HOME_DIRECTORY:INTERNAL={sources_folder()}"
    caches = [path for path in folder.rglob("CMakeCache.txt") if home in path.read_text().splitlines()]
    return list(max(caches, key=lambda path: path.stat().st_mtime_ns).parent.rglob("*.o"))


@pytest.mark.slow
def test_one_architecture_is_compiled_and_reported(tmp_path: Path, unoptimized: Path) -> None:
    """And what came out calls nothing that allocates, waits or copies: `enqueue` can be captured in a CUDA graph."""
    states: list[BuildProgress] = []
    result = build_plugin(tmp_path / "new" / "mine.so", architectures=["sm_75"], on_progress=states.append)
    assert result.compiled
    info = plugin_info_from_library(result.path)
    assert (info.cubin_architectures, info.ptx_architectures) == ((75,), (75,))
    assert info.source_sha256 == plugin_sources_sha256(sources_folder())
    assert [path.name for path in result.path.parent.iterdir()] == ["mine.so"]
    fractions = [state.fraction for state in states]
    assert fractions == sorted(fractions)
    assert not build_plugin(result.path, architectures=[75]).compiled
    objects = objects_below(unoptimized)
    names = {path.name.removesuffix(".o") for path in objects}
    assert {path.name for path in kernel_sources(sources_folder())} | {"attention_plugin.cpp"} <= names
    undefined = subprocess.run(["nm", "-u", *objects], capture_output=True, text=True, check=True).stdout
    called = set(re.findall(r"U (?:_?_?)(\w*cuda[A-Z]\w*)", undefined))
    assert "cudaLaunchKernel" in called
    assert called <= {name.lstrip("_") for name in HARMLESS}
    assert any("attention" in state.phase for state in states) or len(states) == 1
    kernels = {path: path.stat().st_mtime_ns for path in objects if path.name.endswith(".cu.o")}
    cuda = build_cuda_library(tmp_path / "cuda.so", architectures=[75])
    assert cuda.compiled
    assert state_of_library(cuda.path) == (cuda_sources_sha256(sources_folder()), (75,))
    assert not build_cuda_library(cuda.path, architectures=[75]).compiled
    assert {path: path.stat().st_mtime_ns for path in kernels} == kernels, (
        "the kernels are compiled once for both"
    )
    library = CudaLibrary(cuda.path)
    library.check_runs(75, None)
    with pytest.raises(HspanError, match="sm_70"):
        library.check_runs(70, None)
    exported = subprocess.run(
        ["nm", "-D", "--defined-only", cuda.path], capture_output=True, text=True, check=True
    )
    assert {line.split()[-1].startswith("hspanCuda") for line in exported.stdout.splitlines()} == {True}


@pytest.mark.slow
def test_a_compile_error_is_one_line_with_the_kept_log(
    run: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(sources_folder() / "plugins", tmp_path / "sources" / "plugins")
    shutil.copy(sources_folder() / "CMakeLists.txt", tmp_path / "sources")
    plugins = tmp_path / "sources" / "plugins"
    for source in (*plugins.glob("kernels/*.c*"), *plugins.glob("tensorrt/*.cpp")):
        source.write_text("")  # the real ones would only take time
    (plugins / "tensorrt" / "report.cpp").write_text("int wrong() { return nothing; }\n")
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
