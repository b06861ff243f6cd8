"""`trt-hspan upscale`: pictures, folders and videos in, larger ones out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trt_hspan.cli.options import require_plugin_for
from trt_hspan.errors import UsageError

if TYPE_CHECKING:
    from trt_hspan.cli.upscale.job import UpscaleRequest

_DEFAULT_NETWORK = "hspan-tiny-x4"
_PICTURES = "Pictures"
_TILES = "Tiles"
_VIDEO = "Video"
_CLUSTER = "Cluster"


def upscale(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="IN...",
            help="Pictures (PNG, JPEG, WebP, TIFF, BMP, GIF, PPM), videos, folders, quoted patterns such as "
            "'in/**/*.png', or - for standard input.",
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            help="The file to write; a folder for several inputs; - for standard output.",
        ),
    ],
    checkpoint: Annotated[
        str | None,
        typer.Option(
            help="A .pt, .pth or .safetensors file, or a preset: runs in PyTorch. With no network given: "
            f"the shipped {_DEFAULT_NETWORK}."
        ),
    ] = None,
    onnx: Annotated[
        Path | None, typer.Option(help="An .onnx file: runs under ONNX Runtime on the CPU.")
    ] = None,
    engine: Annotated[
        Path | None,
        typer.Option(help="A .plan: runs on the GPU, or where there is none its ONNX file on the CPU."),
    ] = None,
    res_scale: Annotated[
        float | None,
        typer.Option(help="Residual scale of --checkpoint, which does not store it.", show_default="0.1"),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="fp32|bf16",
            help="Of --checkpoint. bf16 is for processors with BF16 instructions; ONNX files and engines hold theirs.",
            show_default="fp32",
        ),
    ] = None,
    integer_kernels: Annotated[
        bool,
        typer.Option(
            "--integer-kernels",
            help="Of --onnx in INT8: convolutions in ONNX Runtime's integer kernels (VNNI where the processor has it). "
            "Faster on large networks; single values differ by one quantization step.",
        ),
    ] = False,
    plugin: Annotated[
        Path | None,
        typer.Option(
            metavar="LIBRARY",
            help="The plugin library of --engine.",
            show_default="that of trt-hspan plugin build",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, gpu, or gpu:1 for the second GPU.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="all")] = None,
    tile: Annotated[
        str,
        typer.Option(
            metavar="auto|none|HxW",
            help="auto: the whole picture where the network, memory and time allow it, else the largest tiles "
            "that do. Attention sees one tile at a time, so tiles change the result.",
            rich_help_panel=_TILES,
        ),
    ] = "auto",
    overlap: Annotated[
        int | None,
        typer.Option(
            help="Pixels that neighboring tiles share.", show_default="32 or less", rich_help_panel=_TILES
        ),
    ] = None,
    protocol: Annotated[
        str,
        typer.Option(
            help="tiled, or official: quarters with hard seams as the official code's --chop cuts them, for "
            "comparing with published figures.",
            rich_help_panel=_TILES,
        ),
    ] = "tiled",
    official_min_size: Annotated[
        int | None,
        typer.Option(
            help="--protocol official: pixels from which a quarter is quartered again.",
            show_default="120000",
            rich_help_panel=_TILES,
        ),
    ] = None,
    self_ensemble: Annotated[
        bool,
        typer.Option(
            "--self-ensemble",
            help="Mean over the 8 flips and turns: 8 times the work.",
            rich_help_panel=_TILES,
        ),
    ] = False,
    tile_effect: Annotated[
        bool,
        typer.Option(
            "--tile-effect",
            help="Also run the picture as a whole, where it fits, and report what the tiles change.",
            rich_help_panel=_TILES,
        ),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="In folders: do finished files again, replace others.",
            rich_help_panel=_PICTURES,
        ),
    ] = False,
    picture_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="png|jpg|webp|tif|bmp",
            help="Of the results in a folder or on standard output.",
            show_default="as the input",
            rich_help_panel=_PICTURES,
        ),
    ] = None,
    quality: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=100,
            help="Of JPEG, and of WebP, which is lossless without it.",
            show_default="95",
            rich_help_panel=_PICTURES,
        ),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Also write NAME_compare.png: bicubic on the left, network on the right.",
            rich_help_panel=_PICTURES,
        ),
    ] = False,
    codec: Annotated[
        str | None,
        typer.Option(
            help="FFmpeg's encoder.", show_default="libx264, .webm: libvpx-vp9", rich_help_panel=_VIDEO
        ),
    ] = None,
    crf: Annotated[
        int | None,
        typer.Option(
            help="Constant rate factor, less is better.",
            show_default="18 for libx264",
            rich_help_panel=_VIDEO,
        ),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="local|auto|ray://HOST:PORT",
            help="Pictures on many workers through Ray; inputs and OUT may be URIs such as s3://bucket/folder. "
            "--threads is for each worker.",
            rich_help_panel=_CLUSTER,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="At one time.", show_default="one for each GPU or processor", rich_help_panel=_CLUSTER
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Upscale pictures, folders and videos of any size.

    A folder is mirrored with its sub-folders; run again, it goes on where it stopped. A file that fails is reported
    at the end, the rest is done, and the exit code is 1. Gray stays gray, alpha is upscaled, 16 bits stay 16 bits,
    profile and metadata are kept, EXIF orientation is applied.
    """
    source = _one_source(checkpoint, onnx, engine)
    if res_scale is not None and checkpoint is None:
        raise UsageError(
            "--res-scale", "is for --checkpoint; ONNX files and engines hold theirs", "leave it out"
        )
    if precision is not None and (onnx is not None or engine is not None):
        raise UsageError(
            "--precision", "is for --checkpoint; ONNX files and engines hold theirs", "leave it out"
        )
    require_plugin_for(plugin, [source])
    if integer_kernels:
        from trt_hspan.runtime.opening import require_onnx_for_integer_kernels

        require_onnx_for_integer_kernels([source])
    if official_min_size is not None and protocol != "official":
        raise UsageError("--official-min-size", "is for --protocol official", "leave it out")
    if workers is not None and cluster is None:
        raise UsageError("--workers", "is for --cluster", "leave it out")
    from trt_hspan.cli.upscale.job import UpscaleRequest, run_upscale
    from trt_hspan.sizes import tile_from_text
    from trt_hspan.upscaling.options import UpscaleOptions
    from trt_hspan.upscaling.picture_files import WriteOptions
    from trt_hspan.upscaling.tiling import OFFICIAL_MIN_SIZE
    from trt_hspan.upscaling.video import VideoOptions

    options: dict[str, Any] = {"tile": tile_from_text(tile), "protocol": protocol}
    request: UpscaleRequest = UpscaleRequest(
        inputs=tuple(inputs),
        output=output,
        network=source,
        res_scale=0.1 if res_scale is None else res_scale,
        precision=precision,
        integer_kernels=integer_kernels,
        plugin=plugin,
        device=device,
        threads=threads,
        options=UpscaleOptions(
            **options,
            overlap=overlap,
            self_ensemble=self_ensemble,
            official_min_size=OFFICIAL_MIN_SIZE if official_min_size is None else official_min_size,
        ),
        writing=WriteOptions(quality=quality, compare=compare, tile_effect=tile_effect),
        video=VideoOptions(codec=codec, crf=crf),
        suffix=_suffix(picture_format),
        overwrite=overwrite,
        json=json,
    )
    if cluster is not None:
        from trt_hspan.cli.upscale.cluster import run_upscale_on_cluster

        raise typer.Exit(run_upscale_on_cluster(request, cluster, workers))
    if "-" in (*request.inputs, request.output):
        from trt_hspan.cli.upscale.pipe import run_upscale_pipe

        raise typer.Exit(run_upscale_pipe(request))
    raise typer.Exit(run_upscale(request))


