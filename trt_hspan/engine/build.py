"""Builds an engine from a network: checks, plugin, builder, and the files of the result."""

from __future__ import annotations

import datetime
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, get_args

import onnx

from trt_hspan.engine.builder import BuiltPlan, Profiles, build_plan
from trt_hspan.engine.manifest import (
    FORMAT_VERSION,
    EngineManifest,
    PluginRecord,
    ProfileRecord,
    QuantizationRecord,
    write_manifest,
)
from trt_hspan.engine.passport import FIRST_AMPERE
from trt_hspan.engine.range_record import RangeAudit
from trt_hspan.engine.spec import (
    OPTION_OF_TRAIT,
    RTX_DEFAULT_TARGETS,
    Attention,
    EngineSpec,
    Flavor,
    Precision,
    Trait,
    profiles_for,
)
from trt_hspan.engine.tensorrt_api import check_targets, load_plugin_library, load_tensorrt, select_flavor
from trt_hspan.errors import HspanError, UsageError
from trt_hspan.files import check_writable, sha256_from_file, staged_files, write_bytes
from trt_hspan.graph import (
    base_precision_from_model,
    image_input,
    load_onnx,
    metadata_from_model,
    model_with_inlined_functions,
    model_with_plugin_nodes,
    precision_from_model,
    quantization_from_model,
    require_attention,
)
from trt_hspan.machine.gpu import gpu_architectures, require_answers
from trt_hspan.native import plugin as plugin_library
from trt_hspan.native.progress import BuildProgress
from trt_hspan.sizes import ImageSize
from trt_hspan.version import __version__

DEFAULT_ATTENTION: dict[Flavor, Attention] = {"tensorrt": "plugin", "tensorrt-rtx": "function"}
# NVIDIA's documented limit on the elements of one tensor. Measured on TensorRT-RTX 1.7.1: near it, the reported
# activation memory wraps around (15.60 GB at 210x210 but 0.07 GB at 214x214).
MAX_TENSOR_ELEMENTS = 2**31 - 1
# Ada and Hopper were the first with FP8 tensor cores. TensorRT-RTX 1.7 refuses FP8 for anything older.
FIRST_FP8_TARGET = 89


@dataclass(frozen=True, kw_only=True)
class _Tools:
    """What builds: every None of a spec that the machine decides. `plugin` is None for the function body."""

    trt: Any
    flavor: Flavor
    attention: Attention
    targets: tuple[str, ...]
    plugin: PluginRecord | None


@dataclass(frozen=True, kw_only=True)
class _Network:
    """What is built: every None of a spec that the model decides."""

    model: onnx.ModelProto
    precision: Precision
    shapes: Profiles
    is_static: bool


@dataclass(frozen=True, kw_only=True)
class PreparedModel:
    """A model to build from, its audit for the manifest, and suffix -> text of files to write beside the engine."""

    model: onnx.ModelProto
    range_audit: RangeAudit | None = None
    companions: Mapping[str, str] = field(default_factory=dict)


