"""Charts as inline SVG. Colors come from the page's style sheet, by class names `series-0` ..."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

_WIDTH: Final = 960
_LEFT: Final = 56
_RIGHT: Final = 16
_TOP: Final = 14
_SHOWN_LIMIT: Final = 1e6
#: Marks that differ by shape as well as by color.
_DASHES: Final = ("", "7 4", "2 3", "10 3 2 3", "1 4", "12 5")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One network's curve: a value for each tick of the x axis; None leaves a gap."""

    label: str
    values: tuple[float | None, ...]


def layer_chart(modules: Sequence[str], lines: Sequence[Line]) -> str:
    """PSNR in dB (y) after each module (x). Only modules of the top level are named on the axis.

    Infinite values are drawn at the top, NaN leaves a gap.
    """
    finite = [v for line in lines for v in line.values if v is not None and math.isfinite(v)]
    if not finite:
        return ""
    low = math.floor((min(finite) - 2) / 10) * 10
    high = math.ceil((max(finite) + 2) / 10) * 10
    height, bottom = 330, 92
    plot = _Plot(height=height, bottom=bottom, count=len(modules), low=low, high=high)
    parts = [
        _svg_open(height, "PSNR of each module's output against FP32, in decibels, one line for each network")
    ]
    ticks = range(low, high + 1, 10 if high - low <= 80 else 20)
    for tick in ticks:
        parts.append(plot.horizontal(tick, f"{tick} dB" if tick == ticks[-1] else f"{tick}"))
    for index, module in enumerate(modules):
        if module.count(".") <= 1:
            x = plot.x(index)
            parts.append(
                f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{height - bottom}" y2="{height - bottom + 5}"/>'
                f'<text class="axis" text-anchor="end" transform="translate({x + 4:.1f} {height - bottom + 16}) '
                f'rotate(-40)">{escape(module)}</text>'
            )
    for number, line in enumerate(lines):
        parts.append(_curve(number, line, modules, plot))
    parts.append("</svg>")
    return "".join(parts)


