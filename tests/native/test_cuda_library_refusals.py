"""What libhspan_cuda.so refuses before anything runs, and CUDA's errors; in the interpreter of tests/ptx."""

from __future__ import annotations

import ctypes
import re
from dataclasses import replace
from pathlib import Path

import pytest
from support.cuda_calls import GOOD, numbers_of, prepared, tiled
from support.interpreted_cuda import InterpretedLibrary, library_with_mistake

from tools.kernel_report.interpreter import missing_for_interpreter
from trt_hspan.errors import HspanError, OutOfMemoryError
from trt_hspan.native import cuda_attention
from trt_hspan.native.cuda_attention import CudaError
from trt_hspan.native.sources import sources_folder

MISSING = missing_for_interpreter()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": -1}, "a size is out of range"),
        ({"score_channels": -1}, "a size is out of range"),
        ({"value_channels": 2**31}, "a size is out of range"),
        ({"positions": 2**31}, "a size is out of range"),
        ({"batch": 2**62}, "a size is out of range"),
        ({"batch": 0, "positions": 2**31}, "a size is out of range"),
        ({"configuration": "no-such"}, "'no-such' is none of"),
    ],
)
def test_a_problem_that_cannot_be_is_refused_before_anything_runs(
    cuda_library: InterpretedLibrary, change: dict[str, object], message: str
) -> None:
    addresses = prepared(cuda_library, GOOD, numbers_of(GOOD, 1.0)).addresses
    with pytest.raises(ValueError, match=message):
        cuda_library.attend(
            replace(GOOD, **change),  # type: ignore[arg-type]
            replace(addresses, workspace_bytes=1 << 40),
        )


@pytest.mark.parametrize("change", [{"score_channels": 129}, {"value_channels": 257}], ids=str)
def test_sizes_that_a_configuration_does_not_serve_are_refused(
    cuda_library: InterpretedLibrary, change: dict[str, int]
) -> None:
    problem = replace(GOOD, configuration=tiled(cuda_library), **change)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="does not serve this type, these sizes or this GPU"):
        cuda_library.attend(problem, prepared(cuda_library, problem, numbers_of(problem, 1.0)).addresses)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(({name: 0}, "a pointer is null") for name in ("query", "key", "value", "output", "workspace")),
        *(({name: 8}, "is not aligned to 16 bytes") for name in ("query", "key", "value", "output")),
        ({"workspace": 128}, "the workspace not to 256"),
        ({"workspace_bytes": -1}, "the workspace is too small"),
        ({"output": "query"}, "shares memory"),
        ({"output": "key"}, "shares memory"),
        ({"output": "value"}, "shares memory"),
        ({"workspace": "output"}, "shares memory"),
        ({"workspace": "value"}, "shares memory"),
    ],
    ids=str,
)
def test_memory_that_cannot_be_is_refused_before_anything_runs(
    cuda_library: InterpretedLibrary, change: dict[str, int | str], message: str
) -> None:
    call = prepared(cuda_library, GOOD, numbers_of(GOOD, 1.0))
    good = call.addresses
    ((name, how),) = change.items()
    own = getattr(good, name)
    if isinstance(how, str):  # the start of the other tensor, rounded to what the alignment asks for
        alignment = 256 if name == "workspace" else 16
        changed = getattr(good, how) // alignment * alignment
    else:
        changed = how and own + how
    before = call.output.data.copy()
    with pytest.raises(ValueError, match=message):
        cuda_library.attend(GOOD, replace(good, **{name: changed}))
    assert (call.output.data == before).all()


def test_each_status_is_distinct_and_has_its_words(cuda_library: InterpretedLibrary) -> None:
    header = (sources_folder() / "plugins" / "cuda" / "hspan_cuda.h").read_text()
    pairs = re.findall(r"HSPAN_CUDA_([A-Z_]+) = (\d+)", header.split("enum HspanCudaStatus")[1].split("}")[0])
    statuses = {int(number): name for name, number in pairs if name != "ERROR_BASE"}
    texts = [cuda_library._library.hspanCudaStatusText(number).decode() for number in statuses]
    assert len(set(texts)) == len(statuses) == 10
    assert cuda_library._library.hspanCudaStatusText(max(statuses) + 1) == b"there is no such status"
    assert cuda_library._library.hspanCudaStatusText(-1) == b"there is no such status"


