"""Options and notes that the commands for boards share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from trt_hspan.cli import options
from trt_hspan.cli.output import say
from trt_hspan.cli.request import argument, option

if TYPE_CHECKING:
    from trt_hspan.jetson.advice import Advice
    from trt_hspan.jetson.boards import Detection
    from trt_hspan.machine.jetson import DeviceFacts

board = partial(
    option, "auto is the board that this runs on; `trt-hspan jetson boards` lists all names.", default="auto"
)
engine = partial(argument, "A .plan with its manifest beside it.", "ENGINE")
plugin = partial(
    option, "The plugin library.", "LIBRARY", shown="TRT_HSPAN_PLUGIN, or that of the .deb under /opt/hspan"
)


@dataclass(frozen=True, kw_only=True)
class BoardEngineOptions:
    """Where an engine runs on a board."""

    device: str = options.device()
    plugin: Path | None = plugin()

    @property
    def library(self) -> Path:
        """The plugin library that was named, or the one of the board."""
        from trt_hspan.jetson.board_build import device_plugin

        return self.plugin or device_plugin()


def printed_advice(detection: Detection, facts: DeviceFacts) -> list[Advice]:
    """What stands in the way, also on stderr as notes with the commands that change it."""
    from trt_hspan.jetson.advice import advice_for_board

    advice = advice_for_board(detection.board, facts)
    for note in advice:
        say(f"note: {note.what}")
        for command in note.commands:
            typer.echo(f"    {command}", err=True)
    return advice


def board_report(detection: Detection, advice: Sequence[Advice]) -> dict[str, Any]:
    """What JSON output says about the board."""
    notes = [asdict(note) for note in advice]
    return {"board": detection.board.name, "board_found": detection.why, "advice": notes}
