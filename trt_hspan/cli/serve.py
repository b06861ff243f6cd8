"""`trt-hspan serve`: run a Triton server here, or write a repository for one elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from trt_hspan.errors import HspanError, UsageError

if TYPE_CHECKING:
    from trt_hspan.serving.limits import ServingLimits
    from trt_hspan.serving.repository import WrittenRepository


class _RunByDefault(TyperGroup):
    """`serve NETWORK` and bare `serve` mean `serve run NETWORK`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ("-h", "--help")):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_RunByDefault,
    help="Run a Triton server: serve [NETWORK] is serve run [NETWORK]; see serve run --help.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

_MaxBytes = Annotated[int | None, typer.Option(help="Largest request.", show_default="64 MiB")]
_MaxPixels = Annotated[
    int | None, typer.Option(help="Largest picture, in pixels before upscaling.", show_default="8388608")
]
_QueueLength = Annotated[
    int | None, typer.Option(help="Requests of a model that may wait.", show_default="64")
]
_QueueTime = Annotated[
    int | None, typer.Option("--queue-time-ms", help="How long one may wait.", show_default="30000")
]
_WorkTime = Annotated[
    int | None, typer.Option("--work-time-ms", help="How long one picture may take.", show_default="300000")
]
_BodyTime = Annotated[
    int | None,
    typer.Option(
        "--body-time-ms", help="How long a client may take to send its request.", show_default="30000"
    ),
]


@app.command("run")
def run(
    network: Annotated[
        str,
        typer.Argument(
            metavar="[NETWORK]",
            help="A checkpoint, an ONNX file, an engine, a preset, or a model repository.",
        ),
    ] = "hspan-tiny-x4",
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="HTTP port; 0 takes a free one.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="gRPC port; 0 takes a free one.")] = 8001,
    metrics_port: Annotated[int, typer.Option(help="Port of the metrics; 0 takes a free one.")] = 8002,
    page: Annotated[bool, typer.Option("--page", help="Serve a page to try it in a browser, at /.")] = False,
    watch: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="Look for new versions this often; SIGHUP does so at once.", min=0.1
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of the model.", show_default="that of the network")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, gpu, or gpu:1 for the second GPU.")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads of each instance.", min=1)] = 1,
    instances: Annotated[
        int | None,
        typer.Option(help="Copies of the network.", show_default="one per CPU, at most 4", min=1),
    ] = None,
    tile: Annotated[
        str | None,
        typer.Option(
            metavar="HxW", help="Largest tile.", show_default="the engine's largest; 64x64 on a CPU"
        ),
    ] = None,
    res_scale: Annotated[
        float | None, typer.Option(help="Residual scale of a checkpoint.", show_default="0.1")
    ] = None,
    plugin: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The plugin library, for an engine that needs it.")
    ] = None,
    max_bytes: _MaxBytes = None,
    max_pixels: _MaxPixels = None,
    queue_length: _QueueLength = None,
    queue_time_ms: _QueueTime = None,
    work_time_ms: _WorkTime = None,
    body_time_ms: _BodyTime = None,
    json: Annotated[bool, typer.Option("--json", help="Log JSON, one object a line, on stdout.")] = False,
) -> None:
    """Run a Triton server here, on the GPU where there is one, else on the CPU. Ctrl-C stops it."""
    limits = _limits(
        max_bytes=max_bytes,
        max_pixels=max_pixels,
        queue_length=queue_length,
        queue_time_ms=queue_time_ms,
        work_time_ms=work_time_ms,
        body_time_ms=body_time_ms,
    )
    from trt_hspan.runtime.opening import device_from_text
    from trt_hspan.serving.serve import ServeSpec, require_free_ports

    spec = {"host": host, "http_port": port, "grpc_port": grpc_port, "metrics_port": metrics_port}
    device_from_text(device)
    # Before the network is looked at, which takes seconds.
    require_free_ports(ServeSpec(repository=Path(), limits=limits, **spec))  # type: ignore[arg-type]
    options = {"device": device, "res_scale": res_scale, "tile": tile, "name": name, "plugin": plugin}
    if Path(network).is_dir():
        given = [
            f"--{option.replace('_', '-')}"
            for option, value in (options | {"instances": instances}).items()
            if value is not None and value != "auto"
        ]
        if given:
            raise UsageError(
                " ".join(given), f"{network} is a repository, which says that itself", "leave it out"
            )
    import logging
    import sys
    import tempfile

    from trt_hspan.serving.events import LOGGER, log_to

    handler = log_to(
        sys.stdout if json else sys.stderr, as_json=json, verbose=logging.getLogger().level <= logging.DEBUG
    )
    try:
        with tempfile.TemporaryDirectory(prefix="trt-hspan-serve-") as folder:
            repository = Path(network)
            if not repository.is_dir():
                repository = _temporary_repository(
                    Path(folder) / "models", network, options, limits, threads=threads, instances=instances
                )
            _serve(
                ServeSpec(
                    repository=repository,
                    limits=limits,
                    page=page,
                    watch_seconds=watch,
                    **spec,  # type: ignore[arg-type]
                )
            )
    finally:
        LOGGER.removeHandler(handler)