def test_what_python_does_not_let_through_is_refused_in_c(cuda_library: InterpretedLibrary) -> None:
    """Null structures, types and layouts that do not exist: the statuses of the header, in its words."""
    call = prepared(cuda_library, GOOD, numbers_of(GOOD, 1.0))
    functions = cuda_library._library
    own = cuda_library._problem(GOOD)
    tensors = cuda_attention._Tensors(*vars(call.addresses).values())
    needed = ctypes.c_uint64(7)
    reference_of = ctypes.byref

    def statuses() -> tuple[int, int]:
        return (
            functions.hspanCudaWorkspaceBytes(reference_of(own), reference_of(needed)),
            functions.hspanCudaAttention(reference_of(own), reference_of(tensors), None),
        )

    assert functions.hspanCudaWorkspaceBytes(None, reference_of(needed)) == 1
    assert needed.value == 0
    assert functions.hspanCudaWorkspaceBytes(reference_of(own), None) == 1
    assert functions.hspanCudaAttention(None, reference_of(tensors), None) == 1
    assert functions.hspanCudaAttention(reference_of(own), None, None) == 1
    firsts_too_large = (
        ("type", 2, 3),
        ("layout", 3, 2),
        ("configuration", 5, len(cuda_library.configurations)),
    )
    for field, status, too_large in firsts_too_large:
        for wrong in (-1, too_large):
            right = getattr(own, field)
            setattr(own, field, wrong)
            assert statuses() == (status, status)
            setattr(own, field, right)
    assert statuses() == (0, 0)
    assert cuda_library.channel_pitch("float16", 9) == 16
    assert cuda_library.channel_pitch("float32", 9) == 9
    assert cuda_library.channel_pitch("float16", -1) == cuda_library.channel_pitch("float16", 2**62) == 0
    assert functions.hspanCudaConfigurationName(-1) is None
    assert functions.hspanCudaConfigurationName(len(cuda_library.configurations)) is None


def test_a_machine_without_a_device_is_an_error_of_cuda(cuda_library: InterpretedLibrary) -> None:
    cuda_library.set_compute_capability(0)
    with pytest.raises(CudaError) as caught:
        cuda_library.attend(GOOD, prepared(cuda_library, GOOD, numbers_of(GOOD, 1.0)).addresses)
    assert caught.value.number == 100


@pytest.mark.parametrize(
    ("number", "step"),
    [
        (35, "install a newer NVIDIA driver (580"),
        (209, "trt-hspan plugin build --cuda"),
        (222, "trt-hspan plugin build --cuda"),
        (719, "CUDA_LAUNCH_BLOCKING=1"),
    ],
)
def test_an_error_of_cuda_is_one_line_with_its_number_and_a_way_out(
    cuda_library: InterpretedLibrary, number: int, step: str
) -> None:
    cuda_library.fail_launches(number)
    with pytest.raises(CudaError, match=rf"\(CUDA error {number}\); .*{re.escape(step)}") as caught:
        cuda_library.attend(GOOD, prepared(cuda_library, GOOD, numbers_of(GOOD, 1.0)).addresses)
    assert "\n" not in str(caught.value)


def test_a_full_device_is_an_error_of_memory(cuda_library: InterpretedLibrary) -> None:
    cuda_library.fail_launches(2)
    with pytest.raises(OutOfMemoryError, match="smaller tiles"):
        cuda_library.attend(GOOD, prepared(cuda_library, GOOD, numbers_of(GOOD, 1.0)).addresses)


def test_an_unknown_type_that_is_let_through_is_noticed(tmp_path: Path) -> None:
    right = "type <= HSPAN_CUDA_BFLOAT16"
    with (
        library_with_mistake(tmp_path, right, f"{right} + 1") as broken,
        pytest.raises((AssertionError, HspanError)),
    ):
        test_what_python_does_not_let_through_is_refused_in_c(broken)


def test_a_small_workspace_that_is_let_through_is_noticed(tmp_path: Path) -> None:
    right = "tensors.workspaceBytes < workspaceBytes"
    with (
        library_with_mistake(tmp_path, right, right.replace("<", ">")) as broken,
        pytest.raises((AssertionError, pytest.fail.Exception, HspanError)),
    ):
        test_memory_that_cannot_be_is_refused_before_anything_runs(
            broken, {"workspace_bytes": -1}, "the workspace is too small"
        )
