"""Finding what it takes to compile the libraries, and what is said when something is missing or too old."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from trt_hspan import downloads
from trt_hspan.errors import HspanError
from trt_hspan.native import toolchain as plugin_toolchain
from trt_hspan.native.toolchain import (
    find_cmake,
    find_host_compiler,
    find_nvcc,
    find_tensorrt_headers,
    find_toolchain,
    generator_options,
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


def test_the_compiler_at_hand_makes_code_for_the_default_targets() -> None:
    assert {75, 80, 86, 89} <= set(supported_architectures(find_nvcc()))


@pytest.mark.parametrize(
    ("printed", "version"),
    [("release 12.4, V12.4.1", "12.4"), ("release 12.3,", None), ("release 13.0,", "13.0")],
)
def test_cuda_is_new_enough_from_12_4_on(bare_machine: Path, printed: str, version: str | None) -> None:
    nvcc = program(bare_machine / "nvcc", f"echo {printed}")
    program(bare_machine / "c++", "true")
    cmake = program(bare_machine / "cmake", "echo cmake version 3.22.1")
    if version is None:
        with pytest.raises(
            HspanError, match=r"is CUDA 12\.3, 12\.4 or newer is needed; install a newer CUDA"
        ):
            find_toolchain(for_tensorrt=False)
        return
    toolchain = find_toolchain(for_tensorrt=False)
    assert (toolchain.nvcc, toolchain.cuda_version, toolchain.cmake) == (nvcc, version, cmake)
    assert (toolchain.headers, toolchain.library_path) == (None, None)
    assert toolchain.host_compiler == bare_machine / "c++"


@pytest.mark.parametrize(
    ("printed", "is_new"),
    [("3.22.0", True), ("4.0", True), ("3.21.9", False), ("2.99", False), ("none", False)],
)
def test_cmake_is_new_enough_from_3_22_on(bare_machine: Path, printed: str, is_new: bool) -> None:
    cmake = program(bare_machine / "cmake", f"echo cmake version {printed}")
    if is_new:
        assert find_cmake() == cmake
        return
    shown = printed if printed != "none" else "0.0"
    with pytest.raises(HspanError, match=f"is version {shown[:4].rstrip('.')}, 3.22 or newer is needed"):
        find_cmake()


def test_the_named_cpp_compiler_is_used_or_the_first_that_there_is(
    bare_machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("clang++", "g++", "c++"):
        found = program(bare_machine / name, "true")
        assert find_host_compiler() == found
    monkeypatch.setenv("CXX", "clang++")
    assert find_host_compiler() == bare_machine / "clang++"


def test_programs_are_on_path_or_beside_this_python(
    bare_machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert generator_options() == []
    scripts = tmp_path / "none"
    beside = program(scripts / "ninja", "true")
    assert generator_options() == ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={beside}"]
    on_path = program(bare_machine / "ninja", "true")
    assert generator_options()[-1] == f"-DCMAKE_MAKE_PROGRAM={on_path}"


def test_a_compiler_is_looked_for_in_the_documented_order(
    bare_machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    monkeypatch.setattr(plugin_toolchain.sys, "path", [str(site)])
    for place in ("cu12", "cu13"):
        newest = program(site / "nvidia" / place / "bin" / "nvcc", "true")
        assert find_nvcc() == newest
    system = program(tmp_path / "system" / "nvcc", "true")
    monkeypatch.setattr(plugin_toolchain, "_SYSTEM_NVCC", str(system))
    assert find_nvcc() == system
    system.chmod(0o644)
    if not os.access(system, os.X_OK):
        assert find_nvcc() == newest
    system.chmod(0o755)
    on_path = program(bare_machine / "nvcc", "true")
    assert find_nvcc() == on_path
    for variable in ("CUDA_PATH", "CUDA_HOME"):
        home = tmp_path / variable
        monkeypatch.setenv(variable, str(home))
        named = program(home / "bin" / "nvcc", "true")
        assert find_nvcc() == named
    monkeypatch.setenv("CUDACXX", str(system))
    assert find_nvcc() == system
    assert find_nvcc(on_path) == on_path
    with pytest.raises(
        HspanError, match="--nvcc: /nowhere is no CUDA compiler; name the program nvcc itself"
    ):
        find_nvcc("/nowhere")


def headers_in(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or ("NvInferRuntime.h", "NvInferVersion.h"):
        (folder / name).touch()
    return folder


def test_headers_are_looked_for_in_the_documented_order(
    bare_machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin_toolchain, "_fetched_headers", lambda: Path("fetched"))
    prefixes = (tmp_path / "one", tmp_path / "two")
    monkeypatch.setattr(plugin_toolchain, "_SYSTEM_PREFIXES", tuple(map(str, prefixes)))
    headers_in(tmp_path / "one" / "include", "NvInferVersion.h")
    headers_in(tmp_path / "one", "NvInferRuntime.h")
    assert find_tensorrt_headers() == Path("fetched")
    second = headers_in(tmp_path / "two" / "include" / "tensorrt")
    assert find_tensorrt_headers() == second
    first = headers_in(tmp_path / "one")
    assert find_tensorrt_headers() == first
    variable = headers_in(tmp_path / "root")
    monkeypatch.setenv("TensorRT_ROOT", str(variable))
    assert find_tensorrt_headers() == variable
    named = headers_in(tmp_path / "named" / "include")
    assert find_tensorrt_headers(tmp_path / "named") == named
    monkeypatch.setenv("TensorRT_ROOT", str(tmp_path / "none"))
    with pytest.raises(HspanError, match=r"TensorRT_ROOT: .* contains no NvInferRuntime.h; name the folder"):
        find_tensorrt_headers()


@pytest.mark.parametrize(
    ("there", "is_wheel"),
    [(("lib/libcudart_static.a",), True), (("lib/libcudart_static.a", "lib64/x"), False), ((), False)],
)
def test_a_wheel_has_its_library_where_nvcc_does_not_look(
    bare_machine: Path, tmp_path: Path, there: tuple[str, ...], is_wheel: bool
) -> None:
    nvcc = program(tmp_path / "cuda" / "bin" / "nvcc", "true")
    for name in there:
        (tmp_path / "cuda" / name).parent.mkdir()
        (tmp_path / "cuda" / name).touch()
    assert plugin_toolchain._wheel_library_path(nvcc) == (tmp_path / "cuda" / "lib" if is_wheel else None)


def test_architectures_of_a_compiler_are_numbers_in_order(bare_machine: Path) -> None:
    printed = "\\n".join(f"compute_{name}" for name in ("90", "75", "120", "90a", "75"))
    assert supported_architectures(program(bare_machine / "nvcc", f'printf "{printed}"')) == (75, 90, 120)


def test_a_program_that_cannot_be_started_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(HspanError, match="none: no such file"):
        supported_architectures(tmp_path / "none")
    with pytest.raises(HspanError, match=r"does not run: .*; install it again"):
        supported_architectures(program(tmp_path / "bad", "exit 1"))
