"""Which engines are one model of Triton, and what Triton is told of it: on manifests alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from support.manifest_corpus import BASE as CORPUS_BASE

from trt_hspan.engine import families
from trt_hspan.engine.manifest import (
    EngineManifest,
    IoTensor,
    PluginRecord,
    ProfileRecord,
    manifest_from_json,
)
from trt_hspan.errors import HspanError
from trt_hspan.model_repository.networks import (
    Network,
    RawModel,
    config_from_text,
    config_text,
    image_model_config,
    networks_from_engines,
    raw_model_config,
)
from trt_hspan.serving.limits import ServingLimits

Shape = tuple[int, int, int, int]


@pytest.mark.parametrize(
    ("low", "high", "sides", "grown"),
    [
        ((1, 3, 24, 32), (1, 3, 24, 32), [24, 32], [72, 96]),
        ((1, 3, 24, 16), (1, 3, 24, 32), [24, -1], [72, -1]),
        ((1, 3, 16, 32), (1, 3, 24, 32), [-1, 32], [-1, 96]),
        ((1, 3, 1, 1), (1, 3, 24, 32), [-1, -1], [-1, -1]),
    ],
)
@pytest.mark.parametrize("dynamic_batch", [True, False])
def test_sides_that_are_fixed_are_fixed_in_the_result_too(
    low: Shape, high: Shape, sides: list[int], grown: list[int], dynamic_batch: bool
) -> None:
    raw = RawModel(
        name="net",
        backend="python",
        profiles=(ProfileRecord(min=low, opt=high, max=high, activation_memory_bytes=None),),
        dynamic_batch=dynamic_batch,
        files={},
        plans={},
        parameters={},
    )
    config = raw_model_config(raw, scale=3, limits=ServingLimits())
    batch = [] if dynamic_batch else [1]
    assert list(config.input[0].dims) == [*batch, 3, *sides]
    assert list(config.output[0].dims) == [*batch, 3, *grown]
    assert config.max_batch_size == int(dynamic_batch)


# Which engines are one model, on manifests alone.


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> dict[Path, EngineManifest]:
    """Engines by their manifests, which a test fills in."""
    known: dict[Path, EngineManifest] = {}
    monkeypatch.setattr(families, "verify_manifest", known.__getitem__)
    return known


def profile(side: int, *, least: int = 1, most: int = 4) -> ProfileRecord:
    low, high = (least, 3, 8, 8), (most, 3, side, side)
    return ProfileRecord(min=low, opt=low, max=high, activation_memory_bytes=None)


BASE = dataclasses.replace(
    manifest_from_json(json.dumps(CORPUS_BASE).encode(), where="base"),
    io_tensors=tuple(
        IoTensor(name=mode, dtype="float32", shape=(-1, 3, -1, -1), mode=mode)  # type: ignore[arg-type]
        for mode in ("input", "output")
    ),
    plugin=None,
    traits=(),
    scale=4,
    size_multiple=8,
    flavor="tensorrt",
    targets=("sm_86",),
    profiles=(profile(16),),
    onnx_file="own.onnx",
)


def add(engines: dict[Path, EngineManifest], name: str, **changes: Any) -> Path:
    path = Path("folder") / f"{name}.plan"
    engines[path] = dataclasses.replace(BASE, **changes)
    return path


def networks(engines: dict[Path, EngineManifest], **options: Any) -> list[Network]:
    return networks_from_engines(list(engines), **options)


def refused(engines: dict[Path, EngineManifest], **options: Any) -> str:
    with pytest.raises(HspanError) as caught:
        networks(engines, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("flavor", "backend", "expected"),
    [
        ("tensorrt", "auto", "tensorrt"),
        ("tensorrt", "tensorrt", "tensorrt"),
        ("tensorrt", "python", "python"),
        ("tensorrt-rtx", "auto", "python"),
        ("tensorrt-rtx", "python", "python"),
        ("tensorrt-rtx", "tensorrt", None),
    ],
)
def test_engines_run_on_the_backend_that_runs_them(
    engines: dict[Path, EngineManifest], flavor: str, backend: Any, expected: str | None
) -> None:
    add(engines, "net", flavor=flavor)
    if expected is None:
        assert (
            "is built by tensorrt-rtx, and Triton's TensorRT backend runs engines of tensorrt only"
            in refused(engines, backend=backend)
        )
        return
    (network,) = networks(engines, backend=backend)
    (raw,) = network.raw_models
    assert (raw.backend, raw.instances, raw.dynamic_batch) == (expected, 1, True)
    assert (network.name, network.model_names) == ("net", ("net", "net_image"))
    if expected == "python":
        assert raw.parameters == {"source": "net.plan"}
        assert raw.files == {name: Path("folder") / name for name in ("net.plan", "net.json", "own.onnx")}
        assert raw.plans == {}
    else:
        assert (raw.plans, raw.parameters) == ({"8.6": "model.plan", "": "model.plan"}, {})
        assert raw.files == {"model.plan": Path("folder/net.plan")}


def test_without_engines_there_is_no_network(engines: dict[Path, EngineManifest]) -> None:
    assert refused(engines) == "serve export: no engine given; name .plan files that trt-hspan build wrote"


def test_engines_of_the_same_shapes_are_one_model_and_others_one_each(
    engines: dict[Path, EngineManifest],
) -> None:
    add(engines, "a", targets=("sm_86", "sm_89"))
    add(engines, "b", targets=("sm_120",))
    add(engines, "c", profiles=(profile(24), profile(8)))
    (network,) = networks(engines, instances=3)
    first, second = network.raw_models
    assert (first.name, second.name, network.name) == ("a", "c", "a")
    assert first.plans == {
        "8.6": "model_sm_86_sm_89.plan",
        "8.9": "model_sm_86_sm_89.plan",
        "12.0": "model_sm_120.plan",
    }
    assert second.plans == {"8.6": "model.plan", "": "model.plan"}
    assert first.instances == second.instances == 3
    (named,) = networks(engines, name="my net")
    assert [raw.name for raw in named.raw_models] == ["my_net_16x16", "my_net_24x24"]
    add(engines, "d", profiles=(profile(24),))
    (named,) = networks(engines, name="my net")
    assert named.model_names == ("my_net_16x16", "my_net_24x24", "my_net_24x24_3", "my_net_image")


def test_two_engines_for_the_same_gpu_and_shapes_are_one_too_many(
    engines: dict[Path, EngineManifest],
) -> None:
    add(engines, "a")
    add(engines, "b")
    assert "b.plan: is for compute capability 8.6 and shapes that another engine is for too" in refused(
        engines
    )
    line = "b.plan: has the same shapes as a.plan, and the Python backend runs one of them"
    assert line in refused(engines, backend="python")


def test_a_name_is_for_one_network_and_no_two_models_have_one(engines: dict[Path, EngineManifest]) -> None:
    add(engines, "a")
    assert networks(engines, name="mine")[0].name == "mine"
    add(engines, "b", scale=2)
    assert "--name: is for one network, the engines are of 2; leave it out" in refused(engines, name="mine")
    assert [network.name for network in networks(engines)] == ["a", "b"]
    add(engines, "a_image", scale=3)
    assert "serve export: two models would be called a_image" in refused(engines)


def test_the_batch_of_a_model_is_what_all_or_any_of_its_profiles_take(
    engines: dict[Path, EngineManifest],
) -> None:
    add(engines, "a", profiles=(profile(16, most=4), profile(24, least=2, most=2)))
    assert networks(engines)[0].raw_models[0].max_batch == 2
    assert networks(engines, backend="python")[0].raw_models[0].max_batch == 4
    add(engines, "a", profiles=(profile(16, most=4), profile(24, least=3, most=3), profile(8, most=2)))
    line = (
        "a.plan: one of its profiles takes at most 2 pictures at a time, another at least 3; export it with"
    )
    assert line in refused(engines)
    assert networks(engines, backend="python")[0].raw_models[0].max_batch == 4


def test_a_library_goes_along_where_the_python_backend_needs_it(
    engines: dict[Path, EngineManifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = PluginRecord(file="p.so", sha256="0" * 64, abi_version=1, architectures=())
    monkeypatch.setattr(families, "own_library", lambda *_: None)
    add(engines, "a", plugin=record)
    (raw,) = networks(engines, plugin=Path("here/own.so"), backend="python")[0].raw_models
    assert raw.parameters == {"source": "a.plan", "plugin": "own.so"}
    assert raw.files["own.so"] == Path("here/own.so")
    (raw,) = networks(engines, plugin=Path("here/own.so"))[0].raw_models
    assert (raw.parameters, list(raw.files)) == ({}, ["model.plan"])


# What config.pbtxt says of them.

LIMITS = ServingLimits(queue_length=7, queue_time_ms=250)


def config_of(engines: dict[Path, EngineManifest], *, backend: Any = "auto", **options: Any) -> Any:
    (network,) = networks(engines, backend=backend, **options)
    return raw_model_config(network.raw_models[0], scale=4, limits=LIMITS)


def test_a_model_is_warmed_up_at_the_ends_of_each_profile_and_at_what_it_is_tuned_for(
    engines: dict[Path, EngineManifest],
) -> None:
    tuned = dataclasses.replace(profile(24), opt=(2, 3, 16, 16))
    add(engines, "a", profiles=(tuned, profile(16, most=3)))

    def warmed(config: Any) -> list[tuple[str, int, list[int], bool]]:
        return [
            (each.name, each.batch_size, list(tensor.dims), tensor.random_data)
            for each in config.model_warmup
            for tensor in [each.inputs["input"]]
        ]

    assert warmed(config_of(engines)) == [
        ("1x3x8x8", 1, [3, 8, 8], True),
        ("2x3x16x16", 2, [3, 16, 16], True),
        ("3x3x24x24", 3, [3, 24, 24], True),
        ("3x3x16x16", 3, [3, 16, 16], True),
    ]
    assert warmed(config_of(engines, backend="python")) == [("1x3x8x8", 1, [3, 8, 8], True)]
    fixed = (IoTensor(name="input", dtype="float32", shape=(2, 3, -1, -1), mode="input"), BASE.io_tensors[1])
    add(engines, "a", profiles=(profile(16, least=2, most=2),), io_tensors=fixed)
    config = config_of(engines)
    assert warmed(config) == [("2x3x8x8", 0, [2, 3, 8, 8], True), ("2x3x16x16", 0, [2, 3, 16, 16], True)]
    assert (config.max_batch_size, list(config.input[0].dims)) == (0, [2, 3, -1, -1])


def test_a_raw_model_of_tensorrt_has_its_plans_and_profiles(engines: dict[Path, EngineManifest]) -> None:
    add(engines, "a", targets=("sm_86",), profiles=(profile(16), profile(24)))
    add(engines, "b", targets=("sm_89",), profiles=(profile(16), profile(24)))
    config = config_of(engines, instances=2)
    assert (config.name, config.backend, config.platform) == ("a", "tensorrt", "tensorrt_plan")
    assert (config.default_model_filename, dict(config.cc_model_filenames)) == (
        "",
        {"8.6": "model_sm_86.plan", "8.9": "model_sm_89.plan"},
    )
    (group,) = config.instance_group
    assert (group.kind, group.count, list(group.profile)) == (type(group).KIND_GPU, 2, ["0", "1"])
    del engines[Path("folder/b.plan")]
    config = config_of(engines)
    assert (config.default_model_filename, dict(config.cc_model_filenames)) == (
        "model.plan",
        {"8.6": "model.plan"},
    )
    assert dict(config.parameters) == {}


def test_a_raw_model_in_python_has_its_file_and_the_limits(engines: dict[Path, EngineManifest]) -> None:
    add(engines, "a")
    config = config_of(engines, backend="python", instances=2)
    (group,) = config.instance_group
    assert (config.backend, group.kind, group.count) == ("python", type(group).KIND_AUTO, 2)
    texts = {name: value.string_value for name, value in config.parameters.items()}
    assert texts == {"source": "a.plan"} | {name: str(n) for name, n in dataclasses.asdict(LIMITS).items()}


def test_requests_of_all_models_wait_as_long_as_the_limits_say_and_for_no_company(
    engines: dict[Path, EngineManifest],
) -> None:
    add(engines, "a")
    (network,) = networks(engines)
    for config, most in (
        (raw_model_config(network.raw_models[0], scale=4, limits=LIMITS), 4),
        (image_model_config(network, limits=LIMITS), 4),
    ):
        batching = config.dynamic_batching
        assert (config.max_batch_size, list(batching.preferred_batch_size)) == (most, [most])
        assert batching.max_queue_delay_microseconds == 0
        policy = batching.default_queue_policy
        assert (policy.max_queue_size, policy.default_timeout_microseconds) == (7, 250_000)
        assert (policy.timeout_action, policy.allow_timeout_override) == (type(policy).REJECT, True)
        assert config.version_policy.latest.num_versions == 1
    for most, preferred in ((1, []), (2, [2])):
        add(engines, "a", profiles=(profile(16, most=most),))
        assert list(config_of(engines).dynamic_batching.preferred_batch_size) == preferred


def test_the_picture_model_takes_files_of_any_length_and_knows_the_raw_models(
    engines: dict[Path, EngineManifest],
) -> None:
    add(engines, "a", profiles=(profile(16), profile(24, most=2)))
    add(engines, "b", profiles=(profile(32),))
    (network,) = networks(engines)
    config = image_model_config(network, limits=LIMITS)
    (image,), (upscaled,) = config.input, config.output
    kind = type(image).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_name["TYPE_UINT8"].number
    assert (image.name, image.data_type, list(image.dims), image.allow_ragged_batch) == (
        "image",
        kind,
        [-1],
        True,
    )
    assert (upscaled.name, upscaled.data_type, list(upscaled.dims)) == ("upscaled", kind, [-1])
    (group,) = config.instance_group
    assert (config.name, config.backend, group.kind, group.count) == (
        "a_image",
        "python",
        type(group).KIND_CPU,
        1,
    )
    texts = {name: value.string_value for name, value in config.parameters.items()}
    assert (texts["scale"], texts["size_multiple"], texts["queue_length"]) == ("4", "8", "7")
    assert json.loads(texts["raw_models"]) == [
        {"name": "a", "min": [1, 3, 8, 8], "max": [2, 3, 16, 16]},
        {"name": "a", "min": [1, 3, 8, 8], "max": [2, 3, 24, 24]},
        {"name": "b", "min": [1, 3, 8, 8], "max": [4, 3, 32, 32]},
    ]
    assert config_from_text(config_text(config)) == config
