"""`trt-hspan audit`: how near a network's values come to the limits of FP16 or BF16 on real pictures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from trt_hspan.cli import options
from trt_hspan.cli.output import print_json, print_rows, print_table
from trt_hspan.cli.progress import progress
from trt_hspan.cli.request import argument, flag, option, takes_request

if TYPE_CHECKING:
    from trt_hspan.engine.range_record import NodeRange, RangeAudit

_NEAREST = 8


@dataclass(frozen=True, kw_only=True)
class AuditRequest:
    model: str = argument("A checkpoint or preset, an .onnx file, or a .plan with its model.", "MODEL")
    pictures: str = option("A folder of pictures, or a benchmark set.", "DIR", default="builtin")
    precision: str | None = option("fp16 or bf16.", shown="what the file contains, else fp16")
    tile: int = option("Cut pictures into parts of at most NxN input pixels.", "N", default=64)
    limit: int | None = options.limit()
    res_scale: float | None = options.res_scale()
    show_all: bool = flag("Show every node, not only those at risk and nearest the limit.", names=("--all",))
    json: bool = options.json()


@takes_request
def audit(request: AuditRequest) -> None:
    """Print the range of every node against the type's limit. Decides nothing: the exit code is 0 either way."""
    from trt_hspan.precision.audit.network_audit import audit_network
    from trt_hspan.precision.audit.range_request import RangeRequest

    with progress("auditing") as bar:
        result = audit_network(
            request.model,
            RangeRequest(pictures=request.pictures, limit=request.limit),
            precision=request.precision,
            res_scale=request.res_scale,
            tile=request.tile,
            on_progress=bar.show,
        )
    if request.json:
        print_json({"model": request.model, **audit_as_dict(result)})
    else:
        print_audit(request.model, result, show_all=request.show_all)


def audit_as_dict(audit: RangeAudit) -> dict[str, object]:
    """Plain values for JSON, with what follows from them."""
    return {**asdict(audit), "at_risk": [node.node for node in audit.at_risk], "cure": list(audit.cure)}


def print_audit(what: object, audit: RangeAudit, *, show_all: bool = False) -> None:
    """Prints the nodes at risk, those nearest the limit, and what would cure the risks."""
    from trt_hspan.engine.range_record import RISK_MEANINGS

    nearest = sorted(audit.nodes, key=_nearness, reverse=True)[:_NEAREST]
    scores = [node for node in audit.nodes if node.largest_score is not None]
    chosen = [node for node in audit.nodes if show_all or node.risks or node in nearest or node in scores]
    rows = [
        [
            node.node,
            "-" if node.largest is None else f"{node.largest:.4g}",
            "-" if not node.largest else f"{audit.limit / node.largest:.3g}x",
            "-" if node.largest_score is None else f"{node.largest_score:.4g}",
            "-" if node.score_error is None else f"{node.score_error:.2g}",
            "-" if node.update_snr_db is None else f"{node.update_snr_db:.1f}",
            ", ".join(node.risks) or "-",
        ]
        for node in chosen
    ]
    columns = ["node", "largest", "room", "largest score", "score error", "update SNR dB", "risk"]
    hidden = len(audit.nodes) - len(chosen)
    totals = [f"{hidden} more without risk" if hidden else "", *[""] * (len(columns) - 1)]
    print_rows(f"Ranges of {what} for {audit.precision.upper()}", columns, rows, totals)
    notes: dict[str, object] = {
        "largest finite value": f"{audit.limit:.6g}",
        "audited": f"{audit.pictures} pictures, parts of at most {audit.tile}x{audit.tile} pixels, float32 on CPU",
        "nodes at risk": f"{len(audit.at_risk)} of {len(audit.nodes)}",
    }
    for kind in dict.fromkeys(risk for node in audit.at_risk for risk in node.risks):
        notes[kind] = RISK_MEANINGS[kind]  # type: ignore[index]  # stored as text
    if audit.at_risk:
        notes["cure"] = f"{len(audit.cure)} nodes in float32: --audit DIR --keep-fp32 at-risk"
    if audit.kept_fp32:
        names = ", ".join(audit.kept_fp32[:3])
        more = len(audit.kept_fp32) - 3
        notes["kept in float32"] = f"{names} and {more} more" if more > 0 else names
    print_table("", notes)


def _nearness(node: NodeRange) -> float:
    return node.largest if node.low and node.largest is not None else 0.0
