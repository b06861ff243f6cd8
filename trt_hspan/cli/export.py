"""`trt-hspan export`: checkpoint to ONNX."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from trt_hspan.errors import UsageError


def export(
    checkpoint: Annotated[
        str,
        typer.Argument(metavar="CHECKPOINT", help="A .pt, .pth or .safetensors file, or a preset's name."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .onnx file to write.")],
    precision: Annotated[
        str, typer.Option(help="fp32, fp16 or bf16: written into the graph. Input and output stay float32.")
    ] = "fp32",
    res_scale: Annotated[float, typer.Option(help="Residual scale; checkpoints do not store it.")] = 0.1,
    opset: Annotated[
        int | None, typer.Option(help="Version of the ONNX operators.", show_default="18")
    ] = None,
    static: Annotated[
        str | None,
        typer.Option(
            metavar="HxW", help="Fix the input to one picture of this size.", show_default="free sizes"
        ),
    ] = None,
    audit: Annotated[
        str | None, typer.Option(metavar="DIR", help="Audit ranges on these pictures first, or builtin.")
    ] = None,
    keep_fp32: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NODE",
            help="A node to keep in float32, a pattern, or with --audit: at-risk, or budget:DB; repeatable.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write CHECKPOINT as an ONNX model that ONNX Runtime runs and TensorRT builds from."""
    size = _size_from_text(static)
    if output.suffix != ".onnx":
        raise UsageError(output, "an ONNX file's name ends in .onnx", "name another file")
    from trt_hspan.cli.audit import audit_as_dict, print_audit
    from trt_hspan.cli.options import export_with_ranges, range_request
    from trt_hspan.cli.output import print_json, print_table
    from trt_hspan.graph import checked_precision
    from trt_hspan.graph.variants import opset_to_write

    kind = checked_precision(precision)
    opset_to_write(kind, opset)
    found = export_with_ranges(
        checkpoint,
        output,
        range_request(audit, keep_fp32, precision=kind),
        precision=kind,
        res_scale=res_scale,
        opset=opset,
        static=size,
    )
    report = _report(output)
    if json:
        print_json(report if found is None else {**report, "range_audit": audit_as_dict(found)})
    else:
        if found is not None:
            print_audit(checkpoint, found)
        print_table(f"Exported {output}", report)


def _size_from_text(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d*)[xX]([1-9]\d*)", text)
    if match is None:
        raise UsageError("--static", f"{text!r} is no size", "give HxW, for example 128x96")
    return int(match[1]), int(match[2])


def _report(path: Path) -> dict[str, object]:
    from dataclasses import asdict

    from trt_hspan.files import sha256_from_file
    from trt_hspan.graph import attention_nodes, load_onnx, metadata_from_model

    model = load_onnx(path)
    dimensions = model.graph.input[0].type.tensor_type.shape.dim
    return {
        "onnx": str(path),
        "size_bytes": path.stat().st_size,
        "sha256": sha256_from_file(path),
        "input_shape": [dim.dim_param or dim.dim_value for dim in dimensions],
        "attention_nodes": len(attention_nodes(model)),
        "opset": next(entry.version for entry in model.opset_import if entry.domain == ""),
        **asdict(metadata_from_model(model)),
    }
