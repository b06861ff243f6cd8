"""The CUDA kernels on emulated hardware: the golden vectors, random problems.

The tiled kernels are broken on purpose by these tests themselves, in the ways of MUTATIONS: a copy of the source is
changed, compiled together with tests/cpp/mutation_probe.cpp, and must fail there.

1. the tail of the keys, a tile that is not full, is dropped
2. a list forgets ties: of equal neighbors only the first is appended
3. the query fragments are loaded from the wrong rows
4. the barrier between the arrival of a tile and its use is missing (the schedule is hostile: lanes and warps run ahead)
5. the support is counted one too large

Mistakes with refined scores, each made, seen to fail and taken back: the lesser part of a sum dropped, lists not
computed again, the dense route's output from plain scores. All of them run into
test_fp32_is_within_a_relative_error_of_1e_5.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.golden import ATTENTION_CASES, GOLDEN

UNIT = 2.0**-24  # u, the rounding unit of FP32
DTYPES = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
ELEMENT_TYPES = {name: number for number, name in enumerate(DTYPES)}

CONFIGS = {"automatic": 0, "plain": 1, "two looks": 2}

KERNELS = Path(__file__).resolve().parents[2] / "plugins" / "kernels"
CPP_TESTS = Path(__file__).resolve().parents[1] / "cpp"

#: What is broken, in which file, what stands there (once), what is put there.
MUTATIONS = {
    "the tail of the keys is dropped": (
        "sparsemax_attention.cpp",
        "plan.tiles = static_cast<int32_t>(tiles);",
        "plan.tiles = static_cast<int32_t>(positions / 64);",
    ),
    "a list forgets ties": (
        "collect.cuh",
        "simt::appendIfGreater(target, scores[k], firstKey + k, bound);",
        "simt::appendIfGreater(target, scores[k], firstKey + k, k % 2 == 1 && scores[k] == scores[k - 1] ? 9 : bound);",
    ),
    "query fragments come from the wrong rows": (
        "tensor_tile.cuh",
        "return &rows[lane % 16][column + lane / 16 * 8];",
        "return &rows[(lane + 8) % 16][column + lane / 16 * 8];",
    ),
    "the barrier before a tile is used is missing": (
        "collect.cuh",
        "simt::syncBlock(); // the buffer is complete, and the other one's readers are done",
        "",
    ),
    "the support is counted one too large": (
        "list_threshold.cuh",
        "floorQuotientByFloats(sum - kONE, set.above)",
        "floorQuotientByFloats(sum - kONE, set.above + 1)",
    ),
}

#: What is left out of the copies, since compiling it takes longest: variants for more channels than the probe has.
UNPROBED_VARIANTS = {
    "        : steps <= 4  ? visit(Constant<4>{})\n        : steps <= 6  ? visit(Constant<6>{})\n"
    "                      : visit(Constant<8>{});": "        : visit(Constant<2>{});",
    "        : steps <= 2  ? visit(Constant<2>{})\n": "",
    "    return channels <= 32 ? launch(Constant<2>{})\n        : channels <= 64  ? launch(Constant<4>{})\n"
    "        : channels <= 128 ? launch(Constant<8>{})\n        : channels <= 192 ? launch(Constant<12>{})\n"
    "                          : launch(Constant<16>{});": "    return launch(Constant<2>{});",
}

Attention = Callable[..., NDArray[np.generic]]


@pytest.fixture(scope="session")
def emulated(emulation_folder: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(emulation_folder / "tests" / "cpp" / "libhspan_emulated.so"))
    library.hspanEmulatedAttention.argtypes = [
        *[ctypes.c_int32] * 5,
        *[ctypes.c_int64] * 4,
        *[ctypes.c_void_p] * 4,
        ctypes.c_int32,
        ctypes.c_uint64,
    ]
    library.hspanEmulatedError.restype = ctypes.c_char_p
    library.hspanEmulatedFromFloat.argtypes = [ctypes.c_int32, ctypes.c_float]
    library.hspanEmulatedFromFloat.restype = ctypes.c_uint16
    library.hspanEmulatedToFloat.argtypes = [ctypes.c_int32, ctypes.c_uint16]
    library.hspanEmulatedToFloat.restype = ctypes.c_float
    return library


@pytest.fixture(scope="session")
def attention(emulated: ctypes.CDLL) -> Attention:
    """attention(dtype name, query (N, C, L), key (N, C, L), value (N, D, L)) -> (N, D, L), by the CUDA kernels."""

    def run(
        dtype: str,
        query: NDArray,
        key: NDArray,
        value: NDArray,
        *,
        config: int = 0,
        capacity: int = 0,
        order: int = 2,
        seed: int = 1,
        multiprocessors: int = 4,
    ) -> NDArray:
        arrays = [np.ascontiguousarray(array.astype(DTYPES[dtype])) for array in (query, key, value)]
        output = np.empty_like(arrays[2])
        (batch, channels, positions), values = arrays[0].shape, arrays[2].shape[1]
        pointers = [array.ctypes.data for array in (*arrays, output)]
        emulated.hspanEmulatedMultiprocessors(multiprocessors)
        status = emulated.hspanEmulatedAttention(
            *(ELEMENT_TYPES[dtype], 0, config, capacity, 86),
            batch,
            channels,
            values,
            positions,
            *pointers,
            order,
            seed,
        )
        assert status == 0, emulated.hspanEmulatedError().decode()
        return output

    return run


def sparsemax_reference(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of weights by sorting (Martins and Astudillo 2016, algorithm 1), relative to the greatest score."""
    shifted = scores - scores.max(axis=-1, keepdims=True)
    descending = -np.sort(-shifted, axis=-1)
    sums = np.cumsum(descending, axis=-1)
    counts = np.arange(1, scores.shape[-1] + 1)
    support = (1 + counts * descending > sums).sum(axis=-1, keepdims=True)
    threshold = (np.take_along_axis(sums, support - 1, axis=-1) - 1) / support
    return np.maximum(shifted - threshold, 0)


