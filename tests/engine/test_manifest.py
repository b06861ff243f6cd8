"""The manifest: it reads back as written, and whatever does not describe the plan is refused in one line."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from trt_hspan.engine.manifest import (
    EngineManifest,
    IoTensor,
    PluginRecord,
    ProfileRecord,
    QuantizationRecord,
    manifest_from_json,
    read_manifest,
    verify_manifest,
)
from trt_hspan.errors import HspanError

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
    assert manifest_from_json(bare.as_json(), where="x4.json") == bare


def test_a_whole_number_of_seconds_is_a_time() -> None:
    text = manifest().as_json().replace('"build_time_seconds": 1.5', '"build_time_seconds": 2')
    assert manifest_from_json(text, where="x4.json").build_time_seconds == 2.0


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


@pytest.mark.parametrize("version", [0, 1, 2, "3", None, True, 3.0])
def test_another_format_version_is_refused(plan: Path, version: object) -> None:
    write(plan, format_version=version)
    with pytest.raises(HspanError, match=r"format_version is .*, expected 4"):
        read_manifest(plan)


def test_the_largest_profile_takes_the_most_pixels() -> None:
    assert manifest().largest_profile.max == (1, 3, 128, 160)


@pytest.mark.parametrize("key", [field.name for field in dataclasses.fields(EngineManifest)][1:])
def test_every_missing_key_is_named(plan: Path, key: str) -> None:
    document = json.loads(plan.with_suffix(".json").read_text())
    del document[key]
    plan.with_suffix(".json").write_text(json.dumps(document))
    with pytest.raises(HspanError, match=f"the key {key} is missing"):
        read_manifest(plan)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plan_size_bytes": "6"}, "plan_size_bytes is '6', expected an integer"),
        ({"plan_size_bytes": 6.0}, "plan_size_bytes is 6.0, expected an integer"),
        ({"plan_size_bytes": True}, "plan_size_bytes is True, expected an integer"),
        ({"plan_sha256": None}, "plan_sha256 is None, expected a string"),
        ({"precision": "int4"}, "precision is 'int4', expected one of fp32, fp16, bf16, int8, fp8"),
        ({"plugin": []}, r"plugin is \[\], expected an object"),
        ({"plugin": {"file": "p.so"}}, "the key plugin.sha256 is missing"),
        ({"targets": "sm_86"}, "targets is 'sm_86', expected a list"),
        ({"targets": [86]}, r"targets\[0\] is 86, expected a string"),
        (
            {"profiles": [{"min": [1], "opt": [1], "max": ["1"], "activation_memory_bytes": None}]},
            r"profiles\[0\]\.max\[0\] is '1', expected an integer",
        ),
        ({"profiles": []}, "profiles is empty, expected one at least"),
        ({"io_tensors": [{}]}, r"the key io_tensors\[0\]\.name is missing"),
        ({"network_layer_counts": {"CAST": "1"}}, r"network_layer_counts\.CAST is '1', expected an integer"),
        ({"network_layer_counts": []}, r"network_layer_counts is \[\], expected an object"),
        ({"surprise": 1}, "the key surprise is unknown"),
        ({"build_time_seconds": "1"}, "build_time_seconds is '1', expected a number"),
    ],
)
def test_a_mistyped_value_is_named_with_its_key(plan: Path, changes: dict[str, object], message: str) -> None:
    write(plan, **changes)
    with pytest.raises(HspanError, match=message):
        read_manifest(plan)


@pytest.mark.parametrize(
    ("profile", "scale", "message"),
    [
        ([[1, 3, 8], [1, 3, 8], [1, 3, 8]], 4, r"profiles\[0\] is 1x3x8, 1x3x8, 1x3x8, expected .* 4 sizes"),
        ([[1, 3, 9, 9], [1, 3, 8, 8], [1, 3, 9, 9]], 4, "in rising order"),
        ([[0, 3, 8, 8], [1, 3, 8, 8], [1, 3, 9, 9]], 4, "in rising order"),
        ([[1, 3, 8, 8], [1, 3, 8, 8], [1, 3, 9, 9]], 0, "scale is 0, expected 1 at least"),
    ],
)
def test_shapes_and_scales_that_cannot_be_are_reported(
    plan: Path, profile: list[list[int]], scale: int, message: str
) -> None:
    shapes = dict(zip(("min", "opt", "max"), profile, strict=True))
    write(plan, profiles=[shapes | {"activation_memory_bytes": None}], scale=scale)
    with pytest.raises(HspanError, match=rf"x4\.json: .*{message}.*; build the engine again"):
        read_manifest(plan)


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


@pytest.mark.parametrize("name", ["../x4.onnx", "/etc/passwd", "", "..", "x4\0.onnx"])
def test_a_model_outside_the_folder_is_not_looked_at(plan: Path, name: str) -> None:
    write(plan, onnx_file=name)
    with pytest.raises(HspanError, match=r"onnx_file is .*, expected a file name"):
        verify_manifest(plan)


def write(plan: Path, **changes: object) -> None:
    path = plan.with_suffix(".json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_an_embedded_plugin_is_one_that_is_recorded() -> None:
    text = manifest(plugin=None).as_json()
    with pytest.raises(HspanError, match="traits says that the plugin is embedded, and plugin is null"):
        manifest_from_json(text, where="x4.json")
    assert not manifest().needs_library
    assert manifest(traits=()).needs_library
    assert not manifest(plugin=None, traits=()).needs_library