def build_engine(
    spec: EngineSpec,
    *,
    prepare: Callable[[], PreparedModel] | None = None,
    on_progress: Callable[[BuildProgress], None] | None = None,
) -> EngineManifest:
    """Builds the engine and writes NAME.plan, NAME.onnx, NAME.json and its companions: all or, on any failure, none.

    The network is strongly typed: each layer computes in the type that its graph gives it. float32 means float32:
    TF32 is switched off.

    Example:
        >>> from pathlib import Path
        >>> import trt_hspan
        >>> from trt_hspan.engine.build import build_engine
        >>> from trt_hspan.engine.spec import EngineSpec
        >>> model = trt_hspan.export_onnx("hspan-tiny-x2", "tiny.onnx", precision="fp16")
        >>> spec = EngineSpec(onnx=model, output=Path("engine.plan"), flavor="tensorrt-rtx")
        >>> manifest = build_engine(spec)
        >>> manifest.precision, manifest.scale, manifest.profiles[0].max
        ('fp16', 2, (1, 3, 128, 128))

    Args:
        spec: what to build.
        prepare: gives the model, such as by an export; called once everything that needs no model is checked. None
            reads `spec.onnx`.
        on_progress: called from this thread while the builder works.

    Returns:
        The manifest, as written.

    Raises:
        UsageError: the request contradicts the model, or a target is unknown to this TensorRT.
        HspanError: model, plugin library or TensorRT cannot do it, or the files cannot be written.
        KeyboardInterrupt: Ctrl-C; the builder has stopped and nothing was written.
    """
    tools = _tools(spec)
    check_writable(spec.output)
    if spec.timing_cache is not None:
        check_writable(spec.timing_cache)
    prepared = PreparedModel(model=load_onnx(spec.onnx)) if prepare is None else prepare()
    network = _network(spec, prepared.model, tools.attention)
    check_fp8_targets(network.precision, tools.flavor, tools.targets)
    outputs = [spec.output, spec.onnx_output, spec.manifest_output]
    companions = [spec.output.with_suffix(suffix) for suffix in prepared.companions]
    with staged_files([*outputs, *companions]) as (plan_file, onnx_file, manifest_file, *companion_files):
        for file, text in zip(companion_files, prepared.companions.values(), strict=True):
            file.write_text(text, encoding="utf-8")
        for_parser = model_with_inlined_functions if tools.plugin is None else model_with_plugin_nodes
        model = for_parser(network.model).SerializeToString()
        profiles = () if network.is_static else network.shapes
        built = build_plan(tools.trt, spec, model, profiles, on_progress=on_progress)
        if spec.timing_cache is not None and built.timing_cache is not None:
            write_bytes(spec.timing_cache, built.timing_cache)  # of use even if what follows fails
        plan_file.write_bytes(built.data)
        onnx_file.write_bytes(network.model.SerializeToString(deterministic=True))
        manifest = _manifest(
            spec,
            tools,
            network,
            built,
            range_audit=prepared.range_audit,
            plan_file=plan_file,
            onnx_file=onnx_file,
        )
        write_manifest(manifest, manifest_file)
    return manifest


def _tools(spec: EngineSpec) -> _Tools:
    """Chooses and loads TensorRT, and the plugin library where it is used."""
    flavor = select_flavor(spec.flavor)
    attention = spec.attention or DEFAULT_ATTENTION[flavor]
    _check_combination(spec, flavor, attention)
    for request in spec.profiles:  # what is given of sizes and batches is in rising order
        largest = next(filter(None, reversed(request.sizes)), None)
        _check_scores(attention, largest, next(filter(None, reversed(request.batches)), None))
    targets = _targets(spec, flavor)
    _check_hardware(spec, targets)
    trt = load_tensorrt(flavor)
    check_targets(trt, spec.targets)
    check_fp8_targets(spec.precision, flavor, targets)
    plugin = _loaded_plugin(trt, spec, targets) if attention == "plugin" else None
    return _Tools(trt=trt, flavor=flavor, attention=attention, targets=targets, plugin=plugin)


def check_fp8_targets(precision: Precision | None, flavor: Flavor, targets: tuple[str, ...]) -> None:
    """Raises: HspanError when FP8 is requested for GPUs whose tensor cores do not have it, named in the line."""
    if precision != "fp8":
        return
    gpus = targets or (RTX_DEFAULT_TARGETS if flavor == "tensorrt-rtx" else ())
    without = [
        target for target in gpus if plugin_library.architecture_from_target(target) < FIRST_FP8_TARGET
    ]
    if without:
        named = ", ".join(without)
        raise HspanError(
            "--target",
            f"{named} cannot compute in FP8 (E4M3), which GPUs have from sm_{FIRST_FP8_TARGET} on"
            + ("" if targets else f"; TensorRT-RTX's default set includes {named}"),
            "name newer targets, such as --target sm_89 --target sm_120, or choose int8",
        )


def _network(spec: EngineSpec, model: onnx.ModelProto, attention: Attention) -> _Network:
    require_attention(model, spec.onnx)
    precision = precision_from_model(model)
    if "refittable" in spec.traits and not {"int8", "fp8"}.isdisjoint((precision, spec.precision)):
        raise UsageError(
            OPTION_OF_TRAIT["refittable"],
            "is for float networks: other weights would need other scales",
            "leave it out, or choose fp16",
        )
    if spec.precision not in (None, precision):
        raise UsageError(
            "--precision",
            f"{spec.precision}, but {spec.onnx} computes in {precision}",
            "name pictures with --calibration to quantize it, or leave the option out"
            if spec.precision in ("int8", "fp8")
            else f"export it again with --precision {spec.precision}, or leave the option out",
        )
    batch, channels, height, width = image_input(model, spec.onnx).shape
    if channels is None:
        raise HspanError(
            spec.onnx, "expected one input (N, C, H, W) with a fixed C", "export it with trt-hspan export"
        )
    metadata = metadata_from_model(model)
    profiles = profiles_for(
        spec.profiles,
        attention,
        batch=batch,
        height=height,
        width=width,
        taken=(metadata.size_multiple or 1, metadata.min_size or 1),
    )
    for profile in profiles:
        _check_scores(attention, profile.max, profile.max_batch)
    return _Network(
        model=model,
        precision=precision,
        shapes=tuple(profile.shapes(channels) for profile in profiles),
        is_static=None not in (batch, height, width),
    )


