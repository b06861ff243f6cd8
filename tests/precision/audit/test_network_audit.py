"""A whole network's audit, and what of it stays in float32 when it is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from support.small_networks import attention_network, write_attention_network

from trt_hspan.engine.range_record import RangeAudit
from trt_hspan.errors import HspanError, UsageError
from trt_hspan.evaluation.datasets import Sample
from trt_hspan.graph import (
    Variants,
    base_precision_from_model,
    load_onnx,
    metadata_from_model,
    opset_of,
    variants_from_model,
    with_metadata,
)
from trt_hspan.graph.precision import float32_nodes
from trt_hspan.precision.audit import network_audit
from trt_hspan.precision.audit.network_audit import (
    audit_network,
    audit_variants,
    audited_model,
    export_audited,
)
from trt_hspan.precision.audit.range_request import RangeRequest
from trt_hspan.sizes import ImageSize
from trt_hspan.upscaling.tile_size import SizeRange

Progress = list[tuple[str, float, float]]


def loud() -> onnx.ModelProto:
    """Its second convolution's results leave FP16: that one and the one that reads them are the cure."""
    model = attention_network(opset=18)
    weight = model.graph.initializer[1]
    values = numpy_helper.to_array(weight) * np.float32(1e5)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    return model


@pytest.fixture
def request_(photographs: Path) -> RangeRequest:
    return RangeRequest(pictures=photographs, limit=2)


def variants(model: onnx.ModelProto | None = None) -> Variants:
    return variants_from_model(model or attention_network(opset=18), "net")


@pytest.mark.parametrize(
    ("stored", "requested", "audited"),
    [("fp32", None, "fp16"), ("fp32", "bf16", "bf16"), ("bf16", None, "bf16"), ("fp16", "fp16", "fp16")],
)
def test_a_file_is_audited_in_its_type_or_the_requested_one(
    tmp_path: Path, request_: RangeRequest, stored: Any, requested: str | None, audited: str
) -> None:
    path = write_attention_network(tmp_path / "net.onnx", precision=stored)
    shown: Progress = []
    audit = audit_network(
        path, request_, precision=requested, on_progress=lambda *moment: shown.append(moment)
    )
    assert (audit.precision, audit.pictures, audit.tile) == (audited, 2, 64)
    assert [node.node for node in audit.nodes][:4] == ["conv0", "attention0", "conv1", "conv2"]
    assert shown == [
        (f"reading {path}", 0, 0),
        ("auditing", 0, 2),
        ("audited 0.png", 1, 2),
        ("audited 1.png", 2, 2),
    ]


def test_a_file_of_another_type_is_wrong_usage(tmp_path: Path, request_: RangeRequest) -> None:
    path = write_attention_network(tmp_path / "net.onnx", precision="fp16")
    with pytest.raises(UsageError, match=r"--precision: bf16, but \S*net\.onnx computes in fp16"):
        audit_network(path, request_, precision="bf16")


def test_a_request_is_checked_before_the_network_is_read(tmp_path: Path, request_: RangeRequest) -> None:
    gone = tmp_path / "gone.onnx"
    shown: Progress = []
    for options, line in (
        ({"precision": "fp32"}, "--precision: 'fp32' has no range to audit; choose fp16, bf16"),
        ({"tile": 15}, "--tile: got 15, expected at least 16 pixels"),
    ):
        with pytest.raises(UsageError, match=line):
            audit_network(gone, request_, on_progress=lambda *moment: shown.append(moment), **options)  # type: ignore[arg-type]
    with pytest.raises(HspanError, match="none: no such"):
        audit_network(gone, RangeRequest(pictures=tmp_path / "none"))
    assert not shown
    with pytest.raises(HspanError, match=r"gone\.onnx: no such file"):
        audit_network(gone, request_, tile=16)


@pytest.mark.parametrize(("scale", "asked"), [(3, 3), (None, 1)])
def test_pictures_are_those_for_the_networks_scale(
    request_: RangeRequest, monkeypatch: pytest.MonkeyPatch, scale: int | None, asked: int
) -> None:
    scales: list[int] = []
    found = RangeRequest.samples

    def samples(self: RangeRequest, scale: int) -> list[Sample]:
        scales.append(scale)
        return found(self, scale)

    monkeypatch.setattr(RangeRequest, "samples", samples)
    model = attention_network()
    metadata = replace(metadata_from_model(model), scale=scale)
    audit_variants(variants(with_metadata(model, metadata)), request_)
    kept_within = replace(request_, keep_fp32=("budget:1",))
    monkeypatch.setattr(network_audit, "kept_within_budget", lambda *_, **__: ())
    audited_model(variants(with_metadata(model, metadata)), kept_within, "fp16")
    assert scales == [asked] * 3