def attention_reference(
    query: NDArray, key: NDArray, value: NDArray
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The output by its definition, in float64, and how far from it the kernels' FP32 sums may be.

    96 u max|v| is the kernels' contract given the scores. A score may be off by delta = 2 C u max sum|q_c k_c| (twice
    the bound of a chain of C multiply-adds); the threshold then moves by delta, each weight by at most 2 delta, and
    only weights of scores above threshold - 2 delta move.
    """
    q, k, v = (array.astype(np.float64) for array in (query, key, value))
    scores = np.einsum("nci,ncj->nij", q, k)
    products = np.einsum("nci,ncj->nij", np.abs(q), np.abs(k)).max(axis=-1, keepdims=True)
    delta = 2 * q.shape[1] * UNIT * products
    weights = sparsemax_reference(scores)
    threshold = np.where(weights > 0, scores - weights, -np.inf).max(axis=-1, keepdims=True)
    near = scores > threshold - 2 * delta - 1e-5
    moving = np.einsum("nij,ndj->ndi", near * delta, np.abs(v))
    largest = np.where(near[:, None], np.abs(v)[:, :, None], 0).max(axis=-1)
    return np.einsum("nij,ndj->ndi", weights, v), 96 * UNIT * largest + 2 * moving


def rounding(dtype: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Half the distance of neighboring numbers of the type; for FP32 it is inside the 96 u."""
    if dtype == "fp32":
        return np.zeros_like(values)
    info = ml_dtypes.finfo(DTYPES[dtype])
    exponent = np.floor(np.log2(np.maximum(np.abs(values), float(info.tiny))))
    return 2.0 ** (exponent - info.nmant - 1)


@pytest.mark.parametrize("name", ATTENTION_CASES)
def test_golden_vectors_of_the_official_code_are_met(name: str, attention: Attention) -> None:
    with np.load(GOLDEN / f"{name}.npz") as golden:
        query, key, value, expected = (golden[part] for part in ("q", "k", "v", "output"))
    flat = [array.reshape(*array.shape[:2], -1) for array in (query, key, value)]
    actual = attention("fp32", *flat).reshape(expected.shape)
    # The golden outputs are themselves FP32 results of another order of operations.
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    reference, tolerance = attention_reference(*flat)
    assert (np.abs(actual.reshape(reference.shape) - reference) <= tolerance).all()


