"""Instructions counted by running the compiled kernels on the CPU."""

from __future__ import annotations

import numpy as np
import pytest

from tools.kernel_report.counts import KINDS, AttentionInput, count_instructions, issue_floors, lifted
from tools.kernel_report.interpreter import missing_for_interpreter

MISSING = missing_for_interpreter()


@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
def test_products_are_those_of_all_tiles_of_rows_and_keys() -> None:
    generator = np.random.default_rng(0)
    query, key, value = (
        generator.normal(size=(channels, 12, 12)).astype(np.float32) for channels in (16, 16, 32)
    )
    attention = AttentionInput(block=3, query=query, key=key, value=value)
    counts = {each.kernel.split("<")[0]: each for each in count_instructions(attention, "fp16")}
    # 144 rows, padded to 256, are eight blocks of two times 16 rows; 144 keys are three tiles of 64, of which a product
    # takes eight. A list's product has 16 channels and 16 entries.
    maxima, lists, outputs = (
        counts[f"{name}Kernel"].kinds["tensor"] for name in ("blockMaxima", "collect", "finish")
    )
    assert maxima == 8 * 2 * 3 * 8
    assert 0 < lists <= 9 * 3 * 8
    assert 0 < outputs <= 144 * 9 * 2
    assert counts["lowerBoundKernel"].kinds["tensor"] == 0
    for each in counts.values():
        assert each.block == 3
        assert set(each.kinds) == set(KINDS)
        assert sum(each.kinds.values()) == each.instructions
    total = sum(each.instructions for each in counts.values())
    floor = next(each for each in issue_floors(list(counts.values())) if each.gpu.startswith("A100"))
    assert floor.issue_ms == pytest.approx(total / (108 * 4) / 1.41e6)
    assert floor.tensor_ms == pytest.approx((maxima + lists + outputs) * 4096 / 312e9)


def test_published_channels_leave_scores_and_lengths_of_values_as_they_are() -> None:
    generator = np.random.default_rng(0)
    query, key, value = (
        generator.normal(size=(channels, 3, 5)).astype(np.float32) for channels in (16, 16, 32)
    )
    wide = lifted(AttentionInput(block=1, query=query, key=key, value=value))
    assert (wide.block, wide.query.shape, wide.key.shape, wide.value.shape) == (
        1,
        (96, 3, 5),
        (96, 3, 5),
        (192, 3, 5),
    )
    # Rounding to FP32 once: 2^-24 of every channel, some 5 of a vector's length.
    np.testing.assert_allclose(
        np.tensordot(wide.query, wide.key, (0, 0)), np.tensordot(query, key, (0, 0)), rtol=0, atol=1e-4
    )
    np.testing.assert_allclose(np.linalg.norm(wide.value, axis=0), np.linalg.norm(value, axis=0), rtol=1e-6)
