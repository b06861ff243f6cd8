"""The manifest beside a plan: what the engine is, and the hashes of its files.

A plan is code: nothing loads one whose manifest is missing or does not match it. What each key means and may be is in
manifest.schema.json, which the C++ runtime reads as well.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final, Literal

from trt_hspan.engine.range_record import RangeAudit
from trt_hspan.engine.spec import Attention, BasePrecision, Flavor, Precision, Trait
from trt_hspan.errors import HspanError
from trt_hspan.files import error_from_os_error, require_regular_file, sha256_from_file
from trt_hspan.records import MistypedError, dataclass_from_json, parsed_json
from trt_hspan.sizes import ImageSize

FORMAT_VERSION: Final = 4
_MOST_BYTES: Final = 1 << 22
_Shape = tuple[int, int, int, int]
_BUILD_AGAIN = "build the engine again with trt-hspan build"


@dataclass(frozen=True, kw_only=True)
class PluginRecord:
    """The plugin library an engine was built with."""

    file: str
    sha256: str
    abi_version: int
    architectures: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ProfileRecord:
    """Shapes (N, 3, H, W) of the input: smallest accepted, tuned for, largest accepted; memory at the largest."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]
    activation_memory_bytes: int | None

    @property
    def sizes(self) -> tuple[ImageSize, ImageSize, ImageSize]:
        """Sizes of the pictures of min, opt and max."""
        low, best, high = (ImageSize(*shape[2:]) for shape in (self.min, self.opt, self.max))
        return low, best, high

    def __str__(self) -> str:
        """As --profile takes it."""
        shapes = {"min": self.min, "opt": self.opt, "max": self.max}
        return ",".join(f"{name}={n}x{h}x{w}" for name, (n, _, h, w) in shapes.items())


@dataclass(frozen=True, kw_only=True)
class QuantizationRecord:
    """What is quantized in an engine, read from its ONNX file."""

    type: Literal["int8", "fp8"]
    convolutions: int
    quantized_convolutions: int
    quantized_mac_share: float
    builder_convolutions: int | None
    recipe_sha256: str | None
    calibration_sha256: str | None


@dataclass(frozen=True, kw_only=True)
class IoTensor:
    """One input or output of the engine."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    mode: Literal["input", "output"]


@dataclass(frozen=True, kw_only=True)
class EngineManifest:
    """What an engine is, for whoever does not open it."""

    format_version: int
    plan_sha256: str
    plan_size_bytes: int
    onnx_file: str
    onnx_sha256: str
    plugin: PluginRecord | None
    flavor: Flavor
    tensorrt_version: str
    traits: tuple[Trait, ...]
    timing_cache_sha256: str | None
    targets: tuple[str, ...]
    precision: Precision
    base_precision: BasePrecision
    quantization: QuantizationRecord | None
    attention: Attention
    scale: int | None
    profiles: tuple[ProfileRecord, ...]
    io_tensors: tuple[IoTensor, ...]
    activation_memory_bytes: int | None
    activation_memory_source: Literal["engine", "builder log"] | None
    weights_memory_bytes: int | None
    network_layer_counts: Mapping[str, int]
    engine_layer_counts: Mapping[str, int] | None
    build_time_seconds: float
    tool_version: str
    source_sha256: str | None
    created_utc: str
    range_audit: RangeAudit | None = None
    size_multiple: int = 1

    @property
    def needs_library(self) -> bool:
        """Whether the plugin library must be loaded from a file before the plan: it is not inside."""
        return self.plugin is not None and "embedded-plugin" not in self.traits

    @property
    def largest_profile(self) -> ProfileRecord:
        """The profile that takes the most pixels in one run."""
        return max(self.profiles, key=lambda profile: math.prod(profile.max))

    @property
    def shape_ranges(self) -> tuple[tuple[_Shape, _Shape], ...]:
        """The smallest and largest (N, 3, H, W) of each profile."""
        return tuple((_four(profile.min), _four(profile.max)) for profile in self.profiles)

    def as_json(self) -> str:
        """The manifest as a JSON document; tuples become lists."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


def manifest_path(plan_path: str | os.PathLike[str]) -> Path:
    """`NAME.json` for `NAME.plan`."""
    return Path(plan_path).with_suffix(".json")


@functools.cache
def manifest_schema() -> Any:
    """What a manifest contains, as JSON Schema."""
    return json.loads(
        resources.files(__package__).joinpath("manifest.schema.json").read_text(encoding="utf-8")
    )


