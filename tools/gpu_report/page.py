"""The page of Markdown that `make gpu` writes beside its JSON file: the same figures, for readers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

_TITLES = {
    "a": "a. What is here",
    "b": "b. Libraries for this GPU",
    "c": "c. The kernels against float64",
    "d": "d. Times",
    "e": "e. The network in PyTorch",
    "f": "f. TensorRT",
    "g": "g. C++ runtime and trtexec",
    "h": "h. Triton",
}
_FLOOR = (
    "Medians in milliseconds. The floor is a product of queries and keys, or the traffic of the tensors, at rates "
    "measured here."
)


def page_from_report(report: dict[str, Any]) -> str:
    """Markdown: the verdict of each step first, then what each found."""
    steps = report["steps"]
    title = (
        "# Rehearsal without a GPU: steps a to c on interpreted PTX" if report["rehearsal"] else "# On a GPU"
    )
    lines = [
        title,
        "",
        f"{report['when']}, commit {' '.join(report['commit']) or 'unknown'}. Command: `{report['command']}`.",
        "",
    ]
    lines += _table(
        ("step", "verdict", "seconds", "why"),
        (
            (_TITLES[key], step["verdict"], f"{step['seconds']:.0f}", step["why"])
            for key, step in steps.items()
        ),
    )
    for key, step in steps.items():
        answer = step["answer"]
        if answer:
            lines += [f"## {_TITLES[key]}", "", *_SECTIONS[key](answer), ""]
        if failures := step["failures"]:
            lines += [
                f"{len(failures)} failures, at most 20 of them:",
                "",
                *(f"- {line}" for line in failures[:20]),
                "",
            ]
    return "\n".join(lines).rstrip() + "\n"


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    body = ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns), *body, ""]


def _machine(answer: dict[str, Any]) -> list[str]:
    rows: list[tuple[str, object]] = [
        ("GPUs", ", ".join(answer["gpus"]) or answer["no_gpu"]),
        ("driver runs CUDA up to", answer["driver_runs_cuda_up_to"]),
        ("nvcc", answer["nvcc"]),
    ]
    rows += [("nvidia-smi", line) for line in answer["nvidia_smi"][1:]]
    for python in answer["pythons"]:
        modules = ", ".join(f"{name} {version}" for name, version in python["modules"].items())
        cuda = f", torch sees a GPU with CUDA {python['cuda']}" if python["cuda"] else ""
        rows.append((f"Python {python['version']}", f"{modules}{cuda}"))
    rows += [(name, path or "not found") for name, path in answer["programs"].items()]
    return _table(("what", "here"), rows)


def _build(answer: dict[str, Any]) -> list[str]:
    plugin = answer["plugin"]
    rows = [("kernel library", f"{answer['bytes']} bytes, `{answer['command']}`")]
    rows.append(("plugin", plugin.get("left_out") or f"machine code for {plugin['cubin_architectures']}"))
    return _table(("library", ""), rows)


def _kernels(answer: dict[str, Any]) -> list[str]:
    lines = [f"{answer['runs']} runs, each case twice; {answer['failure_count']} failures."]
    if answer["not_run"]:
        lines.append(
            f"Not run for lack of time: {len(answer['not_run'])} cases, the first {answer['not_run'][0]}."
        )
    worst = ((name, f"{value:.3f}") for name, value in answer["of_bound"].items())
    lines += ["", *_table(("type", "greatest error, in units of its bound"), worst)]
    lines += _table(("configuration", "runs"), answer["runs_by_configuration"].items())
    for tool, line in answer.get("sanitizer", {}).items():
        lines.append(f"compute-sanitizer {tool}: {line}.")
    return lines


def _timing(answer: dict[str, Any]) -> list[str]:
    lines = [_FLOOR]
    lines += [
        "",
        *_table(("rate", "measured"), ((name, f"{value:.1f}") for name, value in answer["rates"].items())),
    ]
    rows = []
    for row in answer["rows"]:
        sizes = f"{row['positions']}, {row['score_channels']}/{row['value_channels']}"
        time, floor = row.get("median_ms"), row["floor_ms"]
        measured = (
            (f"{time:.3f}", f"{time / floor:.1f}", row["runs"]) if time else ("-", "-", row["left_out"])
        )
        rows.append((sizes, row["type"], row["data"], row["form"], *measured))
    lines += _table(("L, C/D", "type", "data", "form", "ms", "x floor", "runs"), rows)
    if answer["not_run"]:
        lines.append(f"Not run for lack of time: {', '.join(answer['not_run'])}.")
    return lines


def _network(answer: dict[str, Any]) -> list[str]:
    rows = (
        (
            row["type"],
            f"{row['side']}x{row['side']}",
            f"{row['psnr_db']:.1f}",
            f"{row['largest_error']:.2e}",
            row["bar_db"],
        )
        for row in answer["rows"]
    )
    lines = _table(("type", "input", "dB against float64", "largest error", "bar"), rows)
    times = (
        (row["type"], f"{row['side']}x{row['side']}", f"{row['median_ms']:.2f}") for row in answer["times"]
    )
    lines += _table(("type", "input", "ms"), times)
    return lines + [f"Warned: {line}" for line in answer["warnings"]]


def _checks(answer: dict[str, Any]) -> list[str]:
    return _table(("check", "result"), answer["checks"].items())


_SECTIONS = {
    "a": _machine,
    "b": _build,
    "c": _kernels,
    "d": _timing,
    "e": _network,
    "f": _checks,
    "g": _checks,
    "h": _checks,
}
