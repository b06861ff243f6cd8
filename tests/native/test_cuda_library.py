"""The C functions of libhspan_cuda.so, called by ctypes: the compiled kernels run in the interpreter of tests/ptx.

Queries and keys lie on a grid on which every score is exact in every type, so the bounds are those of plugins/README.md
given the scores, and one rounding of the output.
"""

from __future__ import annotations

import ctypes
import itertools
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.interpreted_cuda import InterpretedLibrary
from support.reference import attention_reference

from tools.kernel_report.interpreter import missing_for_interpreter
from tools.kernel_report.plugin_code import kernel_sources
from trt_hspan.errors import HspanError, OutOfMemoryError
from trt_hspan.native import cuda_attention
from trt_hspan.native.cuda_attention import CudaError, CudaLibrary, CudaProblem, DeviceAddresses
from trt_hspan.native.loading import ElementType
from trt_hspan.native.sources import sources_folder
from trt_hspan.native.toolchain import find_nvcc

MISSING = missing_for_interpreter()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

U = 2.0**-24
#: Rounding of the types, and half their least subnormal number.
ROUNDING = {"float32": (0.0, 0.0), "float16": (2.0**-11, 2.0**-25), "bfloat16": (2.0**-8, 0.0)}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
TYPES: tuple[ElementType, ...] = ("float32", "float16", "bfloat16")
AUTOMATIC = 0


@pytest.fixture(scope="module")
def interpreted() -> InterpretedLibrary:
    return InterpretedLibrary()


@pytest.fixture
def library(interpreted: InterpretedLibrary) -> Iterator[InterpretedLibrary]:
    yield interpreted
    interpreted.set_compute_capability(80)
    interpreted.fail_launches(0)


class Memory:
    """Bytes that end at the end of an allocation, from an address that is a multiple of `alignment`; all 0xff, NaN."""

    def __init__(self, count: int, alignment: int = 16) -> None:
        self._bytes = np.full(count + alignment, 0xFF, np.uint8)
        self._offset = -self._bytes.ctypes.data % alignment
        self.address = self._bytes.ctypes.data + self._offset
        self.data = self._bytes[self._offset : self._offset + count]


@dataclass(frozen=True)
class Call:
    """A problem with its memory."""

    library: CudaLibrary
    problem: CudaProblem
    query: Memory
    key: Memory
    value: Memory
    output: Memory
    workspace: Memory

    @property
    def addresses(self) -> DeviceAddresses:
        tensors = (self.query, self.key, self.value, self.output, self.workspace)
        names = ("query", "key", "value", "output", "workspace")
        places = {name: memory.address for name, memory in zip(names, tensors, strict=True)}
        return DeviceAddresses(**places, workspace_bytes=len(self.workspace.data))

    def result(self) -> NDArray[np.float64]:
        """(N, D, L); what pads the channels must be zero."""
        problem = self.problem
        shape = (problem.batch, problem.value_channels, problem.positions)
        dtype = DTYPES[problem.element_type]
        flat = torch.from_numpy(self.output.data).view(dtype).double().numpy()
        if not problem.channels_last:
            return flat.reshape(shape)
        rows = flat.reshape(problem.batch, problem.positions, -1)
        assert not rows[..., problem.value_channels :].any()
        return rows[..., : problem.value_channels].transpose(0, 2, 1)


def stored(library: CudaLibrary, problem: CudaProblem, numbers: NDArray[np.float64]) -> Memory:
    """(N, channels, L) in the problem's type and layout; padding is NaN."""
    n, channels, positions = numbers.shape
    if problem.channels_last:
        pitch = library.channel_pitch(problem.element_type, channels)
        rows = np.full((n, positions, pitch), np.nan)
        rows[..., :channels] = numbers.transpose(0, 2, 1)
        numbers = rows
    raw = torch.from_numpy(np.ascontiguousarray(numbers)).to(DTYPES[problem.element_type])
    data = raw.view(torch.uint8).numpy().ravel() if raw.numel() else np.empty(0, np.uint8)
    memory = Memory(data.size)
    memory.data[:] = data
    return memory


