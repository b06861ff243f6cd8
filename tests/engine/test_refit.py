"""Other weights for an engine: what is exchanged, kept and refused, on the double of TensorRT; TensorRT-RTX's part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import numpy_helper
from support.classic_machine import DRIVER, machine_with_tensorrt
from support.small_networks import attention_network, write_attention_network
from support.tensorrt_double import OnnxParserRefitter, Refitter, Release

from trt_hspan.engine import passport, refit, tensorrt_api
from trt_hspan.engine.build import build_engine
from trt_hspan.engine.manifest import verify_manifest
from trt_hspan.engine.refit import refit_engine
from trt_hspan.engine.spec import EngineSpec
from trt_hspan.errors import HspanError, UsageError
from trt_hspan.graph import load_onnx

TRAITS = frozenset({"refittable"})


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> Release:
    """A machine with TensorRT 10.3 and one GPU."""
    return machine_with_tensorrt(monkeypatch)


@pytest.fixture
def plan(tensorrt: Release, tmp_path: Path) -> Path:
    network = write_attention_network(tmp_path / "net.onnx", precision="fp16")
    spec = EngineSpec(
        onnx=network,
        output=tmp_path / "e" / "net.plan",
        flavor="tensorrt",
        attention="function",
        traits=TRAITS,
    )
    build_engine(spec)
    return spec.output


def other_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with every weight doubled."""
    for tensor in model.graph.initializer:
        doubled = (2 * numpy_helper.to_array(tensor)).astype(numpy_helper.to_array(tensor).dtype)
        tensor.CopyFrom(numpy_helper.from_array(doubled, tensor.name))
    return model


def weights_of(plan: Path) -> Any:
    return json.loads(plan.read_bytes())["weights"]


def test_an_engine_gets_other_weights_and_a_manifest_that_vouches_for_them(
    plan: Path, tmp_path: Path
) -> None:
    before, weights = verify_manifest(plan), weights_of(plan)
    model = other_weights(load_onnx(plan.with_suffix(".onnx")))
    after = refit_engine(plan, model, output=tmp_path / "new" / "other.plan")
    new = tmp_path / "new" / "other.plan"
    assert sorted(path.name for path in new.parent.iterdir()) == ["other.json", "other.onnx", "other.plan"]
    assert verify_manifest(new) == after
    assert weights_of(new).keys() == weights.keys()
    assert all(weights_of(new)[name] != weights[name] for name in weights if "conv" in name)
    assert (after.traits, after.profiles, after.tensorrt_version) == (
        before.traits,
        before.profiles,
        before.tensorrt_version,
    )
    assert load_onnx(new.with_suffix(".onnx")) == model
    assert weights_of(plan) == weights


def test_an_engine_can_be_refitted_in_place_and_again(plan: Path) -> None:
    first = weights_of(plan)
    model = load_onnx(plan.with_suffix(".onnx"))
    refit_engine(plan, other_weights(load_onnx(plan.with_suffix(".onnx"))))
    assert weights_of(plan) != first
    refit_engine(plan, model)
    assert weights_of(plan) == first
    assert verify_manifest(plan).traits == ("refittable",)


def test_an_engine_of_another_graph_is_refused(plan: Path) -> None:
    line = r"net\.plan: its graph is another than that of these weights; take a checkpoint of the same"
    for other in (
        attention_network(precision="fp16", blocks=2),
        attention_network(precision="fp16", features=16),
        attention_network(precision="fp32"),
    ):
        with pytest.raises(HspanError, match=line):
            refit_engine(plan, other)


def test_an_engine_that_was_not_built_for_it_is_refused(tensorrt: Release, tmp_path: Path) -> None:
    network = write_attention_network(tmp_path / "net.onnx")
    spec = EngineSpec(onnx=network, output=tmp_path / "net.plan", flavor="tensorrt", attention="function")
    build_engine(spec)
    with pytest.raises(HspanError, match=r"was built without --refittable; trt-hspan build .* --refittable$"):
        refit_engine(spec.output, load_onnx(network))


