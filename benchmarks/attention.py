#!/usr/bin/env python3
"""Attention on a CPU: the operator of this package beside its peers, in one run.

Peers: the dense formulation with `entmax.sparsemax(k=128)`, as the official code computes it, softmax attention by
PyTorch, and the score matrix product alone, which is the floor of anything exact. All get the same numbers; the
peers as (tokens, channels), which suits them best, the operator as (1, channels, H, W), as a network has them.

Regimes, by how many positions of a row get a weight: sparse 2-5, mid 30-50, dense half of the row. Random queries are
scaled until the mean support is right. Every measurement is a process of its own. Time is the best of several runs,
on the wall and of the processor, memory the rise of resident memory in the first run less the output, error the
largest one in 64 rows against float64, relative to the largest value.

    python benchmarks/attention.py [--json] [--threads 2] [--lengths 576 2304 9216 36864]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from measuring import best_seconds, fits_in_memory, in_child, options_or_measurement, peak_memory_bytes

if TYPE_CHECKING:
    from torch import Tensor

SCORE_CHANNELS: Final = 96
VALUE_CHANNELS: Final = 192
SIDES: Final = {576: (24, 24), 2304: (48, 48), 9216: (96, 96), 36864: (192, 192)}
SUPPORTS: Final = {"sparse": 3.5, "mid": 40.0, "dense": 0.5}  # below 1: a share of the row
SAMPLED_ROWS: Final = 64
GEMM_ROWS: Final = 128

FORMS: Final = {
    "native": "this package",
    "entmax": "dense, entmax.sparsemax(k=128)",
    "softmax": "softmax, torch SDPA",
    "gemm": "scores alone, torch.mm",
}
# Matrices of L x L float32 that a form has in memory at a time, measured; none for forms that work in tiles.
SCORE_MATRICES: Final = {"native": 0, "entmax": 5, "softmax": 3, "gemm": 0}


def tokens(length: int, regime: str) -> tuple[Tensor, Tensor, Tensor, float]:
    """query (L, C), key (L, C), value (L, D), and the mean support of the sampled rows."""
    import torch

    generator = torch.Generator().manual_seed(length)
    query = torch.randn(length, SCORE_CHANNELS, generator=generator)
    key = torch.randn(length, SCORE_CHANNELS, generator=generator)
    value = torch.randn(length, VALUE_CHANNELS, generator=generator)
    target = SUPPORTS[regime] if SUPPORTS[regime] >= 1 else SUPPORTS[regime] * length
    scores = query[sampled(length)].double() @ key.double().T
    descending = scores.sort(-1, descending=True).values
    low, high = -30.0, 5.0  # binary logarithm of the factor; the support falls as it grows
    for _ in range(20):
        factor = 2 ** ((low + high) / 2)
        mean_support = float(support_sizes(descending * factor).double().mean())
        low, high = ((low + high) / 2, high) if mean_support > target else (low, (low + high) / 2)
    return query * factor, key, value, mean_support


def sampled(length: int) -> Tensor:
    """Rows that are compared with float64, evenly spread."""
    import torch

    return torch.linspace(0, length - 1, SAMPLED_ROWS).long()


def sparsemax_by_sorting(scores: Tensor) -> Tensor:
    """Martins & Astudillo 2016, algorithm 1, in float64: the reference."""
    descending = scores.sort(-1, descending=True).values
    size = support_sizes(descending)
    return (scores - (descending.cumsum(-1).gather(-1, size - 1) - 1) / size).clamp_min(0)


def support_sizes(descending: Tensor) -> Tensor:
    """How many positions of each sorted row get a weight: (rows, L) -> (rows, 1)."""
    import torch

    ranks = torch.arange(1, descending.shape[-1] + 1, dtype=descending.dtype)
    return (1 + ranks * descending > descending.cumsum(-1)).sum(-1, keepdim=True)


def form(name: str, query: Tensor, key: Tensor, value: Tensor) -> Callable[[], Tensor]:
    """The call to be measured; it returns (L, D), except "gemm", which returns its buffer."""
    import torch

    length = query.shape[0]
    if name == "native":
        from trt_hspan.ops import high_similarity_pass_attention

        image = [
            tensor.T.contiguous().view(1, -1, *SIDES.get(length, (1, length)))
            for tensor in (query, key, value)
        ]
        return lambda: high_similarity_pass_attention(*image).view(-1, length).T
    if name == "entmax":
        from entmax import sparsemax

        return lambda: sparsemax(query @ key.T, dim=-1, k=128) @ value
    if name == "softmax":
        heads = [tensor[None, None] for tensor in (query, key, value)]
        return lambda: torch.nn.functional.scaled_dot_product_attention(*heads, scale=1.0)[0, 0]
    scores = torch.empty(GEMM_ROWS, length)

    def multiply() -> Tensor:
        for start in range(0, length, GEMM_ROWS):
            rows = query[start : start + GEMM_ROWS]
            torch.mm(rows, key.T, out=scores[: rows.shape[0]])
        return scores

    return multiply


def measure(name: str, length: int, regime: str, threads: int) -> dict[str, Any]:
    """One measurement, in this process."""
    import torch

    torch.set_num_threads(threads)
    query, key, value, mean_support = tokens(length, regime)
    small = 2 * GEMM_ROWS
    with torch.inference_mode():
        form(name, query[:small], key[:small], value[:small])()  # what is loaded once does not count
        call = form(name, query, key, value)
        output, peak = peak_memory_bytes(call)
        output_bytes = 0 if name == "gemm" else output.nbytes
        seconds, cpu_seconds = best_seconds(call)
        report: dict[str, Any] = {
            "form": name,
            "length": length,
            "regime": regime,
            "mean_support": round(mean_support, 2),
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "extra_bytes": max(0, peak - output_bytes),
        }
        if name in ("native", "entmax"):
            rows = sampled(length)
            weights = sparsemax_by_sorting(query[rows].double() @ key.double().T)
            error = (output[rows].double() - weights @ value.double()).abs().max() / value.abs().max()
            report["error"] = float(error)
    return report


def run_all(lengths: list[int], threads: int) -> list[dict[str, Any]]:
    """Every measurement that fits in memory, peers' times beside each of this package."""
    from trt_hspan.cli.progress import progress

    plan = [
        (name, length, regime)
        for length in lengths
        for name in ("gemm", "softmax", "entmax", "native")
        for regime in (SUPPORTS if name in ("entmax", "native") else ["sparse"])
    ]
    rows: list[dict[str, Any]] = []
    with progress("measuring", total=len(plan)) as bar:
        for name, length, regime in plan:
            bar.show(f"{FORMS[name]}, L {length}, {regime}")
            needed = SCORE_MATRICES[name] * 4 * length**2
            if not fits_in_memory(needed / 0.9):
                row = {"form": name, "length": length, "regime": regime, "does_not_fit_bytes": needed}
            else:
                arguments = {"name": name, "length": length, "regime": regime, "threads": threads}
                row = in_child(__file__, arguments)
            rows.append(row)
            bar.advance()
    seconds = {(row["form"], row["length"], row["regime"]): row.get("seconds") for row in rows}
    for row in rows:
        if "seconds" not in row:
            continue
        row["extra_share_of_scores"] = row["extra_bytes"] / (4 * row["length"] ** 2)
        for peer, regime in (("entmax", row["regime"]), ("gemm", "sparse")):
            of_peer = seconds.get((peer, row["length"], regime))
            row[f"seconds_of_{peer}"] = of_peer
    return rows


