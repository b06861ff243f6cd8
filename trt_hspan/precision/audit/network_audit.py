"""Ranges of a whole network: audited alone, or before it is written in a type, and which nodes stay in float32."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx

from trt_hspan.engine.range_record import RangeAudit
from trt_hspan.errors import UsageError
from trt_hspan.graph import AttentionForm, Precision, Variants, model_in_form, save_onnx
from trt_hspan.graph.variants import opset_to_write
from trt_hspan.precision.audit.budgeted_ranges import kept_within_budget
from trt_hspan.precision.audit.range_request import AT_RISK, RangeRequest
from trt_hspan.precision.audit.ranges import DEFAULT_TILE, audit_ranges, check_tile, checked_low_precision
from trt_hspan.precision.network import OnProgress, input_sizes, no_progress, variants_from_path


def audit_network(
    model: str | os.PathLike[str],
    request: RangeRequest,
    *,
    precision: str | None = None,
    res_scale: float | None = None,
    tile: int = DEFAULT_TILE,
    on_progress: OnProgress = no_progress,
) -> RangeAudit:
    """Reads a network and audits its ranges; changes nothing.

    Args:
        model, res_scale: as `variants_from_path` takes them.
        request: the pictures.
        precision: "fp16" or "bf16"; None is what the file computes in, or fp16 for float32 ones.
        tile: as in `audit_ranges`.
        on_progress: called with what is being done, how many pictures are audited, and how many there are.

    Raises:
        UsageError: the file computes in another type than `precision`; a tile below 16.
        HspanError: the file or the pictures cannot be read; as `audit_ranges`.
    """
    requested = None if precision is None else checked_low_precision(precision)
    check_tile(tile)
    assert request.pictures is not None, "an audit needs pictures"
    request.check_pictures()
    on_progress(f"reading {model}", 0, 0)
    network = variants_from_path(model, res_scale=res_scale)
    return audit_variants(network, request, precision=requested, tile=tile, on_progress=on_progress)


def audit_variants(
    network: Variants,
    request: RangeRequest,
    *,
    precision: Precision | None = None,
    opset: int | None = None,
    tile: int = DEFAULT_TILE,
    on_progress: OnProgress = no_progress,
) -> RangeAudit:
    """Audits a network that is read already. Args and errors: as `audit_network`."""
    low_type = network.precision(precision, option="--precision")
    return audit_ranges(
        network.template(low_type, opset=opset),
        request.samples(network.metadata.scale or 1),
        low_type,
        keep_fp32=network.kept_fp32,
        tile=tile,
        on_progress=on_progress,
    )


def export_audited(
    checkpoint: str | os.PathLike[str],
    output: str | os.PathLike[str],
    request: RangeRequest,
    *,
    precision: Precision,
    res_scale: float | None = None,
    opset: int | None = None,
    static: tuple[int, int] | None = None,
    form: AttentionForm = "function",
    on_progress: OnProgress = no_progress,
) -> RangeAudit | None:
    """Exports a checkpoint like `export_onnx`, after an audit where one is requested.

    Args:
        checkpoint, output, precision, res_scale, opset, static, form: as in `export_onnx`.
        request: the pictures, and what stays in float32.
        on_progress: as in `audit_network`.

    Returns:
        The audit with its `kept_fp32`; None when none was requested.

    Raises:
        UsageError: as `export_onnx`; a name in `keep_fp32` that no node has; an audit of a float32 network.
        HspanError: as `export_onnx` and `audit_ranges`.
    """
    from trt_hspan.export.to_onnx import variants_from_checkpoint

    target = Path(output)
    if target.suffix != ".onnx":
        raise UsageError(target, "an ONNX file's name ends in .onnx", "name another file")
    opset_to_write(precision, opset)
    network = variants_from_checkpoint(checkpoint, res_scale=res_scale, static=static)
    model, audit = audited_model(network, request, precision, opset=opset, on_progress=on_progress)
    save_onnx(model_in_form(model, form), target)
    return audit


def audited_model(
    network: Variants,
    request: RangeRequest,
    precision: Precision,
    *,
    opset: int | None = None,
    on_progress: OnProgress = no_progress,
) -> tuple[onnx.ModelProto, RangeAudit | None]:
    """The network in a type, with what the request keeps in float32, and the audit with its `kept_fp32`.

    Nothing is decided silently: without "at-risk" or a budget the audit only reports.

    Raises:
        UsageError, HspanError: as `export_audited`.
    """
    graph = network.template(precision, opset=opset)
    kept = nodes_from_patterns(graph, request.names)
    if request.pictures is None:
        return network.model(precision, keep_fp32=kept, opset=opset), None
    audit = audit_variants(network, request, precision=precision, opset=opset, on_progress=on_progress)
    if AT_RISK in request.keep_fp32:
        kept = (*kept, *audit.cure)
    if request.budget_db is not None:
        named = kept
        kept += kept_within_budget(
            lambda more: network.typed(precision, keep_fp32=(*named, *more), opset=opset),
            network.float32(),
            audit,
            request.samples(network.metadata.scale or 1),
            request.budget_db,
            sizes=input_sizes(graph),
            where=network.where,
        )
    kept = tuple(dict.fromkeys(kept))
    return network.model(precision, keep_fp32=kept, opset=opset), replace(audit, kept_fp32=kept)


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
