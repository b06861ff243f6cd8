"""The C functions of libhspan_cuda.so, called by ctypes: the compiled kernels run in the interpreter of tests/ptx.

Queries and keys lie on a grid on which every score is exact in every type, so the bounds are those of plugins/README.md
given the scores, and one rounding of the output.
"""

from __future__ import annotations

import itertools
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.cuda_calls import GOOD, bound, check, numbers_of, prepared, tiled
from support.interpreted_cuda import InterpretedLibrary, library_with_mistake

from tools.kernel_report.interpreter import missing_for_interpreter
from tools.kernel_report.plugin_code import kernel_sources
from trt_hspan.errors import HspanError
from trt_hspan.native.cuda_attention import CudaLibrary, CudaProblem, DeviceAddresses
from trt_hspan.native.loading import ElementType
from trt_hspan.native.sources import sources_folder
from trt_hspan.native.toolchain import find_nvcc

MISSING = missing_for_interpreter()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

TYPES: tuple[ElementType, ...] = ("float32", "float16", "bfloat16")


@pytest.mark.parametrize("channels_last", [False, True], ids=["linear", "channels-last"])
@pytest.mark.parametrize("element_type", TYPES)
def test_every_type_and_layout_agrees_with_float64_at_hostile_sizes(
    cuda_library: InterpretedLibrary, element_type: ElementType, channels_last: bool
) -> None:
    sizes = itertools.cycle([(1, 1), (3, 5), (16, 32), (9, 24), (24, 33)])
    factors = itertools.cycle([2.0**-3, 2.0**-8, 0.0])
    for positions in (1, 31, 32, 33, 77, 129):
        c, d = next(sizes)
        problem = CudaProblem(
            batch=1 + positions % 2,
            score_channels=c,
            value_channels=d,
            positions=positions,
            element_type=element_type,
            channels_last=channels_last,
        )
        check(cuda_library, problem, next(factors))


@pytest.mark.parametrize("element_type", TYPES)
def test_every_configuration_gives_the_result_or_says_that_it_does_not_serve_the_type(
    cuda_library: InterpretedLibrary, element_type: ElementType
) -> None:
    serving, refusals = set(), set()
    for configuration in cuda_library.configurations:
        problem = CudaProblem(
            batch=2,
            score_channels=16,
            value_channels=24,
            positions=66,
            element_type=element_type,
            configuration=configuration,
        )
        try:
            check(cuda_library, problem, 2.0**-6)
        except ValueError as error:
            refusals.add(str(error).partition(",")[0])
        else:
            serving.add(configuration.partition("-")[0])
    assert serving == {"automatic", "plain", "tiled"}
    assert refusals <= {"the configuration does not serve this type"}


