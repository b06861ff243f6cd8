"""`trt-hspan export`: checkpoint to ONNX."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trt_hspan.cli import options
from trt_hspan.cli.audit import audit_as_dict, print_audit
from trt_hspan.cli.output import print_json, print_report, say
from trt_hspan.cli.progress import progress
from trt_hspan.cli.request import argument, flag, option, takes_request
from trt_hspan.errors import UsageError
from trt_hspan.sizes import ImageSize, image_size_from_text

if TYPE_CHECKING:
    from trt_hspan.graph import AttentionForm


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    checkpoint: str = argument("A .pt, .pth or .safetensors file, or a preset's name.", "CHECKPOINT")
    output: Path = options.output("NAME.onnx", "The ONNX file to write.")
    precision: str = option(
        "fp32, fp16 or bf16: written into the graph. Input and output stay float32.", default="fp32"
    )
    static: str | None = option("Fix the input to one picture of this size.", "HxW", shown="free sizes")
    consumer: str | None = option(
        "Write the attention where ONNX Runtime's TensorRT provider looks plugins up.",
        "ort-tensorrt",
        names=("--for",),
    )
    no_function_body: bool = flag(
        "Leave the body out, which trtexec of TensorRT before 10.7 prefers to the plugin."
    )
    export: options.ExportOptions
    json: bool = options.json()

    def form(self) -> AttentionForm:
        """Raises: UsageError for an unknown consumer."""
        if self.consumer not in (None, "ort-tensorrt"):
            raise UsageError("--for", f"got {self.consumer!r}, expected ort-tensorrt", "or leave it out")
        return "ort-tensorrt" if self.consumer else "node" if self.no_function_body else "function"

    def static_size(self) -> ImageSize | None:
        """Raises: UsageError for what is no size."""
        return None if self.static is None else image_size_from_text(self.static, option="--static")


@takes_request
def export(request: ExportRequest) -> None:
    """Write CHECKPOINT as an ONNX model that ONNX Runtime runs and TensorRT builds from."""
    from trt_hspan.graph import checked_precision
    from trt_hspan.model.checkpoint import says_res_scale
    from trt_hspan.precision.audit.network_audit import export_audited

    size, form = request.static_size(), request.form()
    precision = checked_precision(request.precision)
    ranges = request.export.ranges(precision)
    with progress(f"exporting {request.checkpoint}") as bar:
        audit = export_audited(
            request.checkpoint,
            request.output,
            ranges,
            precision=precision,
            res_scale=request.export.res_scale,
            opset=request.export.opset,
            static=size,
            form=form,
            on_progress=bar.show,
        )
    report = _report(request.output)
    if request.export.res_scale is None and not says_res_scale(request.checkpoint):
        say(
            f"note: {request.checkpoint}: does not say its residual scale; took the default "
            f"{report['res_scale']}, which --res-scale changes"
        )
    if request.json:
        print_json(report if audit is None else {**report, "range_audit": audit_as_dict(audit)})
    else:
        if audit is not None:
            print_audit(request.checkpoint, audit)
        print_report(f"Exported {request.output}", report, as_json=False)


def _report(path: Path) -> dict[str, object]:
    from trt_hspan.files import sha256_from_file
    from trt_hspan.graph import (
        attention_nodes,
        metadata_from_model,
        model_in_own_domain,
        opset_of,
        read_onnx,
    )

    model = read_onnx(path)
    dimensions = model.graph.input[0].type.tensor_type.shape.dim
    return {
        "onnx": str(path),
        "size_bytes": path.stat().st_size,
        "sha256": sha256_from_file(path),
        "input_shape": [dim.dim_param or dim.dim_value for dim in dimensions],
        "attention_nodes": len(attention_nodes(model_in_own_domain(model))),
        "attention_has_a_function_body": bool(model.functions),
        "opset": opset_of(model),
        "plugin_domains": [entry.domain for entry in model.opset_import if entry.domain],
        **asdict(metadata_from_model(model)),
    }
