"""What an engine is requested to be: names, ranges and their checks.

Sizes are height x width, as TensorRT orders them, in pixels of the low-resolution input.
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, Literal, cast, get_args

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.native.plugin import architecture_from_target
from trt_hspan.sizes import ImageSize

BasePrecision = Literal["fp32", "fp16", "bf16"]
Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
Flavor = Literal["tensorrt", "tensorrt-rtx"]
Attention = Literal["plugin", "function"]
# What an engine can do beyond running where it was built. "embedded-plugin": the plan contains the plugin library;
# "version-compatible": later TensorRT releases run it; "ampere+", "same-cc": GPUs from compute capability 8.0 on, or
# all of the same one; "refittable": other weights of the same architecture can be put into it.
Trait = Literal["embedded-plugin", "version-compatible", "ampere+", "same-cc", "refittable"]
HardwareCompatibility = Literal["ampere+", "same-cc"]

# Defaults in pixels of height and width. The function body keeps L x L scores: at 256x256 they would pass TensorRT's
# limit on a tensor, and at 128x128 they already need some 2 GB.
MIN_SIZE, OPT_SIZE = 16, 128
MAX_SIZE: dict[str, int] = {"plugin": 256, "function": 128}
OPTIMIZATION_LEVELS = range(6)
MOST_PROFILES = 64  # in a manifest, as engine/manifest.schema.json says
# What TensorRT-RTX builds for when no target is named: these, and everything from the last one on.
RTX_DEFAULT_TARGETS = ("sm_80", "sm_86", "sm_89", "sm_120")

OPTION_OF_TRAIT: dict[Trait, str] = {
    "embedded-plugin": "--embed-plugin",
    "version-compatible": "--version-compatible",
    "ampere+": "--hardware-compatible ampere+",
    "same-cc": "--hardware-compatible same-cc",
    "refittable": "--refittable",
}
_EXCLUSIVE_TRAITS: tuple[tuple[Trait, Trait, str], ...] = (
    ("version-compatible", "refittable", "the lean runtime in such a plan cannot refit"),
    ("ampere+", "same-cc", "an engine has one of them"),
)
_CHANNELS = 3
_PARTS = ("min", "opt", "max")
_BATCHES = ("min batch", "opt batch", "max batch")
_PROFILE_PART = re.compile(
    r"\s*(?P<name>min|opt|max)\s*=\s*(?P<shape>[0-9]{1,6}(?:[xX][0-9]{1,6}){1,3})\s*", re.ASCII
)


def target_from_text(text: str) -> str:
    """Reads "sm_86", "86" or "8.6" as the compute capability "sm_86". Raises UsageError: anything else."""
    return f"sm_{architecture_from_target(text, option='--target')}"


@dataclass(frozen=True, kw_only=True)
class ProfileRequest:
    """The requested parts of a profile; None leaves a part to the defaults.

    Defaults: 16x16, 128x128 and 256x256 (128x128 for the function body), batch 1, each moved as far as the given
    parts force it: `max=64x64` alone gives 16x16, 64x64, 64x64; `opt=300x100` alone gives 16x16, 300x100, 300x256.

    Args:
        text: the value of --profile that it was read from, for errors; None has them name --min, --opt and --max.

    Raises:
        UsageError: two given parts contradict each other.
    """

    min: ImageSize | None = None
    opt: ImageSize | None = None
    max: ImageSize | None = None
    min_batch: int | None = None
    opt_batch: int | None = None
    max_batch: int | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        for name, batch in zip(_BATCHES, self.batches, strict=True):
            if batch is not None and batch < 1:
                raise self._error(name, f"got {batch}, expected at least 1")
        for names, parts in ((_PARTS, self.sizes), (_BATCHES, self.batches)):
            given = [(name, part) for name, part in zip(names, parts, strict=True) if part is not None]
            for (lower, low), (higher, high) in pairwise(given):
                if any(map(operator.gt, _numbers(low), _numbers(high))):
                    next_step = f"make {self._named(lower)} at most {self._named(higher)}"
                    raise self._error(lower, f"{low} exceeds {self._named(higher)} {high}", next_step)

    def _named(self, part: str) -> str:
        """How errors call "min" or "min batch": by the option, or as the part of one --profile."""
        return f"--{part.replace(' ', '-')}" if self.text is None else part

    def _error(self, part: str, what: str, next_step: str | None = None) -> UsageError:
        if self.text is None:
            return UsageError(self._named(part), what, next_step)
        return UsageError(f"--profile {self.text}", f"{part} {what}", next_step)

    @property
    def sizes(self) -> tuple[ImageSize | None, ...]:
        """min, opt, max."""
        return self.min, self.opt, self.max

    @property
    def batches(self) -> tuple[int | None, ...]:
        """Of min, opt and max."""
        return self.min_batch, self.opt_batch, self.max_batch

    def profile_for(
        self,
        attention: Attention,
        *,
        batch: int | None = None,
        height: int | None = None,
        width: int | None = None,
        taken: tuple[int, int] = (1, 1),
    ) -> ImageProfile:
        """Completes the request for a network whose input has these fixed dimensions; None means dynamic.

        `taken` are what free sides are multiples of, and the smallest one.
        """
        heights, widths = (
            self._complete(
                [None if size is None else size[axis] for size in self.sizes],
                _PARTS,
                defaults=(MIN_SIZE, OPT_SIZE, MAX_SIZE[attention]),
                fixed=fixed,
                what=what,
                taken=taken,
            )
            for axis, (what, fixed) in enumerate((("height", height), ("width", width)))
        )
        batches = self._complete(self.batches, _BATCHES, defaults=(1, 1, 1), fixed=batch, what="batch")
        low, best, high = map(ImageSize, heights, widths)
        return ImageProfile(
            min=low, opt=best, max=high, min_batch=batches[0], opt_batch=batches[1], max_batch=batches[2]
        )

    def _complete(
        self,
        given: Sequence[int | None],
        names: Sequence[str],
        *,
        defaults: tuple[int, int, int],
        fixed: int | None,
        what: str,
        taken: tuple[int, int] = (1, 1),
    ) -> tuple[int, int, int]:
        """One dimension of a profile: min, opt, max. The given values are in order already."""
        step, least = taken
        if fixed is not None:
            for name, value in zip(names, given, strict=True):
                if value not in (None, fixed):
                    raise self._error(
                        name,
                        f"{what} {value}, but the model was exported with the fixed {what} {fixed}",
                        f"give {fixed} or export again without a fixed size",
                    )
            return fixed, fixed, fixed
        for name, value in zip(names, given, strict=True):
            if value is not None and (value % step or value < least):
                raise self._error(
                    name,
                    f"{what} {value}, but the network takes multiples of {step}"
                    + (f" from {least}" if least > step else ""),
                    f"give {max(-(value // -step) * step, -(least // -step) * step)}",
                )
        low, best, high = given
        floor, tuned, ceiling = (max(-(value // -step), -(least // -step)) * step for value in defaults)
        if high is None:
            high = max(value for value in (ceiling, low, best) if value is not None)
        if best is None:
            best = min(max(tuned, low or 1), high)
        if low is None:
            low = min(floor, best)
        return low, best, high


@dataclass(frozen=True, kw_only=True)
class ImageProfile(ProfileRequest):
    """A TensorRT optimization profile for an input (N, C, H, W): what it accepts and what it is tuned for."""

    min: ImageSize
    opt: ImageSize
    max: ImageSize
    min_batch: int = 1
    opt_batch: int = 1
    max_batch: int = 1

    def shapes(self, channels: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """The (N, C, H, W) shapes min, opt, max, as TensorRT's `set_shape` takes them."""
        return (
            (self.min_batch, channels, *self.min),
            (self.opt_batch, channels, *self.opt),
            (self.max_batch, channels, *self.max),
        )

    def __str__(self) -> str:
        """As --profile takes it."""
        parts = zip(_PARTS, self.batches, self.sizes, strict=True)
        return ",".join(f"{name}={batch}x{size}" for name, batch, size in parts)


