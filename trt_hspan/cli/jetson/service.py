"""`trt-hspan jetson watch` and `jetson service`: a folder whose pictures become larger ones, for good."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trt_hspan.cli.jetson.device import BoardOption, PluginOption
from trt_hspan.errors import HspanError

if TYPE_CHECKING:
    from trt_hspan.jetson.service import ServiceSpec

_INCOMING = Path("/var/lib/hspan/in")
_OUTGOING = Path("/var/lib/hspan/out")

app = typer.Typer(
    help="A systemd service that watches a folder.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

EngineArgument = Annotated[
    Path, typer.Argument(metavar="ENGINE", help="A .plan with its manifest beside it.")
]
FromOption = Annotated[
    Path, typer.Option("--from", metavar="DIR", help="Pictures to upscale; done ones move to its done/.")
]
ToOption = Annotated[Path, typer.Option("--to", metavar="DIR", help="Results, under the same names.")]
DeleteOption = Annotated[bool, typer.Option("--delete", help="Delete pictures that are done.")]
NameOption = Annotated[str, typer.Option(metavar="NAME", help="The unit is hspan-NAME.service.")]
UserOption = Annotated[
    str | None,
    typer.Option(metavar="ACCOUNT", help="Whom it runs as.", show_default="who called sudo, or you"),
]


def watch(
    engine: EngineArgument,
    incoming: FromOption,
    outgoing: ToOption,
    delete: DeleteOption = False,
    seconds: Annotated[float, typer.Option(help="Between two looks at the folder.")] = 1.0,
    device: Annotated[str, typer.Option(help="auto, cpu or gpu.")] = "auto",
    plugin: PluginOption = None,
    once: Annotated[bool, typer.Option("--once", help="End when the folder holds nothing to do.")] = False,
) -> None:
    """Upscale every picture that appears in a folder, with the engine kept open. Ends at SIGTERM or Ctrl-C."""
    import signal
    import threading

    from trt_hspan.jetson.board_build import device_plugin
    from trt_hspan.jobs.watch import FolderWatch, WatchSpec, tell_systemd
    from trt_hspan.runtime.opening import open_runner
    from trt_hspan.upscaling.picture_files import upscale_picture_file
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
            tell_systemd(f"READY=1\nSTATUS={runner.label}")
            count, idle = 0, 0
            while not stop.is_set() and (not once or idle < 2):
                handled = folder.look(stop=stop.is_set)
                for one in handled:
                    typer.echo(f"{one.source.name}: {one.line or one.target}")
                count += len(handled)
                idle = 0 if handled else idle + 1
                if handled:
                    tell_systemd(f"STATUS={runner.label}: {count} pictures")
                if not (once and idle >= 2):
                    stop.wait(spec.seconds)
            tell_systemd("STOPPING=1")
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


@app.command("install")
def install(
    engine: EngineArgument,
    incoming: FromOption = _INCOMING,
    outgoing: ToOption = _OUTGOING,
    delete: DeleteOption = False,
    board: BoardOption = "auto",
    user: UserOption = None,
    plugin: PluginOption = None,
    name: NameOption = "upscale",
) -> None:
    """Write the unit, start it now and at every start of the board. Needs root."""
    from trt_hspan.cli.output import print_table
    from trt_hspan.jetson.service import install_service

    spec = _spec(engine, incoming, outgoing, delete, board, user, plugin, name)
    path = install_service(spec)
    print_table(
        f"Installed {spec.unit}",
        {
            "unit": path,
            "pictures go in": spec.incoming,
            "results come out": spec.outgoing,
            "runs as": spec.user,
            "memory at most": f"{spec.memory_max_bytes / 1e9:.2f} GB",
            "what it says": f"journalctl -u {spec.unit}",
        },
    )


@app.command("show")
def show(
    engine: EngineArgument,
    incoming: FromOption = _INCOMING,
    outgoing: ToOption = _OUTGOING,
    delete: DeleteOption = False,
    board: BoardOption = "auto",
    user: UserOption = None,
    plugin: PluginOption = None,
    name: NameOption = "upscale",
) -> None:
    """Print the unit that `install` would write; changes nothing."""
    from trt_hspan.jetson.service import unit_text

    typer.echo(unit_text(_spec(engine, incoming, outgoing, delete, board, user, plugin, name)), nl=False)


@app.command("uninstall")
def uninstall(name: NameOption = "upscale") -> None:
    """Stop the service and remove its unit; its folders stay. Needs root."""
    from trt_hspan.jetson.service import uninstall_service

    typer.echo(f"removed {uninstall_service(name)}")


def _spec(
    engine: Path,
    incoming: Path,
    outgoing: Path,
    delete: bool,
    board: str,
    user: str | None,
    plugin: Path | None,
    name: str,
) -> ServiceSpec:
    from trt_hspan.engine.manifest import verify_manifest
    from trt_hspan.jetson.board_build import device_plugin
    from trt_hspan.jetson.boards import chosen_board
    from trt_hspan.jetson.service import ServiceSpec, gpu_groups
    from trt_hspan.jobs.watch import WatchSpec
    from trt_hspan.machine import jetson as device

    found = chosen_board(board, device.this_device()).board
    WatchSpec(incoming=incoming, outgoing=outgoing)  # whose checks are the service's too
    verify_manifest(engine)
    library = (plugin or device_plugin()).absolute()
    plan = engine.absolute()
    folders: dict[str, Any] = {"incoming": incoming.absolute(), "outgoing": outgoing.absolute()}
    command = [sys.executable, "-m", "trt_hspan", "jetson", "watch", str(plan)]
    command += ["--from", str(folders["incoming"]), "--to", str(folders["outgoing"])]
    command += ["--device", "gpu", "--plugin", str(library)]
    return ServiceSpec(
        name=name,
        command=(*command, *(["--delete"] if delete else [])),
        readable=(plan, library, Path(sys.executable).absolute(), Path(sys.prefix)),
        user=user or _caller(),
        groups=gpu_groups(),
        memory_max_bytes=found.memory_bytes - found.reserved_bytes,
        **folders,
    )


def _caller() -> str:
    """Who called sudo, else who this is; never root by accident."""
    import getpass
    import os

    name = os.environ.get("SUDO_USER") or getpass.getuser()
    if name == "root":
        raise HspanError("--user", "the service shall not run as root", "name an account: --user NAME")
    return name
