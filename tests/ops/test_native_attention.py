"""The native CPU kernel against float64, for every instruction set of this processor and every route.

Queries and keys lie on a grid on which float32 computes every score exactly, in any order. What remains is the error
that plugins/README.md bounds given the scores: 96 u max |v|, u = 2^-24, which is 5.7e-6.

The tests were checked by breaking the kernel on purpose; each mistake made some of them fail:

- the keys beyond the last one of a ragged panel are not masked;
- of several candidates in one vector, such as ties, only the first is kept;
- the lanes of the second half of a register tile are stored in the first half's place;
- the support counts one score too many in Newton's step;
- what follows a list in its last vector is not set to -inf;
- the last rows of a tile that is not full are left out;
- the threshold is held in one float;
- a weight of zero is multiplied with a value that is NaN;
- the maxima of a group are those of its last panel alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.reference import attention_reference
from torch import Tensor

from trt_hspan.native.cpu_attention import NativeLibrary, NativeOptions, Route
from trt_hspan.ops.attention import native_attention

U = 2.0**-24
BOUND = 96 * U

LENGTHS = (1, 2, 15, 16, 17, 63, 64, 65, 127, 129, 577, 1025)
SCORE_CHANNELS = (1, 3, 16, 24, 96, 128)
VALUE_CHANNELS = (1, 5, 24, 64, 192)
ROUTES: tuple[Route, ...] = ("automatic", "gather", "dense")

# Factors of the scores, powers of two: supports of a few positions, of dozens, nearly the whole row, all of it.
REGIMES = {"sparse": 2.0**-2, "mid": 2.0**-7, "dense": 2.0**-12, "flat": 0.0}


def grid_tensors(seed: int, n: int, c: int, d: int, positions: int, factor: float) -> tuple[Tensor, ...]:
    """query (n, c, 1, positions), key alike, value (n, d, 1, positions): all scores exact in float32."""
    generator = np.random.default_rng(seed)
    # |score| / factor is an integer of at most 16 * 16 * 128 = 2^15: far below the 2^24 that float32 counts to.
    query = generator.integers(-16, 17, (n, c, 1, positions)).astype(np.float32) * np.float32(factor)
    key = generator.integers(-16, 17, (n, c, 1, positions)).astype(np.float32)
    value = generator.standard_normal((n, d, 1, positions)).astype(np.float32)
    return torch.from_numpy(query), torch.from_numpy(key), torch.from_numpy(value)


def largest_error(output: Tensor, expected: NDArray[np.float64], value: Tensor) -> float:
    """Relative to the largest value."""
    return float(np.abs(output.double().numpy() - expected).max() / value.abs().max())


def variants(library: NativeLibrary) -> Iterator[NativeOptions]:
    for name, route in itertools.product(library.instruction_sets, ROUTES):
        yield NativeOptions(instruction_set=name, route=route)


@pytest.mark.parametrize("positions", LENGTHS)
@pytest.mark.parametrize("regime", REGIMES)
def test_agrees_with_float64_at_every_size(library: NativeLibrary, positions: int, regime: str) -> None:
    # Long rows with a few of the sizes, short rows with all of them.
    sizes = list(itertools.product(SCORE_CHANNELS, VALUE_CHANNELS))
    for index, (c, d) in enumerate(sizes if positions < 500 else sizes[positions % 4 :: 8]):
        n = 1 + index % 3 if positions < 500 else 1
        q, k, v = grid_tensors(positions + index, n, c, d, positions, REGIMES[regime])
        expected = attention_reference(q, k, v)
        for options in variants(library):
            output = native_attention(library, q, k, v, options)
            assert largest_error(output, expected, v) <= BOUND, (c, d, n, options)


@pytest.mark.parametrize("regime", REGIMES)
def test_result_does_not_depend_on_tiles_threads_or_limit(library: NativeLibrary, regime: str) -> None:
    tensors = grid_tensors(7, 2, 24, 37, 1025, REGIMES[regime])
    for name in library.instruction_sets:
        gathered = native_attention(
            library, *tensors, NativeOptions(instruction_set=name, route="gather", tile_rows=6)
        )
        for rows, threads in ((1, 1), (7, 2), (48, 3), (1025, 2)):
            options = NativeOptions(instruction_set=name, route="gather", tile_rows=rows, threads=threads)
            assert torch.equal(native_attention(library, *tensors, options), gathered)
        for rows, limit in ((6, 1), (18, 40), (48, 400), (1025, 1024)):
            mixed = NativeOptions(instruction_set=name, tile_rows=rows, gather_limit=limit, threads=2)
            output = native_attention(library, *tensors, mixed)
            assert (output - gathered).abs().max() <= 2 * BOUND * tensors[2].abs().max()


def test_two_runs_agree_bit_by_bit(library: NativeLibrary) -> None:
    tensors = grid_tensors(8, 1, 24, 33, 1025, REGIMES["mid"])
    options = NativeOptions(threads=3)
    first = native_attention(library, *tensors, options)
    assert all(torch.equal(native_attention(library, *tensors, options), first) for _ in range(5))


@pytest.mark.parametrize("over", [-1, 0, 1], ids=["below", "exactly full", "one beyond"])
@pytest.mark.parametrize("support", [31, 32, 33, 64, 100])
def test_row_that_fills_its_list_to_the_limit(library: NativeLibrary, support: int, over: int) -> None:
    # `support` equal keys, scattered, and all others a hundred below: exactly they are candidates.
    positions = 400
    order = np.random.default_rng(support).permutation(positions)[:support]
    k = torch.full((1, 1, 1, positions), -100.0)
    k[0, 0, 0, order] = 1.0
    v = torch.from_numpy(np.random.default_rng(1).standard_normal((1, 9, 1, positions), np.float32))
    q = torch.ones_like(k)
    expected = attention_reference(q, k, v)
    for name in library.instruction_sets:
        options = NativeOptions(instruction_set=name, gather_limit=support - over)
        assert largest_error(native_attention(library, q, k, v, options), expected, v) <= BOUND


@pytest.mark.parametrize("level", [1e4, -1e4, 0.0, -3.5])
def test_tied_rows_at_any_level(library: NativeLibrary, level: float) -> None:
    k = torch.full((1, 1, 3, 43), level)
    k[0, 0, 1, ::7] -= 0.125  # exact at 1e4 too
    v = torch.from_numpy(np.random.default_rng(2).standard_normal((1, 20, 3, 43), np.float32))
    expected = attention_reference(torch.ones_like(k), k, v)
    for options in variants(library):
        output = native_attention(library, torch.ones_like(k), k, v, options)
        assert largest_error(output, expected, v) <= BOUND


@pytest.mark.parametrize("positions", [1, 33, 4097])
def test_flat_rows_weigh_every_position_alike(library: NativeLibrary, positions: int) -> None:
    q = torch.zeros(1, 4, 1, positions)
    v = torch.from_numpy(np.random.default_rng(3).standard_normal((1, 5, 1, positions), np.float32))
    for options in variants(library):
        output = native_attention(library, q, q, v, options)
        mean = v.double().mean(-1, keepdim=True).expand_as(v)
        assert largest_error(output, mean.numpy(), v) <= BOUND


def test_small_weights_beside_a_large_threshold(library: NativeLibrary) -> None:
    # 1,000 scores a few millionths apart around 37: the threshold needs more digits than one float has.
    k = (37 + torch.arange(1000) * 2.0**-18).view(1, 1, 1, -1)
    v = torch.from_numpy(np.random.default_rng(4).standard_normal((1, 8, 1, 1000), np.float32))
    expected = attention_reference(torch.ones_like(k), k, v)
    for options in variants(library):
        output = native_attention(library, torch.ones_like(k), k, v, options)
        assert largest_error(output, expected, v) <= BOUND


def test_dominant_key_gives_its_value_exactly(library: NativeLibrary) -> None:
    k = torch.zeros(1, 1, 1, 133)
    k[..., 131] = 1e4
    v = torch.arange(133.0).view(1, 1, 1, 133)
    for options in variants(library):
        assert native_attention(library, torch.ones_like(k), k, v, options).unique().tolist() == [131.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_bad_query_spoils_its_own_row_alone(library: NativeLibrary, bad: float) -> None:
    q, k, v = grid_tensors(5, 1, 4, 21, 70, REGIMES["mid"])
    k.abs_().add_(1)  # no zero times infinity elsewhere
    good = native_attention(library, q, k, v)
    q[0, 2, 0, 33] = bad
    for options in variants(library):
        output = native_attention(library, q, k, v, options)
        assert output[0, :, 0, 33].isnan().all()
        others = torch.arange(70) != 33
        assert largest_error(output[..., others], good[..., others].double().numpy(), v) <= 2 * BOUND


def test_nan_in_a_key_spoils_every_row_of_its_image(library: NativeLibrary) -> None:
    q, k, v = grid_tensors(6, 2, 4, 5, 70, REGIMES["mid"])
    k[1, 0, 0, 69] = float("nan")
    for options in variants(library):
        output = native_attention(library, q, k, v, options)
        assert not output[0].isnan().any()
        assert output[1].isnan().all()


def test_scores_that_overflow_to_infinity_are_nan(library: NativeLibrary) -> None:
    q = torch.full((1, 1, 1, 20), 1e30)
    for options in variants(library):
        assert native_attention(library, q, q, torch.ones(1, 3, 1, 20), options).isnan().all()


def test_score_of_minus_infinity_weighs_nothing(library: NativeLibrary) -> None:
    k = torch.tensor([0.5, -float("inf"), 0.25]).view(1, 1, 1, 3)
    v = torch.tensor([1.0, 100.0, 3.0]).view(1, 1, 1, 3)
    for options in variants(library):
        output = native_attention(library, torch.ones_like(k), k, v, options)
        torch.testing.assert_close(output, torch.full_like(output, 0.625 * 1 + 0.375 * 3))
    nothing = torch.full_like(k, -float("inf"))
    assert native_attention(library, torch.ones_like(k), nothing, v).isnan().all()


def test_value_of_weight_zero_never_enters(library: NativeLibrary) -> None:
    k = torch.zeros(1, 1, 1, 64)
    k[..., :8] = -5
    v = torch.ones(1, 3, 1, 64)
    v[..., 0], v[..., 1] = float("nan"), float("inf")
    for options in variants(library):
        output = native_attention(library, torch.ones_like(k), k, v, options)
        torch.testing.assert_close(output, torch.ones_like(v))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("regime", REGIMES)
def test_low_precision_rounds_only_the_output(
    library: NativeLibrary, dtype: torch.dtype, regime: str
) -> None:
    q, k, v = (tensor.to(dtype) for tensor in grid_tensors(9, 2, 24, 37, 129, REGIMES[regime]))
    expected = attention_reference(q.float(), k.float(), v.float())
    # Half a unit in the last place of the result, on top of float32 arithmetic; 2^-25 among subnormal halves.
    rounding = np.abs(expected) * torch.finfo(dtype).eps / 2 + 2.0**-25
    for options in variants(library):
        output = native_attention(library, q, k, v, options)
        assert output.dtype == dtype
        error = np.abs(output.double().numpy() - expected)
        assert np.all(error <= rounding * (1 + BOUND) + 2 * BOUND * float(v.float().abs().max()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_low_precision_number_passes_unchanged(library: NativeLibrary, dtype: torch.dtype) -> None:
    # One position per image: the output is the value itself, widened and narrowed again.
    numbers = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    one = torch.zeros(1, 1, 1, 1, dtype=dtype)
    for name in library.instruction_sets:
        output = native_attention(
            library, one, one, numbers.view(1, -1, 1, 1), NativeOptions(instruction_set=name)
        )
        same = output.flatten() == numbers
        assert bool((same | output.flatten().isnan() & numbers.isnan()).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strides_of_any_layout(library: NativeLibrary, dtype: torch.dtype) -> None:
    plain = [
        tensor.view(2, -1, 6, 11).to(dtype) for tensor in grid_tensors(10, 2, 24, 40, 66, REGIMES["mid"])
    ]
    expected = native_attention(library, *plain)
    layouts = {
        "channels last": [t.to(memory_format=torch.channels_last) for t in plain],
        "every other column": [torch.stack([t, t * 0], -1).flatten(-2)[..., ::2] for t in plain],
        "columns before rows": [t.transpose(2, 3).contiguous().transpose(2, 3) for t in plain],
        "part of the channels": [torch.cat([t, t], 1)[:, t.shape[1] :] for t in plain],
    }
    for name, tensors in layouts.items():
        assert torch.equal(native_attention(library, *tensors), expected), name


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_small_problem(library: NativeLibrary, data: st.DataObject) -> None:
    positions = data.draw(st.integers(1, 80))
    c, d = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 40))
    factor = data.draw(st.sampled_from([0.0, 2.0**-14, 2.0**-8, 2.0**-5, 1.0, 32.0]))
    tensors = grid_tensors(data.draw(st.integers(0, 2**32 - 1)), 1, c, d, positions, factor)
    options = NativeOptions(
        instruction_set=data.draw(st.sampled_from(library.instruction_sets)),
        route=data.draw(st.sampled_from(ROUTES)),
        tile_rows=data.draw(st.integers(1, 90)),
        gather_limit=data.draw(st.integers(1, 90)),
        threads=data.draw(st.integers(1, 3)),
    )
    output = native_attention(library, *tensors, options)
    assert largest_error(output, attention_reference(*tensors), tensors[2]) <= BOUND


def test_memory_is_a_small_part_of_the_scores(library: NativeLibrary) -> None:
    options = NativeOptions(threads=2)
    needed = library.workspace_bytes((1, 96, 9216), value_channels=192, options=options)
    assert needed <= 0.02 * 4 * 9216**2
    assert library.workspace_bytes((1, 96, 36864), value_channels=192, options=options) <= 0.02 * 4 * 36864**2