def write_manifest(manifest: EngineManifest, path: Path) -> None:
    """Writes what `read_manifest` accepts. Raises: HspanError: a value is beyond what a manifest may contain."""
    content = manifest.as_json().encode()
    manifest_from_json(content, where=path)
    path.write_bytes(content)


def read_manifest(plan_path: str | os.PathLike[str]) -> EngineManifest:
    """Reads the manifest beside a plan, without looking at the plan.

    Raises:
        HspanError: it is missing, too long, not JSON, of
            another format version, or has a key missing, unknown or mistyped.
    """
    path = manifest_path(plan_path)
    try:
        require_regular_file(path)
        with path.open("rb") as stream:
            content = stream.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        raise HspanError(
            plan_path,
            f"its manifest {path.name} is missing",
            _BUILD_AGAIN,
        ) from None
    except OSError as error:
        raise error_from_os_error(path, error, action="read") from error
    return manifest_from_json(content, where=path)


def manifest_from_json(content: bytes, *, where: str | os.PathLike[str]) -> EngineManifest:
    """Reads a manifest's UTF-8 text. Raises: HspanError as `read_manifest`; it names the file `where`."""
    if len(content) > _MOST_BYTES:
        raise HspanError(where, f"is not a manifest: longer than {_MOST_BYTES} bytes", _BUILD_AGAIN)
    try:
        document = parsed_json(content.decode())
    except (ValueError, RecursionError) as error:
        raise HspanError(where, f"is not a manifest: malformed JSON ({error})", _BUILD_AGAIN) from None
    if not isinstance(document, dict):
        raise HspanError(where, "is not a manifest: expected a JSON object", _BUILD_AGAIN)
    version = document.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise HspanError(
            where,
            f"format_version is {reprlib.repr(version)}, expected {FORMAT_VERSION}",
            f"{_BUILD_AGAIN} of this version",
        )
    try:
        manifest = dataclass_from_json(document, EngineManifest, manifest_schema())
    except MistypedError as error:
        raise HspanError(where, str(error), _BUILD_AGAIN) from None
    if (impossible := _impossible(manifest)) is not None:
        raise HspanError(where, impossible, _BUILD_AGAIN)
    return manifest


def _impossible(manifest: EngineManifest) -> str | None:
    """What no build would have written though each value is right; None when there is nothing."""
    for index, profile in enumerate(manifest.profiles):
        sides = (profile.min, profile.opt, profile.max)
        if not all(low <= best <= high for low, best, high in zip(*sides, strict=True)):
            shapes = ", ".join("x".join(map(str, side)) for side in sides)
            return f"profiles[{index}] is {shapes}, expected min, opt, max in rising order"
    if "embedded-plugin" in manifest.traits and manifest.plugin is None:
        return "traits says that the plugin is embedded, and plugin is null"
    return None


def verify_manifest(plan_path: str | os.PathLike[str]) -> EngineManifest:
    """Reads the manifest of a plan and checks that plan and ONNX file are the ones it names.

    The plugin library is not checked here: its loader compares `PluginRecord.sha256`.

    Raises:
        HspanError: the plan is missing, the manifest is unreadable, or plan or ONNX file have another hash.
    """
    plan = Path(plan_path)
    if plan.suffix != ".plan":
        raise HspanError(plan, "is not an engine", "name a file that ends in .plan")
    if not plan.is_file():
        raise HspanError(plan, "no such file" if not plan.exists() else "is not a file", "check the path")
    manifest = read_manifest(plan)
    where = manifest_path(plan)
    _check_hash(plan, manifest.plan_sha256, where.name)
    model = plan.parent / manifest.onnx_file
    if not model.is_file():
        what = "is not a file" if model.exists() else "no such file"
        raise HspanError(
            model, f"{what}, but {where.name} names it", f"put it beside the plan, or {_BUILD_AGAIN}"
        )
    _check_hash(model, manifest.onnx_sha256, where.name)
    return manifest


def _check_hash(path: Path, expected: str, manifest_name: str) -> None:
    sha256 = sha256_from_file(path)
    if sha256 != expected:
        raise HspanError(
            path,
            f"SHA-256 is {sha256[:12]}..., but {manifest_name} says {expected[:12]}...",
            f"the files are not of one build: {_BUILD_AGAIN}",
        )


def _four(shape: tuple[int, ...]) -> _Shape:
    n, channels, height, width = shape
    return (n, channels, height, width)
