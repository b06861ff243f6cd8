"""Checkpoint to ONNX with its ranges looked at first. Owns which nodes stay in float32; export writes the file."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import onnx

from trt_hspan.engine.range_record import RangeAudit
from trt_hspan.errors import UsageError
from trt_hspan.evaluation.datasets import Sample
from trt_hspan.graph import Precision, Variants, save_onnx
from trt_hspan.graph.variants import opset_to_write
from trt_hspan.precision.audit.budgeted_ranges import kept_within_budget
from trt_hspan.precision.audit.range_request import AT_RISK, RangeRequest
from trt_hspan.precision.audit.ranges import audit_ranges


def export_audited(
    checkpoint: str | os.PathLike[str],
    output: str | os.PathLike[str],
    request: RangeRequest,
    *,
    precision: Precision,
    res_scale: float = 0.1,
    opset: int | None = None,
    static: tuple[int, int] | None = None,
    on_picture: Callable[[Sample], None] | None = None,
) -> RangeAudit | None:
    """Exports a checkpoint like `export_onnx`, after an audit where one is wanted.

    Nothing is decided silently: without "at-risk" the audit only reports.

    Args:
        checkpoint, output, precision, res_scale, opset, static: as in `export_onnx`.
        request: the pictures, and what stays in float32.
        on_picture: called after each audited picture.

    Returns:
        The audit with its `kept_fp32`; None when none was wanted.

    Raises:
        UsageError: as `export_onnx`; a name in `keep_fp32` that no node has; an audit of a float32 network.
        HspanError: as `export_onnx` and `audit_ranges`.
    """
    target = Path(output)
    if target.suffix != ".onnx":
        raise UsageError(target, "an ONNX file's name ends in .onnx", "name another file")
    request.require_low(precision)
    opset_to_write(precision, opset)
    from trt_hspan.export.to_onnx import variants_from_checkpoint

    network = variants_from_checkpoint(checkpoint, res_scale=res_scale, static=static)
    model, audit = audited_model(network, request, precision, opset=opset, on_picture=on_picture)
    save_onnx(model, target)
    return audit


def audited_model(
    network: Variants,
    request: RangeRequest,
    precision: Precision,
    *,
    opset: int | None = None,
    on_picture: Callable[[Sample], None] | None = None,
) -> tuple[onnx.ModelProto, RangeAudit | None]:
    """The network in a type, with what the request keeps in float32, and the audit with its `kept_fp32`.

    Raises:
        UsageError, HspanError: as `export_audited`.
    """
    graph = network.template(precision, opset=opset)
    kept = nodes_from_patterns(graph, request.names)
    audit = None
    if request.pictures is not None:
        samples = request.samples(network.metadata.scale or 1)
        audit = audit_ranges(graph, samples, precision, keep_fp32=network.kept_fp32, on_picture=on_picture)
        if AT_RISK in request.keep_fp32:
            kept = tuple(dict.fromkeys((*kept, *audit.cure)))
        if request.budget_db is not None:
            named = kept
            chosen = kept_within_budget(
                lambda more: network.typed(precision, keep_fp32=(*named, *more), opset=opset),
                network.float32(),
                audit,
                samples,
                request.budget_db,
                where=network.where,
            )
            kept = tuple(dict.fromkeys((*kept, *chosen)))
        audit = replace(audit, kept_fp32=kept)
    return network.model(precision, keep_fp32=kept, opset=opset), audit


def nodes_from_patterns(graph: onnx.ModelProto, patterns: Sequence[str]) -> tuple[str, ...]:
    """Names of the nodes that fit, each once, in the graph's order. Raises: UsageError when a pattern fits none."""
    names = [node.name for node in graph.graph.node]
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise UsageError(
                "--keep-fp32",
                f"no node is called {pattern!r}; they are named like {names[len(names) // 2]!r}",
                "see trt-hspan audit --all",
            )
    return tuple(n for n in names if any(fnmatch.fnmatchcase(n, pattern) for pattern in patterns))