def _check_combination(spec: EngineSpec, flavor: Flavor, attention: Attention) -> None:
    """Refuses options without effect for the chosen flavor or attention."""
    if flavor == "tensorrt" and spec.targets:
        raise UsageError(
            "--target",
            "TensorRT builds for the GPU at hand only",
            "leave it out, or use --flavor tensorrt-rtx",
        )
    for option, value in (
        ("--opt-level", spec.optimization_level),
        ("tactic_dram_mib", spec.tactic_dram_mib),
        ("--timing-cache", spec.timing_cache),
    ):
        if flavor == "tensorrt-rtx" and value is not None:
            raise UsageError(option, "TensorRT-RTX tunes nothing while it builds", "leave it out")
    if attention == "function" and (spec.plugin is not None or "embedded-plugin" in spec.traits):
        option = "--plugin" if spec.plugin is not None else OPTION_OF_TRAIT["embedded-plugin"]
        raise UsageError(option, f"has no use: {flavor} takes the function body", "add --attention plugin")
    _check_traits(spec, flavor, attention)


def _check_traits(spec: EngineSpec, flavor: Flavor, attention: Attention) -> None:
    """Refuses what TensorRT-RTX does not have.

    *Measured* on 1.7.1: it looks for a lean runtime that it does not ship, ignores hardware compatibility and timing
    caches, and its compiler fails where constants of the function body may change.
    """
    if flavor == "tensorrt":
        return
    if "refittable" in spec.traits and attention == "function":
        raise UsageError(
            OPTION_OF_TRAIT["refittable"],
            "TensorRT-RTX cannot compile the function body with weights that may change",
            "add --attention plugin, or leave it out",
        )
    if "version-compatible" in spec.traits:
        raise UsageError(
            OPTION_OF_TRAIT["version-compatible"],
            "TensorRT-RTX engines run with the release that built them only",
            "leave it out, or use --flavor tensorrt",
        )
    for trait in sorted(spec.traits & {"ampere+", "same-cc"}):
        raise UsageError(
            OPTION_OF_TRAIT[trait],
            "a TensorRT-RTX engine is for the GPUs of --target, whichever built it",
            "leave it out, and name each GPU by --target",
        )


def _check_hardware(spec: EngineSpec, targets: tuple[str, ...]) -> None:
    """By NVIDIA's documentation hardware compatibility is for GPUs from Ampere on, and not for JetPack."""
    for trait, target in product(sorted(spec.traits & {"ampere+", "same-cc"}), targets):
        if plugin_library.is_tegra(target) or plugin_library.architecture_from_target(target) < FIRST_AMPERE:
            raise UsageError(
                OPTION_OF_TRAIT[trait],
                f"is for GPUs from compute capability 8.0 on that are no Jetson, this one is {target}",
                "leave it out",
            )


