"""What commands print on stdout: tables for people, JSON for machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import typer

from trt_hspan.records import json_text


def print_json(report: Mapping[str, Any]) -> None:
    """Prints one JSON object on stdout, as `json_text` writes it."""
    typer.echo(json_text(report))


def print_report(
    title: str, report: Mapping[str, Any], rows: Mapping[str, Any] | None = None, *, as_json: bool
) -> None:
    """Prints a report as JSON, or as a table; `rows` is the table where it differs from the report."""
    if as_json:
        print_json(report)
    else:
        print_table(title, report if rows is None else rows)


def rounded(value: float, digits: int) -> float:
    """`round`, but what rounds to minus zero is zero."""
    return round(value, digits) + 0.0


def print_table(title: str, rows: Mapping[str, Any]) -> None:
    """Prints names and values as a two-column table on stdout; None is shown as a dash."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title) if title else None, title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():  # as `Text`: a path may contain what rich takes for markup
        table.add_row(name.replace("_", " "), Text(_text(value)))
    Console().print(table)


def print_rows(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], totals: Sequence[str] | None = None
) -> None:
    """Prints a table with a header, and a last row of totals if any; columns of numbers are aligned to the right."""
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", show_footer=totals is not None)
    for index, (column, total) in enumerate(zip(columns, totals or [""] * len(columns), strict=True)):
        is_text = index == 0 or any(row[index][:1].isalpha() for row in rows)
        table.add_column(column, footer=total, justify="left" if is_text else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console()
    if not console.is_terminal:  # a file or a pipe has no width: nothing is folded there
        wide = console.options.update(max_width=10_000)
        console.width = max(console.width, Measurement.get(console, wide, table).maximum)
    console.print(table)


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_text(item)}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return " x ".join(map(str, value)) if all(isinstance(i, (int, str)) for i in value) else str(value)
    return str(value)
