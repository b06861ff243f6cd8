"""A bar chart of sensitivities. Owns how it looks; matplotlib is imported when it is drawn."""

from __future__ import annotations

import math
from pathlib import Path

from trt_hspan.errors import HspanError
from trt_hspan.files import atomic_path
from trt_hspan.quantization.sensitivity import SensitivityReport

_BAR, _LOSS, _LINE = "#4477aa", "#cc6677", "#999999"


def write_sensitivity_chart(report: SensitivityReport, path: Path) -> None:
    """Writes a PNG: error against float32 of each layer, and its loss of PSNR-Y where there is ground truth.

    Raises:
        HspanError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise HspanError("matplotlib", "is not installed", "pip install matplotlib") from error
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
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=140, format="png")
