"""Requests that make sense and that do not, before anything is opened."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.graph import OnnxMetadata
from trt_hspan.graph.contract import with_metadata
from trt_hspan.precision.audit.network_audit import nodes_from_patterns
from trt_hspan.precision.audit.range_request import RangeRequest
from trt_hspan.precision.crops import TilePlan
from trt_hspan.precision.network import input_sizes
from trt_hspan.precision.quantize.request import QuantizationRequest
from trt_hspan.sizes import ImageSize
from trt_hspan.upscaling.tile_size import SizeRange


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"keep_fp32": ("at-risk",)}, "--keep-fp32: at-risk needs an audit; add --audit DIR"),
        ({"keep_fp32": ("budget:1",)}, "--keep-fp32: budget:1 needs an audit; add --audit DIR"),
        ({"pictures": "builtin", "keep_fp32": ("at-risk", "budget:1")}, "at-risk and budget:1 contradict each other"),
        ({"pictures": "builtin", "keep_fp32": ("budget:1", "budget:2")}, "budget:1 and budget:2 contradict"),
        *(
            ({"pictures": "builtin", "keep_fp32": (f"budget:{text}",)}, f"got 'budget:{text}', expected a positive")
            for text in ("", "x", "0", "-1", "nan", "inf")
        ),
    ],
)  # fmt: skip
def test_an_audit_that_makes_no_sense_is_wrong_usage(options: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError, match=re.escape(line)):
        RangeRequest(**options)


def test_names_and_the_budget_are_told_apart() -> None:
    request = RangeRequest(pictures="builtin", keep_fp32=("a/*", "budget:0.5", "b"))
    assert (request.names, request.budget_db) == (("a/*", "b"), 0.5)
    request = RangeRequest(pictures="builtin", keep_fp32=("at-risk", "a", "at-risk"))
    assert (request.names, request.budget_db) == (("a",), None)
    assert RangeRequest(keep_fp32=("a",)).names == ("a",)


def test_a_float32_network_has_nothing_to_audit() -> None:
    RangeRequest().require_low("fp32")
    audit, keep = RangeRequest(pictures="builtin"), RangeRequest(keep_fp32=("a",))
    for request, option in ((audit, "--audit"), (keep, "--keep-fp32")):
        for precision in ("fp16", "bf16", None):
            request.require_low(precision)
        with pytest.raises(UsageError, match=rf"{option}: a float32 network has no range"):
            request.require_low("fp32")


def test_pictures_are_the_first_so_many_of_their_place(tmp_path: Path, photographs: Path) -> None:
    assert RangeRequest().samples(2) == []
    assert len(RangeRequest(pictures=photographs).samples(2)) > 2
    assert len(RangeRequest(pictures=photographs, limit=2).samples(2)) == 2
    assert len(RangeRequest(pictures="builtin").samples(2)) >= 1
    RangeRequest().check_pictures()
    RangeRequest(pictures="builtin").check_pictures()
    RangeRequest(pictures=photographs).check_pictures()
    with pytest.raises(HspanError):
        RangeRequest(pictures=tmp_path / "none").check_pictures()


TABLE = Path("table.txt")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"precision": "int4", "calibration": "x"}, "--precision: got 'int4'"),
        ({"calibration": "x", "rounding": "up"}, "--rounding: got 'up'"),
        ({"calibration": "x", "method": "best"}, "--method"),
        ({}, "--calibration: is missing: int8 ranges are measured on pictures"),
        ({"table": TABLE, "method": "mse"}, "--method: is part of the table"),
        ({"table": TABLE, "rounding": "nearest"}, "--rounding: is part of the table"),
        ({"precision": "fp8", "calibration": "x", "rounding": "adaptive"}, "adaptive is for int8 weights"),
        *(
            ({"calibration": "x", "budget_db": bad}, "expected a positive number of dB")
            for bad in (0.0, -1.0, float("nan"), float("inf"))
        ),
        ({"table": TABLE, "budget_db": 0.1}, "--budget-db: needs pictures to measure on"),
    ],
)
def test_a_quantization_that_makes_no_sense_is_wrong_usage(options: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError, match=re.escape(line)):
        QuantizationRequest(**{"precision": "int8", **options})


@pytest.mark.parametrize(
    "options",
    [
        {"calibration": "x"},
        {"table": TABLE},
        {"table": TABLE, "calibration": "x"},
        {"table": TABLE, "budget_db": 0.1, "held_out": "y"},
        {"calibration": "x", "budget_db": 0.1},
        {"calibration": "x", "method": "mse", "rounding": "adaptive"},
        {"precision": "fp8", "calibration": "x", "rounding": "nearest"},
    ],
)
def test_a_quantization_of_measured_ranges_makes_sense(options: dict[str, Any]) -> None:
    QuantizationRequest(**{"precision": "int8", **options})


def test_a_request_leaves_everything_to_the_defaults() -> None:
    request = QuantizationRequest(precision="fp8", calibration="builtin")
    assert (request.tiles, request.use_cache) == (TilePlan(count=32, side=48), True)
    assert (request.method, request.rounding, request.budget_db, request.held_out) == (None, None, None, None)
    assert (request.include, request.exclude, request.table) == ((), (), None)


def with_input(*sides: int | str, **metadata: int) -> onnx.ModelProto:
    value = helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["N", 3, *sides])
    output = helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, ["N", 3, "h", "w"])
    nodes = [
        helper.make_node("Relu", ["input"], [name], name=name) for name in ("head/a", "body/b", "body/c")
    ]
    model = helper.make_model(helper.make_graph(nodes, "net", [value], [output]))
    return with_metadata(model, OnnxMetadata(**metadata))


@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        (with_input("H", "W"), SizeRange(low=ImageSize(1, 1), high=(None, None))),
        (with_input(24, 32, size_multiple=5), SizeRange(low=ImageSize(24, 32), high=(24, 32))),
        (
            with_input("H", "W", size_multiple=4, min_size=10),
            SizeRange(low=ImageSize(12, 12), high=(None, None), step=4),
        ),
        (
            with_input(24, "W", size_multiple=4, min_size=8),
            SizeRange(low=ImageSize(24, 8), high=(24, None), step=4),
        ),
    ],
)
def test_pictures_that_a_network_takes_are_those_of_its_input(
    model: onnx.ModelProto, sizes: SizeRange
) -> None:
    assert input_sizes(model) == sizes


def test_patterns_name_nodes_in_the_order_of_the_graph() -> None:
    model = with_input("H", "W")
    assert nodes_from_patterns(model, ()) == ()
    assert nodes_from_patterns(model, ("body/c", "*/a", "body/*")) == ("head/a", "body/b", "body/c")
    assert nodes_from_patterns(model, ("body/?",)) == ("body/b", "body/c")
    with pytest.raises(UsageError, match="no node is called 'tail'; they are named like 'body/b'"):
        nodes_from_patterns(model, ("head/a", "tail"))
