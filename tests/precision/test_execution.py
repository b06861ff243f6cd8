"""Variants run the same with the native attention and with the function body that the file carries."""

from __future__ import annotations

import numpy as np
import pytest

from trt_hspan.native import cpu_attention
from trt_hspan.precision.quantize.pipeline import Quantized
from trt_hspan.runtime.onnxruntime_session import cpu_network


def test_native_attention_and_function_body_give_the_same(
    int8: Quantized, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cpu_attention.native_library() is not None
    batch = np.random.default_rng(0).random((1, 3, 20, 24), dtype=np.float32)
    native = cpu_network(int8.model, "network").run(batch)
    monkeypatch.setattr(cpu_attention, "native_library", lambda: None)
    body = cpu_network(int8.model, "network").run(batch)
    # Sums in another order may move a value to the next step of FP16 or INT8; pictures hold 0..1.
    assert np.median(np.abs(native - body)) < 2.0**-11
    assert np.abs(native - body).max() < 2.0**-6
