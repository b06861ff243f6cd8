"""Engines with several profiles: one raw model, which loads the engine once and chooses between them."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.command_line import CommandLine
from support.export_cache import ExportCache
from support.served_pictures import pixels_of, png
from support.small_engine import SmallEngine, build_small_engine
from support.started_repository import started_repository

from trt_hspan.engine.spec import ProfileRequest
from trt_hspan.errors import HspanError
from trt_hspan.model_repository.networks import config_from_text
from trt_hspan.runtime.opening import open_runner
from trt_hspan.serving.async_client import AsyncUpscaleClient
from trt_hspan.serving.client import UpscaleClient
from trt_hspan.sizes import ImageSize

# Other programs add in another order, and the network is FP16: its results near 1 may differ in the last of 11 bits.
FP16_STEP = 2.0**-10
SMALL = ProfileRequest(max=ImageSize(height=24, width=32), min_batch=1, opt_batch=2, max_batch=4)
LARGE = ProfileRequest(min=ImageSize(height=16, width=16), max=ImageSize(height=48, width=40))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, exported: ExportCache) -> SmallEngine:
    """One plan of TensorRT-RTX with two profiles: batches of small pictures, and single larger ones."""
    onnx = exported("small_x4", precision="fp16")
    return build_small_engine(tmp_path_factory.mktemp("two_profiles"), onnx, (SMALL, LARGE))


def exported_configs(run: CommandLine, plan: Path, folder: Path, *words: str) -> dict[str, Any]:
    """config.pbtxt of each model, read by Triton's own protobuf."""
    result = run("serve", "export", plan, "-o", folder, "--json", *words)
    assert result.code == 0, result.err
    return {
        name: config_from_text((folder / name / "config.pbtxt").read_text())
        for name in json.loads(result.out)["models"]
    }


def classic(engine: SmallEngine, folder: Path, **changes: Any) -> Path:
    """An engine of classic TensorRT, as far as its manifest tells."""
    plan = engine.copy_to(folder)
    manifest = dataclasses.replace(
        engine.manifest, flavor="tensorrt", tensorrt_version="10.7.0.23", **changes
    )
    plan.with_suffix(".json").write_text(manifest.as_json())
    return plan


def test_profiles_of_an_engine_are_one_raw_model_of_tensorrt_which_loads_it_once(
    run: CommandLine, engine: SmallEngine, tmp_path: Path
) -> None:
    plan = classic(engine, tmp_path)
    configs = exported_configs(run, plan, tmp_path / "models")
    assert list(configs) == ["small", "small_image"]
    config, profiles = configs["small"], engine.manifest.profiles
    assert (config.backend, config.platform) == ("tensorrt", "tensorrt_plan")
    (group,) = config.instance_group
    assert (group.kind, group.count) == (type(group).KIND_GPU, 1)
    assert list(group.profile) == ["0", "1"]
    # Triton fills batches before it looks for a profile, and the larger profile takes single pictures.
    assert config.max_batch_size == 1
    assert list(config.dynamic_batching.preferred_batch_size) == []
    assert [list(tensor.dims) for tensor in (*config.input, *config.output)] == [[3, -1, -1]] * 2
    warm = {(w.batch_size, *w.inputs["input"].dims) for w in config.model_warmup}
    assert warm == {(1, *shape[1:]) for p in profiles for shape in (p.min, p.opt, p.max)}
    assert (tmp_path / "models" / "small" / "1" / "model.plan").read_bytes() == plan.read_bytes()
    buckets = json.loads(configs["small_image"].parameters["raw_models"].string_value)
    assert [(b["name"], b["min"], b["max"]) for b in buckets] == [
        ("small", list(p.min), [1, *p.max[1:]]) for p in profiles
    ]


def test_profiles_without_a_common_batch_cannot_be_one_model_of_tensorrt(
    run: CommandLine, engine: SmallEngine, tmp_path: Path
) -> None:
    four, one = engine.manifest.profiles
    four = dataclasses.replace(four, min=(4, *four.min[1:]), opt=four.max)
    plan = classic(engine, tmp_path, profiles=(four, one))
    result = run("serve", "export", plan, "-o", tmp_path / "models")
    assert result.code == 1
    assert (
        "takes at most 1 pictures at a time, another at least 4; export it with --backend python"
        in result.error_line
    )
    configs = exported_configs(run, plan, tmp_path / "models", "--backend", "python")
    assert configs["small"].max_batch_size == 4


def test_served_here_each_size_is_taken_by_the_profile_that_takes_it(
    run: CommandLine, engine: SmallEngine, tmp_path: Path
) -> None:
    """TensorRT-RTX's engine in our Python backend; without a GPU its ONNX file runs, within the same shapes."""
    configs = exported_configs(run, engine.plan, tmp_path / "models")
    assert {name: config.backend for name, config in configs.items()} == dict.fromkeys(
        ("small", "small_image"), "python"
    )
    assert configs["small"].max_batch_size == 4
    draw = np.random.default_rng(3)
    with (
        started_repository(tmp_path / "models") as server,
        UpscaleClient(f"http://{server.http}") as client,
        open_runner(engine.plan, threads=1) as runner,
    ):
        for height, width in ((20, 30), (40, 36), (24, 40), (100, 30)):
            result = client.upscale_picture(png(width, height))
            assert pixels_of(result).shape == (4 * height, 4 * width, 3)
        for shape in ((4, 3, 24, 32), (1, 3, 48, 40), (1, 3, 16, 16)):
            batch = draw.random(shape, np.float32)
            np.testing.assert_allclose(
                client.upscale_tensor(batch), runner.run(batch), rtol=0, atol=FP16_STEP
            )
        with pytest.raises(HspanError, match="is 2x3x48x40"):
            client.upscale_tensor(draw.random((2, 3, 48, 40), np.float32))
        # Triton batches requests of one size, more of them than the larger profile takes.
        batch = draw.random((1, 3, 48, 40), np.float32)

        async def at_once() -> list[np.ndarray]:
            async with AsyncUpscaleClient(f"http://{server.http}") as many:
                return list(await asyncio.gather(*(many.upscale_tensor(batch) for _ in range(6))))

        for output in asyncio.run(at_once()):
            np.testing.assert_allclose(output, runner.run(batch), rtol=0, atol=FP16_STEP)
