"""The sizes of an HSPAN, and how they are read from a state dict's shapes. Pure data; no torch, no files."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from trt_hspan.errors import HspanError, UsageError

Shape = tuple[int, ...]

#: The factor that the official code trains with unless told otherwise; checkpoints do not store theirs.
DEFAULT_RES_SCALE: Final = 0.1


@dataclass(frozen=True, kw_only=True)
class HspanConfig:
    """Every size of a network (Su et al., IEEE TIP 2024; names as in the official code).

    Attributes:
        n_feats: feature channels F between head and tail.
        n_groups: G, high-similarity-pass attention modules in the body.
        n_blocks: B, residual blocks in each module.
        scale: upscaling factor: 3, or a power of two from 2 on.
        reduction: query and key have F // reduction channels.
        res_scale: factor on each attention and on each module; not stored in checkpoints.

    Raises:
        UsageError: a size is out of range.

    Example:
        >>> from trt_hspan import HspanConfig
        >>> config = HspanConfig(n_feats=192, n_groups=10, n_blocks=4, scale=4)
        >>> config.query_channels, len(config.state_shapes())
        (96, 285)
    """

    n_feats: int
    n_groups: int
    n_blocks: int
    scale: int
    reduction: int = 2
    res_scale: float = DEFAULT_RES_SCALE

    def __post_init__(self) -> None:
        for name, least in (("n_feats", 1), ("n_groups", 1), ("n_blocks", 0), ("reduction", 1)):
            if getattr(self, name) < least:
                raise UsageError(name, f"must be at least {least}, got {getattr(self, name)}")
        if self.reduction > self.n_feats:
            raise UsageError(
                "reduction", f"{self.reduction} leaves no query channels of {self.n_feats} features"
            )
        if self.scale != 3 and (self.scale < 2 or self.scale & (self.scale - 1)):
            raise UsageError("scale", f"must be 3 or a power of two, got {self.scale}")
        if not 0.0 <= self.res_scale < float("inf"):
            raise UsageError("res_scale", f"must be a finite number >= 0, got {self.res_scale}")

    @property
    def query_channels(self) -> int:
        return self.n_feats // self.reduction

    @property
    def upsampler_factors(self) -> list[int]:
        """The pixel shuffles of the tail: [3], or one 2 for each doubling."""
        return [3] if self.scale == 3 else [2] * (self.scale.bit_length() - 1)

    @property
    def name(self) -> str:
        return (
            f"HSPAN x{self.scale}, {self.n_feats} features, {self.n_groups} modules of {self.n_blocks} blocks"
        )

    def state_shapes(self) -> dict[str, Shape]:
        """Key -> shape of the official state dict."""
        f, q = self.n_feats, self.query_channels
        shapes: dict[str, Shape] = {"a": (1,)}

        def convolution(key: str, outputs: int, inputs: int, size: int) -> None:
            shapes[f"{key}.weight"] = (outputs, inputs, size, size)
            shapes[f"{key}.bias"] = (outputs,)

        convolution("sub_mean", 3, 3, 1)
        convolution("add_mean", 3, 3, 1)
        convolution("head.0", f, 3, 3)
        for g in range(self.n_groups):
            for b in range(self.n_blocks):
                convolution(f"body.{g}.body.{b}.body.0", f, f, 3)
                convolution(f"body.{g}.body.{b}.body.2", f, f, 3)
            for part, outputs in (("conv_match1", q), ("conv_match2", q), ("conv_assembly", f)):
                convolution(f"body.{g}.body.{self.n_blocks}.{part}.0", outputs, f, 1)
                shapes[f"body.{g}.body.{self.n_blocks}.{part}.1.weight"] = (1,)
            convolution(f"body.{g}.body.{self.n_blocks + 1}", f, f, 3)
        convolution(f"body.{self.n_groups}", f, f, 3)
        for index, factor in enumerate(self.upsampler_factors):
            convolution(f"tail.0.{2 * index}", f * factor * factor, f, 3)
        convolution("tail.1", 3, f, 3)
        return shapes


def config_from_shapes(
    shapes: Mapping[str, Shape], *, where: object, res_scale: float = DEFAULT_RES_SCALE
) -> HspanConfig:
    """Reads every size from the shapes of a state dict in the official key layout.

    Args:
        shapes: key -> shape.
        where: names the source in errors.
        res_scale: the one value that shapes do not show.

    Raises:
        HspanError: this is no HSPAN, or keys are missing, unexpected or misshaped; all of them are listed.
    """
    attention = re.compile(r"body\.(\d+)\.body\.(\d+)\.conv_(?:match1|match2|assembly)\..*")
    modules = [match for match in map(attention.fullmatch, shapes) if match]
    n_feats = _most_common_outputs(shapes, r"(head\.0|body\.\d+(\.body\.\d+(\.body\.[02])?)?)\.weight")
    query_channels = _most_common_outputs(shapes, r"body\.\d+\.body\.\d+\.conv_match[12]\.0\.weight")
    if not modules or not n_feats or not query_channels or query_channels > n_feats:
        raise HspanError(
            where,
            f"not an HSPAN checkpoint: its {len(shapes)} keys contain no high-similarity-pass attention",
            "give the state dict that the official code saves",
        )
    config = HspanConfig(
        n_feats=n_feats,
        n_groups=1 + max(int(match[1]) for match in modules),
        n_blocks=max(int(match[2]) for match in modules),
        scale=_scale_from_shapes(shapes, n_feats, where),
        # n // (n // (n // r)) == n // r for positive integers: the channels come back whatever r was.
        reduction=n_feats // query_channels,
        res_scale=res_scale,
    )
    _require_same_keys(config.state_shapes(), shapes, where)
    return config


def _most_common_outputs(shapes: Mapping[str, Shape], pattern: str) -> int:
    """Output channels that most of these convolutions agree on, so that one misshaped key is the one named."""
    outputs = [shape[0] for key, shape in shapes.items() if len(shape) == 4 and re.fullmatch(pattern, key)]
    return statistics.mode(outputs) if outputs else 0


def _scale_from_shapes(shapes: Mapping[str, Shape], n_feats: int, where: object) -> int:
    upsampler = {key: shape for key, shape in shapes.items() if re.fullmatch(r"tail\.0\.\d+\.weight", key)}
    outputs = {shape[0] for shape in upsampler.values() if shape}
    if outputs == {9 * n_feats}:
        return 3
    if upsampler and 4 * n_feats in outputs:
        last = max(int(key.split(".")[2]) for key in upsampler)
        return int(2 ** (1 + last // 2))
    raise HspanError(
        where,
        f"its upsampler (tail.0) turns {n_feats} channels into {sorted(outputs)}: neither x2 nor x3 pixel shuffles",
        "give a x2, x3 or x4 HSPAN checkpoint",
    )


def _require_same_keys(expected: Mapping[str, Shape], got: Mapping[str, Shape], where: object) -> None:
    missing = [key for key in expected if key not in got]
    unexpected = [key for key in got if key not in expected]
    misshaped = [
        f"{key} {got[key]} instead of {shape}"
        for key, shape in expected.items()
        if key in got and got[key] != shape
    ]
    problems = [
        f"{len(keys)} {kind}: {', '.join(keys)}"
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("misshaped", misshaped))
        if keys
    ]
    if problems:
        raise HspanError(
            where,
            f"keys do not fit an HSPAN ({'; '.join(problems)})",
            "give a checkpoint in the official format",
        )
