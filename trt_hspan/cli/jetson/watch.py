"""`trt-hspan jetson watch`: upscales the pictures that appear in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trt_hspan.cli.jetson.device import PluginOption


def watch(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="A .plan with its manifest beside it.")],
    incoming: Annotated[
        Path,
        typer.Option(
            "--from", metavar="DIR", help="Pictures to upscale; then they move to its done/ or failed/."
        ),
    ],
    outgoing: Annotated[Path, typer.Option("--to", metavar="DIR", help="Results, under the same names.")],
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete upscaled pictures instead of moving them.")
    ] = False,
    seconds: Annotated[float, typer.Option(help="Between two looks at the folder.")] = 1.0,
    device: Annotated[str, typer.Option(help="auto, cpu or gpu.")] = "auto",
    plugin: PluginOption = None,
    once: Annotated[bool, typer.Option("--once", help="End when no pictures are left.")] = False,
) -> None:
    """Upscale every picture that appears in a folder, with the engine kept open. Ends at SIGTERM or Ctrl-C."""
    import signal
    import threading

    from trt_hspan.jetson.board_build import device_plugin
    from trt_hspan.jobs.watch import FolderWatch, WatchSpec, notify_systemd
    from trt_hspan.runtime.opening import open_runner
    from trt_hspan.upscaling.pictures import upscale_picture_file
    from trt_hspan.upscaling.upscaler import Upscaler, upscale_array

    spec = WatchSpec(incoming=incoming, outgoing=outgoing, delete=delete, seconds=seconds)
    runner = open_runner(engine, device=device, plugin=plugin or device_plugin())
    upscaler = Upscaler(runner)
    stop, ending = threading.Event(), (signal.SIGTERM, signal.SIGINT)

    def probe() -> None:
        import numpy as np

        low = runner.min_shape
        upscale_array(runner, np.zeros((low[2] or 16, low[3] or 16, 3), np.uint8))

    with runner:
        folder = FolderWatch(
            spec, lambda source, target: upscale_picture_file(upscaler, source, target), probe
        )
        previous = {number: signal.signal(number, lambda *_: stop.set()) for number in ending}
        try:
            typer.echo(f"watching {incoming}: {runner.picked}", err=True)
            notify_systemd(f"READY=1\nSTATUS={runner.label}")
            count, idle = 0, 0
            while not stop.is_set() and (not once or idle < 2):
                handled = folder.look(stop=stop.is_set)
                for picture in handled:
                    typer.echo(f"{picture.source.name}: {picture.line or picture.target}")
                count += len(handled)
                idle = 0 if handled else idle + 1
                if handled:
                    notify_systemd(f"STATUS={runner.label}: {count} pictures")
                if not (once and idle >= 2):
                    stop.wait(spec.seconds)
            notify_systemd("STOPPING=1")
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