@pytest.mark.parametrize("dtype", list(DTYPES))
@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_problems_agree_with_float64(dtype: str, attention: Attention, data: st.DataObject) -> None:
    batch = data.draw(st.integers(1, 4), label="N")
    channels = data.draw(st.integers(1, 70), label="C")
    values = data.draw(st.integers(1, 110), label="D")
    positions = data.draw(st.integers(1, 150), label="L")
    spread = data.draw(st.sampled_from([0.0, 1e-3, 0.1, 1.0, 10.0, 100.0]), label="spread of the scores")
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32), label="seed"))
    scale = channels**-0.25
    arrays = [
        generator.normal(size=(batch, channels, positions)) * scale,
        generator.normal(size=(batch, channels, positions)) * scale * spread,
        generator.normal(size=(batch, values, positions)),
    ]
    stored = [array.astype(DTYPES[dtype]) for array in arrays]
    expected, tolerance = attention_reference(*stored)
    order = data.draw(st.integers(0, 2), label="lane order")
    config = data.draw(st.sampled_from(list(CONFIGS.values())), label="configuration")
    multiprocessors = data.draw(st.sampled_from([1, 4, 24, 132]), label="multiprocessors")
    capacity = data.draw(st.sampled_from([0, 1, 16, 64, 80]), label="capacity of the lists")
    actual = attention(
        dtype, *stored, config=config, capacity=capacity, order=order, multiprocessors=multiprocessors
    ).astype(np.float64)
    allowed = tolerance + rounding(dtype, np.maximum(np.abs(expected), np.abs(actual)))
    assert (np.abs(actual - expected) <= allowed).all()


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    positions=st.integers(2, 100),
    distinct=st.integers(1, 5),
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from(list(DTYPES)),
)
def test_tied_keys_get_the_same_weight(
    attention: Attention, positions: int, distinct: int, seed: int, dtype: str
) -> None:
    generator = np.random.default_rng(seed)
    kinds = generator.normal(size=(1, 3, distinct))
    which = generator.integers(0, distinct, positions)
    key = kinds[:, :, which]
    value = np.eye(positions)[None]  # the output is the matrix of weights
    weights = attention(dtype, key, key, value).astype(np.float64)[0]
    for kind in range(distinct):
        tied = weights[which == kind]
        assert (tied == tied[:1]).all()


def test_the_schedule_does_not_change_a_bit(attention: Attention) -> None:
    generator = np.random.default_rng(5)
    arrays = [generator.normal(size=(1, channels, 140)) for channels in (9, 9, 33)]
    results = [
        attention("fp32", *arrays, order=order, seed=seed) for order, seed in ((0, 1), (1, 1), (2, 3), (2, 4))
    ]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize(("dtype", "element_type"), [("fp16", 1), ("bf16", 2)])
def test_emulated_conversions_agree_with_numpy(dtype: str, element_type: int, emulated: ctypes.CDLL) -> None:
    generator = np.random.default_rng(6)
    bits = generator.integers(0, 2**32, 20000, dtype=np.uint32)
    # Exponents around the type's range, where subnormal numbers and overflow are.
    bits[10000:] = (bits[10000:] & 0x807FFFFF) | (generator.integers(95, 150, 10000, dtype=np.uint32) << 23)
    floats = bits.view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = floats.astype(DTYPES[dtype])
    converted = [emulated.hspanEmulatedFromFloat(element_type, ctypes.c_float(number)) for number in floats]
    actual = np.array(converted, dtype=np.uint16).view(DTYPES[dtype])
    np.testing.assert_array_equal(actual.astype(np.float32), expected.astype(np.float32))
    back = [emulated.hspanEmulatedToFloat(element_type, number) for number in range(2**16)]
    everything = np.arange(2**16, dtype=np.uint16).view(DTYPES[dtype]).astype(np.float32)
    np.testing.assert_array_equal(np.array(back, dtype=np.float32), everything)


