"""`trt-hspan jetson watch`: upscales the pictures that appear in a folder."""

from __future__ import annotations

import signal
import threading
from dataclasses import dataclass
from pathlib import Path

import typer

from trt_hspan.cli.jetson import options as board_options
from trt_hspan.cli.jetson.options import BoardEngineOptions
from trt_hspan.cli.request import flag, option, takes_request
from trt_hspan.errors import printable


@dataclass(frozen=True, kw_only=True)
class WatchRequest:
    engine: Path = board_options.engine()
    incoming: Path = option(
        "Pictures to upscale; then they move to its done/ or failed/.", "DIR", names=("--from",), default=...
    )
    outgoing: Path = option("Results, under the same names.", "DIR", names=("--to",), default=...)
    delete: bool = flag("Delete upscaled pictures instead of moving them.")
    seconds: float = option("Between two looks at the folder.", default=1.0)
    execution: BoardEngineOptions
    once: bool = flag("End when no pictures are left.")


@takes_request
def watch(request: WatchRequest) -> None:
    """Upscale every picture that appears in a folder, with the engine kept open. Ends at SIGTERM or Ctrl-C."""
    from trt_hspan.jobs.watch import WatchSpec, watch_folder
    from trt_hspan.runtime.opening import open_runner

    spec = WatchSpec(
        incoming=request.incoming,
        outgoing=request.outgoing,
        delete=request.delete,
        seconds=request.seconds,
        once=request.once,
    )
    runner = open_runner(request.engine, device=request.execution.device, plugin=request.execution.library)
    stop, ending = threading.Event(), (signal.SIGTERM, signal.SIGINT)
    previous = {number: signal.signal(number, lambda *_: stop.set()) for number in ending}
    try:
        watch_folder(
            spec,
            runner,
            stop,
            on_begin=lambda: typer.echo(f"watching {request.incoming}: {runner.picked}", err=True),
            on_picture=lambda picture: typer.echo(
                printable(f"{picture.source.name}: {picture.line or picture.target}")
            ),
        )
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
