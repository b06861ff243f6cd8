"""Progress of long work, on stderr where that is a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from trt_hspan.errors import printable

if TYPE_CHECKING:
    import rich.progress

    from trt_hspan.native.progress import BuildProgress


class Bar:
    """One progress bar. Its methods are the callbacks that the library's long calls take."""

    def __init__(self, bar: rich.progress.Progress, description: str, total: float | None) -> None:
        self._bar = bar
        self._task = bar.add_task(description, total=total)

    def show(self, description: str, completed: float | None = None, total: float | None = None) -> None:
        """What is being done, and how much of it is complete, where that is counted; a total of 0 is yet to come."""
        self._bar.update(
            self._task, description=printable(description), completed=completed, total=total or None
        )

    def phases(self, description: str) -> Callable[[BuildProgress], None]:
        """What a build reports to; each of its phases is named after the description."""
        return lambda state: self.show(
            f"{description}: {state.phase}" if state.phase else description, state.fraction, 1.0
        )

    def advance(self, *_: object) -> None:
        """One more step is complete."""
        self._bar.advance(self._task)


@contextmanager
def progress(description: str, *, total: float | None = None) -> Iterator[Bar]:
    """A progress bar on stderr; without a total it only shows life."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield Bar(bar, description, total)
