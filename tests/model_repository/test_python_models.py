"""The raw model in Python, without Triton: requests of too few items for an engine's batch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.runner_doubles import NearestRunner

from trt_hspan.model_repository import python_models
from trt_hspan.model_repository.python_models import RunnerModel
from trt_hspan.serving.limits import ServingLimits
from trt_hspan.upscaling.scheduler import Model


@pytest.mark.parametrize(("kind", "device"), [("GPU", "gpu:1"), ("CPU", "cpu")])
def test_an_instance_runs_on_the_gpu_that_triton_gave_it(
    kind: str, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: dict[str, object] = {}

    def opening(source: object, **options: object) -> NearestRunner:
        opened.update(options)
        return NearestRunner(scale=2)

    monkeypatch.setitem(
        sys.modules,
        "triton_python_backend_utils",
        SimpleNamespace(Logger=SimpleNamespace(log_info=lambda _: None)),
    )
    monkeypatch.setattr(python_models, "open_runner", opening)
    monkeypatch.setattr(python_models, "keep_freed_memory", lambda: None)
    values = {"source": {"string_value": "x"}}
    model = RunnerModel()
    model.initialize(
        {
            "model_name": "net",
            "model_repository": str(tmp_path),
            "model_version": "1",
            "model_config": json.dumps({"parameters": values}),
            "model_instance_kind": kind,
            "model_instance_device_id": "1",
        }
    )
    model.finalize()
    assert opened["device"] == device


def request_of(batch: np.ndarray) -> Any:
    return SimpleNamespace(is_cancelled=lambda: False, batch=batch)


def test_fewer_items_than_the_engine_takes_are_filled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunnerModel, "_tensor", lambda _self, _name, array: array)
    runner = NearestRunner(scale=2)
    runner.profiles = (((3, 3, 4, 4), (4, 3, 8, 8)),)
    model = RunnerModel()
    model._name, model._limits = "net", ServingLimits()
    model._model = Model([lambda: runner], name="net")
    model._pb = SimpleNamespace(
        get_input_tensor_by_name=lambda request, _name: request.batch,
        InferenceResponse=lambda tensors=(), error=None: error or tensors[0],
        TritonError=type(
            "TritonError",
            (),
            {"INVALID_ARG": 3, "__init__": lambda self, text, _: setattr(self, "text", text)},
        ),
    )
    one, two, small = (
        np.random.default_rng(n).random((n, 3, side, 6), np.float32) for n, side in ((1, 5), (2, 7), (1, 2))
    )
    model._model.open()
    *actual, refused = model.execute([request_of(batch) for batch in (one, two, small)])
    model.finalize()
    for batch, result in zip((one, two), actual, strict=True):
        np.testing.assert_array_equal(result, batch.repeat(2, 2).repeat(2, 3))
    assert [shape[0] for shape in runner.calls] == [3, 3, 3]  # the first when it was opened
    assert "is 1x3x2x6, but net takes 3x3x4x4 to 4x3x8x8" in refused.text