def _serve(spec: Any) -> None:
    import asyncio

    from trt_hspan.cli.progress import progress
    from trt_hspan.serving.serve import serve
    from trt_hspan.serving.triton_install import triton_install

    with progress("looking for tritonserver") as bar:
        install = triton_install(lambda what: bar.update(bar.task_ids[0], description=what))
    asyncio.run(serve(spec, install))


def _temporary_repository(
    folder: Path,
    network: str,
    options: dict[str, Any],
    limits: ServingLimits,
    *,
    threads: int,
    instances: int | None,
) -> Path:
    import os

    from trt_hspan.serving.networks import network_from_source
    from trt_hspan.serving.repository import write_repository
    from trt_hspan.sizes import image_size_from_text

    size = None if options["tile"] is None else image_size_from_text(options["tile"], option="--tile")
    network_to_serve = network_from_source(
        network,
        name=options["name"],
        device=options["device"],
        res_scale=0.1 if options["res_scale"] is None else options["res_scale"],
        threads=threads,
        instances=instances or min(4, len(os.sched_getaffinity(0))),
        tile=None if size is None else (size.height, size.width),
        plugin=options["plugin"],
    )
    return write_repository(folder, [network_to_serve], limits=limits, deployment=False).folder


@app.command("export")
def export(
    engines: Annotated[list[Path], typer.Argument(metavar="ENGINE...", help="Engines with their manifests.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="The repository to write.")
    ],
    backend: Annotated[
        str,
        typer.Option(help="tensorrt, python, or auto: Triton's own for TensorRT, ours for TensorRT-RTX."),
    ] = "auto",
    name: Annotated[
        str | None, typer.Option(help="Of the network.", show_default="the engine's file name")
    ] = None,
    plugin: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="The plugin library.", show_default="that of plugin build"),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(
            help="Triton image for the Dockerfile.", show_default="the newest with the engines' TensorRT"
        ),
    ] = None,
    instances: Annotated[int, typer.Option(help="Copies of each network on a GPU.", min=1)] = 1,
    add_version: Annotated[
        bool, typer.Option("--add-version", help="Add the next version to an existing repository.")
    ] = False,
    max_bytes: _MaxBytes = None,
    max_pixels: _MaxPixels = None,
    queue_length: _QueueLength = None,
    queue_time_ms: _QueueTime = None,
    work_time_ms: _WorkTime = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write a Triton model repository with all that deploys it."""
    from trt_hspan.engine.spec import check_choice
    from trt_hspan.serving.networks import BackendChoice

    check_choice("--backend", backend, BackendChoice)
    limits = _limits(
        max_bytes=max_bytes,
        max_pixels=max_pixels,
        queue_length=queue_length,
        queue_time_ms=queue_time_ms,
        work_time_ms=work_time_ms,
    )
    from trt_hspan.serving.networks import networks_from_engines
    from trt_hspan.serving.repository import write_repository

    networks = networks_from_engines(
        engines,
        backend=backend,  # type: ignore[arg-type] # checked above
        name=name,
        plugin=plugin,
        instances=instances,
    )
    written = write_repository(output, networks, limits=limits, image=image, add_version=add_version)
    _print_export(written, networks, as_json=json)


def _print_export(written: WrittenRepository, networks: Any, *, as_json: bool) -> None:
    from trt_hspan.cli.output import print_json, print_table

    backends = {raw.name: raw.backend for network in networks for raw in network.raw_models}
    report: dict[str, Any] = {
        "repository": str(written.folder),
        "version": written.version,
        "models": {name: backends.get(name, "python") for name in written.models},
        "image": written.image,
    }
    if as_json:
        print_json(report)
        return
    print_table(f"Wrote {written.folder}", report)


def _limits(**given: int | None) -> ServingLimits:
    try:
        import aiohttp  # noqa: F401 - only whether it is there
        import tritonclient  # noqa: F401
    except ImportError as error:
        raise HspanError(
            "serve", f"{error.name} is not installed", "pip install 'trt-hspan[serve]'"
        ) from error
    from trt_hspan.serving.limits import ServingLimits

    return ServingLimits(**{option: value for option, value in given.items() if value is not None})
