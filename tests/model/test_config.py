"""Every size of a network: which are possible, which tensors they mean, and how they are read from shapes alone."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.model.config import HspanConfig, Shape, config_from_shapes
from trt_hspan.model.hspan import HSPAN

ATTENTION = "body.0.body.1.conv_assembly.0.weight"


def config(**sizes: Any) -> HspanConfig:
    return HspanConfig(**{"n_feats": 8, "n_groups": 1, "n_blocks": 1, "scale": 2, **sizes})


def refusal(shapes: dict[str, Shape]) -> str:
    with pytest.raises(HspanError) as refused:
        config_from_shapes(shapes, where="net.pt")
    assert str(refused.value).startswith("net.pt: ")
    return str(refused.value)


@pytest.mark.parametrize(
    "sizes",
    [
        {"n_feats": 1, "reduction": 1},
        {"reduction": 8},
        {"n_blocks": 0},
        {"res_scale": 0.0},
        *({"scale": scale} for scale in (2, 3, 4, 8, 16)),
    ],
    ids=str,
)
def test_the_smallest_sizes_are_possible(sizes: dict[str, Any]) -> None:
    assert {name: getattr(config(**sizes), name) for name in sizes} == sizes


@pytest.mark.parametrize(
    ("sizes", "line"),
    [
        ({"n_feats": 0}, "n_feats: must be at least 1, got 0"),
        ({"n_groups": 0}, "n_groups: must be at least 1, got 0"),
        ({"n_blocks": -1}, "n_blocks: must be at least 0, got -1"),
        ({"reduction": 0}, "reduction: must be at least 1, got 0"),
        ({"reduction": 9}, "reduction: 9 leaves no query channels of 8 features"),
        *(({"scale": n}, f"scale: must be 3 or a power of two, got {n}") for n in (-4, 0, 1, 5, 6, 12)),
        *(({"res_scale": x}, "res_scale: must be a finite") for x in (-0.1, float("inf"), float("nan"))),
    ],
    ids=str,
)
def test_impossible_sizes_are_refused(sizes: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError, match=f"^{line}"):
        config(**sizes)


def test_what_is_not_named_is_as_in_the_official_code() -> None:
    assert (config().reduction, config().res_scale) == (2, 0.1)
    assert config(scale=4, n_groups=3, n_blocks=5).name == "HSPAN x4, 8 features, 3 modules of 5 blocks"


@pytest.mark.parametrize(
    ("scale", "factors"), [(2, [2]), (3, [3]), (4, [2, 2]), (8, [2, 2, 2]), (16, [2, 2, 2, 2])]
)
def test_each_doubling_is_a_pixel_shuffle(scale: int, factors: list[int]) -> None:
    assert config(scale=scale).upsampler_factors == factors


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"n_feats": 9, "n_groups": 2, "n_blocks": 0, "scale": 3},
        {"n_feats": 12, "n_blocks": 3, "scale": 4, "reduction": 4},
        {"n_feats": 7, "n_groups": 12, "scale": 8, "reduction": 3},
        {"n_feats": 10, "n_blocks": 11, "reduction": 1},
        {"n_feats": 24, "reduction": 5, "scale": 16},
        {"n_feats": 5, "reduction": 5},
    ],
    ids=str,
)
def test_shapes_are_the_networks_own_and_give_every_size_back(sizes: dict[str, Any]) -> None:
    original = config(**sizes)
    with torch.device("meta"):
        state = HSPAN(original).state_dict()
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    assert original.state_shapes() == shapes
    read = config_from_shapes(shapes, where="net.pt")  # another reduction may give as many query channels
    assert (read.n_feats, read.n_groups, read.n_blocks, read.scale, read.query_channels) == (
        original.n_feats,
        original.n_groups,
        original.n_blocks,
        original.scale,
        original.query_channels,
    )
    assert read.res_scale == 0.1
    assert config_from_shapes(shapes, where="net.pt", res_scale=0.7).res_scale == 0.7


@pytest.mark.parametrize(
    "kept",
    [
        r"body\..*\.conv_match1\..*|head\.0\.bias|tail\..*",  # no features
        r"body\..*\.conv_assembly\..*|head\.0\.weight|tail\..*",  # no query
        r"head\.0\..*|tail\..*|body\.1\..*",  # no attention
    ],
)
def test_tensors_without_attention_or_features_are_no_hspan(kept: str) -> None:
    shapes = {key: shape for key, shape in config().state_shapes().items() if re.fullmatch(kept, key)}
    line = refusal(shapes)
    assert (
        f"not an HSPAN checkpoint: its {len(shapes)} keys contain no high-similarity-pass attention" in line
    )


def test_more_query_channels_than_features_are_no_hspan() -> None:
    shapes = config(reduction=1).state_shapes()
    assert config_from_shapes(shapes, where="").query_channels == 8
    for key in [key for key in shapes if key.endswith(("conv_match1.0.weight", "conv_match2.0.weight"))]:
        shapes[key] = (9, 8, 1, 1)
    assert "not an HSPAN checkpoint" in refusal(shapes)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_an_upsampler_of_neither_kind_is_described(scale: int) -> None:
    shapes = config(scale=scale).state_shapes()
    upsampler = [key for key in shapes if re.fullmatch(r"tail\.0\.\d+\.weight", key)]
    for key in upsampler:
        shapes[key] = (40, 8, 3, 3)
    line = refusal(shapes)
    assert "its upsampler (tail.0) turns 8 channels into [40]: neither x2 nor x3 pixel shuffles" in line
    for key in upsampler:
        shapes[key] = ()
    assert "turns 8 channels into []" in refusal(shapes)
    for key in upsampler:
        del shapes[key]
    assert "turns 8 channels into []" in refusal(shapes)


def test_one_wrong_upsampler_of_two_is_the_key_that_is_named() -> None:
    shapes = config(scale=4).state_shapes() | {"tail.0.0.weight": (72, 8, 3, 3)}
    assert "(1 misshaped: tail.0.0.weight (72, 8, 3, 3) instead of (32, 8, 3, 3))" in refusal(shapes)


def test_every_key_that_does_not_fit_is_listed() -> None:
    shapes = config().state_shapes()
    del shapes["a"], shapes["tail.1.bias"]
    shapes |= {"extra": (1,), "head.0.bias": (7,), ATTENTION: (9, 8, 1, 1)}
    assert (
        "keys do not fit an HSPAN (2 missing: a, tail.1.bias; 1 unexpected: extra; "
        f"2 misshaped: head.0.bias (7,) instead of (8,), {ATTENTION} (9, 8, 1, 1) instead of (8, 8, 1, 1))"
    ) in refusal(shapes)


@pytest.mark.parametrize("key", ["head.0.weight", "body.1.weight", "body.0.body.0.body.0.weight"])
def test_one_misshaped_convolution_does_not_change_the_features(key: str) -> None:
    for wrong in ((9, 8, 3, 3), (9,), ()):
        line = refusal(config().state_shapes() | {key: wrong})
        assert f"(1 misshaped: {key} {wrong} instead of" in line