def test_nothing_is_kept_that_was_not_asked_for(request_: RangeRequest) -> None:
    model, audit = audited_model(variants(), RangeRequest(keep_fp32=("conv*", "conv1")), "fp16", opset=20)
    assert audit is None
    assert float32_nodes(model) == ("conv0", "conv1", "conv2")
    assert opset_of(model) == 20
    model, audit = audited_model(variants(loud()), request_, "bf16", opset=22)
    assert audit is not None
    assert (float32_nodes(model), audit.kept_fp32, audit.precision) == ((), (), "bf16")
    assert opset_of(model) == 22


def test_all_at_risk_are_kept_beside_those_that_are_named(request_: RangeRequest) -> None:
    wanted = replace(request_, keep_fp32=("conv2", "conv0", "at-risk"))
    model, audit = audited_model(variants(loud()), wanted, "fp16")
    assert audit is not None
    assert audit.cure == ("conv1", "conv2")
    assert audit.kept_fp32 == ("conv0", "conv2", "conv1")
    assert float32_nodes(model) == ("conv0", "conv1", "conv2")


def test_a_budget_is_asked_of_the_network_with_the_named_nodes_kept(
    request_: RangeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept_within_budget(
        variant: Callable[[tuple[str, ...]], onnx.ModelProto],
        reference: onnx.ModelProto,
        audit: RangeAudit,
        samples: list[Sample],
        budget_db: float,
        *,
        sizes: SizeRange,
        where: str,
    ) -> tuple[str, ...]:
        assert float32_nodes(variant(("conv1",))) == ("conv0", "conv1")
        assert opset_of(variant(())) == 20
        assert base_precision_from_model(reference) == "fp32"
        assert (audit.precision, len(samples), budget_db, where) == ("fp16", 2, 0.5, "net")
        assert sizes == SizeRange(low=ImageSize(1, 1), high=(None, None))
        return ("conv0", "conv2")

    monkeypatch.setattr(network_audit, "kept_within_budget", kept_within_budget)
    wanted = replace(request_, keep_fp32=("conv0", "budget:0.5"))
    model, audit = audited_model(variants(), wanted, "fp16", opset=20)
    assert audit is not None
    assert audit.kept_fp32 == ("conv0", "conv2")
    assert float32_nodes(model) == ("conv0", "conv2")


def test_an_audited_export_writes_the_file_in_its_form(
    tmp_path: Path, request_: RangeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trt_hspan.export import to_onnx

    asked: list[tuple[object, ...]] = []

    def variants_from_checkpoint(checkpoint: object, *, res_scale: float, static: object) -> Variants:
        asked.append((checkpoint, res_scale, static))
        return variants(loud())

    monkeypatch.setattr(to_onnx, "variants_from_checkpoint", variants_from_checkpoint)
    target = tmp_path / "net.onnx"
    wanted = replace(request_, keep_fp32=("at-risk",))
    shown: Progress = []
    audit = export_audited(
        "net.pt",
        target,
        wanted,
        precision="fp16",
        res_scale=0.2,
        opset=20,
        static=(32, 40),
        form="node",
        on_progress=lambda *moment: shown.append(moment),
    )
    assert asked == [("net.pt", 0.2, (32, 40))]
    assert shown[0] == ("auditing", 0, 2)
    assert audit is not None
    written = load_onnx(target)
    assert float32_nodes(written) == audit.kept_fp32 == ("conv1", "conv2")
    assert (opset_of(written), len(written.functions)) == (20, 0)
    assert export_audited("net.pt", target, RangeRequest(), precision="bf16") is None
    assert len(load_onnx(target).functions) == 1
    for name, options, line in (
        ("net.plan", {}, r"net\.plan: an ONNX file's name ends in \.onnx"),
        ("other.onnx", {"opset": 17}, "--opset: 17 has no fp16"),
    ):
        with pytest.raises(UsageError, match=line):
            export_audited("net.pt", tmp_path / name, wanted, precision="fp16", **options)  # type: ignore[arg-type]
    assert len(asked) == 2
