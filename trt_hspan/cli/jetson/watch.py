"""`trt-hspan jetson watch`: upscales the pictures that appear in a folder."""

from __future__ import annotations

import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from trt_hspan.cli.jetson.options import BoardEngineOptions, Engine
from trt_hspan.cli.request import takes_request


@dataclass(frozen=True, kw_only=True)
class WatchRequest:
    engine: Engine
    incoming: Annotated[
        Path,
        typer.Option(
            "--from", metavar="DIR", help="Pictures to upscale; then they move to its done/ or failed/."
        ),
    ]
    outgoing: Annotated[Path, typer.Option("--to", metavar="DIR", help="Results, under the same names.")]
    delete: Annotated[bool, typer.Option(help="Delete upscaled pictures instead of moving them.")] = False
    seconds: Annotated[float, typer.Option(help="Between two looks at the folder.")] = 1.0
    execution: BoardEngineOptions
    once: Annotated[bool, typer.Option(help="End when no pictures are left.")] = False


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
            on_picture=lambda picture: typer.echo(f"{picture.source.name}: {picture.line or picture.target}"),
        )
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
