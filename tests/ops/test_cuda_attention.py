"""The operator's way to the CUDA kernels, which run in the interpreter of tests/ptx: CPU tensors are device memory.

Scores are exact in every type, so the bounds are those of plugins/README.md given the scores.

The tests were checked by mistakes made on purpose, each of which some of them noticed: the stream dropped, misaligned
tensors passed on, channels-last rows with gaps called gapless, strided tensors not copied, the workspace not aligned,
every error of CUDA answered by the fallback, a size of a picture forgotten, too few of Newton's rounds for graphs, a
look at the device while a graph is captured, all rows of a captured graph refined, layouts exchanged.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.interpreted_cuda import InterpretedLibrary
from support.reference import attention_reference, sparsemax_reference
from torch import Tensor

from tools.kernel_report.interpreter import missing_for_interpreter
from trt_hspan.native import cuda_attention as native
from trt_hspan.native.cuda_attention import CudaError
from trt_hspan.ops import attention, cuda
from trt_hspan.ops.attention import most_newton_rounds, reference_attention, sparsemax_threshold
from trt_hspan.ops.cuda import device_attention, gpu_attention, output_format

MISSING = missing_for_interpreter()
needs_interpreter = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

U = 2.0**-24
ROUNDING = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
STREAM = 0x7E57


@pytest.fixture(scope="module")
def interpreted() -> InterpretedLibrary:
    return InterpretedLibrary()


@pytest.fixture
def library(interpreted: InterpretedLibrary) -> Iterator[InterpretedLibrary]:
    interpreted.problems.clear()
    yield interpreted
    interpreted.fail_launches(0)


def tensors(
    c: int, d: int, height: int, width: int, *, n: int = 2, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(c + d + height + width)

    def integers(channels: int, limit: int) -> Tensor:
        return torch.randint(-limit, limit + 1, (n, channels, height, width), generator=generator).float()

    return (
        (integers(c, 8) / 64).to(dtype),
        integers(c, 8).to(dtype),
        (integers(d, 99) / 128).to(dtype),
    )


def assert_is_the_operator(output: Tensor, q: Tensor, k: Tensor, v: Tensor) -> None:
    expected = torch.from_numpy(attention_reference(q.double(), k.double(), v.double()))
    rounding = ROUNDING[v.dtype]
    largest = float(v.abs().max())
    arithmetic = (96 * U if rounding == 0 else 2.0**-17 + 131 * U) * largest
    assert output.dtype == v.dtype
    assert (
        (output.double() - expected).abs() <= arithmetic + rounding * (expected.abs() + arithmetic) + 2.0**-25
    ).all()


@needs_interpreter
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (1, 31), (4, 8), (3, 11), (7, 9)], ids=str)
def test_contiguous_tensors_are_read_as_they_are(
    library: InterpretedLibrary, dtype: torch.dtype, size: tuple[int, int]
) -> None:
    q, k, v = tensors(3, 5, *size, dtype=dtype)
    output = device_attention(library, q, k, v, stream=STREAM)
    assert_is_the_operator(output, q, k, v)
    assert output.is_contiguous()
    assert library.last_stream == STREAM
    # One pixel is channels-last as well, and read so in FP32, whose rows have no padding.
    assert [problem.channels_last for problem in library.problems] == [
        size == (1, 1) and dtype == torch.float32
    ]


@needs_interpreter
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize(("c", "d"), [(8, 16), (3, 16), (8, 5)])
def test_channels_last_tensors_are_read_as_they_are_where_their_rows_have_no_gaps(
    library: InterpretedLibrary, dtype: torch.dtype, c: int, d: int
) -> None:
    q, k, v = (tensor.to(memory_format=torch.channels_last) for tensor in tensors(c, d, 5, 9, dtype=dtype))
    output = device_attention(library, q, k, v, stream=0)
    assert_is_the_operator(output, q, k, v)
    fits = dtype == torch.float32 or (c % 8 == 0 and d % 8 == 0)
    assert [problem.channels_last for problem in library.problems] == [fits]


def strided(kind: str) -> Callable[[Tensor], Tensor]:
    """The same numbers in another place in memory."""

    def rows_of_more_channels(tensor: Tensor) -> Tensor:
        n, channels, height, width = tensor.shape
        wide = torch.full((n, channels + 3, height, width), torch.nan, dtype=tensor.dtype)
        wide[:, 2:-1] = tensor
        return wide[:, 2:-1]

    def transposed(tensor: Tensor) -> Tensor:
        return tensor.transpose(2, 3).contiguous().transpose(2, 3)

    def every_second(tensor: Tensor) -> Tensor:
        return tensor.repeat_interleave(2, 3)[..., ::2]

    def misaligned(tensor: Tensor) -> Tensor:
        flat = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
        flat[1:] = tensor.flatten()
        return flat[1:].view(tensor.shape)

    kinds = (rows_of_more_channels, transposed, every_second, misaligned)
    return {each.__name__: each for each in kinds}[kind]


@needs_interpreter
@pytest.mark.parametrize("kind", ["rows_of_more_channels", "transposed", "every_second", "misaligned"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_strided_and_misaligned_tensors_give_the_same_bits_as_contiguous_ones(
    library: InterpretedLibrary, dtype: torch.dtype, kind: str
) -> None:
    plain = tensors(5, 9, 3, 11, dtype=dtype)
    expected = device_attention(library, *plain, stream=0)
    for changed in range(3):
        inputs = [strided(kind)(each) if index == changed else each for index, each in enumerate(plain)]
        assert torch.equal(inputs[changed], plain[changed])
        assert torch.equal(device_attention(library, *inputs, stream=0), expected)


@needs_interpreter
def test_mixed_layouts_and_expanded_batches_give_the_result(library: InterpretedLibrary) -> None:
    q, k, v = tensors(8, 16, 4, 8)
    mixed = (q, k.to(memory_format=torch.channels_last), v)
    assert torch.equal(
        device_attention(library, *mixed, stream=0), device_attention(library, q, k, v, stream=0)
    )
    one = k[:1].expand_as(k)
    assert_is_the_operator(device_attention(library, q, one, v, stream=0), q, one, v)


@needs_interpreter
def test_one_tensor_may_be_query_and_key_and_value(library: InterpretedLibrary) -> None:
    q, _, _ = tensors(8, 8, 4, 9)
    assert_is_the_operator(device_attention(library, q, q, q, stream=0), q, q, q)


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """PyTorch says that it has a GPU of 8.0 whose current stream is STREAM; the devices that were made current."""
    entered: list[torch.device] = []

    @contextlib.contextmanager
    def made_current(device: torch.device) -> Iterator[None]:
        entered.append(device)
        yield

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "device", made_current)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=STREAM))
    monkeypatch.setattr(native, "_given_up", set())
    native._loaded.cache_clear()
    return entered


@needs_interpreter
def test_a_gpu_gets_the_kernels_on_its_own_current_stream(
    pretended_gpu: list[torch.device], library: InterpretedLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "cuda_library", {80: library}.get)
    q, k, v = tensors(4, 6, 5, 7)
    output = gpu_attention(q, k, v)
    assert output is not None
    assert_is_the_operator(output, q, k, v)
    assert library.last_stream == STREAM
    assert pretended_gpu == [v.device]


@needs_interpreter
@pytest.mark.parametrize("number", [35, 98, 209, 222])
def test_a_library_without_code_for_the_gpu_or_driver_is_given_up_with_one_warning(
    pretended_gpu: list[torch.device],
    library: InterpretedLibrary,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
) -> None:
    monkeypatch.setenv(native.LIBRARY_VARIABLE, str(library.path))
    monkeypatch.setattr(native, "CudaLibrary", lambda path: library)
    library.fail_launches(number)
    with caplog.at_level(logging.WARNING):
        outputs = [gpu_attention(*tensors(4, 6, 5, 7)) for _ in range(3)]
    assert outputs == [None] * 3
    assert len(library.problems) == 1
    assert len(caplog.records) == 1
    assert f"CUDA error {number}" in caplog.text
    assert (
        "install a newer NVIDIA driver" if number == 35 else "trt-hspan plugin build --cuda"
    ) in caplog.text


@needs_interpreter
def test_another_error_of_cuda_is_not_hidden_by_the_fallback(
    pretended_gpu: list[torch.device], library: InterpretedLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "cuda_library", {80: library}.get)
    library.fail_launches(719)
    with pytest.raises(CudaError, match="719"):
        gpu_attention(*tensors(4, 6, 5, 7))


def test_a_missing_library_is_one_warning_that_says_how_to_get_it(
    pretended_gpu: list[torch.device],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv(native.LIBRARY_VARIABLE, str(tmp_path / "absent.so"))
    with caplog.at_level(logging.WARNING):
        assert [gpu_attention(*tensors(4, 6, 5, 7)) for _ in range(3)] == [None] * 3
    assert len(caplog.records) == 1
    assert "absent.so: there is no such library; compile it with trt-hspan plugin build --cuda" in caplog.text


@needs_interpreter
def test_a_library_without_code_for_the_gpu_is_not_used(
    pretended_gpu: list[torch.device],
    library: InterpretedLibrary,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(native.LIBRARY_VARIABLE, str(library.path))
    monkeypatch.setattr(native, "CudaLibrary", lambda path: library)
    code = native._CudaCode(
        path=library.path,
        cubin_architectures=(90,),
        ptx_architectures=(90,),
        cuda_version="13.0",
        ptx_isa_version="9.0",
    )
    monkeypatch.setattr(library, "code", code)
    with caplog.at_level(logging.WARNING):
        assert gpu_attention(*tensors(4, 6, 5, 7)) is None
    assert (
        "built without sm_80; rebuild with trt-hspan plugin build --cuda --arch 80 --arch 90" in caplog.text
    )
    assert not library.problems


def test_a_build_of_pytorch_for_another_make_of_gpu_gets_no_library(
    pretended_gpu: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(cuda, "cuda_library", lambda architecture: pytest.fail("asked for"))
    assert gpu_attention(*tensors(4, 6, 5, 7)) is None


def test_results_are_channels_last_only_on_gpus_and_where_value_is() -> None:
    v = torch.empty(2, 8, 3, 5)
    last = v.to(memory_format=torch.channels_last)
    assert output_format(v) == output_format(last) == torch.contiguous_format
    with torch._subclasses.FakeTensorMode():
        on_gpu = torch.empty_strided(last.shape, last.stride(), device="cuda")
        assert output_format(on_gpu) == torch.channels_last
        assert output_format(torch.empty(v.shape, device="cuda")) == torch.contiguous_format


def rows_of_scores(kind: str) -> Tensor:
    """(64, 4096) float32 rows, greatest 0."""
    generator = torch.Generator().manual_seed(3)
    uniform = torch.rand(64, 4096, generator=generator)
    steps = torch.arange(4096.0).expand(64, -1)
    rows = {
        "normal": torch.randn(64, 4096, generator=generator),
        "flat": uniform * 1e-3,
        "heavy tail": -uniform.reciprocal(),
        "ladder": -(1.5 ** -(steps % 60)) * torch.linspace(0.5, 2, 64)[:, None],
        "falling": -((steps / 4096) ** torch.linspace(0.1, 9, 64)[:, None]),
        "equal": torch.zeros(64, 4096),
        "with infinities": torch.where(uniform > 0.5, uniform, -torch.inf),
        "with NaN": torch.where(uniform > 0.9999, torch.nan, uniform),
    }[kind]
    return rows - rows.amax(-1, keepdim=True)


KINDS = (
    "normal",
    "flat",
    "heavy tail",
    "ladder",
    "falling",
    "equal",
    "with infinities",
    "with NaN",
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_thresholds_are_the_same_bits_however_often_the_rows_are_looked_at(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never looking at them takes the proven number of rounds, for graphs."""
    rows = rows_of_scores(kind).to(dtype)
    expected = sparsemax_threshold(rows)
    for looks in (8, None):
        monkeypatch.setattr(attention, "_rounds_between_looks", lambda tensor, looks=looks: looks)
        assert torch.equal(sparsemax_threshold(rows), expected)
    finite = rows[~rows.isnan().any(-1)].double().numpy()
    if len(finite):
        weights = np.maximum(finite - expected[~rows.isnan().any(-1)].double().numpy(), 0)
        # tau is off by 4096 roundings of the surplus at most, over the number of positive weights.
        np.testing.assert_allclose(weights, sparsemax_reference(finite), atol=4096 * U)


