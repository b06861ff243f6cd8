"""A picture of a training run's log."""

from __future__ import annotations

import json
from pathlib import Path

from trt_hspan.errors import HspanError
from trt_hspan.files import atomic_path


def write_curve(log: Path, target: Path) -> None:
    """Draws loss and held-out PSNR over the steps.

    Args:
        log: `log.jsonl` of a run; of several lines for a step (a resumed run repeats some) the last counts.
        target: the PNG.

    Raises:
        HspanError: the log is missing or empty.
    """
    from matplotlib.figure import Figure

    lines = log.read_text().splitlines() if log.is_file() else []
    if not lines:
        raise HspanError(log, "contains no reports", "let the run reach its first report")
    reports = {report["step"]: report for report in map(json.loads, lines)}
    steps = sorted(reports)
    watched = [step for step in steps if reports[step]["psnr_db"] is not None]
    figure = Figure(figsize=(8, 5), layout="constrained")
    losses = figure.add_subplot()
    losses.plot(
        steps, [reports[step]["loss"] for step in steps], color="tab:blue", label="L1 loss of the batches"
    )
    losses.set(xlabel="step", ylabel="L1 loss", yscale="log")
    losses.grid(alpha=0.3)
    psnr = losses.twinx()
    psnr.plot(watched, [reports[step]["psnr_db"] for step in watched], color="tab:orange", marker=".")
    psnr.set_ylabel("held-out PSNR-Y of the averaged weights, middle crops (dB)", color="tab:orange")
    losses.legend(loc="upper center")
    with atomic_path(target) as temporary:
        figure.savefig(temporary, dpi=100)
