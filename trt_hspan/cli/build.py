"""`trt-hspan build`: checkpoint or ONNX to a TensorRT engine with its manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from trt_hspan.cli import options
from trt_hspan.cli.progress import build_with_progress
from trt_hspan.cli.quantized_build import build_quantized, chain_from_options
from trt_hspan.errors import UsageError

if TYPE_CHECKING:
    from trt_hspan.engine.manifest import EngineManifest, ProfileRecord
    from trt_hspan.engine.spec import EngineSpec, ProfileRequest
    from trt_hspan.precision.audit.range_request import RangeRequest
    from trt_hspan.sizes import ImageSize

_RTX_PLUGIN_NOTE = (
    "NVIDIA documents no plugin support for TensorRT-RTX: it built this engine, "
    "but whether it executes there is unknown"
)


def build(
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="F", help="A .pt, .pth or .safetensors file, or a preset's name; exported first."
        ),
    ] = None,
    onnx: Annotated[Path | None, typer.Option(metavar="F", help="An ONNX file of trt-hspan export.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="NAME.plan",
            help="The engine; NAME.onnx and NAME.json are written beside it.",
            show_default="engines/<stem>_<precision>.plan",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="fp32, fp16, bf16, int8 or fp8.", show_default="fp32, or what the ONNX file holds"),
    ] = None,
    min_size: Annotated[
        str | None,
        typer.Option("--min", metavar="HxW", help="Smallest input.", show_default="16x16"),
    ] = None,
    opt_size: Annotated[
        str | None,
        typer.Option("--opt", metavar="HxW", help="Input to tune for.", show_default="128x128, or --max"),
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(
            "--max", metavar="HxW", help="Largest input.", show_default="256x256 plugin, 128x128 function"
        ),
    ] = None,
    min_batch: Annotated[int | None, typer.Option(help="Smallest batch.", show_default="1")] = None,
    opt_batch: Annotated[int | None, typer.Option(help="Batch to tune for.", show_default="1")] = None,
    max_batch: Annotated[int | None, typer.Option(help="Largest batch.", show_default="1")] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(
            metavar="min=HxW,opt=HxW,max=NxHxW",
            help="One more optimization profile, repeatable; the first one if no option above is given.",
        ),
    ] = None,
    flavor: Annotated[
        str | None,
        typer.Option(
            help="tensorrt (on the GPU at hand) or tensorrt-rtx (ahead of time, no GPU needed).",
            show_default="what is installed, a GPU's first",
        ),
    ] = None,
    attention: Annotated[
        str | None,
        typer.Option(
            help="plugin or function: what the attention becomes.",
            show_default="plugin, for tensorrt-rtx function",
        ),
    ] = None,
    plugin: Annotated[
        Path | None,
        typer.Option(metavar="F", help="The plugin library.", show_default="that of trt-hspan plugin build"),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="sm_86",
            help="A compute capability to build for, repeatable; tensorrt-rtx only.",
            show_default="TensorRT-RTX's set",
        ),
    ] = None,
    res_scale: Annotated[
        float | None,
        typer.Option(help="Residual scale; checkpoints do not store it.", show_default="0.1"),
    ] = None,
    opset: Annotated[
        int | None, typer.Option(help="Version of the ONNX operators to export with.", show_default="18")
    ] = None,
    workspace_mib: Annotated[
        int | None, typer.Option(help="Limit of TensorRT's scratch memory.", show_default="TensorRT's")
    ] = None,
    opt_level: Annotated[
        int | None,
        typer.Option(help="0 (fast build) to 5 (fast engine); tensorrt only.", show_default="TensorRT's"),
    ] = None,
    audit: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Audit ranges on these pictures, or builtin; goes into the manifest."
        ),
    ] = None,
    keep_fp32: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NODE",
            help="A node to keep in float32, a pattern, or with --audit: at-risk, or budget:DB; repeatable.",
        ),
    ] = None,
    recipe: options.RecipeFile = None,
    calibration: options.Calibration = None,
    method: options.Method = None,
    rounding: options.Rounding = None,
    budget_db: options.BudgetDb = None,
    base: options.Base = None,
    held_out: options.HeldOut = None,
    table: options.Table = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    tiles: options.Tiles = options.DEFAULT_TILES,
    tile: options.TileSide = options.DEFAULT_SIDE,
    no_cache: options.NoCache = False,
    json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Build a TensorRT engine, with a manifest that vouches for it."""
    if (checkpoint is None) == (onnx is None):
        raise UsageError("trt-hspan build", "give exactly one of --checkpoint and --onnx")
    quantization = chain_from_options(
        checkpoint=checkpoint,
        precision=precision,
        recipe=recipe,
        calibration=calibration,
        method=method,
        rounding=rounding,
        budget_db=budget_db,
        base=base,
        held_out=held_out,
        table=table,
        include=include,
        exclude=exclude,
        tiles=tiles,
        tile=tile,
        no_cache=no_cache,
    )
    if quantization is not None:
        quantization.refuse(opset=opset, audit=audit, keep_fp32=keep_fp32)
        precision = quantization.precision
    if onnx is not None:
        _refuse_export_options(
            res_scale=res_scale, opset=opset, keep_fp32=None if quantization else keep_fp32
        )
    from trt_hspan.cli.options import audited_onnx, range_request
    from trt_hspan.engine.spec import Attention, EngineSpec, Flavor, Precision, ProfileRequest, check_choice

    check_choice("--precision", precision, Precision)
    ranges = (
        None
        if quantization is not None
        else range_request(audit, keep_fp32, precision=None if onnx else precision or "fp32")
    )
    spec = EngineSpec(
        onnx=onnx if onnx is not None else Path(),
        output=output if output is not None else _default_output(checkpoint, onnx, precision),
        precision=cast("Precision | None", precision),
        profiles=_profiles(
            ProfileRequest(
                min=_size("--min", min_size),
                opt=_size("--opt", opt_size),
                max=_size("--max", max_size),
                min_batch=min_batch,
                opt_batch=opt_batch,
                max_batch=max_batch,
            ),
            profile or (),
        ),
        flavor=cast("Flavor | None", flavor),
        attention=cast("Attention | None", attention),
        targets=tuple(target or ()),
        plugin=plugin,
        workspace_mib=workspace_mib,
        optimization_level=opt_level,
    )
    if quantization is not None:
        manifest = build_quantized(
            checkpoint or spec.onnx, spec, quantization, res_scale=res_scale, keep_fp32=keep_fp32 or ()
        )
    elif checkpoint is None:
        manifest = build_with_progress(replace(spec, range_audit=audited_onnx(spec.onnx, ranges)))
    else:
        manifest = _build_from_checkpoint(checkpoint, spec, ranges, res_scale=res_scale, opset=opset)
    _print(spec, manifest, as_json=json)


