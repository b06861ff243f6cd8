"""`trt-hspan upscale` with standard input or standard output. Owns the two ends; the work in between is on files.

What comes through a pipe is put into a temporary file and what goes out comes from one, so that large pictures are
streamed as files are, and so that nothing is sent before the result is whole.
"""

from __future__ import annotations

import errno
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from trt_hspan.cli.request import refuse_options
from trt_hspan.cli.upscale.job import WorkProgress, print_one, terminated_as_interrupt
from trt_hspan.errors import HspanError, UsageError
from trt_hspan.files import check_writable, require_free
from trt_hspan.jobs.folders import Task
from trt_hspan.jobs.upscale import UpscaleJob, at_work
from trt_hspan.media.formats import (
    VIDEO_SUFFIXES,
    format_and_suffix,
    kind_of_file,
    not_a_picture,
    require_writable_suffix,
)

PIPE: Final = "-"
_INPUT: Final = "standard input"
_OUTPUT: Final = "standard output"
_CHUNK_BYTES: Final = 1 << 20


def run_upscale_pipe(job: UpscaleJob, *, as_json: bool) -> int:
    """One picture, or a video to a file; prints the result where standard output is free. Returns the exit code."""
    with terminated_as_interrupt():
        _require_pipe(job, as_json=as_json)
        runner = job.execution.open(job.network)
        with _temporary_folder() as folder:
            task = _task(job, folder)
            job.require_used([task])
            with WorkProgress([task]) as bar, at_work(job, runner, bar) as work:
                result = work.do_only(task)
            if job.output == PIPE:
                with task.target.open("rb") as stream:
                    shutil.copyfileobj(stream, sys.stdout.buffer, _CHUNK_BYTES)
                sys.stdout.buffer.flush()
            else:
                print_one(job, work, _INPUT, result, as_json=as_json)
    return 0


def _require_pipe(job: UpscaleJob, *, as_json: bool) -> None:
    """Every check that needs neither the network nor the input."""
    if len(job.inputs) != 1:
        raise UsageError(PIPE, "a pipe carries one picture", "give one input")
    (name,) = job.inputs
    if name == PIPE:
        _require_end(sys.stdin, _INPUT, "type no picture, send one: < picture.png")
    if job.output != PIPE:
        job.require_no_suffix()
        target = Path(job.output)
        if not _is_video(target):
            require_writable_suffix(target)
        check_writable(target)
        require_free([target], overwrite=job.overwrite)
        return
    refuse_options(
        {
            "--json": as_json,
            "--compare": job.writing.compare,
            "--tile-effect": job.writing.tile_effect,
            "--codec": job.video.codec,
            "--crf": job.video.crf,
        },
        "does not go with a pipe",
        "leave it out, or name files",
    )
    if kind_of_file(Path(name)) == "video":
        raise UsageError(PIPE, f"carries a picture, and {name} is a video", "name a file to write")
    _require_end(sys.stdout, _OUTPUT, "redirect it: > picture.png")


def _require_end(stream: object, what: str, next_step: str) -> None:
    if stream is None:
        raise HspanError(what, "is closed", next_step)
    if getattr(stream, "isatty", bool)():
        raise UsageError(what, "is a terminal", next_step)


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """A folder that is gone afterwards; errors call its files by their bare names."""
    try:
        holder = tempfile.TemporaryDirectory(prefix="trt-hspan-")
    except OSError as error:
        raise HspanError(
            PIPE, f"a pipe needs a temporary folder: {error.strerror or error}", "set TMPDIR to one with room"
        ) from error
    with holder as name:
        try:
            yield Path(name)
        except HspanError as error:
            where, what = (text.replace(f"{name}/", "") for text in (error.where, error.what))
            raise type(error)(where, what, error.next_step) from error


def _task(job: UpscaleJob, folder: Path) -> Task:
    """The task, once standard input is in a file."""
    (name,) = job.inputs
    to_file = None if job.output == PIPE else Path(job.output)
    source = Path(name)
    if name == PIPE:
        source = folder / _INPUT
        _spool(source, is_video=to_file is not None and _is_video(to_file))
    return Task(source=source, target=to_file or folder / f"{_OUTPUT}{job.suffix or _suffix(source)}")


def _spool(path: Path, *, is_video: bool) -> None:
    """Standard input into a file. What does not begin as a picture does is refused before it fills the disk."""
    try:
        with path.open("wb") as stream:
            start = sys.stdin.buffer.read(_CHUNK_BYTES)
            if start and not is_video and format_and_suffix(start) is None:
                raise not_a_picture(_INPUT)
            stream.write(start)
            shutil.copyfileobj(sys.stdin.buffer, stream, _CHUNK_BYTES)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise HspanError(
                _INPUT, f"no room for it in {path.parent.parent}", "set TMPDIR to a folder with room"
            ) from error
        raise HspanError(_INPUT, f"cannot be read: {error.strerror or error}", None) from error


def _suffix(source: Path) -> str:
    """The suffix of a result in the source's own format, .png where that is not written or not recognized."""
    try:
        with source.open("rb") as stream:
            return (format_and_suffix(stream.read(16)) or ("", ".png"))[1]
    except OSError:  # whoever reads the picture says so
        return ".png"
