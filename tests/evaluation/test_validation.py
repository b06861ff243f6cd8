"""Which comparisons make sense, before anything is opened; `trt-hspan validate` runs them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from trt_hspan.errors import UsageError
from trt_hspan.evaluation.validation import ValidationRequest

A, B = Path("a.plan"), Path("b.ONNX")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"files": ()}, "ENGINE_OR_ONNX: nothing to compare"),
        ({"reference": "net.onnx", "files": (), "device": "gpu"}, "ENGINE_OR_ONNX: nothing to compare"),
        ({"reference": "net.ONNX", "precision": "fp16"}, "--precision: is for a checkpoint as the reference"),
        ({"reference": "net.onnx", "res_scale": 0.1}, "--res-scale: is for a checkpoint as the reference"),
        ({"min_psnr_db": float("nan")}, "--min-psnr"),
        *(({"budget_db": bad}, "--budget-db: got") for bad in (-0.1, float("nan"), float("inf"))),
        ({"files": (A, Path("c.pt"))}, "c.pt: is neither an engine nor an ONNX file"),
        ({"files": (B, A, B, A)}, "a.plan: was named twice"),
        ({"precision": "bf16", "report": Path("r")}, "--report: compares layers of ONNX files"),
        ({"report": Path(__file__)}, "is a file, expected a folder"),
        ({"device": "tpu"}, "--device: got 'tpu'"),
    ],
)
def test_comparisons_that_make_no_sense_are_wrong_usage(options: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError, match=re.escape(line)):
        ValidationRequest(**{"reference": "hspan-tiny-x2", "files": (A,), **options})


@pytest.mark.parametrize(
    ("options", "precision"),
    [
        ({}, None),
        ({"files": (A, B), "budget_db": 0.0, "report": Path("r")}, None),
        ({"precision": "bf16"}, "bf16"),
        ({"files": (), "precision": "bf16"}, "bf16"),
        ({"files": (), "device": "gpu:1"}, "fp32"),
        ({"files": (), "device": "gpu", "precision": "fp16"}, "fp16"),
        ({"device": "gpu"}, None),
        ({"reference": "net.onnx", "device": "gpu"}, None),
    ],
)
def test_a_checkpoint_is_compared_itself_where_a_precision_or_a_gpu_alone_is_named(
    options: dict[str, Any], precision: str | None
) -> None:
    request = ValidationRequest(**{"reference": "hspan-tiny-x2", "files": (A,), **options})
    assert request.compared_precision == precision
    assert request.is_onnx_reference is request.reference.endswith(".onnx")
