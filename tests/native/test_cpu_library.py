"""Finding, checking and compiling the native library, and what happens without it."""

from __future__ import annotations

import ctypes
import dataclasses
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from trt_hspan.errors import HspanError, OutOfMemoryError
from trt_hspan.native import build, toolchain
from trt_hspan.native import cpu_attention as native
from trt_hspan.native import sources as native_sources
from trt_hspan.native.cpu_attention import NativeLibrary, NativeOptions, Operand, native_library
from trt_hspan.ops import attention, high_similarity_pass_attention


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Each test looks for the library anew, and leaves no trace."""
    native._loaded.cache_clear()
    yield
    native._loaded.cache_clear()


def compiled(folder: Path, source: str) -> Path:
    path = folder / "library.so"
    subprocess.run(
        ["c++", "-shared", "-fPIC", "-x", "c++", "-", "-o", path], input=source, text=True, check=True
    )
    return path


def tensors() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, channels, 5, 7, generator=generator) for channels in (3, 3, 4))


def test_operator_uses_the_library(library: NativeLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.LIBRARY_VARIABLE, str(library.path))
    monkeypatch.setattr(attention, "reference_attention", None)
    q, k, v = tensors()
    assert high_similarity_pass_attention(q, k, v).shape == v.shape


def test_operator_leaves_float64_to_torch(library: NativeLibrary) -> None:
    q, k, v = (tensor.double() for tensor in tensors())
    native_form = high_similarity_pass_attention(q.float(), k.float(), v.float())
    torch.testing.assert_close(high_similarity_pass_attention(q, k, v).float(), native_form)


def test_gradient_uses_the_library_forward(library: NativeLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [tensor.requires_grad_() for tensor in tensors()]
    gradients = []
    for _ in range(2):
        high_similarity_pass_attention(*inputs).square().sum().backward()
        gradients.append([tensor.grad.clone() for tensor in inputs if tensor.grad is not None])
        for tensor in inputs:
            tensor.grad = None
        monkeypatch.setattr(attention, "native_library", lambda: None)
    for with_library, without in zip(*gradients, strict=True):
        torch.testing.assert_close(with_library, without, rtol=1e-4, atol=1e-5)


def test_missing_library_is_reported_once_and_torch_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    q, k, v = tensors()
    expected = high_similarity_pass_attention(q, k, v)
    native._loaded.cache_clear()
    monkeypatch.setenv(native.LIBRARY_VARIABLE, str(tmp_path / "absent.so"))
    with caplog.at_level(logging.WARNING):
        outputs = [high_similarity_pass_attention(q, k, v) for _ in range(3)]
    assert len(caplog.records) == 1
    assert "absent.so" in caplog.text
    assert "trt-hspan plugin build --cpu" in caplog.text
    torch.testing.assert_close(outputs[2], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("int unrelated;", "is another library"),
        ('extern "C" int hspanCpuAbiVersion() { return 999; }', "has ABI version 999, this package needs 1"),
    ],
)
def test_library_that_does_not_fit_is_refused(tmp_path: Path, source: str, expected: str) -> None:
    with pytest.raises(HspanError, match=expected):
        NativeLibrary(compiled(tmp_path, source))


def test_file_that_is_no_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("no library")
    with pytest.raises(HspanError, match="cannot be loaded"):
        NativeLibrary(tmp_path / "text.so")


def test_library_of_other_sources_is_not_used(
    library: NativeLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "copy.so"
    shutil.copyfile(library.path, copy)
    monkeypatch.delenv(native.LIBRARY_VARIABLE, raising=False)
    places = dataclasses.replace(native.PLACES, folder=str(tmp_path), file_name=copy.name)
    monkeypatch.setattr(native, "PLACES", places)
    assert native_library() is not None
    native._loaded.cache_clear()
    places = dataclasses.replace(places, sources_sha256=lambda folder: "0" * 64)
    monkeypatch.setattr(native, "PLACES", places)
    assert native_library() is None
    assert "was compiled from other sources" in caplog.text
    # Who names a library takes the responsibility.
    monkeypatch.setenv(native.LIBRARY_VARIABLE, str(copy))
    assert native_library() is not None


def test_up_to_date_library_is_not_compiled_again(
    library: NativeLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "run_cmake", None)
    assert not build.build_cpu_library(library.path).compiled


def test_compiler_errors_are_one_line_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = tmp_path / "plugins" / "cpu"
    shutil.copytree(native_sources.sources_folder() / "plugins" / "cpu", sources)
    (sources / "attention.cpp").write_text("int broken(\n")
    monkeypatch.setattr(build, "sources_folder", lambda: tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (sources / "kernel_baseline.cpp").write_text("")
    (sources / "kernel_avx2.cpp").write_text("")
    (sources / "kernel_avx512.cpp").write_text("")
    with pytest.raises(HspanError, match=r"does not compile: .*error: expected"):
        build.build_cpu_library(tmp_path / "out" / "library.so")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("program", "expected"),
    [("cmake", "cmake: not found"), ("compiler", r"C\+\+ compiler: CXX names .*absent, which is no program")],
)
def test_missing_tools_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, expected: str
) -> None:
    if program == "cmake":
        monkeypatch.setattr(toolchain, "_program", lambda name: None)
    else:
        monkeypatch.setenv("CXX", str(tmp_path / "absent"))
    with pytest.raises(HspanError, match=expected):
        build.build_cpu_library(tmp_path / "library.so")


def test_installation_without_sources_cannot_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_sources, "is_checkout", lambda root: False)
    with pytest.raises(HspanError, match="contains no sources"):
        build.build_cpu_library(tmp_path / "library.so")


@pytest.mark.parametrize(
    "options",
    [
        NativeOptions(instruction_set="mmx"),
        NativeOptions(tile_rows=0),
        NativeOptions(gather_limit=0),
        NativeOptions(threads=0),
        NativeOptions(tile_rows=-1),
    ],
)
def test_options_that_cannot_be_are_refused(library: NativeLibrary, options: NativeOptions) -> None:
    with pytest.raises(ValueError, match=r"mmx|at least 1|invalid"):
        attention.native_attention(library, *tensors(), options)
    with pytest.raises(ValueError, match=r"mmx|at least 1|no attention"):
        library.workspace_bytes((1, 3, 35), value_channels=4, options=options)


def test_library_needs_no_torch() -> None:
    code = (
        "import sys, trt_hspan.native.cpu_attention as n; n.native_library(); print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


STUB = """
#include <cstring>
#include <cstdint>
extern "C" {
int status; int64_t call[27];
int hspanCpuAbiVersion() { return 1; }
const char* hspanCpuSourceSha256() { return ""; }
int hspanCpuInstructionSetCount() { return 3; }
const char* hspanCpuInstructionSetName(int index) { return index == 0 ? "best" : index == 1 ? "good" : "base"; }
int hspanCpuInstructionSetRuns(int index) { return index != 0; }
uint64_t hspanCpuWorkspaceBytes(const void* own) { std::memcpy(call, own, sizeof call); return 1234567; }
int hspanCpuAttention(const void* own) { std::memcpy(call, own, sizeof call); return status; }
}
"""


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> NativeLibrary:
    """A library that takes notes; this processor runs two of its three instruction sets."""
    return NativeLibrary(compiled(tmp_path_factory.mktemp("stub"), STUB))


def operand(address: int, shape: tuple[int, int, int]) -> Operand:
    return Operand(address, shape, (address + 1, address + 2, address + 3))


QUERY, KEY = operand(10, (2, 3, 35)), operand(20, (2, 3, 35))
VALUE, OUTPUT = operand(30, (2, 4, 35)), operand(40, (2, 4, 35))


def noted(stub: NativeLibrary) -> list[int]:
    """The call that the library got, its numbers of 32 bits apart."""
    words = list((ctypes.c_int64 * 24).in_dll(stub._library, "call"))
    return [
        *words[:20],
        *(half for word in words[20:22] for half in divmod(word, 1 << 32)[::-1]),
        *words[22:],
    ]


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        (NativeOptions(), [1, -1 % (1 << 32), 0, 0, 0]),
        (
            NativeOptions(threads=7, instruction_set="good", route="gather", tile_rows=5, gather_limit=6),
            [7, 1, 1, 5, 6],
        ),
        (NativeOptions(instruction_set="base", route="dense", tile_rows=1, gather_limit=1), [1, 2, 2, 1, 1]),
    ],
)
def test_a_call_gets_tensors_sizes_and_options(
    stub: NativeLibrary, options: NativeOptions, numbers: list[int]
) -> None:
    assert stub.instruction_sets == ("good", "base")
    stub.attend(QUERY, KEY, VALUE, OUTPUT, element_type="float16", options=options)
    tensors = [number for start in (10, 20, 30, 40) for number in range(start, start + 4)]
    assert noted(stub) == [*tensors, 2, 3, 4, 35, 1, *numbers]
    needed = stub.workspace_bytes((2, 3, 35), value_channels=4, options=options)
    assert needed == 1234567
    dense_query, dense_value = [0, 3 * 35, 35, 1], [0, 4 * 35, 35, 1]
    assert noted(stub) == [*dense_query, *dense_query, *dense_value, *dense_value, 2, 3, 4, 35, 0, *numbers]


@pytest.mark.parametrize(
    "operands",
    [
        (QUERY, operand(20, (2, 4, 35)), VALUE, OUTPUT),
        (QUERY, KEY, VALUE, operand(40, (2, 5, 35))),
        (QUERY, KEY, operand(30, (1, 4, 35)), operand(40, (1, 4, 35))),
        (QUERY, KEY, operand(30, (2, 4, 36)), operand(40, (2, 4, 36))),
    ],
)
def test_shapes_that_do_not_fit_are_refused(stub: NativeLibrary, operands: tuple[Operand, ...]) -> None:
    query, key, value, output = operands
    with pytest.raises(ValueError, match="shapes do not fit: "):
        stub.attend(query, key, value, output, element_type="float32", options=NativeOptions())


def test_what_the_library_refuses_is_an_error(stub: NativeLibrary) -> None:
    status = ctypes.c_int.in_dll(stub._library, "status")
    for number, kind, line in (
        (2, OutOfMemoryError, r"its workspace of 1\.2 MB could not be had; give a smaller picture"),
        (1, ValueError, "the attention's arguments are invalid"),
        (3, ValueError, "the attention's arguments are invalid"),
    ):
        status.value = number
        with pytest.raises(kind, match=line):
            stub.attend(QUERY, KEY, VALUE, OUTPUT, element_type="float32", options=NativeOptions())
    status.value = 0


@pytest.mark.parametrize(
    ("content", "digest"),
    [
        (b"..hspan-cpu-source-sha256=" + b"a1" * 32 + b"\0..", "a1" * 32),
        (b"hspan-cpu-source-sha256=" + b"a1" * 31 + b"\0", None),
        (b"", None),
        (None, None),
    ],
)
def test_the_hash_of_the_sources_is_read_from_the_file(
    tmp_path: Path, content: bytes | None, digest: str | None
) -> None:
    if content is not None:
        (tmp_path / "lib.so").write_bytes(content)
    assert native.source_sha256_from_library(tmp_path / "lib.so") == digest
