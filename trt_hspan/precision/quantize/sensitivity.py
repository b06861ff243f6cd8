"""How much each layer costs when only it is quantized: measured, written as JSON and drawn as a chart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

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
    from matplotlib.figure import Figure

    layers = report.layers[::-1]
    with_loss = all(layer.loss_db is not None for layer in layers)
    figure = Figure(figsize=(11 if with_loss else 7, 1.6 + 0.26 * len(layers)), layout="constrained")
    axes = figure.subplots(1, 2 if with_loss else 1, sharey=True, squeeze=False)[0]
    names = [layer.name.removesuffix("/Conv") for layer in layers]
    # A bar for the size of the error: its root mean square in levels of an 8-bit picture.
    errors = [
        255.0 * 10 ** (-layer.psnr_db / 20) if math.isfinite(layer.psnr_db) else 0.0 for layer in layers
    ]
    bars = axes[0].barh(names, errors, color=_BAR)
    labels = [f"{layer.psnr_db:.1f} dB" if math.isfinite(layer.psnr_db) else "none" for layer in layers]
    axes[0].bar_label(bars, labels, padding=3, fontsize=7)
    axes[0].set_xlabel("error against FP32 (RMS, 8-bit levels; label: PSNR)")
    axes[0].margins(x=0.16)
    if with_loss:
        losses = [layer.loss_db or 0.0 for layer in layers]
        bars = axes[1].barh(names, losses, color=_LOSS)
        axes[1].bar_label(bars, [f"{loss:+.4f}" for loss in losses], padding=3, fontsize=7)
        axes[1].axvline(0.0, color=_LINE, linewidth=0.8)
        axes[1].set_xlabel("loss of PSNR-Y against ground truth (dB)")
        axes[1].margins(x=0.2)
    for axis in axes:
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"{Path(report.model).name}: one layer in {report.precision.upper()}, the rest in "
        f"{report.base_precision.upper()} ({report.tiles} tiles)",
        fontsize=10,
    )
    figure.savefig(path, dpi=140, format="png")
