"""`trt-hspan sensitivity`: what each layer costs when only it is quantized."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trt_hspan.cli import options
from trt_hspan.cli.output import print_report, rounded
from trt_hspan.cli.progress import progress
from trt_hspan.cli.request import option, takes_request
from trt_hspan.errors import UsageError

if TYPE_CHECKING:
    from trt_hspan.precision.quantize.request import QuantizationJob
    from trt_hspan.precision.quantize.sensitivity import SensitivityReport


@dataclass(frozen=True, kw_only=True)
class SensitivityRequest:
    model: str = options.network()
    output: Path = options.output("NAME.json", "The figures; NAME.png, a bar chart, is drawn beside them.")
    precision: str = option("int8 or fp8.", default="int8")
    calibration: options.CalibrationOptions
    res_scale: float | None = options.res_scale()
    json: bool = options.json()

    def job(self) -> QuantizationJob:
        """Raises: UsageError for options that contradict each other, or leave no pictures to measure on."""
        from trt_hspan.precision.quantize.request import QuantizationJob

        how = self.calibration.request(self.precision)
        if how.calibration is None and how.held_out is None:
            raise UsageError(
                "--held-out", "is missing: a table contains no pictures to measure on", "name some"
            )
        base = self.calibration.base_type()
        return QuantizationJob(model=self.model, how=how, base=base, res_scale=self.res_scale)


@takes_request
def sensitivity(request: SensitivityRequest) -> None:
    """Measure, layer by layer, what quantizing it alone costs against FP32 and against ground truth."""
    if request.output.suffix != ".json":
        raise UsageError(request.output, "the figures' name ends in .json", "name another file")
    job = request.job()
    import matplotlib  # noqa: F401  # here, so that it is not missed after the measurement

    from trt_hspan.files import check_writable
    from trt_hspan.precision.quantize.pipeline import network_sensitivity
    from trt_hspan.precision.quantize.sensitivity import write_sensitivity

    check_writable(request.output)
    with progress(f"{request.precision}, layer by layer") as bar:
        report = network_sensitivity(job, on_progress=bar.show)
    chart = write_sensitivity(report, request.output)
    figures = {"json": str(request.output), "chart": str(chart), **asdict(report)}
    print_report(f"Measured {request.output}, {chart}", figures, _rows(report), as_json=request.json)


def _rows(report: SensitivityReport) -> dict[str, object]:
    def text(psnr_db: float, loss_db: float | None) -> str:
        return f"{psnr_db:6.2f} dB against FP32" + (
            "" if loss_db is None else f", loss {rounded(loss_db, 4):+.4f} dB"
        )

    return {
        f"{report.base_precision} alone": text(report.base.psnr_db, report.base.loss_db),
        f"all layers in {report.precision}": text(report.everything.psnr_db, report.everything.loss_db),
        **{layer.name: text(layer.psnr_db, layer.loss_db) for layer in report.layers},
    }
