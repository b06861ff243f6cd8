"""What `trt-hspan upscale` shows of a job: its progress, and what became of each file."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import typer

from trt_hspan.cli.output import print_report
from trt_hspan.errors import HspanError
from trt_hspan.jobs.upscale import UpscaleJob, Work, upscale_files

if TYPE_CHECKING:
    from rich.progress import ProgressColumn
    from rich.progress import Task as Bar

    from trt_hspan.jobs.folders import JobReport, Task, TaskReport
    from trt_hspan.runtime.runner import Runner

_CONTEXT_NOTE = "attention sees one tile at a time"


def run_upscale(job: UpscaleJob, *, as_json: bool) -> int:
    """Does all of it and prints the result. Returns the exit code."""
    with terminated_as_interrupt():
        outcome = upscale_files(job, WorkProgress)
    if outcome.report is not None:
        return _print_all(job, outcome.work, outcome.report, as_json=as_json)
    print_one(job, outcome.work, Path(job.inputs[0]).name, outcome.result, as_json=as_json)
    return 0


def print_one(job: UpscaleJob, work: Work, name: str, result: Any, *, as_json: bool) -> None:
    report = {
        "input": job.inputs[0],
        "output": job.output,
        **_result_rows(result),
        **_runner_rows(work.runner),
        "out_of_memory": work.upscaler.shrinks or None,
    }
    print_report(f"Upscaled {name}", report, _for_people(report), as_json=as_json)


def _print_all(job: UpscaleJob, work: Work, report: JobReport, *, as_json: bool) -> int:
    done, skipped, failed = (report.of(outcome) for outcome in ("done", "skipped", "failed"))
    totals = {
        "done": len(done),
        "skipped": len(skipped),
        "failed": len(failed),
        "seconds": round(sum(entry.seconds for entry in done), 3),
        **_runner_rows(work.runner),
        "out_of_memory": work.upscaler.shrinks or None,
    }
    files = [_file_entry(entry) for entry in report.tasks]
    title = f"Upscaled to {job.output}"
    print_report(title, {**totals, "files": files}, _for_people(totals), as_json=as_json)
    for entry in done:
        for line in (*getattr(entry.result, "dropped_streams", ()), *getattr(entry.result, "notes", ())):
            typer.echo(f"trt-hspan: {entry.task.source}: {line}", err=True)
    for entry in failed:
        typer.echo(f"trt-hspan: error: {entry.error}", err=True)
    return 1 if failed else 0


def _file_entry(entry: TaskReport) -> dict[str, Any]:
    rows = {} if entry.result is None else _result_rows(entry.result)
    return {
        "input": str(entry.task.source),
        "output": str(entry.task.target),
        "outcome": entry.outcome,
        "error": entry.error,
        "seconds": round(entry.seconds, 3),
        **rows,
    }


def _result_rows(result: Any) -> dict[str, Any]:
    rows = asdict(result)
    rows.pop("backend")
    if "run_time_seconds" in rows:
        rows["run_time_seconds"] = round(rows["run_time_seconds"], 3)
    if rows.get("comparison") is not None:
        rows["comparison"] = str(rows["comparison"])
    return rows


def _runner_rows(runner: Runner) -> dict[str, Any]:
    return {
        "network": runner.where,
        "backend": runner.label,
        "emulated": runner.emulated,
        "why_emulated": runner.why_emulated,
        "precision": runner.precision,
    }


def _for_people(report: dict[str, Any]) -> dict[str, Any]:
    """The same with tiles in words, and without rows that say nothing."""
    rows = {name: value for name, value in report.items() if value not in (None, (), [])}
    tiles = rows.get("tiles")
    if tiles is not None:
        size = f"{rows.pop('tile_height')}x{rows.pop('tile_width')}"
        rows["tiles"] = "1, the whole picture" if tiles == 1 else f"{tiles} of {size}; {_CONTEXT_NOTE}"
    effect = rows.get("tile_effect")
    if effect is not None:
        rows["tile_effect"] = (
            f"{effect['psnr_db']:.2f} dB, at most {effect['max_abs_difference']:.2e}, against the whole picture"
        )
    if not rows.get("streamed", True):
        del rows["streamed"]
    return rows


@contextmanager
def terminated_as_interrupt() -> Iterator[None]:
    """SIGTERM ends the work as Ctrl-C does: what is half-written goes away."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
        self._id = self._bar.add_task("upscaling", total=sum(self._sizes.values()) or None)

    def __enter__(self) -> WorkProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, task: Task) -> None:
        self._index += 1
        self._current = self._sizes.get(task.source, 0.0)
        place = f"{self._index} of {self._count}: " if self._count > 1 else ""
        self._bar.update(self._id, description=f"{place}{task.source.name}")

    def end(self, report: TaskReport) -> None:
        if report.outcome == "skipped":
            self._index += 1
        self._before += self._sizes.get(report.task.source, 0.0)
        self._current = 0.0
        self._bar.update(self._id, completed=self._before)

    def on_tile(self, done: int, count: int) -> None:
        self._bar.update(self._id, completed=self._before + self._current * done / count)

    def on_frame(self, done: int, count: int | None) -> None:
        if count:
            self.on_tile(min(done, count), count)

    def note(self, line: str) -> None:
        if self._shown:
            self._bar.console.print(f"trt-hspan: {line}", markup=False, highlight=False)
        else:
            typer.echo(f"trt-hspan: {line}", err=True)


def _pixels(task: Task) -> float:
    """Millions of input pixels, by the header; 0 for a file that does not say."""
    from trt_hspan.media.pictures import size_from_image_file
    from trt_hspan.upscaling.video import video_frames

    if task.is_video:
        frames = video_frames(task.source)
        return 0.0 if frames is None else frames[0] * frames[1].pixels / 1e6
    try:
        return size_from_image_file(task.source).pixels / 1e6
    except HspanError:
        return 0.0


def _throughput_column() -> ProgressColumn:
    from rich.progress import ProgressColumn
    from rich.text import Text

    class Throughput(ProgressColumn):
        def render(self, task: Bar) -> Text:
            speed = task.finished_speed or task.speed
            return Text("- MP/s" if speed is None else f"{speed:.2f} MP/s")

    return Throughput()
