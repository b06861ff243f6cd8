"""`trt-hspan build`: checkpoint or ONNX to a TensorRT engine with its manifest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

from trt_hspan.cli import options
from trt_hspan.cli.audit import print_audit
from trt_hspan.cli.output import print_json, print_table, say, size_text
from trt_hspan.cli.progress import progress
from trt_hspan.cli.request import flag, given_options, option, refuse_options, takes_request
from trt_hspan.errors import UsageError
from trt_hspan.sizes import image_size_from_text

if TYPE_CHECKING:
    from trt_hspan.engine.manifest import EngineManifest, ProfileRecord
    from trt_hspan.engine.spec import Attention, EngineSpec, Flavor, Precision, ProfileRequest, Trait
    from trt_hspan.precision.engine_job import EngineJob
    from trt_hspan.precision.quantize.request import QuantizationJob
    from trt_hspan.sizes import ImageSize

_RTX_PLUGIN_NOTE = (
    "NVIDIA documents no plugin support for TensorRT-RTX: it built this engine, "
    "but whether it executes there is unknown"
)


@dataclass(frozen=True, kw_only=True)
class ProfileOptions:
    """The shapes that an engine takes."""

    min: str | None = option("Smallest input.", "HxW", shown="16x16")
    opt: str | None = option("Input to tune for.", "HxW", shown="128x128, or --max")
    max: str | None = option("Largest input.", "HxW", shown="256x256 plugin, 128x128 function")
    min_batch: int | None = option("Smallest batch.", shown="1")
    opt_batch: int | None = option("Batch to tune for.", shown="1")
    max_batch: int | None = option("Largest batch.", shown="1")
    profile: tuple[str, ...] = option(
        "One more optimization profile, repeatable; the first one if no option above is given.",
        "min=HxW,opt=HxW,max=NxHxW",
        default=(),
    )

    def requests(self) -> tuple[ProfileRequest, ...]:
        """Profile 0 is that of --min, --opt and --max, unless none of them was given and --profile was."""
        from trt_hspan.engine.spec import ProfileRequest, profile_request_from_text

        first = ProfileRequest(
            min=_size("--min", self.min),
            opt=_size("--opt", self.opt),
            max=_size("--max", self.max),
            min_batch=self.min_batch,
            opt_batch=self.opt_batch,
            max_batch=self.max_batch,
        )
        more = tuple(map(profile_request_from_text, self.profile))
        return more if more and first == ProfileRequest() else (first, *more)


@dataclass(frozen=True, kw_only=True)
class TraitOptions:
    """What the engine can do beyond running where it was built."""

    embed_plugin: bool = flag("Put the plugin library into the plan, which then runs without a second file.")
    version_compatible: bool = flag("Run with later TensorRT releases too; tensorrt only.")
    hardware_compatible: str | None = option(
        "Run on all GPUs from compute capability 8.0 on, or on all of the same one; tensorrt only.",
        "ampere+|same-cc",
        shown="the kind of GPU at hand",
    )
    refittable: bool = flag("Take other weights of the same architecture later: trt-hspan refit.")

    def traits(self) -> frozenset[Trait]:
        """As `EngineSpec` takes them. Raises: UsageError for another kind of compatibility."""
        from trt_hspan.engine.spec import HardwareCompatibility, check_choice

        check_choice("--hardware-compatible", self.hardware_compatible, HardwareCompatibility)
        chosen = {
            "embedded-plugin": self.embed_plugin,
            "version-compatible": self.version_compatible,
            "refittable": self.refittable,
            self.hardware_compatible: self.hardware_compatible is not None,
        }
        return frozenset(cast("Trait", trait) for trait, given in chosen.items() if given)


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    checkpoint: str | None = option(
        "A .pt, .pth or .safetensors file, or a preset's name; exported first.", "FILE"
    )
    onnx: Path | None = option("An ONNX file, also of a network of one's own.", "FILE")
    output: Path | None = options.output(
        "NAME.plan",
        "The engine; NAME.onnx and NAME.json are written beside it.",
        default=None,
        shown="engines/<stem>_<precision>.plan",
    )
    precision: str | None = option(
        "fp32, fp16, bf16, int8 or fp8.", shown="fp32, or what the ONNX file contains"
    )
    profiles: Annotated[ProfileOptions, "Shapes"]
    flavor: str | None = option(
        "tensorrt (on the GPU at hand) or tensorrt-rtx (ahead of time, no GPU needed).",
        shown="what is installed, a GPU's first",
    )
    attention: str | None = option(
        "plugin or function: what the attention becomes.", shown="plugin, for tensorrt-rtx function"
    )
    plugin: Path | None = options.plugin()
    target: tuple[str, ...] = option(
        "A compute capability to build for, repeatable; tensorrt-rtx only.",
        "sm_86",
        default=(),
        shown="TensorRT-RTX's set",
    )
    workspace_mib: int | None = option("Limit of TensorRT's scratch memory.", shown="TensorRT's")
    opt_level: int | None = options.opt_level()
    timing_cache: Path | None = option(
        "Times that earlier builds measured, read if it is there and written anew; tensorrt only.", "FILE"
    )
    travel: Annotated[TraitOptions, "Where the engine runs"]
    export: Annotated[options.ExportOptions, "Export and audit"]
    quantization: Annotated[options.QuantizationOptions, "Quantization"]
    json: bool = options.json()

    def job(self) -> EngineJob:
        """Raises: UsageError for options that contradict each other; HspanError for a recipe that cannot be read."""
        network = self.checkpoint or self.onnx
        if network is None or (self.checkpoint is not None and self.onnx is not None):
            raise UsageError("trt-hspan build", "give exactly one of --checkpoint and --onnx")
        quantization = self._quantization(network)
        writes = self.onnx is None or self.precision in ("fp16", "bf16")
        if self.onnx is not None:
            refuse_options(
                {
                    "--res-scale": self.export.res_scale,
                    "--opset": None if writes else self.export.opset,
                    "--keep-fp32": () if quantization or writes else self.export.keep_fp32,
                },
                "is part of an ONNX file already",
                "leave it out, or use --checkpoint",
            )
        from trt_hspan.engine.spec import EngineSpec
        from trt_hspan.precision.audit.range_request import RangeRequest
        from trt_hspan.precision.engine_job import EngineJob, default_engine_path

        precision = self.precision if quantization is None else quantization.how.precision
        exported = precision or "fp32" if writes else None
        spec = EngineSpec(
            onnx=Path(network),
            output=self.output or default_engine_path(network, precision),
            precision=cast("Precision | None", precision),
            profiles=self.profiles.requests(),
            flavor=cast("Flavor | None", self.flavor),
            attention=cast("Attention | None", self.attention),
            targets=self.target,
            plugin=self.plugin,
            workspace_mib=self.workspace_mib,
            optimization_level=self.opt_level,
            traits=self.travel.traits(),
            timing_cache=self.timing_cache,
        )
        return EngineJob(
            spec=spec,
            quantization=quantization,
            export=writes and quantization is None,
            ranges=RangeRequest() if quantization else self.export.ranges(exported),
            res_scale=self.export.res_scale,
            opset=self.export.opset,
        )

    def _quantization(self, network: str | Path) -> QuantizationJob | None:
        """None where nothing is to be quantized here: an ONNX file may be quantized already."""
        given = given_options(self.quantization)
        if self.precision not in ("int8", "fp8") and self.quantization.recipe is None:
            if given:
                raise UsageError(given[0], "is for quantized engines", "add --precision int8 or fp8")
            return None
        if self.onnx is not None and not given:
            return None
        job = self.quantization.job(
            network, self.precision, res_scale=self.export.res_scale, keep_fp32=self.export.keep_fp32
        )
        if self.export.opset is not None:
            raise UsageError("--opset", f"follows from the precision for {job.how.precision}", "leave it out")
        if self.export.audit is not None:
            raise UsageError(
                "--audit", "is for float networks", "audit the fp16 network first: trt-hspan audit"
            )
        if "at-risk" in job.keep_fp32:
            raise UsageError("--keep-fp32", "at-risk needs --audit of a float network", "name the nodes")
        return job


@takes_request
def build(request: BuildRequest) -> None:
    """Build a TensorRT engine and its manifest, which says what it is."""
    job = request.job()
    from trt_hspan.precision.engine_job import build_from_network

    with progress(f"building {job.spec.output.name}") as bar:
        manifest = build_from_network(job, on_progress=bar.show)
    _print(job.spec, manifest, as_json=request.json)


def _size(option: str, text: str | None) -> ImageSize | None:
    return None if text is None else image_size_from_text(text, option=option)


def _print(spec: EngineSpec, manifest: EngineManifest, *, as_json: bool) -> None:
    if manifest.flavor == "tensorrt-rtx" and manifest.attention == "plugin":
        say(f"note: {_RTX_PLUGIN_NOTE}")
    if spec.precision not in (None, manifest.precision):
        say(f"note: every node stays in float32: this is no {spec.precision} engine")
    if as_json:
        print_json(engine_report(spec.output, manifest))
    else:
        if manifest.range_audit is not None:
            print_audit(spec.onnx_output, manifest.range_audit)
        print_table(f"Built {spec.output}", engine_rows(spec.output, manifest))


def engine_report(plan: Path, manifest: EngineManifest) -> dict[str, object]:
    """What JSON output says about an engine that was written."""
    return {"plan": str(plan), **json.loads(manifest.as_json())}


def engine_rows(plan: Path, manifest: EngineManifest) -> dict[str, object]:
    """The same for people."""
    plugin = manifest.plugin
    layers = manifest.network_layer_counts
    default = "TensorRT-RTX's default set"
    return {
        "engine": f"{plan} ({size_text(manifest.plan_size_bytes)})",
        "model": plan.with_name(manifest.onnx_file),
        "manifest": plan.with_suffix(".json"),
        "TensorRT": f"{manifest.flavor} {manifest.tensorrt_version}",
        "targets": ", ".join(manifest.targets) or default,
        "traits": ", ".join(manifest.traits) or None,
        "precision": _precision_text(manifest),
        "attention": manifest.attention if plugin is None else f"plugin, {plugin.file} {plugin.sha256[:12]}",
        **_profile_rows(manifest.profiles),
        "activation memory": size_text(manifest.activation_memory_bytes),
        "weights": size_text(manifest.weights_memory_bytes),
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
        f"profile {index}": f"{text(profile)}: {size_text(profile.activation_memory_bytes) or 'unknown'}"
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