def _refuse_export_options(**options: object) -> None:
    for name, value in options.items():
        if value is not None:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(option, "is part of an ONNX file already", "leave it out, or use --checkpoint")


def _size(option: str, text: str | None) -> ImageSize | None:
    from trt_hspan.sizes import image_size_from_text

    return None if text is None else image_size_from_text(text, option=option)


def _profiles(first: ProfileRequest, more: Sequence[str]) -> tuple[ProfileRequest, ...]:
    """Profile 0 is that of --min, --opt and --max, unless none of them was given and --profile was."""
    from trt_hspan.engine.spec import ProfileRequest, profile_request_from_text

    asked = tuple(map(profile_request_from_text, more))
    return asked if asked and first == ProfileRequest() else (first, *asked)


def _default_output(checkpoint: str | None, onnx: Path | None, precision: str | None) -> Path:
    from trt_hspan.engine.spec import default_output

    if onnx is None:
        return default_output(str(checkpoint), precision or "fp32")
    if precision is None:
        from trt_hspan.graph import load_onnx, precision_from_model, require_attention

        model = load_onnx(onnx)
        require_attention(model, onnx)
        precision = precision_from_model(model)
    return default_output(onnx, precision)


def _build_from_checkpoint(
    checkpoint: str,
    spec: EngineSpec,
    ranges: RangeRequest | None,
    *,
    res_scale: float | None,
    opset: int | None,
) -> EngineManifest:
    """Exports into a temporary folder, then builds; what makes the build impossible is found before the export."""
    import tempfile

    from trt_hspan.cli.options import export_with_ranges
    from trt_hspan.engine.build import check_buildable
    from trt_hspan.graph import checked_precision
    from trt_hspan.graph.variants import opset_to_write

    precision = checked_precision(spec.precision or "fp32")
    opset_to_write(precision, opset)
    check_buildable(spec)
    with tempfile.TemporaryDirectory(prefix="trt-hspan-") as folder:
        exported = Path(folder) / spec.onnx_output.name
        found = export_with_ranges(
            checkpoint,
            exported,
            ranges,
            precision=precision,
            res_scale=0.1 if res_scale is None else res_scale,
            opset=opset,
        )
        # What was kept may be every node: then the graph is float32, and the engine says so.
        asked = None if ranges is not None and ranges.keep_fp32 else spec.precision
        return build_with_progress(replace(spec, onnx=exported, precision=asked, range_audit=found))


