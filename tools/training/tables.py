"""Markdown tables and pictures of what `figures` measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tools.training.data import Pixels
from tools.training.figures import AttentionSample, Float32Array, Quality
from trt_hspan.files import atomic_path


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, names: int = 1) -> str:
    """A table in Markdown; the first `names` columns are text, the others numbers."""
    rule = ["---"] * names + ["---:"] * (len(head) - names)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def quality_table(results: Sequence[Quality]) -> str:
    """One line per picture and the means, PSNR-Y in dB and SSIM."""
    head = [
        "picture",
        "bicubic",
        "network",
        "gain",
        "attention off",
        "softmax",
        "SSIM bicubic",
        "SSIM network",
    ]
    rows = []
    mean = Quality(
        name="**mean**",
        bicubic_psnr_db=float(np.mean([r.bicubic_psnr_db for r in results])),
        network_psnr_db=float(np.mean([r.network_psnr_db for r in results])),
        without_attention_psnr_db=float(np.mean([r.without_attention_psnr_db for r in results])),
        softmax_psnr_db=float(np.mean([r.softmax_psnr_db for r in results])),
        bicubic_ssim=float(np.mean([r.bicubic_ssim for r in results])),
        network_ssim=float(np.mean([r.network_ssim for r in results])),
    )
    for r in (*results, mean):
        gain = r.network_psnr_db - r.bicubic_psnr_db
        decibels = [f"{r.bicubic_psnr_db:.2f}", f"{r.network_psnr_db:.2f}", f"{gain:+.2f}"]
        ssim = [f"{r.bicubic_ssim:.4f}", f"{r.network_ssim:.4f}"]
        others = [f"{r.without_attention_psnr_db:.2f}", f"{r.softmax_psnr_db:.2f}"]
        rows.append([r.name, *decibels, *others, *ssim])
    return markdown_table(head, rows)


def attention_table(samples: Sequence[AttentionSample]) -> str:
    """One line per picture and block: quantiles of the support size, of the score range and maximum."""
    head = ["picture", "block", "L", "support min", "median", "95 %", "max", "share of L, median"]
    head += ["rows above 128", "score range median", "max", "largest score"]
    rows = []
    for s in samples:
        median, p95 = np.percentile(s.support, [50, 95])
        sizes = [f"{s.support.min()}", f"{median:.0f}", f"{p95:.0f}", f"{s.support.max()}"]
        shares = [f"{median / s.positions:.2%}", f"{np.mean(s.support > 128):.1%}"]
        scores = [np.median(s.score_range), s.score_range.max(), s.score_maximum.max()]
        numbers = [*sizes, *shares, *(f"{score:.2f}" for score in scores)]
        rows.append([s.picture, str(s.block), str(s.positions), *numbers])
    return markdown_table(head, rows)


def support_table(samples: Sequence[AttentionSample]) -> str:
    """One line per picture and block: what sparsemax keeps, and what softmax of the same scores does with the rest."""
    head = ["picture", "block", "L", "sparsemax keeps, median", "softmax keeps"]
    head += [
        "smallest weight, times L",
        "positions of 99 % of its weight, median",
        "its weight outside, median",
    ]
    rows = []
    for s in samples:
        kept = f"{np.median(s.support):.0f} ({np.median(s.support) / s.positions:.1%})"
        most = f"{np.median(s.softmax_most):.0f} ({np.median(s.softmax_most) / s.positions:.1%})"
        smallest = s.softmax_smallest.min()
        full = f"{s.positions if smallest > 0 else 'fewer'}"
        outside = f"{np.median(s.softmax_outside):.1%}"
        rows.append([s.picture, str(s.block), str(s.positions), kept, full, f"{smallest:.2g}", most, outside])
    return markdown_table(head, rows)


def write_support_picture(
    low: Pixels, position: tuple[int, int], weights: tuple[Float32Array, Float32Array], target: Path
) -> None:
    """A picture with one position marked, and what that position takes from all others: by sparsemax, by softmax."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.2), layout="constrained")
    axes = figure.subplots(1, 3)
    axes[0].imshow(low)
    axes[0].set_title("picture, and the position that attends", fontsize=10)
    norm = LogNorm(min(part[part > 0].min() for part in weights), max(part.max() for part in weights))
    for axis, part, name in zip(axes[1:], weights, ("sparsemax (HSPA)", "softmax"), strict=True):
        shown = axis.imshow(np.ma.masked_equal(part, 0), norm=norm, cmap="viridis")
        axis.set_title(f"{name}: {np.count_nonzero(part)} of {part.size} weights above 0", fontsize=10)
        axis.set_facecolor("white")
    for axis in axes:
        axis.plot(position[1], position[0], "o", mfc="none", mec="red", ms=9, mew=1.5)
        axis.set(xticks=[], yticks=[])
    figure.colorbar(shown, ax=axes[1:], label="weight (white: exactly 0)", shrink=0.9)
    with atomic_path(target) as temporary:
        figure.savefig(temporary, dpi=80)


def write_attention_picture(samples: Sequence[AttentionSample], target: Path) -> None:
    """Per block: the share of rows whose support is at most x, and whose score range is at most x."""
    from matplotlib.figure import Figure

    blocks = sorted({s.block for s in samples})
    figure = Figure(figsize=(5 * len(blocks), 7.5), layout="constrained")
    axes = figure.subplots(2, len(blocks), squeeze=False, sharey=True, sharex="row")
    for column, block in enumerate(blocks):
        for sample in (s for s in samples if s.block == block):
            share = np.arange(1, len(sample.support) + 1) / len(sample.support)
            label = f"{sample.picture} (L = {sample.positions})"
            axes[0][column].plot(np.sort(sample.support), share, label=label)
            axes[1][column].plot(np.sort(sample.score_range), share, label=label)
        axes[0][column].set(xscale="log", xlabel="support size of a row", title=f"attention block {block}")
        axes[1][column].set(xscale="log", xlabel="score range of a row (largest - smallest)")
        for axis in (axes[0][column], axes[1][column]):
            axis.grid(alpha=0.3)
    for axis in axes[:, 0]:
        axis.set_ylabel("share of rows at or below")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(blocks), fontsize="small")
    with atomic_path(target) as temporary:
        figure.savefig(temporary, dpi=90)