def print_report(rows: list[dict[str, Any]], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in ("L", "regime", "form"):
        table.add_column(column)
    for column in (
        "support",
        "seconds",
        "CPU s",
        "x GEMM",
        "faster than entmax",
        "extra MB",
        "of L x L",
        "error",
    ):
        table.add_column(column, justify="right")
    for row in rows:
        regime = row["regime"] if row["form"] in ("native", "entmax") else "any"
        start = [str(row["length"]), regime, FORMS[row["form"]]]
        if "seconds" not in row:
            table.add_row(*start, "", f"needs {row['does_not_fit_bytes'] / 1e9:.0f} GB")
            continue
        gemm, entmax = row["seconds_of_gemm"], row["seconds_of_entmax"]
        table.add_row(
            *start,
            f"{row['mean_support']:.1f}" if regime != "any" else "",
            f"{row['seconds']:.4f}",
            f"{row['cpu_seconds']:.4f}",
            f"{row['seconds'] / gemm:.2f}",
            f"{entmax / row['seconds']:.1f}" if entmax and row["form"] == "native" else "",
            f"{row['extra_bytes'] / 1e6:.1f}",
            f"{100 * row['extra_share_of_scores']:.2f}%",
            f"{row['error']:.1e}" if "error" in row else "",
        )
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)


def main() -> None:
    options = options_or_measurement(
        "Times attention on a CPU beside its peers.",
        "benchmarks/attention.py",
        ("--lengths", list(SIDES)),
        measure,
    )
    import torch

    from trt_hspan.native.cpu_attention import native_library

    library = native_library()
    if library is None:
        sys.exit("benchmarks/attention.py: no native library; run trt-hspan plugin build --cpu")
    rows = run_all(options.lengths, options.threads)
    if options.json:
        machine = {
            "torch": torch.__version__,
            "threads": options.threads,
            "instruction_set": library.instruction_sets[0],
            "score_channels": SCORE_CHANNELS,
            "value_channels": VALUE_CHANNELS,
            "element_type": "float32",
        }
        print(json.dumps({"machine": machine, "rows": rows}, indent=2))
        return
    print_report(
        rows,
        f"Exact attention, FP32, C {SCORE_CHANNELS}, D {VALUE_CHANNELS}, {options.threads} threads, "
        f"{library.instruction_sets[0]}, torch {torch.__version__}",
    )


if __name__ == "__main__":
    main()
