"""`trt-hspan quantize`: a network to its INT8 or FP8 form, with the recipe and the calibration table beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trt_hspan.cli import options
from trt_hspan.cli.output import print_report, rounded
from trt_hspan.cli.progress import progress
from trt_hspan.cli.request import option, takes_request
from trt_hspan.errors import UsageError

if TYPE_CHECKING:
    from trt_hspan.precision.quantize.pipeline import Quantized


@dataclass(frozen=True, kw_only=True)
class QuantizeRequest:
    model: str = options.network()
    output: Path = options.output(
        "NAME.onnx", "The model; NAME.recipe.yaml and NAME.calibration.json are written beside it."
    )
    precision: str | None = option("int8 or fp8.", shown="int8")
    quantization: options.QuantizationOptions
    keep_fp32: tuple[str, ...] = options.keep_fp32()
    res_scale: float | None = options.res_scale()
    json: bool = options.json()


@takes_request
def quantize(request: QuantizeRequest) -> None:
    """Write MODEL with explicit Q/DQ around its convolutions, as TensorRT builds it and ONNX Runtime runs it."""
    if request.output.suffix != ".onnx":
        raise UsageError(request.output, "an ONNX file's name ends in .onnx", "name another file")
    from trt_hspan.files import check_writable
    from trt_hspan.precision.quantize.pipeline import quantized_network, write_quantized

    check_writable(request.output)
    job = request.quantization.job(
        request.model, request.precision, res_scale=request.res_scale, keep_fp32=request.keep_fp32
    )
    with progress(job.how.precision) as bar:
        quantized = quantized_network(job, on_progress=bar.show)
    report = _report(quantized, write_quantized(quantized, request.output))
    print_report(f"Quantized {request.output}", report, as_json=request.json)


def _report(quantized: Quantized, written: list[Path]) -> dict[str, object]:
    from trt_hspan.files import sha256_from_file
    from trt_hspan.graph import opset_of

    recipe, facts, table, measured = quantized.recipe, quantized.facts, quantized.table, quantized.measurement
    return {
        "onnx": str(written[0]),
        "recipe": str(written[1]),
        "calibration": str(written[2]) if len(written) > 2 else None,
        "size_bytes": written[0].stat().st_size,
        "sha256": sha256_from_file(written[0]),
        "precision": recipe.precision,
        "base": recipe.base,
        "opset": opset_of(quantized.model),
        "convolutions": facts.convolutions,
        "quantized_convolutions": facts.quantized_convolutions,
        "quantized_mac_share": round(facts.mac_share, 4),
        "method": recipe.method,
        "calibration_pictures": None if table is None else table.pictures,
        "calibration_tiles": None if table is None else table.tiles,
        "calibration_from_cache": quantized.calibration_was_cached,
        "budget_db": recipe.budget_db,
        "loss_db": None if recipe.loss_db is None else rounded(recipe.loss_db, 4),
        "psnr_against_fp32_db": None if measured is None else round(measured.psnr_db, 2),
        "worst_psnr_against_fp32_db": None if measured is None else round(measured.worst_psnr_db, 2),
        "model_sha256": recipe.model_sha256,
        "recipe_sha256": recipe.sha256,
        "calibration_sha256": recipe.calibration_sha256,
    }
