"""What an engine is asked to be. Owns names, ranges and their checks; knows neither ONNX nor TensorRT.

Sizes are height x width, as TensorRT orders them, in pixels of the low-resolution input.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from pathlib import Path
from typing import Literal, cast, get_args

from trt_hspan.engine.range_record import RangeAudit
from trt_hspan.errors import HspanError, UsageError
from trt_hspan.sizes import ImageSize

BasePrecision = Literal["fp32", "fp16", "bf16"]
Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
Flavor = Literal["tensorrt", "tensorrt-rtx"]
Attention = Literal["plugin", "function"]

# Defaults in pixels of height and width. The function body keeps L x L scores: at 256x256 they would pass TensorRT's
# limit on a tensor, and at 128x128 they already need some 2 GB.
MIN_SIZE, OPT_SIZE = 16, 128
MAX_SIZE: dict[str, int] = {"plugin": 256, "function": 128}
OPTIMIZATION_LEVELS = range(6)

_CHANNELS = 3
_PROFILE_PART = re.compile(
    r"\s*(?P<name>min|opt|max)\s*=\s*(?P<shape>[0-9]{1,6}(?:[xX][0-9]{1,6}){1,3})\s*", re.ASCII
)


def target_from_text(text: str) -> str:
    """Reads "sm_86", "86" or "8.6" as the compute capability "sm_86".

    Raises:
        UsageError: anything else.
    """
    match = re.fullmatch(r"(?:sm_?)?([1-9][0-9]?)(\.?)([0-9])", text.strip().lower(), flags=re.ASCII)
    if match is None:
        raise UsageError("--target", f"got {text!r}, expected a compute capability like sm_86 or 8.6")
    return f"sm_{match[1]}{match[3]}"


@dataclass(frozen=True, kw_only=True)
class ImageProfile:
    """A TensorRT optimization profile for an input (N, C, H, W): what it accepts and what it is tuned for.

    Raises:
        UsageError: min > opt or opt > max in height, width or batch; the line names both options.
    """

    min: ImageSize
    opt: ImageSize
    max: ImageSize
    min_batch: int = 1
    opt_batch: int = 1
    max_batch: int = 1

    def __post_init__(self) -> None:
        for option, batch in _batches(self.min_batch, self.opt_batch, self.max_batch).items():
            if batch < 1:
                raise UsageError(option, f"got {batch}, expected at least 1")
        _check_order({"--min": self.min, "--opt": self.opt, "--max": self.max})
        _check_batch_order(_batches(self.min_batch, self.opt_batch, self.max_batch))

    def shapes(self, channels: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """The (N, C, H, W) shapes min, opt, max, as TensorRT's `set_shape` takes them."""
        sizes = ((self.min_batch, self.min), (self.opt_batch, self.opt), (self.max_batch, self.max))
        low, best, high = ((batch, channels, size.height, size.width) for batch, size in sizes)
        return low, best, high

    @property
    def text(self) -> str:
        """As --profile takes it."""
        parts = {
            "min": (self.min_batch, self.min),
            "opt": (self.opt_batch, self.opt),
            "max": (self.max_batch, self.max),
        }
        return ",".join(f"{name}={batch}x{size}" for name, (batch, size) in parts.items())