def numbers_of(problem: CudaProblem, factor: float, seed: int = 0) -> tuple[NDArray[np.float64], ...]:
    """query, key (N, C, L), value (N, D, L): scores are exact, values have few bits."""
    generator = np.random.default_rng(seed)
    shape = (problem.batch, problem.score_channels, problem.positions)
    query = generator.integers(-8, 9, shape) * factor
    key = generator.integers(-8, 9, shape).astype(np.float64)
    value = generator.integers(-99, 100, (problem.batch, problem.value_channels, problem.positions)) / 128
    return query, key, value


def prepared(library: CudaLibrary, problem: CudaProblem, numbers: tuple[NDArray[np.float64], ...]) -> Call:
    query, key, value = (stored(library, problem, each) for each in numbers)
    output = Memory(len(value.data))
    workspace = Memory(library.workspace_bytes(problem), 256)
    return Call(library, problem, query, key, value, output, workspace)


def bound(
    problem: CudaProblem, expected: NDArray[np.float64], value: NDArray[np.float64]
) -> NDArray[np.float64]:
    """plugins/README.md, "Accuracy": 96 u, and (2^-17 + (130 + L / 512) u) on the dense route of the short types."""
    relative, least = ROUNDING[problem.element_type]
    given = 96 * U if relative == 0 else 2.0**-17 + (130 + problem.positions / 512) * U
    arithmetic = given * np.abs(value).max(initial=0)
    return arithmetic + relative * (np.abs(expected) + arithmetic) + least


def reference(numbers: tuple[NDArray[np.float64], ...]) -> NDArray[np.float64]:
    return attention_reference(*(each[:, :, None] for each in numbers))[:, :, 0]


def check(library: CudaLibrary, problem: CudaProblem, factor: float) -> None:
    numbers = numbers_of(problem, factor)
    call = prepared(library, problem, numbers)
    library.attend(problem, call.addresses)
    expected = reference(numbers)
    error = np.abs(call.result() - expected)
    assert (error <= bound(problem, expected, numbers[2])).all(), problem


