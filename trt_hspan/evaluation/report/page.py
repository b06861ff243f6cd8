"""The report's page, put together with Jinja2. Charts are drawn elsewhere, and nothing is measured here.

The page is one file that contains its styles, script, charts and pictures; its content security policy forbids every
request to a network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_hspan.engine.manifest import EngineManifest
from trt_hspan.engine.range_record import RISK_MEANINGS, RangeAudit
from trt_hspan.errors import HspanError
from trt_hspan.evaluation.compare import ValidationReport
from trt_hspan.evaluation.layers import LayerError
from trt_hspan.evaluation.report.charts import Line, histogram_chart, layer_chart, range_chart
from trt_hspan.evaluation.report.evidence import HISTOGRAM_EDGES, EvidenceCollector
from trt_hspan.evaluation.report.pictures import HEAT_RANGE, LONGEST_SIDE, heat_gradient, shown_size
from trt_hspan.files import write_text
from trt_hspan.machine.install_advice import install_command
from trt_hspan.records import json_text
from trt_hspan.version import __version__

if TYPE_CHECKING:
    from jinja2 import Environment

PAGE_NAME = "index.html"
DATA_NAME = "report.json"
_NONE = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One network of the report; `label` is short and different from all others, `layers` may be empty."""

    label: str
    path: Path
    manifest: EngineManifest | None  # of an engine
    report: ValidationReport
    layers: Sequence[LayerError]


@dataclass(frozen=True, kw_only=True)
class ReportInput:
    """Everything the page shows; texts as the user named things."""

    reference: str
    images: str
    rows: Sequence[Row]
    evidence: EvidenceCollector
    layer_picture: str  # what the layer errors were measured on


def write_report(folder: Path, content: ReportInput) -> Path:
    """Writes `index.html` and, with the same figures, `report.json`. Returns the page."""
    page = page_from_report(content)
    write_text(folder / DATA_NAME, json_text(figures_from_report(content)) + "\n")
    write_text(folder / PAGE_NAME, page)
    return folder / PAGE_NAME


def require_report_tools() -> None:
    """Raises: HspanError when Jinja2 is not installed, checked before a long comparison."""
    _environment()


def page_from_report(content: ReportInput) -> str:
    from markupsafe import Markup

    assets = resources.files("trt_hspan.evaluation.report") / "assets"
    evidence = content.evidence
    labels = [row.label for row in content.rows]
    modules = max((row.layers for row in content.rows), key=len, default=())
    names = [layer.module for layer in modules]
    lines = [
        Line(label=row.label, values=tuple(_on_axis(row.layers, names))) for row in content.rows if row.layers
    ]
    shares = [
        [int(cell) / total for cell in histogram]
        for histogram, total in zip(evidence.histograms, evidence.values, strict=True)
    ]
    first = content.rows[0].report
    context: dict[str, Any] = {
        "content": content,
        "rows": content.rows,
        "first": first,
        "passed": all(row.report.passed for row in content.rows),
        "bicubic": first.total.bicubic_quality,
        "reference_quality": first.total.reference_quality,
        "reference_seconds": first.total.reference_seconds,
        "pictures": evidence.pictures,
        "hidden_pictures": evidence.seen - len(evidence.pictures),
        "layer_chart": Markup(layer_chart(names, lines)) if lines else "",
        "histogram": Markup(histogram_chart(HISTOGRAM_EDGES, labels, shares)),
        "equal_shares": [
            equal / total for equal, total in zip(evidence.equal_values, evidence.values, strict=True)
        ],
        "audits": [
            _audit(row.label, row.manifest.range_audit)
            for row in content.rows
            if row.manifest and row.manifest.range_audit
        ],
        "heat_gradient": Markup(heat_gradient()),
        "heat_range": HEAT_RANGE,
        "longest_side": LONGEST_SIDE,
        "shown_size": shown_size,
        "style": Markup((assets / "style.css").read_text(encoding="utf-8")),
        "script": Markup((assets / "script.js").read_text(encoding="utf-8")),
        "version": __version__,
    }
    template = _environment().from_string((assets / "page.html.j2").read_text(encoding="utf-8"))
    return template.render(context)


def figures_from_report(content: ReportInput) -> dict[str, Any]:
    bicubic = content.rows[0].report.total.bicubic_quality
    return {
        "tool_version": __version__,
        "reference": content.reference,
        "images": content.images,
        "passed": all(row.report.passed for row in content.rows),
        "bicubic": None if bicubic is None else asdict(bicubic),
        "layer_picture": content.layer_picture,
        "networks": [
            {
                "label": row.label,
                "file": row.path.name,
                "size_bytes": row.path.stat().st_size,
                "activation_memory_bytes": row.manifest.activation_memory_bytes if row.manifest else None,
                "build_time_seconds": row.manifest.build_time_seconds if row.manifest else None,
                "layers": [asdict(layer) for layer in row.layers],
                **asdict(row.report),
            }
            for row in content.rows
        ],
    }


def _on_axis(layers: Sequence[LayerError], names: Sequence[str]) -> list[float | None]:
    psnr_by_module = {layer.module: layer.psnr_db for layer in layers}
    return [psnr_by_module.get(name) for name in names]


def _audit(label: str, audit: RangeAudit) -> dict[str, Any]:
    from markupsafe import Markup

    nodes = [(node, node.largest) for node in audit.nodes if node.low and node.largest is not None]
    chart = range_chart(
        [node.node for node, _ in nodes],
        [largest for _, largest in nodes],
        audit.limit,
        [bool(node.risks) for node, _ in nodes],
    )
    scores = [node.largest_score for node in audit.nodes if node.largest_score is not None]
    return {
        "label": label,
        "audit": audit,
        "chart": Markup(chart),
        "largest_score": max(scores, default=None),
        "meanings": RISK_MEANINGS,
    }


def _environment() -> Environment:
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise HspanError("Jinja2", "is not installed", install_command("export")) from error
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "db": _db,
        "loss": _loss,
        "ssim": lambda value: _number(value, ".4f"),
        "ssim_loss": lambda value: _number(value, "+.4f"),
        "size": _size,
        "seconds": _seconds,
        "levels": _levels,
        "percent": lambda value: f"{value * 100:.1f} %",
    }
    return environment


def _number(value: float | None, form: str) -> str:
    if value is None:
        return _NONE
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else f"{_MINUS}∞"
    text = format(value, form)
    if not text.strip("+-0."):  # no sign before a zero
        text = text.lstrip("+-")
    return text.replace("-", _MINUS)


def _db(value: float | None, digits: int = 2) -> str:
    return _number(value, f".{digits}f")


def _loss(value: float | None) -> str:
    return _number(value, "+.4f")


def _levels(error: float) -> str:
    """An error of the range [0, 1] in gray levels."""
    return _number(error * 255, ".3g")


def _size(size_bytes: int | None) -> str:
    if size_bytes is None:
        return _NONE
    return f"{size_bytes / 1e6:,.1f} MB" if size_bytes >= 1e5 else f"{size_bytes / 1e3:,.1f} kB"


def _seconds(seconds: float | None) -> str:
    return _NONE if seconds is None else f"{seconds:.2f} s" if seconds < 100 else f"{seconds:,.0f} s"