@pytest.mark.parametrize("regime", ["sparse", "dense", "flat", "large", "scores of 1e4"])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_errors_are_at_most_twice_those_of_torch_in_the_same_dtype(
    dtype: str, regime: str, attention: Attention
) -> None:
    generator = np.random.default_rng(7)
    scale = {"sparse": 2.0, "dense": 0.003, "flat": 0.0, "large": 30.0, "scores of 1e4": 1e4}[regime]
    shapes = [(1, 96, 200), (1, 96, 200), (1, 24, 200)]
    arrays = [generator.normal(size=shape).astype(np.float32) for shape in shapes]
    arrays[0] *= 96**-0.25
    arrays[1] *= 96**-0.25 * scale
    torch_dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    query, key, value = (torch.from_numpy(array).to(torch_dtype) for array in arrays)
    weights = sparsemax_reference((query.mT @ key).double().numpy())
    reference = (value @ torch.from_numpy(weights).to(torch_dtype).mT).double().numpy()
    expected, _ = attention_reference(*(tensor.double().numpy() for tensor in (query, key, value)))
    stored = [tensor.double().numpy() for tensor in (query, key, value)]
    allowed = 2 * np.abs(reference - expected).max()
    for config, capacity in [(1, 0), (2, 0), (2, 20), (2, 150)]:
        actual = attention(dtype, *stored, config=config, capacity=capacity).astype(np.float64)
        assert np.abs(actual - expected).max() <= allowed, (config, capacity)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_routes_differ_by_at_most_one_rounding(dtype: str, attention: Attention) -> None:
    """Both routes lie within their bounds of the same exact result, far closer than numbers of the type lie together:
    so they round to the same number or to neighbors."""
    generator = np.random.default_rng(8)
    arrays = [generator.normal(size=(1, channels, 190)) * 0.25 for channels in (16, 16, 40)]
    by_list = attention(dtype, *arrays, config=2).astype(np.float64)
    by_stream = attention(dtype, *arrays, config=2, capacity=1).astype(np.float64)
    largest = np.abs(arrays[2].astype(DTYPES[dtype]).astype(np.float64)).max()
    spacing = 2 * rounding(dtype, np.maximum(np.abs(by_list), np.abs(by_stream)))
    difference = np.abs(by_list - by_stream)
    assert (difference <= spacing + 2 * 2.0**-17 * largest).all()
    assert (difference == 0).mean() > 0.9