@pytest.mark.parametrize("channels_last", [False, True], ids=["linear", "channels-last"])
@pytest.mark.parametrize("element_type", TYPES)
def test_every_type_and_layout_agrees_with_float64_at_hostile_sizes(
    library: InterpretedLibrary, element_type: ElementType, channels_last: bool
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
        check(library, problem, next(factors))


@pytest.mark.parametrize("element_type", TYPES)
def test_every_configuration_gives_the_result_or_says_that_it_does_not_serve_the_type(
    library: InterpretedLibrary, element_type: ElementType
) -> None:
    serving, refusals = set(), set()
    for configuration in library.configurations:
        problem = CudaProblem(
            batch=2,
            score_channels=16,
            value_channels=24,
            positions=66,
            element_type=element_type,
            configuration=configuration,
        )
        try:
            check(library, problem, 2.0**-6)
        except ValueError as error:
            refusals.add(str(error).partition(",")[0])
        else:
            serving.add(configuration.partition("-")[0])
    assert serving == {"automatic", "plain", "tiled"}
    assert refusals <= {"the configuration does not serve this type"}


@pytest.mark.parametrize("element_type", TYPES)
def test_degenerate_rows_are_as_the_contract_says(
    library: InterpretedLibrary, element_type: ElementType
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
    call = prepared(library, problem, (query, key, value))
    library.attend(problem, call.addresses)
    result = call.result()[0]
    assert np.isnan(result[:, [0, 1, 2]]).all()  # 0 * -inf is NaN too
    rest = [position for position in range(40) if not 5 <= position < 9]
    mean = value[0][:, rest].mean(-1, keepdims=True)
    assert np.abs(result[:, 3:] - mean).max() <= bound(problem, mean, value[0][:, rest]).max()


def test_positions_beyond_one_chunk_of_rows_agree_with_float64(library: InterpretedLibrary) -> None:
    """Lists exist for 16,384 rows at a time; images of 129 positions take 256 rows each."""
    problem = CudaProblem(batch=66, score_channels=1, value_channels=2, positions=129, element_type="float16")
    check(library, problem, 2.0**-3)


def test_two_runs_give_the_same_bits_and_the_stream_is_the_callers(library: InterpretedLibrary) -> None:
    problem = CudaProblem(batch=1, score_channels=8, value_channels=8, positions=70, element_type="bfloat16")
    results = []
    for stream in (0, 0x7F12):
        call = prepared(library, problem, numbers_of(problem, 2.0**-6))
        library.attend(problem, call.addresses, stream=stream)
        results.append(call.output.data.tobytes())
        assert library.last_stream == stream
    assert results[0] == results[1]


@pytest.mark.parametrize("what", ["batch", "value_channels", "positions"])
def test_nothing_to_compute_needs_no_memory(library: InterpretedLibrary, what: str) -> None:
    sizes = {"batch": 2, "score_channels": 3, "value_channels": 4, "positions": 5, what: 0}
    problem = CudaProblem(**sizes, element_type="float32")
    assert library.workspace_bytes(problem) == 0
    nothing = DeviceAddresses(query=0, key=0, value=0, output=0, workspace=0, workspace_bytes=0)
    library.attend(problem, nothing)


def test_no_score_channels_weigh_all_positions_alike(library: InterpretedLibrary) -> None:
    problem = CudaProblem(batch=1, score_channels=0, value_channels=2, positions=33, element_type="float32")
    numbers = numbers_of(problem, 1.0)
    call = prepared(library, problem, numbers)
    library.attend(problem, call.addresses)
    mean = np.broadcast_to(numbers[2].mean(-1, keepdims=True), numbers[2].shape)
    assert (np.abs(call.result() - mean) <= bound(problem, mean, numbers[2])).all()


GOOD = CudaProblem(batch=2, score_channels=16, value_channels=8, positions=33, element_type="float16")


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
    library: InterpretedLibrary, change: dict[str, object], message: str
) -> None:
    addresses = prepared(library, GOOD, numbers_of(GOOD, 1.0)).addresses
    with pytest.raises(ValueError, match=message):
        library.attend(
            replace(GOOD, **change),  # type: ignore[arg-type]
            replace(addresses, workspace_bytes=1 << 40),
        )


def tiled(library: CudaLibrary) -> str:
    """A configuration for GPUs with tensor cores."""
    return next(name for name in library.configurations if name.startswith("tiled"))


@pytest.mark.parametrize("change", [{"score_channels": 129}, {"value_channels": 257}], ids=str)
def test_sizes_that_a_configuration_does_not_serve_are_refused(
    library: InterpretedLibrary, change: dict[str, int]
) -> None:
    problem = replace(GOOD, configuration=tiled(library), **change)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="does not serve this type, these sizes or this GPU"):
        library.attend(problem, prepared(library, problem, numbers_of(problem, 1.0)).addresses)


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
    library: InterpretedLibrary, change: dict[str, int | str], message: str
) -> None:
    call = prepared(library, GOOD, numbers_of(GOOD, 1.0))
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
        library.attend(GOOD, replace(good, **{name: changed}))
    assert (call.output.data == before).all()


def test_each_status_is_distinct_and_has_its_words(library: InterpretedLibrary) -> None:
    header = (sources_folder() / "plugins" / "cuda" / "hspan_cuda.h").read_text()
    pairs = re.findall(r"HSPAN_CUDA_([A-Z_]+) = (\d+)", header.split("enum HspanCudaStatus")[1].split("}")[0])
    statuses = {int(number): name for name, number in pairs if name != "ERROR_BASE"}
    texts = [library._library.hspanCudaStatusText(number).decode() for number in statuses]
    assert len(set(texts)) == len(statuses) == 10
    assert library._library.hspanCudaStatusText(max(statuses) + 1) == b"there is no such status"
    assert library._library.hspanCudaStatusText(-1) == b"there is no such status"


