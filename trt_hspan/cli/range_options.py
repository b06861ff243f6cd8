"""`--audit` and `--keep-fp32`, which `export` and `build` share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trt_hspan.engine.range_record import RangeAudit
    from trt_hspan.evaluation.range_request import RangeRequest
    from trt_hspan.graph import Precision


def range_request(
    audit: str | None, keep_fp32: Sequence[str] | None, *, precision: str | None
) -> RangeRequest | None:
    """What the options ask for; None when neither was given.

    Args:
        audit: a folder, or "builtin".
        keep_fp32: names, patterns, "at-risk".
        precision: of the network to export; None for one that exists.

    Raises:
        UsageError: the options contradict each other or the precision.
        HspanError: there is no such folder, or it holds no pictures.
    """
    if audit is None and not keep_fp32:
        return None
    from trt_hspan.evaluation.range_request import RangeRequest

    request = RangeRequest(pictures=audit, keep_fp32=tuple(keep_fp32 or ()))
    request.require_low(precision)
    if audit is not None:
        from trt_hspan.quantization.tiles import check_place

        check_place(audit)
    return request


def export_with_ranges(
    checkpoint: str,
    output: Path,
    request: RangeRequest | None,
    *,
    precision: Precision,
    res_scale: float,
    opset: int | None = None,
    static: tuple[int, int] | None = None,
) -> RangeAudit | None:
    """Exports with a progress bar; audits first when that was asked for. Raises: as `export_audited`."""
    from trt_hspan.cli.output import progress
    from trt_hspan.evaluation.audited_export import export_audited
    from trt_hspan.evaluation.range_request import RangeRequest

    with progress(f"exporting {checkpoint}") as bar:
        return export_audited(
            checkpoint,
            output,
            RangeRequest() if request is None else request,
            precision=precision,
            res_scale=res_scale,
            opset=opset,
            static=static,
            on_picture=lambda sample: bar.update(bar.task_ids[0], description=f"audited {sample.name}"),
        )


def audited_onnx(path: Path, request: RangeRequest | None) -> RangeAudit | None:
    """The ranges of an ONNX file that exists already. Raises: as `audit_ranges`; None when not asked for."""
    if request is None or request.pictures is None:
        return None
    from trt_hspan.cli.audit import subject_of_audit
    from trt_hspan.cli.output import progress
    from trt_hspan.evaluation.ranges import audit_ranges

    subject = subject_of_audit(str(path), None)
    with progress(f"auditing {path}"):
        return audit_ranges(
            subject.graph, request.samples(subject.scale), subject.precision, keep_fp32=subject.keep_fp32
        )
