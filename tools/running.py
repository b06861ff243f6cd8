"""How the command of a tool begins and ends: packages it needs, an exit code, and an error as one line on stderr."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from trt_hspan.errors import HspanError
from trt_hspan.machine.install_advice import install_command


def run_script(module: str, *words: str, extras: str) -> NoReturn:
    """What each file of scripts/ does: calls `main` of a module and exits.

    Args:
        module: its name.
        words: the command line; none is that of the process.
        extras: of this package, with commas: what the command needs, for the error of a package that is missing.
    """
    try:
        main = importlib.import_module(module).main
        sys.exit(main(list(words)) if words else main())
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] in ("tools", "trt_hspan"):
            raise
        step = install_command(extras)
        if sys.prefix == sys.base_prefix:  # many systems let pip install into environments alone
            step = f"python3 -m venv .venv && . .venv/bin/activate && {step}"
        print(f"{Path(sys.argv[0]).name}: error: {error.name} is not installed; {step}", file=sys.stderr)
        sys.exit(1)


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
