"""What commands print on stdout: tables for people, JSON for machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import typer

from trt_hspan.errors import printable
from trt_hspan.records import json_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text


def say(line: str) -> None:
    """Prints one line on stderr."""
    typer.echo(f"trt-hspan: {printable(line)}", err=True)


def print_json(report: Mapping[str, Any]) -> None:
    """Prints one JSON object on stdout, as `json_text` writes it."""
    typer.echo(json_text(report))


def print_report(
    title: str, report: Mapping[str, Any], rows: Mapping[str, Any] | None = None, *, as_json: bool
) -> None:
    """Prints a report as JSON, or as a table of its fields in words.

    `rows` is the table where it differs from the report. A name in it that is no field stays as it must be typed.
    """
    if as_json:
        print_json(report)
    else:
        table = report if rows is None else rows
        words = {name: name.replace("_", " ") for name in report}
        print_table(title, {words.get(name, name): value for name, value in table.items()})


def size_text(size_bytes: int | None) -> str | None:
    """In MB; None of None."""
    return None if size_bytes is None else f"{size_bytes / 1e6:,.1f} MB"


def rounded(value: float, digits: int) -> float:
    """`round`, but what rounds to minus zero is zero."""
    return round(value, digits) + 0.0


def print_table(title: str, rows: Mapping[str, Any]) -> None:
    """Prints names, as they are, and values as a two-column table on stdout; None is shown as a dash."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=_shown(title) if title else None, title_justify="left", show_header=False)
    widest = max((len(printable(name)) for name in rows), default=None)
    table.add_column(no_wrap=True, min_width=widest)  # without, rich counts the longest word of a name only
    table.add_column(overflow="fold")
    for name, value in rows.items():  # as `Text`: a path may contain what rich takes for markup
        lines = map(_shown, _text(value).split("\n"))
        table.add_row(_shown(name), Text("\n").join(lines))
    _print_unbroken(table)


def print_rows(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], totals: Sequence[str] | None = None
) -> None:
    """Prints a table with a header, and a last row of totals if any; columns of numbers are aligned to the right.

    Numbers are never broken: what is wider than the screen becomes several tables, each with the first column.
    """
    from rich.table import Table

    footers = totals or [""] * len(columns)
    texts = [index == 0 or any(row[index][:1].isalpha() for row in rows) for index in range(len(columns))]
    widths = []
    for index, column in enumerate(columns):
        widest = max(map(len, [column, footers[index], *(row[index] for row in rows)]))
        widths.append((min(widest, _TEXT_WIDTH) if texts[index] else widest) + _BORDER)
    for number, group in enumerate(_groups(widths, _console().width)):
        table = Table(
            title=_shown(title) if number == 0 else None, title_justify="left", show_footer=totals is not None
        )
        for index in group:
            table.add_column(
                columns[index],
                footer=footers[index],
                justify="left" if texts[index] else "right",
                overflow="fold",
                min_width=None if texts[index] else widths[index] - _BORDER,
            )
        for row in rows:
            table.add_row(*(_shown(row[index]) for index in group))
        _print_unbroken(table)


#: Columns of text may be narrower than their widest cell, down to this; a column has a border and two spaces.
_TEXT_WIDTH: Final = 24
_BORDER: Final = 3


def _groups(widths: Sequence[int], limit: int) -> list[list[int]]:
    """The columns of each table, by their widths: as many as fit into the limit, the first one always."""
    groups = [[0]]
    room = limit - widths[0] - 1
    for index, width in enumerate(widths[1:], start=1):
        if room < width and len(groups[-1]) > 1:
            groups.append([0])
            room = limit - widths[0] - 1
        groups[-1].append(index)
        room -= width
    return groups


def _console() -> Console:
    from rich.console import Console

    return Console()


def _print_unbroken(table: Table) -> None:
    """Prints within the terminal's width. A file or pipe has none: its lines are as long as the longest words need."""
    from rich.measure import Measurement

    console = _console()
    if not console.is_terminal:
        wide = console.options.update(max_width=10_000)
        console.width = max(console.width, Measurement.get(console, wide, table).minimum)
    console.print(table)


def _shown(text: str) -> Text:
    """Nothing in it is markup, steers the terminal or breaks the line."""
    from rich.text import Text

    return Text(printable(text))


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_text(item)}" for name, item in value.items())
    if isinstance(value, (list, tuple)) and all(isinstance(item, (int, str)) for item in value):
        is_shape = any(isinstance(item, int) for item in value)
        return (" x " if is_shape else ", ").join(map(str, value))
    return str(value)
