"""Running CMake: its output into a log, its progress as numbers, its first error as one line."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Final

from trt_hspan.errors import HspanError
from trt_hspan.files import error_from_os_error
from trt_hspan.native.progress import BuildProgress

_CONFIGURE_FRACTION: Final = 0.1  # of the whole time; measured, roughly


def run_cmake(
    commands: Iterable[Sequence[str | Path]],
    log: Path,
    *,
    where: str,
    environment: Mapping[str, str] | None = None,
    on_progress: Callable[[BuildProgress], None] = lambda _: None,
) -> None:
    """Runs commands that configure, build and install, one after the other, with all output in one log.

    Raises HspanError: a command fails; the error contains the first line that reads like one, and the log's path.
    """
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as stream:
            for command in commands:
                code, lines = _run(command, environment, stream, on_progress)
                if code != 0:
                    raise HspanError(
                        where, f"does not compile: {_first_error(lines)}", f"the whole log is {log}"
                    )
    except OSError as error:
        raise error_from_os_error(log, error) from error


def _run(
    command: Sequence[str | Path],
    environment: Mapping[str, str] | None,
    log: IO[str],
    on_progress: Callable[[BuildProgress], None],
) -> tuple[int, list[str]]:
    lines: list[str] = []
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                log.write(line)
                lines.append(line.rstrip())
                if progress := _progress_from_line(lines[-1]):
                    on_progress(progress)
        except BaseException:
            process.terminate()
            raise
    return process.returncode, lines


def _first_error(lines: list[str]) -> str:
    """The first line that reads like an error; of CMake's messages the text under the headline."""
    for index, line in enumerate(lines):
        if line.startswith("CMake Error"):
            text = " ".join(following.strip() for following in lines[index + 1 : index + 8]).strip()
            return text[:300] or line
        if re.search(r"\b(fatal )?error\b|No space left", line, re.IGNORECASE) and not line.startswith("["):
            return line.strip()[:300]
    return next((line.strip() for line in reversed(lines) if line.strip()), "no message")


def _progress_from_line(line: str) -> BuildProgress | None:
    """From ninja's "[3/9] Building ..." or make's "[ 33%] Building ..."."""
    if match := re.match(r"\[(\d+)/(\d+)\] (.*)", line):
        share = int(match[1]) / int(match[2])
    elif match := re.match(r"\[ *(\d+)(%)\] (.*)", line):
        share = int(match[1]) / 100
    else:
        return None
    phase = re.sub(r"(Building \w+ object).*/", r"\1 ", match[3])
    return BuildProgress(fraction=_CONFIGURE_FRACTION + (1 - _CONFIGURE_FRACTION) * share, phase=phase)
