"""The operator on CUDA tensors, on a GPU. Skipped only where PyTorch has none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from support.reference import attention_reference
from torch import Tensor

from trt_hspan.native import cuda_attention
from trt_hspan.native.build import build_cuda_library
from trt_hspan.ops import attention, high_similarity_pass_attention
from trt_hspan.ops.attention import reference_attention

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that PyTorch can use"),
]

U = 2.0**-24
ROUNDING = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


@pytest.fixture(scope="module", autouse=True)
def kernels() -> Iterator[None]:
    """The library, compiled for this GPU; a fallback to PyTorch's operations would pass unnoticed."""
    build_cuda_library()
    capability = torch.cuda.get_device_capability()
    assert cuda_attention.cuda_library(10 * capability[0] + capability[1]) is not None
    yield
    assert not cuda_attention._given_up


def tensors(*shape: int, values: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Query, key, value whose scores are exact in every type: what is left is the bound of plugins/README.md."""
    n, c, height, width = shape
    generator = torch.Generator().manual_seed(sum(shape))

    def integers(channels: int, limit: int) -> Tensor:
        return torch.randint(-limit, limit + 1, (n, channels, height, width), generator=generator).float()

    numbers = (integers(c, 8) / 64, integers(c, 8), integers(values, 99) / 128)
    return [each.to(dtype).cuda() for each in numbers]


def assert_is_the_operator(output: Tensor, q: Tensor, k: Tensor, v: Tensor) -> None:
    expected = torch.from_numpy(attention_reference(*(each.double().cpu() for each in (q, k, v))))
    rounding, largest = ROUNDING[v.dtype], float(v.abs().max())
    positions = v.shape[2] * v.shape[3]
    arithmetic = (96 * U if rounding == 0 else 2.0**-17 + (130 + positions / 512) * U) * largest
    bound = arithmetic + rounding * (expected.abs() + arithmetic) + 2.0**-25
    assert ((output.double().cpu() - expected).abs() <= bound).all()


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "shape", [(1, 16, 1, 1), (2, 3, 5, 7), (1, 16, 48, 48), (3, 8, 31, 33), (1, 129, 9, 9)]
)
def test_every_type_and_layout_agrees_with_float64_without_waiting_for_the_gpu(
    dtype: torch.dtype, channels_last: bool, shape: tuple[int, int, int, int]
) -> None:
    q, k, v = tensors(*shape, values=24, dtype=dtype)
    if channels_last:
        q, k, v = (each.to(memory_format=torch.channels_last) for each in (q, k, v))
    torch.cuda.set_sync_debug_mode("error")
    try:
        outputs = [high_similarity_pass_attention(q, k, v) for _ in range(2)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(*outputs)
    assert_is_the_operator(outputs[0], q, k, v)


@pytest.mark.parametrize("form", [high_similarity_pass_attention, reference_attention])
def test_a_captured_graph_computes_new_inputs(form: object) -> None:
    assert callable(form)
    q, k, v = tensors(1, 16, 24, 24, values=32)
    form(q, k, v)  # loads the kernels
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = form(q, k, v)
    others = tensors(1, 16, 24, 24, values=32)
    for own, other in zip((q, k, v), others, strict=True):
        own.copy_(other.flip(3))
    graph.replay()
    assert_is_the_operator(output, q, k, v)


def test_work_keeps_the_order_of_a_stream_of_its_own() -> None:
    q, k, v = tensors(1, 16, 48, 48, values=32)
    expected = high_similarity_pass_attention(q, k, v)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        late = torch.zeros_like(q)
        torch.cuda._sleep(100_000_000)
        late.copy_(q)
        output = high_similarity_pass_attention(late, k, v)
    stream.synchronize()
    assert torch.equal(output, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_tensors_of_the_second_gpu_are_computed_there() -> None:
    q, k, v = (each.to("cuda:1") for each in tensors(1, 16, 9, 9, values=8))
    output = high_similarity_pass_attention(q, k, v)
    assert (output.device.index, torch.cuda.current_device()) == (1, 0)
    assert_is_the_operator(output, q, k, v)


def test_gradients_are_those_of_the_cpu() -> None:
    on_gpu = [each.requires_grad_() for each in tensors(2, 4, 5, 7, values=6)]
    on_cpu = [each.detach().cpu().requires_grad_() for each in on_gpu]
    for inputs in (on_gpu, on_cpu):
        high_similarity_pass_attention(*inputs).square().sum().backward()
    for gpu, cpu in zip(on_gpu, on_cpu, strict=True):
        assert gpu.grad is not None
        torch.testing.assert_close(gpu.grad.cpu(), cpu.grad, rtol=1e-4, atol=1e-5)


def test_pytorchs_own_form_agrees_in_chunks_and_leaves_tf32_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = tensors(1, 16, 24, 24, values=32)
    monkeypatch.setattr(attention, "_GPU_CHUNK_BYTES", 100 * 576 * 4)
    monkeypatch.setattr(attention, "gpu_attention", lambda *_: None)
    torch.set_float32_matmul_precision("high")
    try:
        assert_is_the_operator(high_similarity_pass_attention(q, k, v), q, k, v)
    finally:
        torch.set_float32_matmul_precision("highest")