@dataclass(frozen=True, kw_only=True)
class ProfileRequest:
    """The parts of a profile that somebody asked for; None leaves a part to the defaults.

    Defaults: 16x16, 128x128 and 256x256 (128x128 for the function body), batch 1, each moved as far as the given
    parts force it: `max=64x64` alone gives 16x16, 64x64, 64x64; `opt=300x100` alone gives 16x16, 300x100, 300x256.

    Args:
        text: the value of --profile that it was read from; errors name it. None: --min, --opt and --max are named.

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
        with _errors_of_profile(self.text):
            batches = _batches(self.min_batch, self.opt_batch, self.max_batch)
            for option, batch in batches.items():
                if batch < 1:
                    raise UsageError(option, f"got {batch}, expected at least 1")
            sizes = {"--min": self.min, "--opt": self.opt, "--max": self.max}
            _check_order({option: size for option, size in sizes.items() if size is not None})
            _check_batch_order(batches)

    def profile_for(
        self,
        attention: Attention,
        *,
        batch: int | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> ImageProfile:
        """Completes the request for a network whose input has these fixed dimensions; None means dynamic.

        Raises:
            UsageError: a given part differs from a fixed dimension.
        """
        with _errors_of_profile(self.text):
            rows = [
                _complete(
                    [
                        None if size is None else getattr(size, name)
                        for size in (self.min, self.opt, self.max)
                    ],
                    defaults=(MIN_SIZE, OPT_SIZE, MAX_SIZE[attention]),
                    fixed=fixed,
                    options=("--min", "--opt", "--max"),
                    what=name,
                )
                for name, fixed in (("height", height), ("width", width))
            ]
            batches = _complete(
                [self.min_batch, self.opt_batch, self.max_batch],
                defaults=(1, 1, 1),
                fixed=batch,
                options=("--min-batch", "--opt-batch", "--max-batch"),
                what="batch",
            )
        low, best, high = (ImageSize(height=h, width=w) for h, w in zip(*rows, strict=True))
        return ImageProfile(
            min=low, opt=best, max=high, min_batch=batches[0], opt_batch=batches[1], max_batch=batches[2]
        )


def profile_request_from_text(text: str) -> ProfileRequest:
    """Reads one --profile: "min=64x64,opt=128x128,max=2x256x256".

    Shapes are HxW, NxHxW, or the NxCxHxW of trtexec with 3 channels; any of the three may be missing, as in
    `ProfileRequest`.

    Raises:
        UsageError: anything else.
    """
    parts: dict[str, tuple[int | None, ImageSize]] = {}
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
                "--profile", f"{text!r} asks for {what}", f"networks take N x {_CHANNELS} x H x W from 1"
            )
        batch = sizes[0] if len(sizes) > 2 else None
        parts[match["name"]] = (batch, ImageSize(height=sizes[-2], width=sizes[-1]))
    low, best, high = (parts.get(name, (None, None)) for name in ("min", "opt", "max"))
    return ProfileRequest(
        min=low[1],
        opt=best[1],
        max=high[1],
        min_batch=low[0],
        opt_batch=best[0],
        max_batch=high[0],
        text=text,
    )


def profiles_for(
    requests: Sequence[ProfileRequest],
    attention: Attention,
    *,
    batch: int | None = None,
    height: int | None = None,
    width: int | None = None,
) -> tuple[ImageProfile, ...]:
    """The profiles of one engine, in the order asked for; see `ProfileRequest.profile_for`.

    Raises:
        UsageError: as `profile_for`; two profiles are the same.
    """
    profiles = tuple(
        request.profile_for(attention, batch=batch, height=height, width=width) for request in requests
    )
    for (first, one), (second, other) in combinations(enumerate(profiles), 2):
        if one == other:
            raise UsageError(
                "--profile",
                f"profiles {first} and {second} both take {one.text}",
                "give each other shapes, or leave one out",
            )
    return profiles


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """One engine to build. None means: read it from the ONNX file, or TensorRT's own default.

    Args:
        onnx: the model; `NAME.onnx` beside the plan becomes a copy of it.
        output: `NAME.plan`; `NAME.onnx` and `NAME.json` are written beside it.
        precision: what the ONNX file must hold; None takes what it holds.
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
        range_audit: of the model, for the manifest.

    Raises:
        UsageError: a name, range or combination that makes no sense whatever the files hold.
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
    range_audit: RangeAudit | None = None

    def __post_init__(self) -> None:
        check_choice("--precision", self.precision, Precision)
        check_choice("--flavor", self.flavor, Flavor)
        check_choice("--attention", self.attention, Attention)
        object.__setattr__(self, "targets", tuple(dict.fromkeys(map(target_from_text, self.targets))))
        if not self.profiles:
            raise UsageError("--profile", "an engine needs one profile at least", "leave the option out")
        if self.output.suffix != ".plan":
            raise UsageError("--output", f"got {str(self.output)!r}", "name a file that ends in .plan")
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise UsageError("--workspace-mib", f"got {self.workspace_mib}, expected at least 1")
        if self.tactic_dram_mib is not None and self.tactic_dram_mib < 1:
            raise UsageError("tactic_dram_mib", f"got {self.tactic_dram_mib}, expected at least 1")
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
    """`engines/<stem>_<precision>.plan`; a stem that already ends in the precision is taken as it is.

    Raises:
        HspanError: the name has no stem.
    """
    stem = Path(source).stem
    if not stem:
        raise HspanError(source, "has no file name to call the engine after", "give a name with -o")
    return Path("engines") / f"{stem if stem.endswith(f'_{precision}') else f'{stem}_{precision}'}.plan"


@contextmanager
def _errors_of_profile(text: str | None) -> Iterator[None]:
    """Errors about --min, --opt-batch and so on become errors about the --profile with this text, if it is one."""
    try:
        yield
    except UsageError as error:
        if text is None:
            raise

        def renamed(line: str) -> str:
            return re.sub(r"--(min|opt|max)(-batch)?\b", lambda m: m[1] + (" batch" if m[2] else ""), line)

        next_step = None if error.next_step is None else renamed(error.next_step)
        raise UsageError(f"--profile {text}", renamed(f"{error.where} {error.what}"), next_step) from None


def _batches(low: int | None, best: int | None, high: int | None) -> dict[str, int]:
    named = {"--min-batch": low, "--opt-batch": best, "--max-batch": high}
    return {option: batch for option, batch in named.items() if batch is not None}


def _check_order(sizes: dict[str, ImageSize]) -> None:
    named = list(sizes.items())
    for (low_option, low), (high_option, high) in pairwise(named):
        if low.height > high.height or low.width > high.width:
            raise UsageError(
                low_option,
                f"{low} exceeds {high_option} {high}",
                f"make {low_option} at most {high_option} in height and width",
            )


def _check_batch_order(batches: dict[str, int]) -> None:
    named = list(batches.items())
    for (low_option, low), (high_option, high) in pairwise(named):
        if low > high:
            raise UsageError(
                low_option, f"{low} exceeds {high_option} {high}", f"make {low_option} at most {high_option}"
            )


def _complete(
    given: list[int | None],
    *,
    defaults: tuple[int, int, int],
    fixed: int | None,
    options: tuple[str, str, str],
    what: str,
) -> tuple[int, int, int]:
    """One dimension of a profile: min, opt, max. The given values are in order already."""
    if fixed is not None:
        for option, value in zip(options, given, strict=True):
            if value not in (None, fixed):
                raise UsageError(
                    option,
                    f"{what} {value}, but the model was exported with the fixed {what} {fixed}",
                    f"ask for {fixed} or export again without a fixed size",
                )
        return fixed, fixed, fixed
    low, best, high = given
    if high is None:
        high = max(value for value in (defaults[2], low, best) if value is not None)
    if best is None:
        best = min(max(defaults[1], low or 1), high)
    if low is None:
        low = min(defaults[0], best)
    return low, best, high