def _check_scores(attention: Attention, largest: ImageSize | None, batch: int | None) -> None:
    """Refuses sizes at which a score matrix of the function body has more elements than TensorRT takes in a tensor."""
    if attention == "plugin" or largest is None:
        return
    count, scores = batch or 1, (batch or 1) * (largest.height * largest.width) ** 2
    if scores > MAX_TENSOR_ELEMENTS:
        side = math.isqrt(math.isqrt(MAX_TENSOR_ELEMENTS // count))
        raise UsageError(
            "--max",
            f"at {largest} the function body has {scores:,} scores in one tensor, more than TensorRT's 2^31 - 1",
            f"add --attention plugin, or choose at most --max {side}x{side}",
        )


def _targets(spec: EngineSpec, flavor: Flavor) -> tuple[str, ...]:
    """The compute capabilities that the engine is for; empty is the default set of TensorRT-RTX."""
    if flavor == "tensorrt-rtx":
        return spec.targets
    gpus = gpu_architectures()
    if not gpus:
        require_answers()
        raise HspanError(
            "tensorrt",
            "builds on an NVIDIA GPU with its driver, and there is none here",
            "build on the machine that will run the engine, or use --flavor tensorrt-rtx",
        )
    return gpus[:1]


def _loaded_plugin(trt: Any, spec: EngineSpec, targets: tuple[str, ...]) -> PluginRecord:
    path = spec.plugin or plugin_library.default_plugin_path()
    info = plugin_library.plugin_info_from_library(path)
    plugin_library.check_plugin_serves(info, targets or RTX_DEFAULT_TARGETS)
    load_plugin_library(trt, path)
    return PluginRecord(
        file=path.name,
        sha256=sha256_from_file(path),
        abi_version=info.abi_version,
        architectures=(
            *(f"sm_{number}" for number in info.cubin_architectures),
            *(f"compute_{number}" for number in info.ptx_architectures),
        ),
    )


def _manifest(
    spec: EngineSpec,
    tools: _Tools,
    network: _Network,
    built: BuiltPlan,
    *,
    range_audit: RangeAudit | None,
    plan_file: Path,
    onnx_file: Path,
) -> EngineManifest:
    metadata = metadata_from_model(network.model)
    profiles = _profile_records(tools, network, built)
    memory = [profile.activation_memory_bytes for profile in profiles]
    figures = [figure for figure in memory if figure is not None]
    has_memory = len(figures) == len(memory)
    return EngineManifest(
        format_version=FORMAT_VERSION,
        plan_sha256=sha256_from_file(plan_file),
        plan_size_bytes=plan_file.stat().st_size,
        onnx_file=onnx_file.name,
        onnx_sha256=sha256_from_file(onnx_file),
        plugin=tools.plugin,
        flavor=tools.flavor,
        tensorrt_version=tools.trt.__version__,
        traits=tuple(trait for trait in get_args(Trait) if trait in spec.traits),
        timing_cache_sha256=None
        if built.timing_cache is None
        else hashlib.sha256(built.timing_cache).hexdigest(),
        targets=tools.targets,
        precision=network.precision,
        base_precision=base_precision_from_model(network.model),
        quantization=_quantization_record(network.model, built),
        attention=tools.attention,
        scale=metadata.scale,
        size_multiple=metadata.size_multiple or 1,
        profiles=profiles,
        io_tensors=built.io_tensors,
        activation_memory_bytes=max(figures) if has_memory else None,
        activation_memory_source=built.activation_memory_source if has_memory else None,
        weights_memory_bytes=built.weights_memory_bytes,
        network_layer_counts=built.network_layer_counts,
        engine_layer_counts=built.engine_layer_counts,
        build_time_seconds=built.build_time_seconds,
        tool_version=__version__,
        source_sha256=metadata.source_sha256,
        range_audit=range_audit,
        created_utc=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )


def _profile_records(tools: _Tools, network: _Network, built: BuiltPlan) -> tuple[ProfileRecord, ...]:
    memory = built.activation_memory_bytes or [None] * len(network.shapes)
    return tuple(
        ProfileRecord(
            min=low, opt=best, max=high, activation_memory_bytes=_plausible(size, high, tools.attention)
        )
        for size, (low, best, high) in zip(memory, network.shapes, strict=True)
    )


def _plausible(memory_bytes: int | None, largest: tuple[int, ...], attention: Attention) -> int | None:
    """The builder's figure; None where it is less than one score matrix takes in FP16: then it has wrapped around."""
    n, _, height, width = largest
    least = 0 if attention == "plugin" else 2 * n * (height * width) ** 2
    return None if memory_bytes is None or memory_bytes < least else memory_bytes


def _quantization_record(model: onnx.ModelProto, built: BuiltPlan) -> QuantizationRecord | None:
    facts = quantization_from_model(model)
    if facts is None:
        return None
    metadata = metadata_from_model(model)
    return QuantizationRecord(
        type=facts.type,
        convolutions=facts.convolutions,
        quantized_convolutions=facts.quantized_convolutions,
        quantized_mac_share=round(facts.mac_share, 6),
        builder_convolutions=built.quantized_convolutions,
        recipe_sha256=metadata.recipe_sha256,
        calibration_sha256=metadata.calibration_sha256,
    )
