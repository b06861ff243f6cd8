"""Running CMake: its output into a log, its progress as numbers, its first error as one line."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from trt_hspan.errors import HspanError
from trt_hspan.native.progress import BuildProgress

_CONFIGURE_FRACTION: Final = 0.1  # of the whole time; measured, roughly


def run_logged(
    command: list[str | Path], environment: dict[str, str], log: IO[str], log_path: Path
) -> Iterator[str]:
    """Runs a command, copies its output to the log and yields its lines.

    Raises:
        HspanError: it failed; holds the first line that reads like an error, and names the log.
    """
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
                yield lines[-1]
        except BaseException:
            process.terminate()
            raise
    if process.returncode != 0:
        raise HspanError("plugin", f"does not compile: {_first_error(lines)}", f"the whole log is {log_path}")


def _first_error(lines: list[str]) -> str:
    """The first line that reads like an error; of CMake's messages the text under the headline."""
    for index, line in enumerate(lines):
        if line.startswith("CMake Error"):
            text = " ".join(following.strip() for following in lines[index + 1 : index + 8]).strip()
            return text[:300] or line
        if re.search(r"\b(fatal )?error\b|No space left", line, re.IGNORECASE) and not line.startswith("["):
            return line.strip()[:300]
    return next((line.strip() for line in reversed(lines) if line.strip()), "no message")


def progress_from_line(line: str) -> BuildProgress | None:
    """How far a build is, from ninja's "[3/9] Building ..." or make's "[ 33%] Building ..."."""
    if match := re.match(r"\[(\d+)/(\d+)\] (.*)", line):
        done = int(match[1]) / int(match[2])
    elif match := re.match(r"\[ *(\d+)(%)\] (.*)", line):
        done = int(match[1]) / 100
    else:
        return None
    phase = re.sub(r"(Building \w+ object).*/", r"\1 ", match[3])
    return BuildProgress(fraction=_CONFIGURE_FRACTION + (1 - _CONFIGURE_FRACTION) * done, phase=phase)