def test_what_python_does_not_let_through_is_refused_in_c(library: InterpretedLibrary) -> None:
    """Null structures, types and layouts that do not exist: the statuses of the header, in its words."""
    call = prepared(library, GOOD, numbers_of(GOOD, 1.0))
    functions = library._library
    own = library._problem(GOOD)
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
    firsts_too_large = (("type", 2, 3), ("layout", 3, 2), ("configuration", 5, len(library.configurations)))
    for field, status, too_large in firsts_too_large:
        for wrong in (-1, too_large):
            right = getattr(own, field)
            setattr(own, field, wrong)
            assert statuses() == (status, status)
            setattr(own, field, right)
    assert statuses() == (0, 0)
    assert library.channel_pitch("float16", 9) == 16
    assert library.channel_pitch("float32", 9) == 9
    assert library.channel_pitch("float16", -1) == library.channel_pitch("float16", 2**62) == 0
    assert functions.hspanCudaConfigurationName(-1) is None
    assert functions.hspanCudaConfigurationName(len(library.configurations)) is None


def test_a_machine_without_a_device_is_an_error_of_cuda(library: InterpretedLibrary) -> None:
    library.set_compute_capability(0)
    with pytest.raises(CudaError) as caught:
        library.attend(GOOD, prepared(library, GOOD, numbers_of(GOOD, 1.0)).addresses)
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
    library: InterpretedLibrary, number: int, step: str
) -> None:
    library.fail_launches(number)
    with pytest.raises(CudaError, match=rf"\(CUDA error {number}\); .*{re.escape(step)}") as caught:
        library.attend(GOOD, prepared(library, GOOD, numbers_of(GOOD, 1.0)).addresses)
    assert "\n" not in str(caught.value)


def test_a_full_device_is_an_error_of_memory(library: InterpretedLibrary) -> None:
    library.fail_launches(2)
    with pytest.raises(OutOfMemoryError, match="smaller tiles"):
        library.attend(GOOD, prepared(library, GOOD, numbers_of(GOOD, 1.0)).addresses)


def test_turing_gets_the_plain_kernels_and_older_gpus_none(library: InterpretedLibrary) -> None:
    library.set_compute_capability(75)
    check(library, GOOD, 2.0**-6)
    problem = replace(GOOD, configuration=tiled(library))
    with pytest.raises(ValueError, match="does not serve this type, these sizes or this GPU"):
        library.attend(problem, prepared(library, problem, numbers_of(problem, 1.0)).addresses)
    library.set_compute_capability(70)
    with pytest.raises(ValueError, match="does not serve this type, these sizes or this GPU"):
        library.attend(GOOD, prepared(library, GOOD, numbers_of(GOOD, 1.0)).addresses)


MISTAKES = {
    "an unknown type is let through": (
        "type <= HSPAN_CUDA_BFLOAT16",
        "type <= HSPAN_CUDA_BFLOAT16 + 1",
        "type",
    ),
    "a small workspace is let through": (
        "tensors.workspaceBytes < workspaceBytes",
        "tensors.workspaceBytes > workspaceBytes",
        "workspace",
    ),
    "key and value change places": ("tensors->key,", "tensors->value,", "result"),
    "the stream is dropped": ("static_cast<cudaStream_t>(stream)", "nullptr", "stream"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes_in_the_c_functions_are_noticed(what: str, tmp_path: Path) -> None:
    """Made in a copy, compiled and linked like the library itself; a test above has to fail of each."""
    right, wrong, check_of = MISTAKES[what]
    shutil.copytree(sources_folder() / "plugins" / "cuda", tmp_path / "plugins" / "cuda")
    (tmp_path / "plugins" / "kernels").symlink_to(sources_folder() / "plugins" / "kernels")
    source = tmp_path / "plugins" / "cuda" / "hspan_cuda.cpp"
    text = source.read_text()
    assert right in text
    source.write_text(text.replace(right, wrong))
    broken = InterpretedLibrary(replaced={source.name: tmp_path / "plugins"})
    noticing = {
        "type": test_what_python_does_not_let_through_is_refused_in_c,
        "workspace": lambda library: test_memory_that_cannot_be_is_refused_before_anything_runs(
            library, {"workspace_bytes": -1}, "the workspace is too small"
        ),
        "result": lambda library: check(library, replace(GOOD, value_channels=16), 2.0**-6),
        "stream": test_two_runs_give_the_same_bits_and_the_stream_is_the_callers,
    }[check_of]
    with pytest.raises((AssertionError, pytest.fail.Exception, HspanError)):
        noticing(broken)
    broken.path.unlink()


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
