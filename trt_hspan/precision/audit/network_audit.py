"""The audit of a file: a checkpoint, an ONNX file or an engine."""

from __future__ import annotations

import os
from collections.abc import Callable

from trt_hspan.engine.range_record import RangeAudit
from trt_hspan.precision.audit.range_request import RangeRequest
from trt_hspan.precision.audit.ranges import DEFAULT_TILE, audit_ranges, check_tile, checked_low_precision
from trt_hspan.precision.crops import check_place
from trt_hspan.precision.network import variants_from_path


def audit_network(
    model: str | os.PathLike[str],
    request: RangeRequest,
    *,
    precision: str | None = None,
    res_scale: float | None = None,
    tile: int = DEFAULT_TILE,
    on_progress: Callable[[str, float, float], None] | None = None,
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
    check_place(os.fspath(request.pictures))
    report = on_progress or (lambda *_: None)
    report(f"reading {model}", 0, 0)
    network = variants_from_path(model, res_scale=res_scale)
    low_type = network.precision(requested, option="--precision")
    samples = request.samples(network.metadata.scale or 1)
    count = iter(range(1, len(samples) + 1))
    report("auditing", 0, len(samples))
    return audit_ranges(
        network.template(low_type),
        samples,
        low_type,
        keep_fp32=network.kept_fp32,
        tile=tile,
        on_picture=lambda sample: report(f"audited {sample.name}", next(count), len(samples)),
    )