def histogram_chart(edges: Sequence[float], labels: Sequence[str], shares: Sequence[Sequence[float]]) -> str:
    """Share of all values, in percent (y), by absolute error in gray levels (x, logarithmic)."""
    highest = max((share for row in shares for share in row), default=0.0)
    if highest == 0.0:
        return ""
    height, bottom = 280, 56
    high = max(1, math.ceil(highest * 100 / 2) * 2)
    plot = _Plot(height=height, bottom=bottom, count=len(edges), low=0, high=high)
    parts = [_svg_open(height, "Histogram of absolute errors in gray levels, one outline for each network")]
    for tick in range(0, high + 1, max(1, high // 4)):
        parts.append(plot.horizontal(tick, f"{tick} %"))
    for index, edge in enumerate(edges):
        exponent = math.log10(edge)
        if abs(exponent - round(exponent)) < 1e-9:
            x = plot.x(index)
            name = {0: "1", 1: "10", 2: "100"}.get(round(exponent), f"10{_superscript(round(exponent))}")
            parts.append(
                f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{height - bottom}"/>'
                f'<text class="axis" text-anchor="middle" x="{x:.1f}" y="{height - bottom + 18}">{name}</text>'
            )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text class="axis" text-anchor="middle" x="{middle}" y="{height - 12}">'
        "absolute error, gray levels (1/255 of the range)</text>"
    )
    for number, (label, row) in enumerate(zip(labels, shares, strict=True)):
        steps = [f"M{plot.x(0):.1f} {plot.y(0):.1f}"]
        for index, share in enumerate(row):
            steps.append(f"V{plot.y(share * 100):.1f}H{plot.x(index + 1):.1f}")
        steps.append(f"V{plot.y(0):.1f}Z")
        parts.append(
            f'<path class="area series-{number % 6}" d="{"".join(steps)}"><title>{escape(label)}</title></path>'
        )
    parts.append("</svg>")
    return "".join(parts)


def range_chart(names: Sequence[str], largest: Sequence[float], limit: float, risky: Sequence[bool]) -> str:
    """Largest activation (y, logarithmic) of each node (x) against the type's limit."""
    positive = [value for value in largest if value > 0]
    if not positive:
        return ""
    height, bottom = 260, 28
    low = math.floor(math.log10(min(positive)))
    highest = max(positive)
    if limit <= _SHOWN_LIMIT:  # bfloat16's is further away than anybody cares to see
        highest = max(highest, limit)
    high = math.ceil(math.log10(highest) + 0.2)
    plot = _Plot(height=height, bottom=bottom, count=len(names), low=low, high=high)
    parts = [
        _svg_open(
            height, "Largest absolute activation of each node, on a logarithmic axis, and the type's limit"
        )
    ]
    for tick in range(low, high + 1, max(1, (high - low) // 6)):
        parts.append(plot.horizontal(tick, f"10{_superscript(tick)}"))
    if math.log10(limit) <= high:
        y = plot.y(math.log10(limit))
        parts.append(
            f'<line class="limit" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="axis strong" x="{_LEFT + 6}" y="{y - 6:.1f}">limit {limit:g}</text>'
        )
    base = plot.y(low)
    for index, (name, value, risk) in enumerate(zip(names, largest, risky, strict=True)):
        if value > 0:
            x, y = plot.x(index), plot.y(math.log10(value))
            parts.append(
                f'<line class="stem{" risk" if risk else ""}" x1="{x:.1f}" x2="{x:.1f}" y1="{base:.1f}" '
                f'y2="{y:.1f}"><title>{escape(name)}: {value:.4g}</title></line>'
            )
    parts.append(
        f'<text class="axis" text-anchor="middle" x="{_WIDTH / 2}" y="{height - 8}">nodes, in the graph\'s order</text>'
    )
    parts.append("</svg>")
    return "".join(parts)


@dataclass(frozen=True, kw_only=True)
class _Plot:
    height: int
    bottom: int
    count: int
    low: float
    high: float

    def x(self, index: float) -> float:
        inner = _WIDTH - _LEFT - _RIGHT - 16
        return _LEFT + 8 + inner * index / max(1, self.count - 1)

    def y(self, value: float) -> float:
        inner = self.height - self.bottom - _TOP
        return _TOP + inner * (1 - (value - self.low) / (self.high - self.low))

    def horizontal(self, value: float, text: str) -> str:
        y = self.y(value)
        return (
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="axis" text-anchor="end" x="{_LEFT - 8}" y="{y + 4:.1f}">{text}</text>'
        )


def _curve(number: int, line: Line, modules: Sequence[str], plot: _Plot) -> str:
    pieces: list[list[str]] = [[]]
    marks = []
    for index, value in enumerate(line.values):
        if value is None or math.isnan(value):
            pieces.append([])
            continue
        x, y = plot.x(index), plot.y(min(max(value, plot.low), plot.high))
        pieces[-1].append(f"{x:.1f},{y:.1f}")
        text = "equal" if value == math.inf else f"{value:.1f} dB"
        marks.append(
            f'<circle class="series-{number % 6}" cx="{x:.1f}" cy="{y:.1f}" r="3.2">'
            f"<title>{escape(line.label)}, {escape(modules[index])}: {text}</title></circle>"
        )
    dash = f' stroke-dasharray="{_DASHES[number % 6]}"' if _DASHES[number % 6] else ""
    lines = "".join(
        f'<polyline class="line series-{number % 6}"{dash} points="{" ".join(piece)}"/>'
        for piece in pieces
        if len(piece) > 1
    )
    return lines + "".join(marks)


def _svg_open(height: int, description: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(description)}" '
        'xmlns="http://www.w3.org/2000/svg">'
    )


def _superscript(number: int) -> str:
    return str(number).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