def profile_request_from_text(text: str) -> ProfileRequest:
    """Reads one --profile: "min=64x64,opt=128x128,max=2x256x256".

    Shapes are HxW, NxHxW, or the NxCxHxW of trtexec with 3 channels; any of the three may be missing, as in
    `ProfileRequest`.

    Raises:
        UsageError: anything else.
    """
    parts: dict[str, Any] = {}
    for part in text.split(","):
        match = _PROFILE_PART.fullmatch(part)
        if match is None or match["name"] in parts:
            raise UsageError(
                "--profile",
                f"got {text!r}, expected min, opt and max as HxW or NxHxW",
                "write it like min=64x64,opt=128x128,max=2x256x256",
            )
        sizes = [int(size) for size in match["shape"].lower().split("x")]
        if 0 in sizes or (len(sizes) == 4 and sizes[1] != _CHANNELS):
            what = "a size of 0" if 0 in sizes else f"{sizes[1]} channels"
            raise UsageError(
                "--profile", f"{text!r} contains {what}", f"networks take N x {_CHANNELS} x H x W from 1"
            )
        parts[match["name"]] = ImageSize(height=sizes[-2], width=sizes[-1])
        parts[f"{match['name']}_batch"] = sizes[0] if len(sizes) > 2 else None
    return ProfileRequest(**parts, text=text)