def test_without_its_gpu_an_engine_is_not_opened(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = passport.Machine(
        architecture=None, driver=DRIVER, flavors=("tensorrt",), version_of=lambda _: "10.3.0"
    )
    monkeypatch.setattr(refit, "this_machine", lambda: here)
    with pytest.raises(HspanError, match="needs a GPU"):
        refit_engine(plan, load_onnx(plan.with_suffix(".onnx")))


def test_a_refit_that_tensorrt_refuses_leaves_the_engine_as_it_was(tensorrt: Release, plan: Path) -> None:
    files = {path.name: path.read_bytes() for path in plan.parent.iterdir()}
    tensorrt.refuses_refit = True
    with pytest.raises(HspanError, match=r"cannot be refitted: the refit failed; trt-hspan build"):
        refit_engine(plan, other_weights(load_onnx(plan.with_suffix(".onnx"))))
    assert {path.name: path.read_bytes() for path in plan.parent.iterdir()} == files


def test_an_engine_with_a_plugin_loads_it_before_it_is_opened(
    tensorrt: Release, tmp_path: Path, plugin_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = write_attention_network(tmp_path / "net.onnx", precision="fp16")
    spec = EngineSpec(
        onnx=network,
        output=tmp_path / "net.plan",
        flavor="tensorrt",
        attention="plugin",
        plugin=plugin_library,
        traits=TRAITS,
    )
    build_engine(spec)
    loaded: list[Path] = []
    monkeypatch.setattr(refit, "load_plugin_library", lambda _, path: loaded.append(path))
    refit_engine(spec.output, other_weights(load_onnx(network)), plugin=plugin_library)
    assert loaded == [plugin_library]
    monkeypatch.setattr(refit, "default_plugin_path", lambda: plugin_library)
    refit_engine(spec.output, load_onnx(network))
    assert loaded == [plugin_library] * 2


def test_a_name_that_is_none_of_an_engine_is_refused(plan: Path, tmp_path: Path) -> None:
    with pytest.raises(
        HspanError, match=r"x\.onnx: is no name for an engine; name a file that ends in \.plan"
    ):
        refit_engine(plan, load_onnx(plan.with_suffix(".onnx")), output=tmp_path / "x.onnx")


def test_weights_that_the_engine_lacks_are_named_as_far_as_a_line_takes_them(
    plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Refitter, "get_missing_weights", lambda _: ["a", "b", "c", "d"])
    with pytest.raises(
        HspanError, match="wants weights that the model does not have: a, b, c: TensorRT gives"
    ):
        refit_engine(plan, load_onnx(plan.with_suffix(".onnx")))


def test_an_engine_that_does_not_load_or_take_the_weights_is_refused(
    tensorrt: Release, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_onnx(plan.with_suffix(".onnx"))
    monkeypatch.setattr(OnnxParserRefitter, "refit_from_bytes", lambda *_: False)
    with pytest.raises(HspanError, match="does not take these weights: TensorRT gives no reason"):
        refit_engine(plan, model)
    tensorrt.can_deserialize = False
    with pytest.raises(HspanError, match="cannot be loaded: TensorRT gives no reason"):
        refit_engine(plan, model)


def test_the_new_manifest_is_of_the_new_weights(plan: Path) -> None:
    before = verify_manifest(plan)
    model = load_onnx(plan.with_suffix(".onnx"))
    for entry in model.metadata_props:
        if entry.key == "trt_hspan.source_sha256":
            entry.value = "d" * 64
    model.producer_version = "another"
    after = refit_engine(plan, model)
    assert (before.source_sha256, after.source_sha256) == ("c" * 64, "d" * 64)
    assert (after.plan_size_bytes, after.range_audit) == (plan.stat().st_size, None)
    assert after.created_utc.endswith("+00:00")
    assert "." not in after.created_utc


def test_quantized_networks_are_not_refittable(tensorrt: Release, plan: Path) -> None:
    """Their scales are measured for their weights."""
    assert tensorrt.built is not None
    spec = EngineSpec(
        onnx=plan.with_suffix(".onnx"),
        output=plan,
        precision="int8",
        flavor="tensorrt",
        attention="function",
        traits=TRAITS,
    )
    with pytest.raises(UsageError, match="--refittable: is for float networks"):
        build_engine(spec)


def test_tensorrt_rtx_refits_the_plugin_only_and_needs_a_gpu_to_build(
    tmp_path: Path, plugin_library: Path
) -> None:
    """*Measured* on 1.7.1, REFIT, STRIP_PLAN or REFIT_IDENTICAL: its compiler calls CUDA where weights may change."""
    network = write_attention_network(tmp_path / "net.onnx")

    def spec(**changes: Any) -> EngineSpec:
        return EngineSpec(
            onnx=network, output=tmp_path / "net.plan", flavor="tensorrt-rtx", traits=TRAITS, **changes
        )

    with pytest.raises(UsageError, match="--refittable: TensorRT-RTX cannot compile the function body"):
        build_engine(spec())
    if not tensorrt_api.gpu_architectures():
        with pytest.raises(HspanError, match=r"TensorRT built no engine.*; build it where there is a GPU"):
            build_engine(spec(attention="plugin", plugin=plugin_library))
