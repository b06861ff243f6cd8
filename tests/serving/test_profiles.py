"""Engines with several profiles: a raw model for each, and one picture model that chooses between them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from support.command_line import CommandLine
from support.export_cache import ExportCache
from support.serve_process import ServeProcess
from support.served_pictures import pixels_of, png
from support.served_requests import ask, statistics, until
from support.small_engine import SmallEngine, build_small_engine

from trt_hspan.engine.spec import ProfileRequest
from trt_hspan.serving.model_config import config_from_text
from trt_hspan.sizes import ImageSize

SMALL = ProfileRequest(max=ImageSize(height=24, width=32), min_batch=1, opt_batch=2, max_batch=4)
LARGE = ProfileRequest(min=ImageSize(height=16, width=16), max=ImageSize(height=48, width=40))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, exported: ExportCache) -> SmallEngine:
    """One plan of TensorRT-RTX with two profiles: batches of small pictures, and single larger ones."""
    onnx = exported("small_x4", precision="fp16")
    return build_small_engine(tmp_path_factory.mktemp("two_profiles"), onnx, (SMALL, LARGE))


def exported_configs(run: CommandLine, plan: Path, folder: Path) -> dict[str, Any]:
    """config.pbtxt of each model, read by Triton's own protobuf."""
    result = run("serve", "export", plan, "-o", folder, "--json")
    assert result.code == 0, result.err
    return {
        name: config_from_text((folder / name / "config.pbtxt").read_text())
        for name in json.loads(result.out)["models"]
    }


def test_each_profile_is_a_raw_model_of_tensorrt_with_its_number_shapes_and_batch(
    run: CommandLine, engine: SmallEngine, tmp_path: Path
) -> None:
    plan = engine.copy_to(tmp_path)  # an engine of classic TensorRT, as far as its manifest tells
    manifest = dataclasses.replace(engine.manifest, flavor="tensorrt", tensorrt_version="10.7.0.23")
    plan.with_suffix(".json").write_text(manifest.as_json())
    configs = exported_configs(run, plan, tmp_path / "models")
    assert list(configs) == ["small_24x32", "small_48x40", "small_image"]
    profiles = dict(zip(configs, manifest.profiles, strict=False))
    for index, (name, profile) in enumerate(profiles.items()):
        config = configs[name]
        assert (config.backend, config.platform) == ("tensorrt", "tensorrt_plan")
        (group,) = config.instance_group
        assert list(group.profile) == [str(index)]
        assert group.kind == type(group).KIND_GPU
        assert config.max_batch_size == profile.max[0]
        assert list(config.dynamic_batching.preferred_batch_size) == ([4] if profile.max[0] == 4 else [])
        assert [list(tensor.dims) for tensor in (*config.input, *config.output)] == [[3, -1, -1]] * 2
        warm = {(w.batch_size, *w.inputs["input"].dims) for w in config.model_warmup}
        assert warm == {profile.min, profile.opt, profile.max}
        assert (tmp_path / "models" / name / "1" / "model.plan").read_bytes() == plan.read_bytes()
    buckets = json.loads(configs["small_image"].parameters["raw_models"].string_value)
    assert [(b["name"], tuple(b["min"]), tuple(b["max"])) for b in buckets] == [
        (name, profile.min, profile.max) for name, profile in profiles.items()
    ]


def test_served_here_a_tile_goes_to_the_smallest_profile_that_takes_it(
    run: CommandLine, engine: SmallEngine, tmp_path: Path
) -> None:
    """TensorRT-RTX's engine in our Python backend; without a GPU its ONNX file runs, within the same shapes."""
    configs = exported_configs(run, engine.plan, tmp_path / "models")
    assert {name: config.backend for name, config in configs.items()} == dict.fromkeys(configs, "python")
    server = ServeProcess(tmp_path / "models")
    try:
        counts = {name: 0 for name in configs if name != "small_image"}
        for height, width, used in (
            (20, 30, "small_24x32"),
            (40, 36, "small_48x40"),
            (24, 40, "small_48x40"),
        ):
            status, body, _ = ask(server, "POST", "/upscale", png(width, height))
            assert (status, pixels_of(body).shape) == (200, (4 * height, 4 * width, 3))
            counts[used] += 1
            for name, count in counts.items():
                until(
                    lambda name=name: statistics(server, name)["inference_count"],
                    lambda actual, count=count: actual == count + 1,  # and one to warm up
                )
    finally:
        assert server.stop() == 0
