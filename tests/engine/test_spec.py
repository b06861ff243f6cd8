"""Requests for engines: sizes, profiles, targets, and what is refused before anything is done."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trt_hspan.engine.spec import (
    EngineSpec,
    ImageProfile,
    Precision,
    ProfileRequest,
    check_choice,
    default_output,
    profile_request_from_text,
    profiles_for,
    target_from_text,
)
from trt_hspan.errors import HspanError, UsageError
from trt_hspan.sizes import ImageSize, image_size_from_text, tile_from_text


def size(height: int, width: int) -> ImageSize:
    return ImageSize(height=height, width=width)


def bounds(profile: ImageProfile) -> tuple[str, str, str]:
    return str(profile.min), str(profile.opt), str(profile.max)


@given(st.integers(1, 999_999), st.integers(1, 999_999))
def test_a_size_reads_back_as_it_is_written(height: int, width: int) -> None:
    assert image_size_from_text(str(size(height, width)), option="--max") == size(height, width)


def test_height_comes_first() -> None:
    assert image_size_from_text("128x96", option="--max") == size(128, 96)


@pytest.mark.parametrize("text", ["height=128,width=96", " width = 96 , height = 128 ", "128X96"])
def test_a_size_may_name_its_sides(text: str) -> None:
    assert image_size_from_text(text, option="--max") == size(128, 96)


@pytest.mark.parametrize(
    "text", ["", "128", "x", "128x", "128*96", "0x5", "5x0", "-1x5", "1x2x3", "٣x٤", "height=5", "5,width=5"]
)
def test_what_is_no_size_is_refused_naming_the_option(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--opt: got .* expected height x width"):
        image_size_from_text(text, option="--opt")


@pytest.mark.parametrize("text", ["sm_86", "SM_86", "86", "8.6", "sm86", " 8.6 "])
def test_a_target_may_be_written_in_the_usual_ways(text: str) -> None:
    assert target_from_text(text) == "sm_86"


@pytest.mark.parametrize(("text", "expected"), [("12.0", "sm_120"), ("120", "sm_120"), ("7.5", "sm_75")])
def test_a_target_of_two_digit_generation_is_understood(text: str, expected: str) -> None:
    assert target_from_text(text) == expected


@pytest.mark.parametrize("text", ["", "ampere", "sm_", "sm_8", "8.", "8.66", "sm_90a", "0.0", "1234"])
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--target"):
        target_from_text(text)


def test_without_a_request_the_profile_is_the_documented_one() -> None:
    assert bounds(ProfileRequest().profile_for("plugin")) == ("16x16", "128x128", "256x256")


def test_the_function_body_has_a_smaller_default_because_of_its_memory() -> None:
    assert bounds(ProfileRequest().profile_for("function")) == ("16x16", "128x128", "128x128")


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (ProfileRequest(max=size(64, 64)), ("16x16", "64x64", "64x64")),
        (ProfileRequest(max=size(512, 100)), ("16x16", "128x100", "512x100")),
        (ProfileRequest(max=size(8, 512)), ("8x16", "8x128", "8x512")),
        (ProfileRequest(opt=size(300, 100)), ("16x16", "300x100", "300x256")),
        (ProfileRequest(min=size(200, 300)), ("200x300", "200x300", "256x300")),
        (ProfileRequest(min=size(1, 1), max=size(2, 2)), ("1x1", "2x2", "2x2")),
    ],
)
def test_given_parts_move_the_defaults_no_further_than_they_must(
    request_: ProfileRequest, expected: tuple[str, str, str]
) -> None:
    assert bounds(request_.profile_for("plugin")) == expected


@given(
    st.lists(st.one_of(st.none(), st.integers(1, 600)), min_size=3, max_size=3),
    st.lists(st.one_of(st.none(), st.integers(1, 9)), min_size=3, max_size=3),
)
def test_any_request_in_order_becomes_a_valid_profile_that_keeps_what_was_given(
    edges: list[int | None], batches: list[int | None]
) -> None:
    edges = _in_order(edges)
    batches = _in_order(batches)
    sizes = [None if edge is None else size(edge, edge) for edge in edges]
    request = ProfileRequest(
        min=sizes[0], opt=sizes[1], max=sizes[2],
        min_batch=batches[0], opt_batch=batches[1], max_batch=batches[2],
    )  # fmt: skip
    profile = request.profile_for("plugin")
    assert all(given in (None, got) for given, got in zip(sizes, profile.sizes, strict=True))
    assert all(given in (None, got) for given, got in zip(batches, profile.batches, strict=True))


def _in_order(values: list[int | None]) -> list[int | None]:
    given_ = iter(sorted(value for value in values if value is not None))
    return [None if value is None else next(given_) for value in values]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min": size(64, 64), "max": size(32, 128)}, "--min: 64x64 exceeds --max 32x128"),
        ({"min": size(64, 64), "opt": size(64, 63)}, "--min: 64x64 exceeds --opt 64x63"),
        ({"opt": size(64, 64), "max": size(64, 32)}, "--opt: 64x64 exceeds --max 64x32"),
        ({"min_batch": 3, "max_batch": 2}, "--min-batch: 3 exceeds --max-batch 2"),
        ({"opt_batch": 3, "max_batch": 2}, "--opt-batch: 3 exceeds --max-batch 2"),
        ({"min_batch": 0}, "--min-batch: got 0, expected at least 1"),
    ],
)
def test_a_range_that_is_upside_down_is_refused_naming_both_options(
    arguments: dict[str, ImageSize | int], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        ProfileRequest(**arguments)


def test_a_profile_checks_itself_too() -> None:
    with pytest.raises(UsageError, match="--opt: 65x1 exceeds --max 64x1"):
        ImageProfile(min=size(1, 1), opt=size(65, 1), max=size(64, 1))


def test_a_fixed_model_fixes_the_profile() -> None:
    profile = ProfileRequest().profile_for("plugin", batch=1, height=32, width=48)
    assert profile.shapes(3) == ((1, 3, 32, 48),) * 3


def test_a_request_may_repeat_what_the_model_has_fixed() -> None:
    profile = ProfileRequest(max=size(32, 48)).profile_for("plugin", batch=1, height=32, width=48)
    assert str(profile.min) == "32x48"


@pytest.mark.parametrize(
    ("request_", "option"),
    [
        (
            ProfileRequest(max=size(64, 48)),
            "--max: height 64, but the model was exported with the fixed height 32",
        ),
        (ProfileRequest(min=size(32, 16)), "--min: width 16"),
        (ProfileRequest(max_batch=2), "--max-batch: batch 2"),
    ],
)
def test_a_request_that_contradicts_a_fixed_model_is_refused(request_: ProfileRequest, option: str) -> None:
    with pytest.raises(UsageError, match=option):
        request_.profile_for("plugin", batch=1, height=32, width=48)


def shapes_of(text: str) -> object:
    return profile_request_from_text(text).profile_for("plugin").shapes(3)


@pytest.mark.parametrize(
    "text",
    [
        "min=1x64x64,opt=1x128x96,max=2x256x256",
        " max = 2X256x256 , min=64x64,opt=128x96",
        "min=1x3x64x64,opt=128x96,max=2x3x256x256",
    ],
)
def test_a_profile_is_read_in_every_way_of_writing_it(text: str) -> None:
    assert shapes_of(text) == ((1, 3, 64, 64), (1, 3, 128, 96), (2, 3, 256, 256))


def test_parts_of_a_profile_may_be_missing() -> None:
    assert shapes_of("max=4x64x64") == ((1, 3, 16, 16), (1, 3, 64, 64), (4, 3, 64, 64))


def test_a_profile_is_written_as_it_is_read() -> None:
    profile = profile_request_from_text("min=1x64x64,opt=1x128x96,max=2x256x256").profile_for("plugin")
    assert str(profile) == "min=1x64x64,opt=1x128x96,max=2x256x256"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "got '', expected min, opt and max"),
        ("64x64:96x96:128x128", "write it like min=64x64,opt=128x128"),
        ("min=64x64,min=64x64", "expected min, opt and max as HxW or NxHxW"),
        ("min=64", "expected min, opt and max"),
        ("min=64x64x64x64x64", "expected min, opt and max"),
        ("max=0x64", "contains a size of 0"),
        ("max=1x1x64x64", "contains 1 channels; networks take N x 3 x H x W"),
        (
            "min=128x128,max=64x64",
            "--profile min=128x128,max=64x64: min 128x128 exceeds max 64x64; make min at most",
        ),
        ("min=4x8x8,max=2x64x64", "min batch 4 exceeds max batch 2"),
    ],
)
def test_a_profile_that_makes_no_sense_is_one_line(text: str, line: str) -> None:
    with pytest.raises(UsageError, match=re.escape(line)) as caught:
        profile_request_from_text(text)
    assert str(caught.value).startswith("--profile")


def test_the_same_profile_twice_is_refused() -> None:
    requests = [
        ProfileRequest(max=size(64, 64)),
        profile_request_from_text("max=96x96"),
        ProfileRequest(max=size(64, 64)),
    ]
    with pytest.raises(UsageError, match="profiles 0 and 2 both take min=1x16x16,opt=1x64x64,max=1x64x64"):
        profiles_for(requests, "plugin")
    assert len(profiles_for(requests[:2], "plugin")) == 2


def test_a_profile_beside_a_fixed_model_is_refused() -> None:
    requests = [ProfileRequest(), profile_request_from_text("max=96x96")]
    with pytest.raises(
        UsageError, match="--profile max=96x96: max height 96, but the model was exported with"
    ):
        profiles_for(requests, "plugin", batch=1, height=32, width=48)
    with pytest.raises(UsageError, match="--profile: an engine needs one profile at least"):
        spec(profiles=())


def spec(**changes: object) -> EngineSpec:
    arguments: dict[str, object] = {"onnx": Path("a.onnx"), "output": Path("b/a.plan"), **changes}
    return EngineSpec(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("traits", "line"),
    [
        (
            {"version-compatible", "refittable"},
            "--version-compatible: excludes --refittable: the lean runtime",
        ),
        ({"ampere+", "same-cc"}, "--hardware-compatible ampere+: excludes --hardware-compatible same-cc"),
        ({"fast"}, "traits: got 'fast', expected one of embedded-plugin, version-compatible"),
    ],
)
def test_traits_that_contradict_each_other_are_refused(traits: set[str], line: str) -> None:
    with pytest.raises(UsageError, match=re.escape(line)):
        spec(traits=frozenset(traits))


def test_the_other_files_stand_beside_the_plan() -> None:
    assert (spec().onnx_output, spec().manifest_output) == (Path("b/a.onnx"), Path("b/a.json"))


def test_repeated_targets_count_once() -> None:
    assert spec(targets=("8.6", "sm_89", "86")).targets == ("sm_86", "sm_89")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "int4"}, "--precision: got 'int4', expected one of fp32, fp16, bf16"),
        ({"flavor": "trt"}, "--flavor: got 'trt', expected one of tensorrt, tensorrt-rtx"),
        ({"attention": "dense"}, "--attention: got 'dense', expected one of plugin, function"),
        ({"output": Path("a.engine")}, "--output: got 'a.engine'; name a file that ends in .plan"),
        ({"targets": ("ampere",)}, "--target"),
        ({"workspace_mib": 0}, "--workspace-mib: got 0"),
        ({"tactic_dram_mib": 0}, "tactic_dram_mib: got 0"),
        ({"optimization_level": 6}, "--opt-level: got 6, expected 0 to 5"),
        ({"optimization_level": -1}, "--opt-level: got -1"),
    ],
)
def test_a_senseless_spec_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        spec(**changes)


@pytest.mark.parametrize(
    ("text", "tile"),
    [
        ("auto", "auto"),
        ("none", "none"),
        ("64", (64, 64)),
        ("96x128", (96, 128)),
        ("width=128,height=96", (96, 128)),
    ],
)
def test_a_tile_is_a_word_one_number_or_a_size(text: str, tile: object) -> None:
    assert tile_from_text(text) == tile


@pytest.mark.parametrize("text", ["", "0", "-1", "0x5", "Auto", "²", "٣", "1234567"])
def test_what_is_no_tile_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--tile: got .* expected auto, none, one number or HxW"):
        tile_from_text(text)


def test_sizes_are_compared_cut_scaled_and_turned() -> None:
    assert size(96, 128) == (96, 128)
    assert size(96, 128).within(size(100, 64)) == (96, 64)
    assert (size(96, 128).scaled(2), size(96, 128).turned, size(96, 128).pixels) == (
        (192, 256),
        (128, 96),
        12288,
    )


def test_a_size_below_one_pixel_is_refused() -> None:
    with pytest.raises(UsageError, match="height is 0"):
        size(0, 3)


def test_the_default_output_shows_model_and_precision() -> None:
    assert default_output("runs/x4.pt", "fp16") == Path("engines/x4_fp16.plan")
    assert default_output("runs/x4_fp16.onnx", "fp16") == Path("engines/x4_fp16.plan")


def test_bounds_of_a_spec_are_what_it_takes() -> None:
    assert (spec(workspace_mib=1).workspace_mib, spec(tactic_dram_mib=1).tactic_dram_mib) == (1, 1)
    assert [spec(optimization_level=level).optimization_level for level in (0, 5)] == [0, 5]
    assert len(spec(profiles=(ProfileRequest(),) * 64).profiles) == 64
    with pytest.raises(UsageError, match="--profile: got 65, an engine has at most 64"):
        spec(profiles=(ProfileRequest(),) * 65)
    assert (spec().profiles, spec().targets, spec().traits) == ((ProfileRequest(),), (), frozenset())
    for traits in ({"version-compatible", "ampere+"}, {"refittable", "same-cc"}):
        assert spec(traits=frozenset(traits)).traits == traits


@pytest.mark.parametrize(
    ("taken", "request_", "expected"),
    [
        ((8, 1), ProfileRequest(), ("16x16", "128x128", "256x256")),
        ((24, 1), ProfileRequest(), ("24x24", "144x144", "264x264")),
        ((8, 20), ProfileRequest(), ("24x24", "128x128", "256x256")),
        ((8, 300), ProfileRequest(), ("304x304", "304x304", "304x304")),
        ((8, 1), ProfileRequest(min=size(8, 8), max=size(64, 72)), ("8x8", "64x72", "64x72")),
    ],
)
def test_defaults_are_sizes_that_the_network_takes(
    taken: tuple[int, int], request_: ProfileRequest, expected: tuple[str, str, str]
) -> None:
    assert bounds(request_.profile_for("plugin", taken=taken)) == expected


@pytest.mark.parametrize(
    ("taken", "sides", "line"),
    [
        ((8, 1), size(12, 16), "--max: height 12, but the network takes multiples of 8; give 16"),
        ((8, 1), size(16, 15), "--max: width 15, but the network takes multiples of 8; give 16"),
        ((8, 20), size(16, 24), "--max: height 16, but the network takes multiples of 8 from 20; give 24"),
        ((8, 8), size(4, 8), "--max: height 4, but the network takes multiples of 8; give 8"),
        ((1, 20), size(19, 20), "--max: height 19, but the network takes multiples of 1 from 20; give 20"),
    ],
)
def test_sizes_that_the_network_does_not_take_are_refused_with_the_next_one(
    taken: tuple[int, int], sides: ImageSize, line: str
) -> None:
    with pytest.raises(UsageError) as caught:
        ProfileRequest(max=sides).profile_for("plugin", taken=taken)
    assert str(caught.value) == line
    profiles_for([ProfileRequest(max=size(24, 24))], "plugin", taken=(8, 24))


def test_numbers_of_a_profile_have_six_digits_at_most() -> None:
    assert profile_request_from_text("max=999999x1").max == size(999_999, 1)
    with pytest.raises(UsageError, match="--profile"):
        profile_request_from_text("max=1000000x1")
    request = profile_request_from_text("min=2X8x9,max=3x3x16x17")
    assert (request.min_batch, request.min, request.max_batch, request.max) == (
        2,
        size(8, 9),
        3,
        size(16, 17),
    )
    assert request.opt is request.opt_batch is None


def test_a_plan_needs_a_name() -> None:
    with pytest.raises(HspanError, match="has no file name to call the engine after; give a name with -o"):
        default_output("", "fp16")
    assert check_choice("--precision", None, Precision) is None  # type: ignore[func-returns-value]


def test_batches_are_multiples_of_nothing() -> None:
    request = ProfileRequest(opt_batch=2, max_batch=3)
    assert request.profile_for("plugin", taken=(8, 16)).batches == (1, 2, 3)


def test_each_shape_of_a_profile_has_its_own_batch() -> None:
    profile = ImageProfile(min=size(1, 2), opt=size(3, 4), max=size(5, 6))
    assert profile.shapes(1) == ((1, 1, 1, 2), (1, 1, 3, 4), (1, 1, 5, 6))
    profile = ImageProfile(
        min=size(1, 2), opt=size(3, 4), max=size(5, 6), min_batch=1, opt_batch=2, max_batch=3
    )
    assert profile.shapes(3) == ((1, 3, 1, 2), (2, 3, 3, 4), (3, 3, 5, 6))


@pytest.mark.parametrize(
    "arguments",
    [
        {"min": size(64, 64), "opt": size(64, 64), "max": size(64, 64)},
        {"min_batch": 1, "opt_batch": 1, "max_batch": 1},
        {"min": size(1, 1), "max": size(1, 2)},
    ],
)
def test_equal_parts_are_in_order(arguments: dict[str, ImageSize | int]) -> None:
    profile = ProfileRequest(**arguments).profile_for("plugin")  # type: ignore[arg-type]
    assert {name: getattr(profile, name) for name in arguments} == arguments
