"""The PyTorch operator against golden vectors and the float64 reference."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.reference import attention_reference
from torch import Tensor

from trt_hspan.ops import attention, high_similarity_pass_attention

# Sizes around a warp, odd ones, not square, more than one chunk of rows.
SIZES = [(1, 1), (1, 31), (4, 8), (3, 11), (7, 9), (1, 65), (24, 43)]


def random_tensors(seed: int, n: int, c: int, d: int, h: int, w: int, scale: float) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(n, c, h, w, generator=generator) * scale for _ in range(2))
    return q, k, torch.randn(n, d, h, w, generator=generator)


def error_bound(query: Tensor, value: Tensor) -> float:
    """First-order float32 bound: scores carry C products of rounding u, and weights sum to 1.

    |dscore| <= C u max|q| max|k|, weights move by at most twice that in sum over the support, and the
    product with V adds L u max|v|. A margin of 8 covers the thresholds' own sums.
    """
    u = float(np.finfo(np.float32).eps)
    c, tokens = query.shape[1], query.shape[2] * query.shape[3]
    largest = float(query.abs().max()) ** 2
    return 8 * u * float(value.abs().max()) * (c * max(largest, 1.0) * min(tokens, 64) + 1) + 1e-7


def test_agrees_with_the_official_network(golden_attention: dict[str, np.ndarray]) -> None:
    out = high_similarity_pass_attention(*(torch.from_numpy(golden_attention[name]) for name in "qkv"))
    expected = golden_attention["output"]
    assert np.abs(out.numpy() - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("scale", [0.01, 0.5, 3.0], ids=["dense", "mixed", "sparse"])
def test_agrees_with_the_reference(height: int, width: int, scale: float) -> None:
    q, k, v = random_tensors(height * 100 + width, 2, 5, 3, height, width, scale)
    out = high_similarity_pass_attention(q, k, v)
    assert np.abs(out.numpy() - attention_reference(q, k, v)).max() <= error_bound(torch.maximum(q, k), v)


def test_result_does_not_depend_on_the_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = random_tensors(3, 1, 4, 3, 9, 13, 1.0)
    whole = high_similarity_pass_attention(*tensors)
    monkeypatch.setattr(attention, "_CHUNK_BYTES", 7 * 117 * 4)
    chunked = high_similarity_pass_attention(*tensors)
    torch.testing.assert_close(chunked, whole, rtol=1e-6, atol=1e-6)


def test_without_the_compiled_library_autocast_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "native_library", lambda: None)
    tensors = random_tensors(4, 1, 4, 3, 5, 6, 1.0)
    expected = high_similarity_pass_attention(*tensors)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(high_similarity_pass_attention(*tensors), expected)


@settings(max_examples=60, deadline=None)
@given(
    row=st.lists(st.integers(-3, 3), min_size=1, max_size=40),
    step=st.sampled_from([1e-3, 0.25, 1.0, 100.0]),
)
def test_tied_scores_share_their_weight(row: list[int], step: float) -> None:
    # One query channel of ones: the scores of every row are the keys themselves.
    k = torch.tensor(row, dtype=torch.float32).mul(step).view(1, 1, 1, -1)
    v = torch.eye(len(row)).view(1, len(row), 1, -1)
    out = high_similarity_pass_attention(torch.ones_like(k), k, v)
    expected = attention_reference(torch.ones_like(k), k, v)
    # Threshold sums of up to 40 terms below 1: 40 roundings of float32, and as many in the sum over V.
    np.testing.assert_allclose(out.numpy(), expected, atol=80 * np.finfo(np.float32).eps)
    weights = out[0, :, 0, 0]
    for score in set(row):
        tied = weights[torch.tensor(row) == score]
        assert float(tied.max() - tied.min()) <= 1e-7


@pytest.mark.parametrize("tokens", [1, 33, 4096])
def test_row_of_equal_scores_gives_the_mean_of_the_values(tokens: int) -> None:
    q = torch.zeros(1, 4, 1, tokens)
    v = torch.randn(1, 3, 1, tokens, generator=torch.Generator().manual_seed(0))
    out = high_similarity_pass_attention(q, q, v)
    torch.testing.assert_close(out, v.mean(-1, keepdim=True).expand_as(v), rtol=1e-5, atol=1e-6)


def test_row_with_one_dominant_score_becomes_one_hot() -> None:
    k = torch.zeros(1, 1, 1, 33)
    k[..., 17] = 1e4
    v = torch.arange(33.0).view(1, 1, 1, 33)
    out = high_similarity_pass_attention(torch.ones_like(k), k, v)
    assert out.unique().tolist() == [17.0]


def test_nan_in_one_query_spoils_that_row_alone() -> None:
    q, k, v = random_tensors(1, 1, 4, 3, 5, 7, 1.0)
    q[0, 2, 3, 4] = float("nan")
    out = high_similarity_pass_attention(q, k, v)
    broken = out.isnan().all(dim=1)[0]
    assert broken[3, 4]
    assert int(broken.sum()) == 1
    assert int(out.isnan().sum()) == 3


def test_nan_in_one_key_spoils_every_row_of_its_picture() -> None:
    q, k, v = random_tensors(1, 2, 4, 3, 5, 7, 1.0)
    k[1, 0, 0, 0] = float("nan")
    out = high_similarity_pass_attention(q, k, v)
    assert not out[0].isnan().any()
    assert out[1].isnan().all()


def test_score_of_minus_infinity_weighs_nothing() -> None:
    k = torch.tensor([0.5, -float("inf"), 0.25]).view(1, 1, 1, 3)
    v = torch.tensor([1.0, 100.0, 3.0]).view(1, 1, 1, 3)
    out = high_similarity_pass_attention(torch.ones_like(k), k, v)
    torch.testing.assert_close(out, torch.full_like(out, 0.625 * 1 + 0.375 * 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_rounds_only_inputs_and_output(dtype: torch.dtype) -> None:
    low = [tensor.to(dtype) for tensor in random_tensors(5, 1, 8, 6, 6, 7, 1.0)]
    out = high_similarity_pass_attention(*low)
    exact = attention_reference(*(tensor.float() for tensor in low))
    assert out.dtype == dtype
    # One rounding of the result, on top of float32 arithmetic.
    assert np.all(np.abs(out.float().numpy() - exact) <= torch.finfo(dtype).eps * np.abs(exact) + 1e-5)


@pytest.mark.parametrize("scale", [0.05, 1.0], ids=["dense", "sparse"])
def test_gradient_is_exact(scale: float) -> None:
    tensors = [t.double().requires_grad_() for t in random_tensors(2, 2, 3, 2, 3, 4, scale)]
    assert torch.autograd.gradcheck(high_similarity_pass_attention, tensors, eps=1e-7, atol=1e-5)


def test_is_a_well_behaved_torch_operator() -> None:
    tensors = [t.requires_grad_() for t in random_tensors(4, 2, 3, 5, 4, 6, 1.0)]
    torch.library.opcheck(torch.ops.hspan.high_similarity_pass_attention.default, tuple(tensors))


def test_torch_export_sees_one_node() -> None:
    class Attention(torch.nn.Module):
        def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return high_similarity_pass_attention(query, key, value)

    program = torch.export.export(Attention(), random_tensors(4, 2, 3, 5, 4, 6, 1.0))
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert calls == ["hspan.high_similarity_pass_attention.default"]


IMAGE = (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("query", "key", "value", "line"),
    [
        (IMAGE, (1, 3, 3, 4), IMAGE, "query and key must have one shape"),
        (IMAGE, IMAGE, (1, 2, 4, 3), "value must share N, H and W with query and key"),
        (IMAGE, IMAGE, (1, 2, 3, 5), "value must share N, H and W"),
        (IMAGE, IMAGE, (2, 2, 3, 4), "value must share N, H and W"),
        ((2, 3), IMAGE, IMAGE, r"expected three \(N, channels, H, W\) tensors"),
        (IMAGE, (2, 3), IMAGE, r"expected three \(N, channels, H, W\) tensors"),
        (IMAGE, IMAGE, (2, 3), r"expected three \(N, channels, H, W\) tensors"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], line: str
) -> None:
    with pytest.raises(ValueError, match=line):
        high_similarity_pass_attention(torch.zeros(query), torch.zeros(key), torch.zeros(value))


def test_mixed_dtypes_and_integers_are_refused() -> None:
    image = torch.zeros(IMAGE)
    for mixed in ((image, image.half(), image), (image, image, image.half()), [image.int()] * 3):
        with pytest.raises(ValueError, match="expected one floating dtype"):
            high_similarity_pass_attention(*mixed)


@pytest.mark.parametrize(
    ("positions", "epsilon", "rounds"),
    [
        (9216, 2.0**-23, 33),
        (0, 2.0**-24, 13),
        (1, 2.0**-24, 13),
        (1, 0.99 * 2.0**-24, 14),
        (4, 2.0**-24, 16),
        (4, 2.0**-52, 30),
    ],
)
def test_rounds_are_the_binary_logarithms_of_the_derivation(
    positions: int, epsilon: float, rounds: int
) -> None:
    """log4(4 L^3 / epsilon), rounded up."""
    assert attention.most_newton_rounds(positions, epsilon) == rounds


class Device(SimpleNamespace):
    """What the operator asks of tensors on a device that is not here."""

    def tensor(self, *shape: int, bytes_each: int = 4) -> Any:
        return SimpleNamespace(device=self, shape=shape, element_size=lambda: bytes_each)


def test_rows_are_chunked_for_the_caches_of_a_cpu_and_for_all_of_a_gpu() -> None:
    cpu, gpu = Device(type="cpu"), Device(type="cuda")
    # 2 MiB and 128 MiB of scores at a time.
    assert attention._chunk_rows(cpu.tensor(1, 2**10, 96)) == 2**21 // (4 * 2**10)
    assert attention._chunk_rows(cpu.tensor(1, 2**10, 96, bytes_each=8)) == 2**21 // (8 * 2**10)
    assert attention._chunk_rows(gpu.tensor(1, 2**10, 96)) == 2**27 // (4 * 2**10)
    assert attention._chunk_rows(cpu.tensor(1, 2**20, 96)) == 1


def test_a_gpu_is_looked_at_every_eighth_round_and_never_while_it_records(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entered: list[object] = []
    recording = [False]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: recording[0])
    monkeypatch.setattr(
        torch.cuda, "device", lambda device: (entered.append(device), contextlib.nullcontext())[1]
    )
    cpu, gpu = Device(type="cpu"), Device(type="cuda")
    looks = [attention._rounds_between_looks(device.tensor(1)) for device in (cpu, gpu)]
    recording[0] = True
    looks += [attention._rounds_between_looks(device.tensor(1)) for device in (cpu, gpu)]
    assert looks == [1, 8, 1, None]
    assert entered == [gpu, gpu]


def test_scores_are_refined_in_float64_where_the_device_has_it() -> None:
    wide = [attention._wide_type(Device(type=kind).tensor(1)) for kind in ("cpu", "cuda", "mps")]
    assert wide == [torch.float64, torch.float64, torch.float32]


def test_rows_are_refined_where_sums_over_the_channels_may_be_off_by_16_units() -> None:
    """sqrt(4) |q| |k| above 16, where |k| is the largest of the finite keys, 1/2."""
    query = torch.tensor([15.0, 16.0, 16.01, 17.0, 0.0])[:, None] * torch.eye(4)[0]
    key = torch.tensor([0.25, 0.5, torch.inf, torch.nan])[:, None] * torch.ones(4) / 2
    assert attention._is_refined(query, key, torch.float64).tolist() == [False, False, True, True, False]
    assert not attention._is_refined(query.double(), key.double(), torch.float64).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gradients_of_several_pictures_in_chunks_are_those_of_autograd(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against sparsemax written in operations that PyTorch differentiates itself."""
    monkeypatch.setattr(attention, "_CHUNK_BYTES", 5 * 20 * 4)
    inputs = [t.to(dtype) for t in random_tensors(6, 2, 3, 4, 4, 5, 0.3)]
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    weight = torch.linspace(-1, 1, 2 * 4 * 20).reshape(2, 4, 4, 5).to(dtype)
    (high_similarity_pass_attention(*leaves) * weight).sum().backward()
    exact = [tensor.double().requires_grad_() for tensor in inputs]
    q, k, v = (tensor.flatten(2).transpose(1, 2) for tensor in exact)
    scores = q @ k.transpose(1, 2)
    ordered = scores.sort(-1, descending=True).values
    counts = torch.arange(1, 21, dtype=torch.float64)
    support = (1 + counts * ordered > ordered.cumsum(-1)).sum(-1, keepdim=True)
    tau = (ordered.cumsum(-1).gather(-1, support - 1) - 1) / support
    output = ((scores - tau).clamp_min(0) @ v).transpose(1, 2).reshape(2, 4, 4, 5)
    (output * weight.double()).sum().backward()
    for leaf, reference in zip(leaves, exact, strict=True):
        assert leaf.grad is not None
        assert reference.grad is not None
        assert leaf.grad.dtype == dtype
        # Sums of 20 products in float32; bfloat16 rounds the result once more.
        tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2.0**-8}[dtype]
        largest = float(reference.grad.abs().max())
        torch.testing.assert_close(
            leaf.grad.double(), reference.grad, rtol=tolerance, atol=tolerance * largest
        )
