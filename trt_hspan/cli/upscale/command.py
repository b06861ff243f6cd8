"""`trt-hspan upscale`: pictures, folders and videos in, larger ones out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trt_hspan.cli import options
from trt_hspan.cli.request import argument, flag, option, refuse_options, takes_request
from trt_hspan.errors import UsageError
from trt_hspan.sizes import tile_from_text

if TYPE_CHECKING:
    from trt_hspan.jobs.upscale import UpscaleJob
    from trt_hspan.upscaling.options import UpscaleOptions

_DEFAULT_NETWORK = "hspan-tiny-x4"


@dataclass(frozen=True, kw_only=True)
class TileOptions:
    """How a picture goes through the network."""

    tile: str = options.tile()
    overlap: int | None = option("Pixels that neighboring tiles share.", shown="32 or less")
    protocol: str = option(
        "tiles, or official: quarters with hard seams as the official code's --chop cuts them, for "
        "comparing with published figures.",
        default="tiles",
    )
    official_min_size: int | None = option(
        "--protocol official: pixels from which a quarter is quartered again.", shown="120000"
    )
    self_ensemble: bool = flag("Mean over the 8 flips and turns: 8 times the work.")
    tile_effect: bool = flag(
        "Also run the picture as a whole, where it fits, and report what the tiles change."
    )

    def upscaling(self) -> UpscaleOptions:
        """Raises: UsageError as `UpscaleOptions`."""
        from trt_hspan.upscaling.options import UpscaleOptions
        from trt_hspan.upscaling.tiling import OFFICIAL_MIN_SIZE

        if self.official_min_size is not None and self.protocol != "official":
            raise UsageError("--official-min-size", "is for --protocol official", "leave it out")
        return UpscaleOptions(
            tile=tile_from_text(self.tile),
            overlap=self.overlap,
            protocol=self.protocol,  # type: ignore[arg-type]  # checked by the options
            self_ensemble=self.self_ensemble,
            official_min_size=OFFICIAL_MIN_SIZE if self.official_min_size is None else self.official_min_size,
        )


@dataclass(frozen=True, kw_only=True)
class PictureOptions:
    """How pictures are written."""

    overwrite: bool = flag("Replace files that exist; in folders do finished ones again too.")
    format: str | None = option(
        "Of the results in a folder or on standard output.", "png|jpg|webp|tif|bmp", shown="as the input"
    )
    quality: int | None = option(
        "Of JPEG, and of WebP, which is lossless without it.", min=1, max=100, shown="95"
    )
    compare: bool = flag("Also write NAME_compare.png: bicubic on the left, network on the right.")

    def suffix(self) -> str | None:
        """Of the results. Raises: UsageError when --format is none that can be written."""
        if self.format is None:
            return None
        from trt_hspan.media.formats import WRITE_FORMATS

        suffix = "." + self.format.lower().lstrip(".")
        if suffix not in WRITE_FORMATS:
            formats = ", ".join(name[1:] for name in WRITE_FORMATS)
            raise UsageError("--format", f"got {self.format!r}, expected one of {formats}")
        return suffix


@dataclass(frozen=True, kw_only=True)
class EncodingOptions:
    """How videos are written."""

    codec: str | None = option("FFmpeg's encoder.", shown="libx264, .webm: libvpx-vp9")
    crf: int | None = option("Constant rate factor, less is better.", shown="18 for libx264")


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """Where pictures are upscaled, if not in this process."""

    cluster: str | None = option(
        "Pictures on many workers through Ray; inputs and OUT may be URIs such as s3://bucket/folder. "
        "--threads is for each worker.",
        "local|auto|ray://HOST:PORT",
    )
    workers: int | None = option("At one time.", min=1, shown="one for each GPU or processor")


@dataclass(frozen=True, kw_only=True)
class UpscaleRequest:
    inputs: tuple[str, ...] = argument(
        "Pictures (PNG, JPEG, WebP, TIFF, BMP, GIF, PPM, AVIF), videos, folders, quoted patterns such as "
        "'in/**/*.png', or - for standard input.",
        "IN...",
    )
    output: str = options.output(
        "OUT", "The file to write; a folder for several inputs; - for standard output."
    )
    checkpoint: str | None = option(
        "A .pt, .pth or .safetensors file, or a preset: runs in PyTorch. With no network given: "
        f"the shipped {_DEFAULT_NETWORK}."
    )
    onnx: Path | None = option("An .onnx file: runs on the CPU.")
    engine: Path | None = option("A .plan: runs on the GPU, or where there is none its ONNX file on the CPU.")
    res_scale: float | None = options.res_scale()
    precision: str | None = option(
        "Of --checkpoint: fp16 on a GPU, bf16 where processor or GPU has it; ONNX files and engines have "
        "theirs.",
        "fp32|fp16|bf16",
        shown="fp32",
    )
    execution: options.EngineOptions
    threads: int | None = options.threads()
    tiles: Annotated[TileOptions, "Tiles"]
    pictures: Annotated[PictureOptions, "Pictures"]
    video: Annotated[EncodingOptions, "Video"]
    on_cluster: Annotated[ClusterOptions, "Cluster"]
    json: bool = options.json()

    def job(self) -> UpscaleJob:
        """Raises: UsageError for options that contradict each other, or make no sense."""
        network = self._network()
        if self.checkpoint is None:
            is_preset = network == _DEFAULT_NETWORK
            refuse_options(
                {"--res-scale": self.res_scale, "--precision": None if is_preset else self.precision},
                "is for --checkpoint; ONNX files and engines have theirs",
            )
        self.execution.require_plugin_for([network])
        from trt_hspan.runtime.opening import RunnerOptions

        if self.on_cluster.workers is not None and self.on_cluster.cluster is None:
            raise UsageError("--workers", "is for --cluster", "leave it out")
        from trt_hspan.jobs.upscale import UpscaleJob
        from trt_hspan.upscaling.pictures import WriteOptions
        from trt_hspan.upscaling.video_encoder import VideoOptions

        return UpscaleJob(
            inputs=self.inputs,
            output=self.output,
            network=network,
            execution=RunnerOptions(
                device=self.execution.device,
                res_scale=self.res_scale,
                threads=self.threads,
                plugin=self.execution.plugin,
                precision=self.precision,
            ),
            options=self.tiles.upscaling(),
            writing=WriteOptions(
                quality=self.pictures.quality,
                compare=self.pictures.compare,
                tile_effect=self.tiles.tile_effect,
            ),
            video=VideoOptions(codec=self.video.codec, crf=self.video.crf),
            suffix=self.pictures.suffix(),
            overwrite=self.pictures.overwrite,
        )

    def _network(self) -> str | Path:
        networks: dict[str, str | Path | None] = {
            "--checkpoint": self.checkpoint,
            "--onnx": self.onnx,
            "--engine": self.engine,
        }
        given = {option: network for option, network in networks.items() if network is not None}
        if not given:
            return _DEFAULT_NETWORK
        if len(given) != 1:
            raise UsageError(
                " ".join(given),
                "expected at most one of --checkpoint, --onnx and --engine",
                "say which network is to run",
            )
        ((option, network),) = given.items()
        suffix = {"--onnx": ".onnx", "--engine": ".plan"}.get(option)
        if suffix is not None and Path(network).suffix.lower() != suffix:
            raise UsageError(option, f"got {network}, expected a file that ends in {suffix}")
        if option == "--checkpoint" and Path(network).suffix.lower() in (".onnx", ".plan"):
            raise UsageError(
                option, f"got {network}, which is no checkpoint", "use --onnx or --engine for it"
            )
        return network


@takes_request
def upscale(request: UpscaleRequest) -> None:
    """Upscale pictures, folders and videos of any size.

    A folder is mirrored with its sub-folders; run again, it goes on where it stopped. A file that fails is reported
    at the end, the rest is done, and the exit code is 1. Gray stays gray, alpha is upscaled, 16 bits stay 16 bits,
    profile and metadata are kept, EXIF orientation is applied.
    """
    job, as_json = request.job(), request.json
    if request.on_cluster.cluster is not None:
        from trt_hspan.cli.upscale.job import run_upscale_on_cluster

        cluster, workers = request.on_cluster.cluster, request.on_cluster.workers
        raise typer.Exit(run_upscale_on_cluster(job, cluster, workers, as_json=as_json))
    if "-" in (*job.inputs, job.output):
        from trt_hspan.cli.upscale.pipe import run_upscale_pipe

        raise typer.Exit(run_upscale_pipe(job, as_json=as_json))
    from trt_hspan.cli.upscale.job import run_upscale

    raise typer.Exit(run_upscale(job, as_json=as_json))