def _print(spec: EngineSpec, manifest: EngineManifest, *, as_json: bool) -> None:
    from trt_hspan.cli.output import print_json, print_table

    if manifest.flavor == "tensorrt-rtx" and manifest.attention == "plugin":
        typer.echo(f"trt-hspan: note: {_RTX_PLUGIN_NOTE}", err=True)
    if spec.precision not in (None, manifest.precision):
        typer.echo(
            f"trt-hspan: note: every node stays in float32: this is no {spec.precision} engine", err=True
        )
    if as_json:
        import json

        print_json({"plan": str(spec.output), **json.loads(manifest.as_json())})
    else:
        if manifest.range_audit is not None:
            from trt_hspan.cli.audit import print_audit

            print_audit(spec.onnx_output, manifest.range_audit)
        print_table(f"Built {spec.output}", _summary(spec, manifest))


def _summary(spec: EngineSpec, manifest: EngineManifest) -> dict[str, object]:
    plugin = manifest.plugin
    layers = manifest.network_layer_counts
    default = "TensorRT-RTX's default set"
    return {
        "engine": f"{spec.output} ({_size_text(manifest.plan_size_bytes)})",
        "model": spec.onnx_output,
        "manifest": spec.manifest_output,
        "TensorRT": f"{manifest.flavor} {manifest.tensorrt_version}",
        "targets": ", ".join(manifest.targets) or default,
        "precision": _precision_text(manifest),
        "attention": manifest.attention if plugin is None else f"plugin, {plugin.file} {plugin.sha256[:12]}",
        **_profile_rows(manifest.profiles),
        "activation memory": _size_text(manifest.activation_memory_bytes),
        "weights": _size_text(manifest.weights_memory_bytes),
        "layers": f"{sum(layers.values())}, of them {layers.get('PLUGIN_V3', 0)} plugins",
        "build time": f"{manifest.build_time_seconds:.1f} s",
    }


def _profile_rows(profiles: Sequence[ProfileRecord]) -> dict[str, object]:
    def text(profile: ProfileRecord) -> str:
        shapes = (("min", profile.min), ("opt", profile.opt), ("max", profile.max))
        return ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes)

    if len(profiles) == 1:
        return {"shapes": text(profiles[0])}
    return {
        f"profile {index}": f"{text(profile)}: {_size_text(profile.activation_memory_bytes) or 'unknown'}"
        for index, profile in enumerate(profiles)
    }


def _precision_text(manifest: EngineManifest) -> str:
    record = manifest.quantization
    if record is None:
        return manifest.precision
    return (
        f"{record.type} in {record.quantized_convolutions} of {record.convolutions} convolutions "
        f"({record.quantized_mac_share:.1%} of their work), {manifest.base_precision} elsewhere"
    )


def _size_text(size_bytes: int | None) -> str | None:
    return None if size_bytes is None else f"{size_bytes / 1e6:,.1f} MB"
