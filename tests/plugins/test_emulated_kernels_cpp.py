"""The C++ tests of the CUDA kernels on emulated hardware.

What each mistake in the plain kernels runs into; every one was made, seen to fail there, and taken back:

=====================================================  ==============================================================
mistake                                                test that fails
=====================================================  ==============================================================
keys past the end are not masked                       attention_*: most sizes; threshold
rows of a tile take their neighbor's threshold        attention_*: most sizes; threshold
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

import json
import subprocess
from pathlib import Path

import pytest
from support.cmake_folder import find_ctest, run_ctest

CTESTS = [
    "attention_forward",
    "attention_reverse",
    "attention_shuffled",
    "coarse_scores",
    "emulation",
    "emulation_ucontext",
    "exact_threshold",
    "large_strides",
    "threshold",
]


@pytest.mark.parametrize("name", CTESTS)
def test_cpp_tests_pass(name: str, emulation_folder: Path) -> None:
    run_ctest(emulation_folder, name)


def test_no_cpp_test_is_left_out(emulation_folder: Path) -> None:
    completed = subprocess.run(
        [find_ctest(), "--show-only=json-v1"],
        cwd=emulation_folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert sorted(test["name"] for test in json.loads(completed.stdout)["tests"]) == CTESTS