def profiles_for(
    requests: Sequence[ProfileRequest],
    attention: Attention,
    *,
    batch: int | None = None,
    height: int | None = None,
    width: int | None = None,
    taken: tuple[int, int] = (1, 1),
) -> tuple[ImageProfile, ...]:
    """The profiles of one engine, in the requested order; two that are the same raise UsageError."""
    profiles = tuple(
        request.profile_for(attention, batch=batch, height=height, width=width, taken=taken)
        for request in requests
    )
    for (first, profile), (second, later) in combinations(enumerate(profiles), 2):
        if profile == later:
            raise UsageError(
                "--profile",
                f"profiles {first} and {second} both take {profile}",
                "give each other shapes, or leave one out",
            )
    return profiles


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """One engine to build. None means: read it from the ONNX file, or TensorRT's own default.

    Args:
        onnx: the file of the model, or what the caller of `build_engine` prepares the model from; `NAME.onnx` beside
            the plan becomes a copy of the model.
        output: `NAME.plan`; `NAME.onnx` and `NAME.json` are written beside it.
        precision: what the ONNX file must be in; None takes what it is in.
        profiles: shapes to accept and to tune for, one TensorRT optimization profile each; at least one.
        flavor: which TensorRT; None takes what is installed, a GPU's first.
        attention: how the operator becomes layers; None is "plugin" for TensorRT, "function" for
            TensorRT-RTX.
        targets: compute capabilities ("sm_86") for TensorRT-RTX; empty is its default set.
        plugin: the plugin library; None is the one that `trt-hspan plugin build` writes.
        workspace_mib: limit of TensorRT's scratch memory.
        tactic_dram_mib: limit of the memory that the builder's trial runs take, on Jetson all that a build takes on
            the GPU; classic TensorRT only.
        optimization_level: 0 (fast build) to 5; classic TensorRT only, because
            TensorRT-RTX tunes nothing while building.
        traits: what the engine is to be able to do beyond running where it is built.
        timing_cache: a file of times measured while building, read if it is there and written anew; classic TensorRT
            only.

    Raises:
        UsageError: a name, range or combination that is impossible whatever the files contain.
    """

    onnx: Path
    output: Path
    precision: Precision | None = None
    profiles: tuple[ProfileRequest, ...] = field(default_factory=lambda: (ProfileRequest(),))
    flavor: Flavor | None = None
    attention: Attention | None = None
    targets: tuple[str, ...] = ()
    plugin: Path | None = None
    workspace_mib: int | None = None
    tactic_dram_mib: int | None = None
    optimization_level: int | None = None
    traits: frozenset[Trait] = frozenset()
    timing_cache: Path | None = None

    def __post_init__(self) -> None:
        for trait in self.traits:
            check_choice("traits", trait, Trait)
        for trait, other, why in _EXCLUSIVE_TRAITS:
            if {trait, other} <= self.traits:
                raise UsageError(
                    OPTION_OF_TRAIT[trait], f"excludes {OPTION_OF_TRAIT[other]}: {why}", "leave one out"
                )
        check_choice("--precision", self.precision, Precision)
        check_choice("--flavor", self.flavor, Flavor)
        check_choice("--attention", self.attention, Attention)
        object.__setattr__(self, "targets", tuple(dict.fromkeys(map(target_from_text, self.targets))))
        if not self.profiles:
            raise UsageError("--profile", "an engine needs one profile at least", "leave the option out")
        if len(self.profiles) > MOST_PROFILES:
            raise UsageError("--profile", f"got {len(self.profiles)}, an engine has at most {MOST_PROFILES}")
        if self.output.suffix != ".plan":
            raise UsageError("--output", f"got {str(self.output)!r}", "name a file that ends in .plan")
        for option, mib in (
            ("--workspace-mib", self.workspace_mib),
            ("tactic_dram_mib", self.tactic_dram_mib),
        ):
            if mib is not None and mib < 1:
                raise UsageError(option, f"got {mib}, expected at least 1")
        if self.optimization_level is not None and self.optimization_level not in OPTIMIZATION_LEVELS:
            raise UsageError("--opt-level", f"got {self.optimization_level}, expected 0 to 5")

    @property
    def onnx_output(self) -> Path:
        """Where the copy of the ONNX model goes."""
        return self.output.with_suffix(".onnx")

    @property
    def manifest_output(self) -> Path:
        """Where the manifest goes."""
        return self.output.with_suffix(".json")


def check_choice(option: str, value: str | None, choices: object) -> None:
    """Raises UsageError unless `value` is None or one of the literals of the type `choices`."""
    names = cast("tuple[str, ...]", get_args(choices))
    if value is not None and value not in names:
        raise UsageError(option, f"got {value!r}, expected one of {', '.join(names)}")


def default_output(source: str | os.PathLike[str], precision: str) -> Path:
    """`engines/<stem>_<precision>.plan`; a stem that already ends in the precision is taken as it is."""
    stem = Path(source).stem
    if not stem:
        raise HspanError(source, "has no file name to call the engine after", "give a name with -o")
    return Path("engines") / f"{stem if stem.endswith(f'_{precision}') else f'{stem}_{precision}'}.plan"


def _numbers(part: ImageSize | int) -> tuple[int, ...]:
    return (part,) if isinstance(part, int) else part
