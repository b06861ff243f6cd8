"""How much each layer costs when only it is quantized: measured, written as JSON and drawn as a chart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import onnx

from trt_hspan.files import staged_files
from trt_hspan.graph import Precision, QuantizedType
from trt_hspan.graph.quantized import convolution_macs
from trt_hspan.precision.quantize.measure import HeldOut, Measurement
from trt_hspan.precision.quantize.recipe import variant
from trt_hspan.precision.quantize.source import Source
from trt_hspan.precision.quantize.table import CalibrationTable
from trt_hspan.records import json_text

_BAR, _LOSS, _LINE = "#4477aa", "#cc6677", "#999999"
_STYLE: Final[dict[Any, Any]] = {
    **{"font.size": 7, "figure.titlesize": 10, "savefig.dpi": 140},
    **{"axes.xmargin": 0.2, "axes.spines.top": False, "axes.spines.right": False, "lines.linewidth": 0.8},
}


@dataclass(frozen=True, kw_only=True)
class LayerSensitivity:
    """One layer quantized, all others in the base type.

    Attributes:
        name: of the node.
        mac_share: its share of the convolutions' multiply-accumulates, 0..1.
        psnr_db: against float32, mean over tiles; infinite when nothing changed.
        loss_db: of PSNR-Y against ground truth; None without any.
    """

    name: str
    mac_share: float
    psnr_db: float
    loss_db: float | None


@dataclass(frozen=True, kw_only=True)
class SensitivityReport:
    """Attributes: `base` is nothing quantized, `everything` all layers; `layers` has the most sensitive first."""

    model: str
    model_sha256: str
    precision: QuantizedType
    base_precision: Precision
    method: str
    tiles: int
    reference_psnr_y_db: float | None
    base: Measurement
    everything: Measurement
    layers: tuple[LayerSensitivity, ...]


def layer_sensitivities(
    source: Source,
    nodes: Sequence[onnx.NodeProto],
    table: CalibrationTable,
    held_out: HeldOut,
    *,
    on_layer: Callable[[], None] | None = None,
) -> list[LayerSensitivity]:
    """Measures layer by layer; the most sensitive comes first. Raises: HspanError when a run fails."""
    macs = convolution_macs(source.base)
    total = sum(macs.values())
    layers = []
    for node in nodes:
        measured = held_out.measure(variant(source, [node], table))
        layers.append(
            LayerSensitivity(
                name=node.name,
                mac_share=macs.get(node.name, 0) / total,
                psnr_db=measured.psnr_db,
                loss_db=measured.loss_db,
            )
        )
        if on_layer is not None:
            on_layer()
    return sorted(layers, key=lambda layer: layer.psnr_db)


def sensitivity_report(
    source: Source,
    nodes: Sequence[onnx.NodeProto],
    table: CalibrationTable,
    held_out: HeldOut,
    *,
    on_layer: Callable[[], None] | None = None,
) -> SensitivityReport:
    """`layer_sensitivities`, with the base type alone and with everything quantized beside it."""
    return SensitivityReport(
        model=source.where,
        model_sha256=source.sha256,
        precision=table.precision,
        base_precision=source.precision,
        method=table.method,
        tiles=len(held_out),
        reference_psnr_y_db=held_out.reference_psnr_y_db,
        base=held_out.measure(source.base),
        everything=held_out.measure(variant(source, nodes, table)),
        layers=tuple(layer_sensitivities(source, nodes, table, held_out, on_layer=on_layer)),
    )


def write_sensitivity(report: SensitivityReport, path: Path) -> Path:
    """Writes NAME.json and NAME.png, both or none, and returns the latter. Raises: HspanError."""
    chart = path.with_suffix(".png")
    with staged_files([path, chart]) as (json_file, chart_file):
        json_file.write_text(json_text(asdict(report)) + "\n", encoding="utf-8")
        write_sensitivity_chart(report, chart_file)
    return chart


def write_sensitivity_chart(report: SensitivityReport, path: Path) -> None:
    """Writes a PNG: error against float32 of each layer, and its loss of PSNR-Y where there is ground truth."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    layers = report.layers[::-1]
    names = [layer.name.removesuffix("/Conv") for layer in layers]
    # A bar for the size of the error: its root mean square in levels of an 8-bit picture.
    errors = [
        255.0 * 10 ** (-layer.psnr_db / 20) if math.isfinite(layer.psnr_db) else 0.0 for layer in layers
    ]
    psnrs = [f"{layer.psnr_db:.1f} dB" if math.isfinite(layer.psnr_db) else "none" for layer in layers]
    losses = [layer.loss_db for layer in layers if layer.loss_db is not None]
    charts = [(errors, psnrs, _BAR, "error against FP32 (RMS, 8-bit levels; label: PSNR)")]
    if losses:
        texts = [f"{loss:+.4f}" for loss in losses]
        charts.append((losses, texts, _LOSS, "loss of PSNR-Y against ground truth (dB)"))
    with rc_context(_STYLE):
        figure = Figure(figsize=(5.5 * len(charts), 1.6 + 0.26 * len(layers)), layout="constrained")
        row = figure.subplots(1, len(charts), sharey=True, squeeze=False)[0]
        for axes, (values, labels, color, title) in zip(row, charts, strict=True):
            axes.bar_label(axes.barh(names, values, color=color), labels, padding=3)
            axes.axvline(color=_LINE)
            axes.set_xlabel(title)
        figure.suptitle(
            f"{Path(report.model).name}: one layer in {report.precision.upper()}, the rest in "
            f"{report.base_precision.upper()} ({report.tiles} tiles)"
        )
        figure.savefig(path, format="png")