def test_the_number_of_rounds_for_graphs_holds_for_the_slowest_rows() -> None:
    """Scores one below another by a falling factor make Newton's method drop few of them in each round."""
    worst = 0
    for factor in (1.05, 1.2, 1.5, 2.0, 3.0, 10.0):
        for power in range(2, 13):
            positions = 2**power
            rows = -(factor ** torch.arange(0.0, -positions, -1, dtype=torch.float64)).float()[None]
            rows = rows - rows.amax()
            rounds = rounds_until_nothing_rises(rows)
            most = most_newton_rounds(positions, 2.0**-23)
            assert rounds <= most
            worst = max(worst, rounds)
    assert worst >= 4, "the rows are meant to be slow"


def rounds_until_nothing_rises(rows: Tensor) -> int:
    tau = torch.full_like(rows[..., :1], -1.0)
    for count in range(1000):
        excess = (rows - tau).clamp_min(0)
        risen = tau + (excess.sum(-1, keepdim=True) - 1) / (excess > 0).sum(-1, keepdim=True)
        if not bool((risen > tau).any()):
            return count
        tau = torch.maximum(tau, risen)
    raise AssertionError("does not end")


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a CUDA graph were captured."""
    monkeypatch.setattr(attention, "_is_captured", lambda tensor: True)
    monkeypatch.setattr(attention, "_rounds_between_looks", lambda tensor: None)


def test_nothing_is_read_from_the_device_while_a_graph_is_captured(captured: None) -> None:
    """Tensors without data raise when somebody looks at them."""
    q, k, v = (tensor.to("meta") for tensor in tensors(4, 6, 5, 7))
    assert reference_attention(q, k, v).shape == v.shape
    assert attention._gradients(v, q, k, v)[2].shape == v.shape


def test_captured_graphs_compute_what_is_computed_without_them(
    monkeypatch: pytest.MonkeyPatch, captured: None
) -> None:
    """Rows whose scores are refined and rows whose are not, which shows in the last bits, and NaN."""
    q, k, v = torch.randn(3, 2, 6, 5, 7, generator=torch.Generator().manual_seed(1))
    q[:, :, 0] *= 1e5
    q[0, 0, 4, 4] = torch.nan
    in_graph = reference_attention(q, k, v)
    monkeypatch.undo()
    torch.testing.assert_close(in_graph, reference_attention(q, k, v), rtol=0, atol=0, equal_nan=True)


def test_autocast_and_low_matmul_precision_do_not_reach_the_sums() -> None:
    q, k, v = tensors(4, 6, 5, 7)
    expected = torch.ops.hspan.high_similarity_pass_attention(q.double(), k.double(), v.double())
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16), attention._promised_arithmetic(q):
            assert torch.get_float32_matmul_precision() == "highest"
            output = reference_attention(q, k, v)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert (output - expected).abs().max() <= 96 * U * v.abs().max()


@pytest.mark.parametrize(
    ("c", "d", "shape"), [(4, 6, (0, 3, 3)), (4, 6, (2, 0, 3)), (4, 0, (2, 3, 3)), (0, 6, (2, 3, 3))], ids=str
)
def test_empty_tensors_have_a_result_and_gradients(c: int, d: int, shape: tuple[int, int, int]) -> None:
    n, height, width = shape
    q, k = (torch.empty(n, c, height, width, requires_grad=True) for _ in range(2))
    v = torch.rand(n, d, height, width, requires_grad=True)
    output = attention.high_similarity_pass_attention(q, k, v)
    output.sum().backward()
    # Without score channels all positions weigh the same.
    torch.testing.assert_close(output, v.mean((2, 3), keepdim=True).expand_as(v))
    assert all(each.grad is not None and each.grad.shape == each.shape for each in (q, k, v))


def test_tensors_on_two_devices_are_refused() -> None:
    q, k, v = tensors(4, 6, 5, 7)
    with pytest.raises(ValueError, match="expected one device, got cpu, meta, cpu"):
        attention.high_similarity_pass_attention(q, k.to("meta"), v)
