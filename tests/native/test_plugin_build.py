"""Finding the toolchain, compiling, and what is said when something is missing or wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command_line import CommandLine

from trt_hspan import downloads
from trt_hspan.errors import HspanError, UsageError
from trt_hspan.files import cache_folder
from trt_hspan.native import build as plugin_build
from trt_hspan.native import toolchain as plugin_toolchain
from trt_hspan.native.build import build_cuda_library, build_plugin
from trt_hspan.native.cuda_attention import CudaLibrary, state_of_library
from trt_hspan.native.plugin import plugin_info_from_library
from trt_hspan.native.progress import BuildProgress
from trt_hspan.native.sources import cuda_sources_sha256, plugin_sources_sha256, sources_folder
from trt_hspan.native.toolchain import (
    find_cmake,
    find_host_compiler,
    find_nvcc,
    find_tensorrt_headers,
    find_toolchain,
    supported_architectures,
)


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No program on PATH, no CUDA, no TensorRT, an empty cache; the folder that is PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    for name in ("CUDACXX", "CUDA_HOME", "CUDA_PATH", "CXX", "TensorRT_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(plugin_toolchain, "_SYSTEM_NVCC", str(tmp_path / "none"))
    monkeypatch.setattr(plugin_toolchain, "_SYSTEM_PREFIXES", (str(tmp_path / "none"),))
    plugin_toolchain.sysconfig.get_config_vars()  # reads a module, which an empty path would hide
    monkeypatch.setattr(plugin_toolchain.sys, "path", [])
    monkeypatch.setattr(plugin_toolchain.sysconfig, "get_path", lambda name: str(tmp_path / "none"))
    return folder


def test_nvcc_on_path_is_found(bare_machine: Path) -> None:
    nvcc = program(bare_machine / "nvcc", "true")
    assert find_nvcc() == nvcc


def test_nvcc_of_python_wheels_is_found(
    bare_machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvcc = program(tmp_path / "site" / "nvidia" / "cu13" / "bin" / "nvcc", "true")
    monkeypatch.setattr(plugin_toolchain.sys, "path", [str(tmp_path / "site")])
    assert find_nvcc() == nvcc


def test_wheels_get_the_library_folder_that_nvcc_does_not_know(bare_machine: Path, tmp_path: Path) -> None:
    root = tmp_path / "nvidia" / "cu13"
    nvcc = program(root / "bin" / "nvcc", "echo release 13.0,")
    (root / "lib").mkdir()
    (root / "lib" / "libcudart_static.a").touch()
    for name in ("c++", "ninja"):
        program(bare_machine / name, "true")
    program(bare_machine / "cmake", "echo cmake version 3.25.1")
    headers = tmp_path / "trt" / "include"
    headers.mkdir(parents=True)
    for name in ("NvInferRuntime.h", "NvInferVersion.h"):
        (headers / name).touch()
    toolchain = find_toolchain(nvcc=nvcc, tensorrt_root=tmp_path / "trt")
    assert (toolchain.library_path, toolchain.cuda_version, toolchain.headers) == (
        root / "lib",
        "13.0",
        headers,
    )


@pytest.mark.parametrize("variable", ["CUDACXX", "CUDA_HOME", "CUDA_PATH"])
def test_a_compiler_named_by_the_environment_is_used(
    variable: str, bare_machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(bare_machine / "nvcc", "true")
    named = program(tmp_path / "cuda" / "bin" / "nvcc", "true")
    monkeypatch.setenv(variable, str(named if variable == "CUDACXX" else tmp_path / "cuda"))
    assert find_nvcc() == named


@pytest.mark.parametrize("variable", ["CUDACXX", "CUDA_HOME", "CUDA_PATH"])
def test_a_named_compiler_that_is_not_there_is_not_replaced(
    variable: str, bare_machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(bare_machine / "nvcc", "true")
    monkeypatch.setenv(variable, "/nowhere")
    with pytest.raises(HspanError, match=f"{variable}: /nowhere.* is no CUDA compiler"):
        find_nvcc()


def test_no_nvcc_is_one_line_with_the_way_out(bare_machine: Path) -> None:
    with pytest.raises(HspanError) as caught:
        find_toolchain()
    assert str(caught.value) == (
        "nvcc: no CUDA compiler found; install the CUDA toolkit, or pip install -e '.[nvcc]'"
    )


def test_an_old_cuda_is_reported(bare_machine: Path) -> None:
    nvcc = program(bare_machine / "nvcc", "echo 'Cuda compilation tools, release 11.8, V11.8.89'")
    with pytest.raises(HspanError, match=f"{nvcc}: is CUDA 11.8, 12.4 or newer is needed"):
        find_toolchain()


def test_a_program_that_is_no_nvcc_is_reported(bare_machine: Path) -> None:
    program(bare_machine / "nvcc", "echo hello")
    with pytest.raises(HspanError, match="does not say which CUDA version it is"):
        find_toolchain()


def test_an_nvcc_that_fails_is_reported(bare_machine: Path) -> None:
    program(bare_machine / "nvcc", "exit 3")
    with pytest.raises(HspanError, match="does not run"):
        find_toolchain()


def test_no_cpp_compiler_is_reported(bare_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        HspanError, match=r"C\+\+ compiler: no C\+\+ compiler found; install one: apt install g\+\+"
    ):
        find_host_compiler()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(HspanError, match="CXX names no-such-compiler, which is no program"):
        find_host_compiler()


def test_no_cmake_is_reported(bare_machine: Path) -> None:
    with pytest.raises(HspanError, match="cmake: not found; install it: pip install cmake"):
        find_cmake()


def test_an_old_cmake_is_reported(bare_machine: Path) -> None:
    program(bare_machine / "cmake", "echo cmake version 3.16.3")
    with pytest.raises(HspanError, match=r"is version 3.16, 3.22 or newer is needed"):
        find_cmake()


@pytest.mark.parametrize("inside", ["include", "include/x86_64-linux-gnu", "include/aarch64-linux-gnu", "."])
def test_headers_are_found_under_the_named_folder(inside: str, bare_machine: Path, tmp_path: Path) -> None:
    folder = tmp_path / "trt" / inside
    folder.mkdir(parents=True)
    for name in ("NvInferRuntime.h", "NvInferVersion.h"):
        (folder / name).touch()
    assert find_tensorrt_headers(tmp_path / "trt") == folder


def test_a_named_folder_without_headers_is_reported(bare_machine: Path, tmp_path: Path) -> None:
    with pytest.raises(HspanError, match=r"--tensorrt-root: .* contains no NvInferRuntime.h"):
        find_tensorrt_headers(tmp_path)


def test_headers_that_cannot_be_fetched_are_reported(
    bare_machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(HspanError) as caught:
        find_tensorrt_headers()
    line = str(caught.value)
    assert line.startswith("kernel-lens==2.0.1: cannot be fetched from the package index: No matching")
    assert line.endswith("install libnvinfer-headers-dev, or name TensorRT's headers by --tensorrt-root")


def fake_wheel(requirement: str, folder: Path, *_: object) -> Path:
    """Stands in for pip's download."""
    wheel = folder / "kernel_lens.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in ("NvInferRuntime.h", "NvInferVersion.h", "../evil.h", "sub/other.h"):
            archive.writestr(f"kernel_lens/include/tensorrt/{name}", name)
        archive.writestr("kernel_lens/code.py", "")
    return wheel