def fp32_problem(regime: str, batch: int, channels: int, values: int, positions: int) -> list[NDArray]:
    """Query, key and value of order 1, so that scores are, and what the regime makes of them."""
    generator = np.random.default_rng([9, batch, channels, values, positions])
    widths = (channels, channels, values)
    query, key, value = (generator.normal(size=(batch, width, positions)) for width in widths)
    query *= channels**-0.25
    key *= channels**-0.25
    match regime:
        case "sparse":
            query *= 10
        case "dense":
            key *= 0.002
        case "flat":
            key[:] = 0.37
        case "zero":
            key[:] = 0
        case "ties":
            query, key = np.round(2 * query), np.round(key)
        case "one key above all":
            query, key[:, :, positions // 2] = np.abs(query) + 0.5, 40
        case "negative only":
            query, key = np.abs(query) + 0.1, -np.abs(key) - 0.1
        case "scores of 1e4":
            query, key = 100 * query, 100 * key
        case "dense at 1e4" | "dense at -1e4":
            key *= 0.003
            query[:, 0] = 100
            key[:, 0] = (100 if regime == "dense at 1e4" else -100) + (key[:, 0] if channels == 1 else 0)
        case "within 1 at 1e4":
            query = 100 * channels**-0.5 * (1 + 0.01 * query)
            key = 100 * channels**-0.5 * (1 + 3e-5 * key)
    return [array.astype(np.float32) for array in (query, key, value)]


FP32_REGIMES = ["sparse", "mid", "dense", "flat", "zero", "ties", "one key above all", "negative only"]
FP32_REGIMES += ["scores of 1e4", "dense at 1e4", "dense at -1e4", "within 1 at 1e4"]


@pytest.mark.parametrize("regime", FP32_REGIMES)
def test_fp32_is_within_a_relative_error_of_1e_5(regime: str, attention: Attention) -> None:
    """Against exact scores of any size; by every configuration, on lists and on lists that are too short."""
    channels, values = [1, 3, 16, 24, 96, 128], [1, 5, 24, 64, 192]
    turn = FP32_REGIMES.index(regime)
    for i, positions in enumerate([1, 2, 15, 16, 17, 63, 64, 65, 127, 129]):
        sizes = (1 + i % 3, channels[(turn + i) % 6], values[(turn + i) % 5], positions)
        arrays = fp32_problem(regime, *sizes)
        expected, _ = attention_reference(*arrays)
        for config, capacity in [(1, 0), (2, 0), (2, 16), (2, 40)][turn % 2 :: 2]:
            actual = attention("fp32", *arrays, config=config, capacity=capacity, order=(turn + i) % 3)
            error = np.abs(actual - expected).max() / np.abs(expected).max()
            assert error <= 1e-5, (sizes, config, capacity)


@pytest.mark.parametrize("positions", [577, 1025])
def test_long_fp32_rows_are_within_a_relative_error_of_1e_5(positions: int, attention: Attention) -> None:
    """The latter is one more than a list holds."""
    for turn, regime in enumerate(["scores of 1e4", "dense at 1e4", "negative only"]):
        arrays = fp32_problem(regime, 1, [3, 16, 24][turn], [5, 1, 24][turn], positions)
        expected, _ = attention_reference(*arrays)
        for config in [2, 1] if positions == 577 else [2]:
            actual = attention("fp32", *arrays, config=config, order=turn)
            assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max(), (regime, config)


def test_refined_scores_do_not_depend_on_the_route_or_the_tile(attention: Attention) -> None:
    """Weights of lists and of the dense route are the same bits, so a one-hot value gives the same bits: nothing is
    added up. That holds for rows of every size of scores, side by side in one tile."""
    generator = np.random.default_rng(10)
    query, key = (generator.normal(size=(1, 24, 90)).astype(np.float32) for _ in range(2))
    query *= np.logspace(-4, 4, 90).astype(np.float32)
    value = np.eye(90, dtype=np.float32)[None]
    expected, tolerance = attention_reference(query, key, value)
    results = [
        attention("fp32", query, key, value, config=config, capacity=capacity, order=order)
        for config, capacity, order in [(2, 0, 0), (2, 0, 1), (2, 1, 2), (2, 30, 0)]
    ]
    for result in results:
        np.testing.assert_array_equal(result, results[0])
    assert (np.abs(results[0] - expected) <= np.minimum(tolerance, 1e-6)).all()


@pytest.mark.parametrize("regime", ["dense", "dense at 1e4", "dense at -1e4"])
def test_a_support_of_one_more_than_a_list_holds_gets_the_same_weights(
    regime: str, attention: Attention
) -> None:
    query, key, _ = fp32_problem(regime, 1, 24, 1, 64)
    value = np.eye(64, dtype=np.float32)[None]
    expected, _ = attention_reference(query, key, value)
    assert (expected > 0).all()  # every key is in every support
    fits = attention("fp32", query, key, value, config=2, capacity=64)
    overflows = attention("fp32", query, key, value, config=2, capacity=63)
    np.testing.assert_array_equal(fits, overflows)
    assert (np.abs(fits - expected) <= 1e-5 * expected).all()


@pytest.fixture(scope="session")
def probe(emulation_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], str]:
    """probe(folder of kernels) compiles tests/cpp/mutation_probe.cpp with them, runs it and returns what it prints."""

    def run(kernels: Path) -> str:
        executable = tmp_path_factory.mktemp("probe") / "probe"
        libraries = emulation_folder / "tests" / "cpp"
        command = [os.environ.get("CXX", "c++"), "-std=c++17", "-O1", "-ffp-contract=off", "-march=native"]
        command += [f"-I{folder}" for folder in (CPP_TESTS / "emulation", kernels, CPP_TESTS)]
        command += [str(CPP_TESTS / "mutation_probe.cpp"), "-o", str(executable)]
        command += [f"-L{libraries}", "-lhspan_emulated", f"-Wl,-rpath,{libraries}"]
        compiled = subprocess.run(command, capture_output=True, text=True, check=False)
        assert compiled.returncode == 0, compiled.stderr
        completed = subprocess.run([executable], capture_output=True, text=True, check=False, timeout=120)
        return completed.stdout if completed.returncode >= 0 else f"FAILED: signal {-completed.returncode}"

    return run


def copied_kernels(folder: Path, changes: Mapping[tuple[str, str], str]) -> Path:
    """A copy of the kernels in which a text of a file, which stands there once, is another."""
    shutil.copytree(KERNELS, folder)
    variants = {("two_looks.cuh", right): wrong for right, wrong in UNPROBED_VARIANTS.items()}
    for (name, right), wrong in {**variants, **changes}.items():
        source = (folder / name).read_text()
        assert source.count(right) == 1, "the kernels have changed; change this as well"
        (folder / name).write_text(source.replace(right, wrong))
    return folder


def test_the_probe_passes_with_the_kernels_as_they_are(probe: Callable[[Path], str], tmp_path: Path) -> None:
    assert probe(copied_kernels(tmp_path / "kernels", {})).strip().endswith(" 0 failed")


@pytest.mark.parametrize("mistake", list(MUTATIONS))
def test_mistakes_in_the_kernels_are_noticed(
    mistake: str, probe: Callable[[Path], str], tmp_path: Path
) -> None:
    name, right, wrong = MUTATIONS[mistake]
    assert "FAILED" in probe(copied_kernels(tmp_path / "kernels", {(name, right): wrong}))
