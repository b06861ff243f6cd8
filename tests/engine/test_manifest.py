"""The manifest: it reads back as written, and whatever does not describe the plan is refused in one line."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any, get_args

import pytest
from jsonschema import Draft202012Validator
from support.manifest_corpus import Case, cases, fits

from trt_hspan.engine.manifest import (
    FORMAT_VERSION,
    EngineManifest,
    IoTensor,
    PluginRecord,
    ProfileRecord,
    QuantizationRecord,
    manifest_from_json,
    manifest_schema,
    read_manifest,
    verify_manifest,
    write_manifest,
)
from trt_hspan.engine.spec import MOST_PROFILES, Trait, profile_request_from_text
from trt_hspan.errors import STEERING, HspanError

PLAN, ONNX = b"a plan", b"a model"


def manifest(**changes: Any) -> EngineManifest:
    default = EngineManifest(
        format_version=4,
        plan_sha256=hashlib.sha256(PLAN).hexdigest(),
        plan_size_bytes=len(PLAN),
        onnx_file="x4.onnx",
        onnx_sha256=hashlib.sha256(ONNX).hexdigest(),
        plugin=PluginRecord(
            file="p.so", sha256="0" * 64, abi_version=1, architectures=("sm_86", "compute_120")
        ),
        flavor="tensorrt-rtx",
        tensorrt_version="1.7.1.116",
        traits=("embedded-plugin", "refittable"),
        timing_cache_sha256=None,
        targets=("sm_86",),
        precision="int8",
        base_precision="fp16",
        quantization=QuantizationRecord(
            type="int8",
            convolutions=23,
            quantized_convolutions=19,
            quantized_mac_share=0.95,
            builder_convolutions=19,
            recipe_sha256="1" * 64,
            calibration_sha256=None,
        ),
        attention="plugin",
        scale=4,
        profiles=(
            ProfileRecord(
                min=(1, 3, 16, 16), opt=(1, 3, 64, 64), max=(2, 3, 64, 96), activation_memory_bytes=1234
            ),
            ProfileRecord(
                min=(1, 3, 64, 64), opt=(1, 3, 64, 64), max=(1, 3, 128, 160), activation_memory_bytes=None
            ),
        ),
        io_tensors=(IoTensor(name="input", dtype="float32", shape=(-1, 3, -1, -1), mode="input"),),
        activation_memory_bytes=1234,
        activation_memory_source="builder log",
        weights_memory_bytes=None,
        network_layer_counts={"CONVOLUTION": 3, "PLUGIN_V3": 1},
        engine_layer_counts=None,
        build_time_seconds=1.5,
        tool_version="0.1.0",
        source_sha256=None,
        created_utc="2026-01-01T00:00:00+00:00",
    )
    return dataclasses.replace(default, **changes)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """A consistent set of plan, model and manifest."""
    (tmp_path / "x4.plan").write_bytes(PLAN)
    (tmp_path / "x4.onnx").write_bytes(ONNX)
    (tmp_path / "x4.json").write_text(manifest().as_json())
    return tmp_path / "x4.plan"


def test_a_manifest_reads_back_as_it_was_written(plan: Path) -> None:
    assert read_manifest(plan) == manifest()
    assert verify_manifest(plan) == manifest()


def test_a_manifest_without_plugin_and_figures_reads_back_too() -> None:
    bare = manifest(
        plugin=None, traits=(), activation_memory_bytes=None, activation_memory_source=None, targets=()
    )
    assert manifest_from_json(bare.as_json().encode(), where="x4.json") == bare


def test_a_whole_number_of_seconds_is_a_time() -> None:
    text = manifest().as_json().replace('"build_time_seconds": 1.5', '"build_time_seconds": 2')
    assert manifest_from_json(text.encode(), where="x4.json").build_time_seconds == 2.0


def test_keys_are_snake_case_and_tell_their_units() -> None:
    keys = json.loads(manifest().as_json()).keys()
    assert {
        "plan_size_bytes",
        "activation_memory_bytes",
        "weights_memory_bytes",
        "build_time_seconds",
    } <= keys
    assert all(key == key.lower() and key.replace("_", "").isalnum() for key in keys)


def test_a_missing_manifest_is_named(plan: Path) -> None:
    plan.with_suffix(".json").unlink()
    with pytest.raises(HspanError, match=r"x4\.plan: its manifest x4\.json is missing"):
        verify_manifest(plan)


def test_a_missing_plan_is_named(plan: Path) -> None:
    plan.unlink()
    with pytest.raises(HspanError, match=r"x4\.plan: no such file"):
        verify_manifest(plan)


def test_what_is_no_plan_is_refused(plan: Path) -> None:
    with pytest.raises(HspanError, match=r"x4\.onnx: is not an engine"):
        verify_manifest(plan.with_suffix(".onnx"))


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'"x"', b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_object_is_refused(plan: Path, content: bytes) -> None:
    plan.with_suffix(".json").write_bytes(content)
    with pytest.raises(HspanError, match=r"x4\.json: is not a manifest") as caught:
        read_manifest(plan)
    assert "\n" not in str(caught.value)


def test_the_largest_profile_takes_the_most_pixels() -> None:
    assert manifest().largest_profile.max == (1, 3, 128, 160)


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.why)
def test_the_corpus_is_read_as_it_says(case: Case) -> None:
    """tests/plugins/runtime/test_manifests.py gives the same manifests to the C++ reader."""
    try:
        manifest_from_json(case.content, where="m.json")
        answer = "accepted"
    except HspanError as error:
        answer = str(error)
    assert fits(answer, case.says), answer
    assert STEERING.search(answer) is None
    assert len(answer) < 300


def test_what_is_accepted_fits_the_schema_as_others_read_it() -> None:
    schema = manifest_schema()
    Draft202012Validator.check_schema(schema)
    others = Draft202012Validator(schema)
    accepted = [json.loads(case.content) for case in cases() if case.says == ("accepted",)]
    assert len(accepted) > 20
    assert [error.message for document in accepted for error in others.iter_errors(document)] == []


def test_the_schema_is_that_of_the_dataclass_and_of_the_limits() -> None:
    schema = manifest_schema()
    assert list(schema["properties"]) == [*schema["required"], "size_multiple"]
    assert {*schema["properties"]} == {field.name for field in dataclasses.fields(EngineManifest)}
    assert schema["properties"]["format_version"]["maximum"] == FORMAT_VERSION
    assert schema["properties"]["profiles"]["maxItems"] == MOST_PROFILES
    assert tuple(schema["properties"]["traits"]["items"]["enum"]) == get_args(Trait)


def test_a_manifest_that_names_no_multiple_is_of_a_network_of_any_size(plan: Path) -> None:
    path = plan.with_suffix(".json")
    document = json.loads(path.read_text())
    del document["size_multiple"]
    path.write_text(json.dumps(document))
    assert read_manifest(plan).size_multiple == 1


@pytest.mark.parametrize("size", [(1 << 22) + 1, 100 << 20])
def test_a_file_too_long_for_a_manifest_is_not_read(plan: Path, size: int) -> None:
    os.truncate(plan.with_suffix(".json"), size)
    with pytest.raises(HspanError, match=r"x4\.json: is not a manifest: longer than 4194304 bytes"):
        read_manifest(plan)


def test_a_pipe_is_no_manifest(plan: Path) -> None:
    plan.with_suffix(".json").unlink()
    os.mkfifo(plan.with_suffix(".json"))
    with pytest.raises(HspanError, match="is a pipe"):
        read_manifest(plan)


def test_nothing_is_written_that_could_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(HspanError, match=r"tool_version is '0+\.\.\., expected a text of at most 64"):
        write_manifest(manifest(tool_version="0" * 65), tmp_path / "x4.json")
    assert list(tmp_path.iterdir()) == []
    write_manifest(manifest(), tmp_path / "x4.json")
    assert read_manifest(tmp_path / "x4.plan") == manifest()


@pytest.mark.parametrize("suffix", [".plan", ".onnx"])
def test_a_file_of_another_build_is_refused(plan: Path, suffix: str) -> None:
    plan.with_suffix(suffix).write_bytes(b"another")
    with pytest.raises(
        HspanError, match=rf"x4\{suffix}: SHA-256 is .* x4\.json says .* build the engine again"
    ):
        verify_manifest(plan)


def test_a_missing_model_is_named(plan: Path) -> None:
    plan.with_suffix(".onnx").unlink()
    with pytest.raises(
        HspanError, match=r"x4\.onnx: no such file, but x4\.json names it; .* build the engine"
    ):
        verify_manifest(plan)


def test_an_engine_needs_the_library_unless_it_is_inside() -> None:
    assert not manifest().needs_library
    assert manifest(traits=()).needs_library
    assert not manifest(plugin=None, traits=()).needs_library


def test_a_file_of_the_greatest_length_is_read(plan: Path) -> None:
    text = manifest().as_json()
    plan.with_suffix(".json").write_text(text + " " * ((1 << 22) - len(text)))
    assert read_manifest(plan) == manifest()


def test_a_profile_says_its_sizes_and_is_written_as_it_is_requested() -> None:
    record = ProfileRecord(min=(1, 3, 4, 5), opt=(2, 3, 6, 7), max=(3, 3, 8, 9), activation_memory_bytes=None)
    assert record.sizes == ((4, 5), (6, 7), (8, 9))
    assert str(record) == "min=1x4x5,opt=2x6x7,max=3x8x9"
    assert str(profile_request_from_text(str(record)).profile_for("plugin")) == str(record)


def test_the_largest_profile_counts_its_batch_and_ranges_leave_the_middle_out() -> None:
    small, large = manifest().profiles
    many = dataclasses.replace(small, max=(9, 3, 64, 96))
    assert manifest(profiles=(large, many, small)).largest_profile == many
    assert manifest().shape_ranges == (
        ((1, 3, 16, 16), (2, 3, 64, 96)),
        ((1, 3, 64, 64), (1, 3, 128, 160)),
    )


def test_a_manifest_is_laid_out_for_people() -> None:
    lines = manifest().as_json().splitlines()
    assert lines[:2] == ["{", '  "format_version": 4,']
    assert manifest().as_json().endswith("}\n")
    assert (manifest().size_multiple, manifest().range_audit) == (1, None)


@pytest.mark.parametrize("suffix", [".plan", ".onnx", ".json"])
def test_a_folder_in_place_of_a_file_is_called_one(plan: Path, suffix: str) -> None:
    path = plan.with_suffix(suffix)
    path.unlink()
    path.mkdir()
    with pytest.raises(HspanError, match=rf"x4\{suffix}: is (not a file|a folder)"):
        verify_manifest(plan)


def test_hashes_are_shown_by_their_first_twelve_digits(plan: Path) -> None:
    plan.write_bytes(b"another")
    with pytest.raises(HspanError) as refused:
        verify_manifest(plan)
    own, stored = (hashlib.sha256(data).hexdigest()[:12] for data in (b"another", PLAN))
    assert f"SHA-256 is {own}..., but x4.json says {stored}...; the files are not of one" in str(
        refused.value
    )


@pytest.mark.parametrize("version", [3, 5, True, 4.0, "4", None])
def test_another_format_version_is_refused(version: object) -> None:
    text = json.dumps({**json.loads(manifest().as_json()), "format_version": version})
    with pytest.raises(
        HspanError, match=f"format_version is {version!r}, expected 4; build the engine again"
    ):
        manifest_from_json(text.encode(), where="m.json")
