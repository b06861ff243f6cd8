"""Runs the command line in this process and returns what a user would see."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class CommandResult:
    """Exit code and what was printed."""

    code: int
    out: str
    err: str

    @property
    def error_line(self) -> str:
        """The one line that an error consists of."""
        lines = [line for line in self.err.splitlines() if line.strip()]
        assert "Traceback" not in self.err, self.err
        assert len(lines) == 1, self.err
        return lines[0]


class CommandLine:
    """Callable as `run("export", checkpoint, "-o", path)`; words are turned into text."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: object) -> CommandResult:
        from trt_hspan.cli import main

        handlers = logging.getLogger().handlers[:]
        self._capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as stopped:
                main([str(word) for word in words])
        finally:
            logging.getLogger().handlers[:] = handlers
        out, err = self._capsys.readouterr()
        code = stopped.value.code
        return CommandResult(code if isinstance(code, int) else 0 if code is None else 1, out, err)
