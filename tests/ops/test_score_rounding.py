"""Errors against float64 of the same float32 inputs, where the rounding of float32 scores would exceed 1e-5.

The tests of test_native_attention.py choose scores that float32 holds exactly; here they are what comes: large, far
from zero, cancelling. Both the native kernel and the form in torch alone are held to 1e-5 of the largest value.

The tests were checked by breaking the kernel on purpose; each mistake made some of them fail:

- no row is refined, or only rows on lists, or only dense ones;
- the bound of the candidates is not lowered by what rounding may have taken from a score;
- only the keys that fit into the slab first are refined;
- what pads a query row to whole vectors is not a number;
- a score of -inf is computed again;
- the greatest of the shifted scores is not moved to 0.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from support.reference import attention_reference
from torch import Tensor

from trt_hspan.native.cpu_attention import NativeLibrary, NativeOptions, Route
from trt_hspan.ops.attention import native_attention, reference_attention

BOUND = 1e-5

LENGTHS = (1, 2, 15, 16, 17, 63, 64, 65, 127, 129, 577, 1025)
SCORE_CHANNELS = (1, 3, 16, 24, 96, 128)
VALUE_CHANNELS = (1, 5, 24, 64, 192)
ROUTES: tuple[Route, ...] = ("automatic", "gather", "dense")

# Name -> (level, range) of scores that lie together, far from zero; dense rows where the range is below 1.
TOGETHER = {
    "dense at 1e4": (1e4, 0.01),
    "mid at 1e4": (1e4, 1.0),
    "dense at -1e4": (-1e4, 0.3),
    "sparse at 1e4": (1e4, 30.0),
    "dense at 1e6": (1e6, 0.01),
    "dense at 3": (3.0, 0.3),
}
REGIMES = ("sparse", "dense", "flat", "ties", "dominant", "1e4", "negative", "zeros", *TOGETHER)


def tensors(regime: str, n: int, c: int, d: int, positions: int) -> tuple[Tensor, Tensor, Tensor]:
    """query, key (n, c, 1, positions) and value (n, d, 1, positions)."""
    generator = torch.Generator().manual_seed(1000 * positions + c)
    q, k = (torch.randn(n, c, 1, positions, generator=generator) for _ in range(2))
    v = torch.randn(n, d, 1, positions, generator=generator)
    if regime in TOGETHER:
        level, width = TOGETHER[regime]
        channel = (abs(level) / c) ** 0.5  # queries and keys are about this in every channel
        k = channel + k * (width / (8 * c**0.5 * channel))
        spread = 1 + 1e-3 * torch.randn(n, 1, 1, positions, generator=generator)
        return spread.expand_as(k) * channel * float(np.sign(level)), k, v
    if regime == "dense":
        q *= 0.01 / (8 * c**0.5)
    elif regime == "flat":
        q, k = torch.full_like(q, 1.7), torch.full_like(k, 0.3)
    elif regime == "ties":
        k = k[..., torch.randint(0, positions // 8 + 1, (positions,), generator=generator)]
    elif regime == "dominant":
        k[..., positions // 2] = 30 * k[..., :1].squeeze(-1)
        q = q / 8 + k[..., :1]
    elif regime == "1e4":
        q *= 1e4 / float(torch.einsum("ncxq,ncxk->nqk", q, k).abs().max())
    elif regime == "negative":
        q, k = q.abs(), -k.abs()
    elif regime == "zeros":
        q *= 0
    return q, k, v


def assert_close(
    output: Tensor, expected: np.ndarray, value: Tensor, what: object, bound: float = BOUND
) -> None:
    error = float(np.abs(output.double().numpy() - expected).max() / value.double().abs().max())
    assert error <= bound, (error, what)


@pytest.mark.parametrize("regime", REGIMES)
def test_float32_is_within_1e_5_at_every_size(library: NativeLibrary, regime: str) -> None:
    # One after the other; lists and dense rows of every instruction set come many times.
    options = itertools.cycle(
        NativeOptions(instruction_set=name, route=route)
        for name, route in itertools.product(library.instruction_sets, ROUTES)
    )
    for positions in LENGTHS:
        channels = SCORE_CHANNELS if positions < 500 else SCORE_CHANNELS[positions % 5 :: 4]
        for index, c in enumerate(channels):
            n = 1 + (index + positions) % 3 if positions < 500 else 1
            q, k, v = tensors(regime, n, c, VALUE_CHANNELS[(index + positions) % 5], positions)
            expected = attention_reference(q, k, v)
            for option in itertools.islice(options, 2):
                assert_close(native_attention(library, q, k, v, option), expected, v, (positions, c, option))
            assert_close(reference_attention(q, k, v), expected, v, (positions, c, "torch"))


@pytest.mark.parametrize("regime", ["sparse", "1e4", "mid at 1e4", "dense at -1e4"])
def test_result_does_not_depend_on_tiles_threads_or_route(library: NativeLibrary, regime: str) -> None:
    q, k, v = tensors(regime, 1, 24, 37, 577)
    for name in library.instruction_sets:
        gathered = native_attention(
            library, q, k, v, NativeOptions(instruction_set=name, route="gather", tile_rows=6)
        )
        for rows, threads in ((1, 1), (7, 2), (577, 3)):
            options = NativeOptions(instruction_set=name, route="gather", tile_rows=rows, threads=threads)
            assert torch.equal(native_attention(library, q, k, v, options), gathered)
        for rows, limit in ((6, 1), (18, 4), (48, 60)):
            options = NativeOptions(instruction_set=name, tile_rows=rows, gather_limit=limit, threads=2)
            output = native_attention(library, q, k, v, options)
            assert (output - gathered).abs().max() <= 2e-6 * v.abs().max()


@pytest.mark.parametrize("c", [1, 5, 96])
def test_a_row_is_the_same_whatever_its_neighbors(library: NativeLibrary, c: int) -> None:
    # The first row's scores are too small to be refined, the others' are large.
    q, k, v = tensors("sparse", 1, c, 8, 130)
    q[..., 1:] *= 1000
    q[..., 0] *= 1e-3
    small = q * 1e-3
    small[..., 0] = q[..., 0]
    for name, route in itertools.product(library.instruction_sets, ROUTES):
        options = NativeOptions(instruction_set=name, route=route)
        among_large, among_small = (native_attention(library, x, k, v, options) for x in (q, small))
        assert torch.equal(among_large[..., 0], among_small[..., 0])


@pytest.mark.parametrize("level", [1e8, 1e20, 1e30, 3e38, -1e8, -3e38])
def test_huge_scores_that_tie_share_their_weight(library: NativeLibrary, level: float) -> None:
    k = torch.full((1, 1, 1, 300), level)
    k[..., ::3] -= abs(level) / 4
    v = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 5, 1, 300), np.float32))
    expected = v[..., torch.arange(300) % 3 != 0].double().mean(-1, keepdim=True).expand_as(v).numpy()
    one = torch.ones_like(k)
    for name, route in itertools.product(library.instruction_sets, ROUTES):
        output = native_attention(library, one, k, v, NativeOptions(instruction_set=name, route=route))
        assert_close(output, expected, v, (name, route))
    assert_close(reference_attention(one, k, v), expected, v, "torch")


@pytest.mark.parametrize("scale", [1e6, 1e12, 1e18])
def test_huge_scores_that_differ_choose_the_greatest(library: NativeLibrary, scale: float) -> None:
    q, k, v = tensors("sparse", 1, 16, 5, 300)
    q, k = q * scale, k * scale
    expected = attention_reference(q, k, v)
    for name, route in itertools.product(library.instruction_sets, ROUTES):
        output = native_attention(library, q, k, v, NativeOptions(instruction_set=name, route=route))
        assert_close(output, expected, v, (name, route))
    assert_close(reference_attention(q, k, v), expected, v, "torch")


@pytest.mark.parametrize("c", [1, 3])
def test_minus_infinity_beside_large_scores_weighs_nothing(library: NativeLibrary, c: int) -> None:
    q, k, v = tensors("dense at 1e4", 1, c, 5, 200)
    k[..., ::2] = -torch.inf
    with_scores = torch.arange(200) % 2 == 1
    expected = attention_reference(q[..., with_scores], k[..., with_scores], v[..., with_scores])
    for name, route in itertools.product(library.instruction_sets, ROUTES):
        output = native_attention(library, q, k, v, NativeOptions(instruction_set=name, route=route))
        assert_close(output[..., with_scores], expected, v, (name, route))
    assert_close(reference_attention(q, k, v)[..., with_scores], expected, v, "torch")


def test_an_infinite_key_does_not_hide_large_scores(library: NativeLibrary) -> None:
    # Scores of 1e-3 and less need no care; a key of -inf must not make them seem large, nor large ones seem small.
    q, k, v = tensors("sparse", 1, 16, 5, 100)
    q, k = q.abs(), k.abs()
    k[:, :, 0, 7] = -torch.inf
    others = torch.arange(100) != 7
    for factor in (1e-4, 1.0, 1e3):
        expected = attention_reference(q[..., others] * factor, k[..., others], v[..., others])
        for name, route in itertools.product(library.instruction_sets, ROUTES):
            options = NativeOptions(instruction_set=name, route=route)
            output = native_attention(library, q * factor, k, v, options)
            assert_close(output[..., others], expected, v, (factor, name, route))
        assert_close(reference_attention(q * factor, k, v)[..., others], expected, v, (factor, "torch"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("regime", ["1e4", "mid at 1e4", "dense at -1e4", "negative"])
def test_low_precision_rounds_only_the_output(
    library: NativeLibrary, dtype: torch.dtype, regime: str
) -> None:
    q, k, v = (tensor.to(dtype) for tensor in tensors(regime, 1, 96, 24, 129))
    expected = attention_reference(q.float(), k.float(), v.float())
    half_unit = np.abs(expected) * torch.finfo(dtype).eps / 2
    # What scores may still lose is a 32nd of the output's rounding, of the largest value.
    bound = half_unit * 1.01 + torch.finfo(dtype).eps / 32 * float(v.abs().max())
    for name, route in itertools.product(library.instruction_sets, ROUTES):
        output = native_attention(library, q, k, v, NativeOptions(instruction_set=name, route=route))
        assert np.all(np.abs(output.double().numpy() - expected) <= bound), (name, route)


def test_gradient_at_large_scores_is_that_of_float64(library: NativeLibrary) -> None:
    q, k, v = tensors("mid at 1e4", 1, 16, 5, 129)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        inputs = [tensor.to(dtype).clone().requires_grad_() for tensor in (q, k, v)]
        torch.ops.hspan.high_similarity_pass_attention(*inputs).square().sum().backward()
        gradients.append([tensor.grad.double() for tensor in inputs if tensor.grad is not None])
    # The query's gradient is a sum of keys that all but cancel, as keys lie together here: not a matter of scores.
    for single, double in zip(gradients[0][1:], gradients[1][1:], strict=True):
        torch.testing.assert_close(single, double, rtol=0, atol=BOUND * float(double.abs().max()))