def test_a_wheel_of_another_hash_is_refused(
    bare_machine: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(downloads, "_download", fake_wheel)
    with pytest.raises(HspanError, match="the package index sent a file with SHA-256"):
        find_tensorrt_headers()
    assert not list((tmp_path / "cache").rglob("*.h"))


def test_fetched_headers_and_nothing_else_land_in_the_cache(
    bare_machine: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(downloads, "_download", fake_wheel)
    monkeypatch.setattr(downloads, "sha256_from_file", lambda path: plugin_toolchain.HEADER_WHEEL_SHA256)
    folder = find_tensorrt_headers()
    assert sorted(path.name for path in folder.iterdir()) == ["NvInferRuntime.h", "NvInferVersion.h"]
    assert sorted(path.name for path in (tmp_path / "cache").rglob("*.h")) == [
        "NvInferRuntime.h",
        "NvInferVersion.h",
    ]
    monkeypatch.setattr(downloads, "_download", lambda *_: pytest.fail("fetched twice"))
    assert find_tensorrt_headers() == folder


def test_an_up_to_date_library_is_left_alone(plugin_library: Path) -> None:
    before = plugin_library.stat().st_mtime_ns
    result = build_plugin()
    assert (result.path, result.compiled) == (plugin_library, False)
    assert plugin_library.stat().st_mtime_ns == before
    info = plugin_info_from_library(plugin_library)
    assert not build_plugin(plugin_library, architectures=info.cubin_architectures).compiled


def test_a_changed_source_is_another_library(tmp_path: Path) -> None:
    shutil.copytree(sources_folder() / "plugins", tmp_path / "plugins")
    shutil.copy(sources_folder() / "CMakeLists.txt", tmp_path)
    before = plugin_sources_sha256(tmp_path)
    assert before == plugin_sources_sha256(sources_folder())
    kernel = tmp_path / "plugins" / "kernels" / "launchers.h"
    kernel.write_text(kernel.read_text() + "// changed\n")
    assert plugin_sources_sha256(tmp_path) != before


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


def test_no_jobs_are_wrong_usage() -> None:
    with pytest.raises(UsageError, match="--jobs: got 0"):
        build_plugin(jobs=0)


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


def test_the_compiler_at_hand_makes_code_for_the_default_targets() -> None:
    assert {75, 80, 86, 89} <= set(supported_architectures(find_nvcc()))


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
    older = program(
        folder / "bin" / "nvcc",
        f'[ "$1" = --list-gpu-arch ] && {{ echo "{known}"; exit; }}\nexec {find_nvcc()} "$@"',
    )
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
