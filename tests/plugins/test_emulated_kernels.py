"""The CUDA kernels on emulated hardware: the C++ tests, the golden vectors, random problems.

What each mistake in the kernels runs into; every one was made, seen to fail there, and taken back:

=====================================================  ==============================================================
mistake                                                test that fails
=====================================================  ==============================================================
keys past the end are not masked                       attention_*: most sizes; threshold
rows of a tile take their neighbour's threshold        attention_*: most sizes; threshold
last slice of score channels dropped                   attention_*: "more score channels than any network has ..."
batches beyond the grid left out                       attention_*: "more batches than the grid has places ..."
keys, or values, read past the end                     attention_*: segmentation fault at the guard page
no barrier before the stage is overwritten             attention_*: most sizes; threshold
no barrier after the stage is loaded                   attention_*: most sizes; threshold
no barrier after weights and values are loaded         attention_*: most sizes
warps skip a key group each for itself                 attention_*: "barrier divergence"
lanes' sums reduced over half the warp                 attention_*: most sizes; threshold
support counted one too large                          attention_*: most sizes; threshold
iteration starts at max instead of max - 1             attention_*: most sizes; threshold
iteration stops after one step                         attention_*: sparse rows; threshold
a row settles on its support from any distance         threshold: "a support that shrinks by a hair ..."
downward steps forbidden                               threshold: "... made shrink by a hair grows again"
a settled row goes on                                  threshold: "a dense row settles after three Newton passes"
step not limited to max - 1/n                          threshold: "a step never ends above max - 1/n"
threshold kept in one float                            threshold: "weights of a million scores ..."; attention_*
F summed in one float                                  threshold: "weights of a million scores ..."
running output sums never flushed                      threshold: "the mean of many equal values is that value"
maximum skips NaN                                      attention_*: "a NaN in a key ..."
weights of 0 multiplied too                            attention_*: "a NaN in a value reaches ..."
low part of a sum added to infinity                    attention_*: "values of weight 0 may be NaN or infinite ..."
=====================================================  ==============================================================
"""

from __future__ import annotations

import ctypes
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.golden import ATTENTION_CASES, GOLDEN

from trt_hspan.engine.plugin_toolchain import find_cmake

CTESTS = [
    "attention_forward",
    "attention_reverse",
    "attention_shuffled",
    "emulation",
    "emulation_ucontext",
    "threshold",
]
UNIT = 2.0**-24  # u, the rounding unit of FP32
DTYPES = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
ELEMENT_TYPES = {name: number for number, name in enumerate(DTYPES)}

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
        dtype: str, query: NDArray, key: NDArray, value: NDArray, *, order: int = 2, seed: int = 1
    ) -> NDArray:
        arrays = [np.ascontiguousarray(array.astype(DTYPES[dtype])) for array in (query, key, value)]
        output = np.empty_like(arrays[2])
        (batch, channels, positions), values = arrays[0].shape, arrays[2].shape[1]
        pointers = [array.ctypes.data for array in (*arrays, output)]
        status = emulated.hspanEmulatedAttention(
            *(ELEMENT_TYPES[dtype], 0, 0, 0, 86), batch, channels, values, positions, *pointers, order, seed
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
    """Half the distance of neighbouring numbers of the type; for FP32 it is inside the 96 u."""
    if dtype == "fp32":
        return np.zeros_like(values)
    info = ml_dtypes.finfo(DTYPES[dtype])
    exponent = np.floor(np.log2(np.maximum(np.abs(values), float(info.tiny))))
    return 2.0 ** (exponent - info.nmant - 1)


def ctest() -> str:
    return str(find_cmake().with_name("ctest"))


@pytest.mark.parametrize("name", CTESTS)
def test_cpp_tests_pass(name: str, emulation_folder: Path) -> None:
    command = [ctest(), "--output-on-failure", "--tests-regex", f"^{name}$", "--no-tests=error"]
    done = subprocess.run(command, cwd=emulation_folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_no_cpp_test_is_left_out(emulation_folder: Path) -> None:
    done = subprocess.run(
        [ctest(), "--show-only=json-v1"], cwd=emulation_folder, capture_output=True, text=True, check=True
    )
    assert sorted(test["name"] for test in json.loads(done.stdout)["tests"]) == sorted(CTESTS)


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
    actual = attention(dtype, *stored, order=order, seed=1).astype(np.float64)
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
