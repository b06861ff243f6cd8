"""How the command of a tool ends: with an exit code, and an error as one line on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable

from trt_hspan.errors import HspanError


def exit_code(name: str, command: Callable[[], int | None]) -> int:
    """Runs a command.

    Args:
        name: begins the line of an error.
        command: returns an exit code; None is 0.
    """
    try:
        return command() or 0
    except HspanError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return error.exit_code
