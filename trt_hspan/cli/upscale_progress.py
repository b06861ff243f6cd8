"""The progress of `trt-hspan upscale` on stderr: share of all pixels, throughput, time left."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import typer

from trt_hspan.errors import HspanError

if TYPE_CHECKING:
    from rich.progress import ProgressColumn
    from rich.progress import Task as Bar

    from trt_hspan.upscaling.jobs import Task, TaskReport


class WorkProgress:
    """One bar for all files; its unit is a million input pixels. Shows nothing where stderr is no terminal.

    Sizes are read from the files' headers when the bar starts. Use it in a `with` block.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        console = Console(stderr=True)
        self._shown = console.is_terminal
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            _throughput_column(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not self._shown,
        )
        self._sizes = {task.source: _pixels(task) for task in tasks} if self._shown else {}
        self._count, self._index = len(tasks), 0
        self._before = 0.0  # megapixels of the files that are finished
        self._current = 0.0
        self._id = self._bar.add_task("up-scaling", total=sum(self._sizes.values()) or None)

    def __enter__(self) -> WorkProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, task: Task) -> None:
        """A file is next."""
        self._index += 1
        self._current = self._sizes.get(task.source, 0.0)
        place = f"{self._index} of {self._count}: " if self._count > 1 else ""
        self._bar.update(self._id, description=f"{place}{task.source.name}")

    def begin_picture(self, name: str, height: int, width: int) -> None:
        """A picture that is no file is next, and the only one."""
        self._current = height * width / 1e6
        self._bar.update(self._id, description=name, total=self._current)

    def end(self, report: TaskReport) -> None:
        """A file is done, skipped or failed."""
        if report.outcome == "skipped":
            self._index += 1
        self._before += self._sizes.get(report.task.source, 0.0)
        self._current = 0.0
        self._bar.update(self._id, completed=self._before)

    def on_tile(self, done: int, count: int) -> None:
        """A tile is done."""
        self._bar.update(self._id, completed=self._before + self._current * done / count)

    def on_frame(self, done: int, count: int | None) -> None:
        """A frame is done."""
        if count:
            self.on_tile(min(done, count), count)

    def note(self, line: str) -> None:
        """Something to be known now, such as a lack of memory."""
        if self._shown:
            self._bar.console.print(f"trt-hspan: {line}", markup=False, highlight=False)
        else:
            typer.echo(f"trt-hspan: {line}", err=True)


def _pixels(task: Task) -> float:
    """Millions of input pixels, by the header; 0 for a file that does not say."""
    from trt_hspan.media.images import size_from_image_file
    from trt_hspan.upscaling.video import video_frames

    if task.is_video:
        frames = video_frames(task.source)
        return 0.0 if frames is None else frames[0] * frames[1] * frames[2] / 1e6
    try:
        height, width = size_from_image_file(task.source)
    except HspanError:
        return 0.0
    return height * width / 1e6


def _throughput_column() -> ProgressColumn:
    from rich.progress import ProgressColumn
    from rich.text import Text

    class Throughput(ProgressColumn):
        """Megapixels a second."""

        def render(self, task: Bar) -> Text:
            speed = task.finished_speed or task.speed
            return Text("- MP/s" if speed is None else f"{speed:.2f} MP/s")

    return Throughput()