def _suffix(text: str | None) -> str | None:
    if text is None:
        return None
    from trt_hspan.media.images import WRITE_FORMATS

    suffix = "." + text.lower().lstrip(".")
    if suffix not in WRITE_FORMATS:
        raise UsageError(
            "--format", f"got {text!r}, expected one of {', '.join(name[1:] for name in WRITE_FORMATS)}"
        )
    return suffix


def _one_source(checkpoint: str | None, onnx: Path | None, engine: Path | None) -> str | Path:
    given: dict[str, str | Path] = {
        option: value
        for option, value in (("--checkpoint", checkpoint), ("--onnx", onnx), ("--engine", engine))
        if value is not None
    }
    if not given:
        return _DEFAULT_NETWORK
    if len(given) != 1:
        raise UsageError(
            " ".join(given),
            "expected at most one of --checkpoint, --onnx and --engine",
            "say which network is to run",
        )
    for option, suffix in (("--onnx", ".onnx"), ("--engine", ".plan")):
        if option in given and Path(given[option]).suffix.lower() != suffix:
            raise UsageError(option, f"got {given[option]}, expected a file that ends in {suffix}")
    ((option, value),) = given.items()
    if option == "--checkpoint" and Path(value).suffix.lower() in (".onnx", ".plan"):
        raise UsageError(option, f"got {value}, which is no checkpoint", "use --onnx or --engine for it")
    return value
