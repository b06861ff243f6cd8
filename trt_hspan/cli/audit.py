"""`trt-hspan audit`: how near a network's values come to the limits of FP16 or BF16 on real pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from trt_hspan.engine.range_record import NodeRange, RangeAudit

_NEAREST = 8


def audit(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A checkpoint or preset, an .onnx file, or a .plan with its model."
        ),
    ],
    pictures: Annotated[
        str, typer.Option(metavar="DIR", help="A folder of pictures, or a benchmark set.")
    ] = "builtin",
    precision: Annotated[
        str | None, typer.Option(help="fp16 or bf16.", show_default="what the file holds, else fp16")
    ] = None,
    tile: Annotated[
        int, typer.Option(metavar="N", help="Cut pictures into parts of at most NxN input pixels.")
    ] = 64,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Audit the first N pictures only.")
    ] = None,
    res_scale: Annotated[
        float | None,
        typer.Option(help="Residual scale of a checkpoint; checkpoints do not store it.", show_default="0.1"),
    ] = None,
    show_all: Annotated[
        bool, typer.Option("--all", help="Show every node, not only those at risk and nearest the limit.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the audit as JSON.")] = False,
) -> None:
    """Print the range of every node against the type's limit. Decides nothing: the exit code is 0 either way."""
    from trt_hspan.cli.output import print_json
    from trt_hspan.cli.progress import progress
    from trt_hspan.precision.audit.range_request import samples_from_audit_option
    from trt_hspan.precision.audit.ranges import audit_ranges, check_tile, checked_low_precision
    from trt_hspan.precision.crops import check_place
    from trt_hspan.precision.network import variants_from_path

    requested = None if precision is None else checked_low_precision(precision)
    check_tile(tile)
    check_place(pictures)
    network = variants_from_path(model, res_scale=res_scale)
    kind = network.precision(requested, option="--precision")
    samples = samples_from_audit_option(pictures, network.metadata.scale or 1)[:limit]
    with progress("auditing", total=len(samples)) as bar:
        found = audit_ranges(
            network.template(kind),
            samples,
            kind,
            keep_fp32=network.kept_fp32,
            tile=tile,
            on_picture=lambda _: bar.advance(bar.task_ids[0]),
        )
    if json:
        print_json({"model": model, **audit_as_dict(found)})
    else:
        print_audit(model, found, show_all=show_all)


def audit_as_dict(found: RangeAudit) -> dict[str, object]:
    """Plain values for JSON, with what follows from them."""
    from dataclasses import asdict

    return {**asdict(found), "at_risk": [node.node for node in found.at_risk], "cure": list(found.cure)}


def print_audit(what: object, found: RangeAudit, *, show_all: bool = False) -> None:
    """Prints the nodes at risk, those nearest the limit, and what would cure the risks."""
    from trt_hspan.cli.output import print_rows, print_table
    from trt_hspan.engine.range_record import RISK_MEANINGS

    nearest = sorted(found.nodes, key=_nearness, reverse=True)[:_NEAREST]
    scores = [node for node in found.nodes if node.largest_score is not None]
    chosen = [node for node in found.nodes if show_all or node.risks or node in nearest or node in scores]
    rows = [
        [
            node.node,
            "-" if node.largest is None else f"{node.largest:.4g}",
            "-" if not node.largest else f"{found.limit / node.largest:.3g}x",
            "-" if node.largest_score is None else f"{node.largest_score:.4g}",
            "-" if node.score_error is None else f"{node.score_error:.2g}",
            "-" if node.update_snr_db is None else f"{node.update_snr_db:.1f}",
            ", ".join(node.risks) or "-",
        ]
        for node in chosen
    ]
    columns = ["node", "largest", "room", "largest score", "score error", "update SNR dB", "risk"]
    hidden = len(found.nodes) - len(chosen)
    totals = [f"{hidden} more without risk" if hidden else "", *[""] * (len(columns) - 1)]
    print_rows(f"Ranges of {what} for {found.precision.upper()}", columns, rows, totals)
    notes: dict[str, object] = {
        "largest finite value": f"{found.limit:.6g}",
        "audited": f"{found.pictures} pictures, parts of at most {found.tile}x{found.tile} pixels, float32 on CPU",
        "nodes at risk": f"{len(found.at_risk)} of {len(found.nodes)}",
    }
    for kind in dict.fromkeys(risk for node in found.at_risk for risk in node.risks):
        notes[kind] = RISK_MEANINGS[kind]  # type: ignore[index]  # stored as text
    if found.at_risk:
        notes["cure"] = f"{len(found.cure)} nodes in float32: --audit DIR --keep-fp32 at-risk"
    if found.kept_fp32:
        names = ", ".join(found.kept_fp32[:3])
        more = len(found.kept_fp32) - 3
        notes["kept in float32"] = f"{names} and {more} more" if more > 0 else names
    print_table("", notes)


def _nearness(node: NodeRange) -> float:
    return node.largest if node.low and node.largest is not None else 0.0