@pytest.mark.parametrize("element_type", TYPES)
def test_degenerate_rows_are_as_the_contract_says(
    cuda_library: InterpretedLibrary, element_type: ElementType
) -> None:
    """A row with a NaN or +inf score is NaN and no other row is; -inf weighs nothing; equal scores weigh 1 / L."""
    problem = CudaProblem(
        batch=1, score_channels=2, value_channels=3, positions=40, element_type=element_type
    )
    query, key, value = numbers_of(problem, 2.0**-4)
    query[0, :, :4] = np.array([[np.nan, np.inf, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    key[0, 0] = 1.0
    key[0, 0, 5:9] = -np.inf
    query[0, 0, 4:] = 1.0
    query[0, 1, 4:] = 0.0
    value[0, :, 5] = np.nan
    call = prepared(cuda_library, problem, (query, key, value))
    cuda_library.attend(problem, call.addresses)
    result = call.result()[0]
    assert np.isnan(result[:, [0, 1, 2]]).all()  # 0 * -inf is NaN too
    rest = [position for position in range(40) if not 5 <= position < 9]
    mean = value[0][:, rest].mean(-1, keepdims=True)
    assert np.abs(result[:, 3:] - mean).max() <= bound(problem, mean, value[0][:, rest]).max()


def test_positions_beyond_one_chunk_of_rows_agree_with_float64(cuda_library: InterpretedLibrary) -> None:
    """Lists exist for 16,384 rows at a time; images of 129 positions take 256 rows each."""
    problem = CudaProblem(batch=66, score_channels=1, value_channels=2, positions=129, element_type="float16")
    check(cuda_library, problem, 2.0**-3)


def test_two_runs_give_the_same_bits_and_the_stream_is_the_callers(cuda_library: InterpretedLibrary) -> None:
    problem = CudaProblem(batch=1, score_channels=8, value_channels=8, positions=70, element_type="bfloat16")
    results = []
    for stream in (0, 0x7F12):
        call = prepared(cuda_library, problem, numbers_of(problem, 2.0**-6))
        cuda_library.attend(problem, call.addresses, stream=stream)
        results.append(call.output.data.tobytes())
        assert cuda_library.last_stream == stream
    assert results[0] == results[1]


@pytest.mark.parametrize("what", ["batch", "value_channels", "positions"])
def test_nothing_to_compute_needs_no_memory(cuda_library: InterpretedLibrary, what: str) -> None:
    sizes = {"batch": 2, "score_channels": 3, "value_channels": 4, "positions": 5, what: 0}
    problem = CudaProblem(**sizes, element_type="float32")
    assert cuda_library.workspace_bytes(problem) == 0
    nothing = DeviceAddresses(query=0, key=0, value=0, output=0, workspace=0, workspace_bytes=0)
    cuda_library.attend(problem, nothing)


def test_no_score_channels_weigh_all_positions_alike(cuda_library: InterpretedLibrary) -> None:
    problem = CudaProblem(batch=1, score_channels=0, value_channels=2, positions=33, element_type="float32")
    numbers = numbers_of(problem, 1.0)
    call = prepared(cuda_library, problem, numbers)
    cuda_library.attend(problem, call.addresses)
    mean = np.broadcast_to(numbers[2].mean(-1, keepdims=True), numbers[2].shape)
    assert (np.abs(call.result() - mean) <= bound(problem, mean, numbers[2])).all()


def test_turing_gets_the_plain_kernels_and_older_gpus_none(cuda_library: InterpretedLibrary) -> None:
    cuda_library.set_compute_capability(75)
    check(cuda_library, GOOD, 2.0**-6)
    problem = replace(GOOD, configuration=tiled(cuda_library))
    with pytest.raises(ValueError, match="does not serve this type, these sizes or this GPU"):
        cuda_library.attend(problem, prepared(cuda_library, problem, numbers_of(problem, 1.0)).addresses)
    cuda_library.set_compute_capability(70)
    with pytest.raises(ValueError, match="does not serve this type, these sizes or this GPU"):
        cuda_library.attend(GOOD, prepared(cuda_library, GOOD, numbers_of(GOOD, 1.0)).addresses)


def test_values_in_place_of_keys_are_noticed(tmp_path: Path) -> None:
    with (
        library_with_mistake(tmp_path, "tensors->key,", "tensors->value,") as broken,
        pytest.raises((AssertionError, HspanError)),
    ):
        check(broken, replace(GOOD, value_channels=16), 2.0**-6)


def test_a_stream_that_is_dropped_is_noticed(tmp_path: Path) -> None:
    with (
        library_with_mistake(tmp_path, "static_cast<cudaStream_t>(stream)", "nullptr") as broken,
        pytest.raises(AssertionError),
    ):
        test_two_runs_give_the_same_bits_and_the_stream_is_the_callers(broken)


def test_the_list_of_sources_names_every_kernel_and_no_other() -> None:
    """What nvcc alone compiles, and CMake."""
    root = sources_folder()
    lines = (root / "plugins" / "cuda" / "nvcc.options").read_text().split()
    named = {line for line in lines if line.endswith((".cu", ".cpp"))}
    kernels = {path.relative_to(root).as_posix() for path in kernel_sources(root)}
    assert named == kernels | {"plugins/kernels/sparsemax_attention.cpp", "plugins/cuda/hspan_cuda.cpp"}


def test_nvcc_alone_takes_the_list(tmp_path: Path) -> None:
    """What it would do, without doing it: the very command of plugins/cuda/README.md for another GPU."""
    command = [find_nvcc(), "--options-file", "plugins/cuda/nvcc.options", "-arch=sm_90", "--dryrun"]
    process = subprocess.run(
        [*command, "-o", tmp_path / "library.so"],
        cwd=sources_folder(),
        capture_output=True,
        text=True,
        check=True,
    )
    for word in (
        "--version-script=plugins/cuda/exports.map",
        "-fvisibility=hidden",
        "-lcudart_static",
        "sm_90",
    ):
        assert word in process.stderr
    assert len(set(re.findall(r"kernels/(\w+)\.cu\b", process.stderr))) == len(
        kernel_sources(sources_folder())
    )


def test_a_library_that_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "library.so"
    with pytest.raises(HspanError, match="cannot be loaded"):
        CudaLibrary(path)
    for source, message in (
        ("int f() { return 1; }", "is another library"),
        ('extern "C" int hspanCudaAbiVersion() { return 99; }', "has ABI version 99, this package needs 1"),
    ):
        path = tmp_path / f"{len(message)}.so"
        subprocess.run(
            ["c++", "-shared", "-fPIC", "-x", "c++", "-", "-o", path], input=source, text=True, check=True
        )
        with pytest.raises(HspanError, match=message):
            CudaLibrary(path)
