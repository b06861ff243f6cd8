"""What `trt-hspan upscale` shows of a job: its progress, and what became of each file."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from trt_hspan.cli.output import print_report, say
from trt_hspan.cli.progress import progress
from trt_hspan.errors import HspanError, printable
from trt_hspan.jobs.upscale import UpscaleJob, Work, upscale_files

if TYPE_CHECKING:
    from trt_hspan.jobs.cluster.job import ClusterReport
    from trt_hspan.jobs.folders import Task, TaskReport
    from trt_hspan.jobs.upscale import JobOutcome
    from trt_hspan.runtime.runner import Runner

_CONTEXT_NOTE = "attention sees one tile at a time"
_NAMED = 5  # of files that are alike, each is named up to this number


def run_upscale(job: UpscaleJob, *, as_json: bool) -> int:
    """Does all of it and prints the result. Returns the exit code."""
    waiting = f"{job.output}: another run is writing here; this one goes on when it has ended"
    with terminated_as_interrupt():
        outcome = upscale_files(job, WorkProgress, on_wait=lambda: say(waiting))
    if outcome.reports is not None:
        return _print_all(job, outcome, outcome.reports, as_json=as_json)
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
    print_report(f"Upscaled {name}", report, for_people(report), as_json=as_json)


def _print_all(job: UpscaleJob, outcome: JobOutcome, reports: list[TaskReport], *, as_json: bool) -> int:
    counts = Counter(entry.outcome for entry in reports)
    totals = {
        **{name: counts[name] for name in ("done", "skipped", "failed")},
        "left_out": [str(path) for path in outcome.left_out],
        "seconds": round(sum(entry.seconds for entry in reports if entry.outcome == "done"), 3),
        **_runner_rows(outcome.work.runner),
        "out_of_memory": outcome.work.upscaler.shrinks or None,
    }
    files = [
        {
            "input": str(entry.task.source),
            "output": str(entry.task.target),
            "outcome": entry.outcome,
            "error": entry.error,
            "seconds": round(entry.seconds, 3),
            **({} if entry.result is None else _result_rows(entry.result)),
        }
        for entry in reports
    ]
    return print_files(job, totals, files, as_json=as_json)


def print_files(
    job: UpscaleJob, totals: dict[str, Any], files: list[dict[str, Any]], *, as_json: bool
) -> int:
    """Prints what became of files, {input, output, outcome, error} and more each. Returns the exit code.

    What is to be said of files that are done, and errors, are lines on stderr.
    """
    shown = totals | {"left_out": _left_out_text(totals["left_out"])}
    print_report(f"Upscaled to {job.output}", {**totals, "files": files}, for_people(shown), as_json=as_json)
    notes = [
        (file["input"], file["output"], f"{file['input']}: {line}")
        for file in files
        for line in (*file.get("dropped_streams", ()), *file.get("notes", ()))
    ]
    for line in _lines_with_counts(notes):
        say(line)
    errors = [(file["input"], file["output"], file["error"]) for file in files if file["error"]]
    for line in _lines_with_counts(errors):
        say(f"error: {line}")
    return 1 if errors else 0


def run_upscale_on_cluster(job: UpscaleJob, address: str, workers: int | None, *, as_json: bool) -> int:
    """Does all of it and prints the result. Returns the exit code."""
    from trt_hspan.jobs.cluster.upscale import cluster_job

    counts = {"done": 0, "skipped": 0, "failed": 0}
    with progress("starting the cluster") as bar:

        def on_end(report: ClusterReport) -> None:
            counts[report.outcome] += 1
            words = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
            bar.show(words, sum(counts.values()), len(on_cluster.tasks))

        on_cluster = cluster_job(job, address, workers, on_end)
        reports = on_cluster.run()
    totals = {
        **counts,
        "left_out": on_cluster.left_out,
        "cluster": address,
        "workers_used": len({report.worker for report in reports if report.worker}),
        "worker_seconds": round(sum(report.seconds for report in reports), 3),
        "network": str(job.network),
    }
    files = [
        {"input": r.task.source, "output": r.task.target, "outcome": r.outcome, "error": r.error or None}
        for r in reports
    ]
    return print_files(job, totals, files, as_json=as_json)


def _left_out_text(paths: Sequence[str]) -> str | None:
    """Such as "3, neither pictures nor videos: a.txt, b.txt, c.csv"; None without any."""
    if not paths:
        return None
    names = [Path(path).name for path in paths[:_NAMED]] + ["..."] * (len(paths) > _NAMED)
    return f"{len(paths)}, neither pictures nor videos: {', '.join(names)}"


def _lines_with_counts(lines: Sequence[tuple[str, str, str]]) -> list[str]:
    """Lines, each with its source and target; those that differ in nothing but these are one line with a count."""
    alike: dict[str, list[str]] = {}
    for source, target, line in lines:
        alike.setdefault(line.replace(source, "\0").replace(target, "\0"), []).append(line)
    return [
        line
        for group in alike.values()
        for line in (group if len(group) <= _NAMED else [f"{group[0]} (and {len(group) - 1} more like it)"])
    ]


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


def for_people(report: dict[str, Any]) -> dict[str, Any]:
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
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        self._shown = console.is_terminal
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[speed]} MP/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
            disable=not self._shown,
        )
        self._sizes = {task.source: _pixels(task) for task in tasks} if self._shown else {}
        self._count, self._index = len(tasks), 0
        self._before = 0.0  # megapixels of the files that are finished
        self._current = 0.0
        self._total = sum(self._sizes.values())
        self._begun: float | None = None  # when the first file was
        self._warm: tuple[float, float] | None = None  # when the first tile was finished, and its megapixels
        self._id = self._bar.add_task("upscaling", total=self._total or None, left=_TimeLeft(None), speed="-")

    def __enter__(self) -> WorkProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, task: Task) -> None:
        self._index += 1
        self._begun = self._begun or time.monotonic()
        self._current = self._sizes.get(task.source, 0.0)
        place = f"{self._index} of {self._count}: " if self._count > 1 else ""
        self._bar.update(self._id, description=place + printable(task.source.name))

    def end(self, report: TaskReport) -> None:
        size = self._sizes.get(report.task.source, 0.0)
        self._current = 0.0
        if report.outcome == "skipped":
            self._index += 1
            self._total -= size
            self._bar.update(self._id, total=self._total or None)
        else:
            self._before += size
            self._update(self._before)

    def on_tile(self, done: int, count: int) -> None:
        self._update(self._before + self._current * done / count)

    def _update(self, completed: float) -> None:
        """The mean speed so far, and the time that is left: from the second tile on by that of all but the first."""
        self._bar.update(self._id, completed=completed)
        now = time.monotonic()
        if completed > 0 and self._begun is not None:
            since, before = self._warm or (self._begun, 0.0)
            left = (now - since) * (self._total - completed) / max(completed - before, 1e-9)
            self._warm = self._warm or (now, completed)
            elapsed = now - self._begun
            speed = f"{completed / elapsed:.2f}" if elapsed else "-"
            self._bar.update(self._id, left=_TimeLeft(now + left), speed=speed)

    def on_frame(self, done: int, count: int | None) -> None:
        if count:
            self.on_tile(min(done, count), count)

    def note(self, line: str) -> None:
        if self._shown:
            self._bar.console.print(f"trt-hspan: {printable(line)}", markup=False, highlight=False)
        else:
            say(line)


class _TimeLeft(NamedTuple):
    """As text, the time until an end by the monotonic clock, such as "0:04:40": it falls while a tile takes minutes."""

    end: float | None

    def __str__(self) -> str:
        if self.end is None:
            return "-:--:--"
        return str(timedelta(seconds=max(0, round(self.end - time.monotonic()))))


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
