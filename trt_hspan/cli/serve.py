"""`trt-hspan serve`: serve a network here, or write a repository for Triton."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from trt_hspan.cli import options
from trt_hspan.cli.output import print_report
from trt_hspan.cli.request import argument, flag, option, takes_request
from trt_hspan.serving.limits import ServerLimits, ServingLimits
from trt_hspan.sizes import tile_size_from_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trt_hspan.model_repository.networks import Network
    from trt_hspan.model_repository.repository import WrittenRepository
    from trt_hspan.serving.serve import ServeSpec


class _RunByDefault(TyperGroup):
    """`serve NETWORK` and bare `serve` mean `serve run NETWORK`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ("-h", "--help")):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_RunByDefault,
    help="Serve a network: serve [NETWORK] is serve run [NETWORK]; see serve run --help.",
)


@dataclass(frozen=True, kw_only=True)
class ServeRequest:
    network: str = argument(
        "A checkpoint, an ONNX file, an engine, or a preset.", "[NETWORK]", default="hspan-tiny-x4"
    )
    host: str = option("Address to listen on; 0.0.0.0 is every one.", default="127.0.0.1")
    port: int = option("HTTP port; 0 takes a free one.", default=8000)
    grpc_port: int = option("gRPC port; 0 takes a free one.", default=8001)
    allow_host: tuple[str, ...] = option(
        "A name of this server beside localhost; repeatable.", "NAME", default=()
    )
    page: bool = flag("Serve a page to try it in a browser, at /.")
    watch: float | None = option(
        "Look for a new network this often; SIGHUP does so at once.", "SECONDS", min=0.1
    )
    name: str | None = option("Of the model.", shown="that of the network")
    instances: int | None = option("Copies of the network on a CPU.", min=1, shown="one per CPU, at most 4")
    tile: str | None = option("Largest tile.", "HxW", shown="the engine's largest; 64x64 on a CPU")
    res_scale: float | None = options.res_scale()
    device: str = option("auto, cpu, gpu, gpu:1 for the second GPU, or gpu:0,1 for both.", default="auto")
    plugin: Path | None = options.plugin()
    threads: int = option("CPU threads of each instance.", default=1, min=1)
    limits: ServerLimits
    json: bool = flag("Log JSON, one object a line, on stdout.")

    def spec(self) -> ServeSpec:
        """Raises: as `ServeSpec` and `devices_from_text`."""
        tile = None if self.tile is None else tile_size_from_text(self.tile)
        from trt_hspan.runtime.opening import RunnerOptions, devices_from_text
        from trt_hspan.serving.client_protocol import TOKEN_VARIABLE
        from trt_hspan.serving.serve import ServeSpec

        return ServeSpec(
            source=self.network,
            name=self.name,
            devices=devices_from_text(self.device),
            runner=RunnerOptions(res_scale=self.res_scale, threads=self.threads, plugin=self.plugin),
            instances=self.instances or min(4, len(os.sched_getaffinity(0))),
            tile=tile,
            host=self.host,
            http_port=self.port,
            grpc_port=self.grpc_port,
            allowed_hosts=self.allow_host,
            token=os.environ.get(TOKEN_VARIABLE),
            limits=self.limits,
            page=self.page,
            watch_seconds=self.watch,
        )


@app.command("run")
@takes_request
def run(request: ServeRequest) -> None:
    """Serve a network here, on GPUs where it runs on them, else on the CPU. Ctrl-C stops it."""
    spec = request.spec()
    from trt_hspan.cli.serve_log import log_to
    from trt_hspan.serving.events import LOGGER
    from trt_hspan.serving.serve import serve

    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what clients do wrong is in the log already
    os.environ["OMP_NUM_THREADS"] = str(request.threads)  # before the libraries that read it are loaded
    handler = log_to(
        sys.stdout if request.json else sys.stderr,
        as_json=request.json,
        verbose=logging.getLogger().level <= logging.DEBUG,
    )
    try:
        # What was imported stays: neither collections nor the end of the process look through it any more.
        asyncio.run(serve(spec, on_ready=lambda _: gc.freeze()))
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.propagate = True


@dataclass(frozen=True, kw_only=True)
class ServeExportRequest:
    engines: tuple[Path, ...] = argument("Engines with their manifests.", "ENGINE...")
    output: Path = options.output("FOLDER", "The repository to write.")
    backend: str = option(
        "tensorrt, python, or auto: Triton's own for TensorRT, ours for TensorRT-RTX.", default="auto"
    )
    name: str | None = option("Of the network.", shown="the engine's file name")
    plugin: Path | None = options.plugin()
    image: str | None = option(
        "Triton image for the Dockerfile, with the engines' TensorRT.", shown="NVIDIA's 25.12"
    )
    instances: int = option("Copies of each network on a GPU.", default=1, min=1)
    add_version: bool = flag("Add the next version to an existing repository.")
    limits: ServingLimits
    json: bool = options.json()


@app.command("export")
@takes_request
def export(request: ServeExportRequest) -> None:
    """Write a Triton model repository with all that deploys it."""
    from trt_hspan.engine.spec import check_choice
    from trt_hspan.model_repository.networks import BackendChoice

    check_choice("--backend", request.backend, BackendChoice)
    from trt_hspan.model_repository.networks import networks_from_engines
    from trt_hspan.model_repository.repository import write_repository

    networks = networks_from_engines(
        request.engines,
        backend=request.backend,  # type: ignore[arg-type]  # checked above
        name=request.name,
        plugin=request.plugin,
        instances=request.instances,
    )
    written = write_repository(
        request.output, networks, limits=request.limits, image=request.image, add_version=request.add_version
    )
    _print_export(written, networks, as_json=request.json)


def _print_export(written: WrittenRepository, networks: Sequence[Network], *, as_json: bool) -> None:
    backends = {raw.name: raw.backend for network in networks for raw in network.raw_models}
    report: dict[str, Any] = {
        "repository": str(written.folder),
        "version": written.version,
        "models": {name: backends.get(name, "python") for name in written.models},
        "image": written.image,
    }
    print_report(f"Wrote {written.folder}", report, as_json=as_json)
