"""From a network to what an engine is built from; the build itself is replaced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from support.small_networks import attention_network, write_attention_network

from trt_hspan.engine.build import PreparedModel
from trt_hspan.engine.spec import EngineSpec
from trt_hspan.errors import HspanError, UsageError
from trt_hspan.graph import (
    base_precision_from_model,
    load_onnx,
    metadata_from_model,
    model_in_precision,
    opset_of,
    save_onnx,
)
from trt_hspan.graph.precision import float32_nodes
from trt_hspan.native.progress import BuildProgress
from trt_hspan.precision import engine_job
from trt_hspan.precision.audit.range_request import RangeRequest
from trt_hspan.precision.engine_job import (
    EngineJob,
    build_from_network,
    default_engine_path,
    refit_from_network,
)
from trt_hspan.precision.quantize.insertion import LayerScales, model_with_qdq
from trt_hspan.precision.quantize.request import QuantizationJob, QuantizationRequest


@dataclass
class Builder:
    """Stands in for `build_engine`: prepares the model and reports two moments."""

    spec: EngineSpec | None = None
    prepared: PreparedModel | None = None
    shown: list[tuple[str, float, float]] = field(default_factory=list)

    def build(self, job: EngineJob) -> PreparedModel:
        build_from_network(job, on_progress=lambda *moment: self.shown.append(moment))
        assert self.prepared is not None
        return self.prepared

    def __call__(
        self,
        spec: EngineSpec,
        *,
        prepare: Callable[[], PreparedModel],
        on_progress: Callable[[BuildProgress], None],
    ) -> None:
        self.spec, self.prepared = spec, prepare()
        on_progress(BuildProgress(fraction=0.25, phase="tactics"))
        on_progress(BuildProgress(fraction=1.0, phase=""))


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Builder:
    builder = Builder()
    monkeypatch.setattr(engine_job, "build_engine", builder)
    return builder


@pytest.fixture
def float32_file(tmp_path: Path) -> Path:
    return write_attention_network(tmp_path / "net.onnx")


def job(network: Path, *, precision: Any = None, **options: Any) -> EngineJob:
    spec = EngineSpec(onnx=network, output=network.with_name("engine.plan"), precision=precision)
    return EngineJob(spec=spec, **options)


def test_a_file_is_built_as_it_is_unless_it_is_exported(builder: Builder, float32_file: Path) -> None:
    prepared = builder.build(job(float32_file, precision="fp16"))
    assert prepared.model == load_onnx(float32_file)
    assert (prepared.range_audit, dict(prepared.companions)) == (None, {})
    assert builder.shown == [
        (f"reading {float32_file}", 0, 0),
        ("building engine.plan: tactics", 0.25, 1.0),
        ("building engine.plan", 1.0, 1.0),
    ]


@pytest.mark.parametrize(("requested", "written"), [(None, "fp32"), ("fp16", "fp16"), ("bf16", "bf16")])
def test_an_exported_network_is_written_in_the_requested_type(
    builder: Builder, float32_file: Path, requested: str | None, written: str
) -> None:
    prepared = builder.build(job(float32_file, precision=requested, export=True))
    assert base_precision_from_model(prepared.model) == written
    assert metadata_from_model(prepared.model).precision == written
    assert builder.spec is not None
    assert builder.spec.precision == requested


def test_an_exported_network_keeps_nodes_in_float32_at_its_opset(builder: Builder, tmp_path: Path) -> None:
    save_onnx(attention_network(opset=18), tmp_path / "net.onnx")
    ranges = RangeRequest(keep_fp32=("conv1",))
    prepared = builder.build(
        job(tmp_path / "net.onnx", precision="fp16", export=True, ranges=ranges, opset=20)
    )
    assert float32_nodes(prepared.model) == ("conv1",)
    assert opset_of(prepared.model) == 20
    assert prepared.range_audit is None
    assert builder.spec is not None
    assert builder.spec.precision is None  # the engine says what the graph is


def test_ranges_are_audited_of_what_is_exported_and_of_what_is_not(
    builder: Builder, tmp_path: Path, photographs: Path
) -> None:
    ranges = RangeRequest(pictures=photographs, limit=1)
    for stored, export in (("fp32", True), ("fp16", True), ("fp16", False)):
        network = write_attention_network(tmp_path / f"{stored}.onnx", precision=stored)  # type: ignore[arg-type]
        prepared = builder.build(job(network, precision="fp16", export=export, ranges=ranges))
        assert prepared.range_audit is not None
        assert (prepared.range_audit.precision, prepared.range_audit.pictures) == ("fp16", 1)
        assert base_precision_from_model(prepared.model) == "fp16"


@pytest.mark.parametrize("export", [True, False])
def test_a_typed_file_takes_no_option_of_an_export(builder: Builder, tmp_path: Path, export: bool) -> None:
    network = write_attention_network(tmp_path / "net.onnx", precision="fp16")
    assert builder.build(job(network, export=export)).model == load_onnx(network)
    for options, option in (
        ({"ranges": RangeRequest(keep_fp32=("conv1",)), "opset": 20}, "--keep-fp32"),
        ({"opset": 20}, "--opset"),
    ):
        with pytest.raises(
            UsageError, match=rf"{option}: is part of \S*net\.onnx already; give an fp32 file"
        ):
            builder.build(job(network, export=export, **options))


def test_a_quantized_float32_file_is_built_as_it_is(builder: Builder, tmp_path: Path) -> None:
    scales = {"conv1": LayerScales(activations={"attention0": 0.5}, weight=(0.01,) * 8)}
    save_onnx(model_with_qdq(attention_network(), scales, "int8"), tmp_path / "net.onnx")
    prepared = builder.build(job(tmp_path / "net.onnx", export=True))
    assert prepared.model == load_onnx(tmp_path / "net.onnx")


def test_what_cannot_be_written_is_an_error_before_the_network_is_read(builder: Builder) -> None:
    gone = Path("gone.onnx")
    with pytest.raises(UsageError, match="--opset: 9 has no fp32"):
        build_from_network(job(gone, export=True, opset=9))
    with pytest.raises(UsageError, match="--opset: 20 has no bf16"):
        build_from_network(job(gone, precision="bf16", export=True, opset=20))
    with pytest.raises(UsageError, match="int8 needs pictures"):
        build_from_network(job(gone, precision="int8", export=True))
    assert builder.spec is None
    with pytest.raises(HspanError, match=r"gone\.onnx: no such file"):
        build_from_network(job(gone, opset=9))  # not exported: the file is asked first


def test_a_quantized_network_has_its_recipe_beside_it(
    builder: Builder, float32_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.ModelProto()
    recipe = SimpleNamespace(as_yaml=lambda: "the recipe")
    monkeypatch.setattr(
        engine_job,
        "quantized_network",
        lambda quantization, on_progress: SimpleNamespace(model=model, recipe=recipe, table=None),
    )
    request = QuantizationRequest(precision="int8", calibration="builtin")
    quantization = QuantizationJob(model=float32_file, how=request)
    ranges = RangeRequest(keep_fp32=("conv1",))
    prepared = builder.build(
        job(float32_file, precision="int8", quantization=quantization, export=True, ranges=ranges)
    )
    assert prepared.model is model
    assert dict(prepared.companions) == {".recipe.yaml": "the recipe"}
    assert builder.spec is not None
    assert builder.spec.precision == "int8"


@dataclass
class Refitted:
    """Stands in for an engine's manifest and `refit_engine`."""

    own: onnx.ModelProto
    model: onnx.ModelProto = field(default_factory=onnx.ModelProto)
    arguments: tuple[object, ...] = ()

    def install(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
        save_onnx(self.own, folder / "own.onnx")
        manifest = SimpleNamespace(
            onnx_file="own.onnx",
            base_precision=base_precision_from_model(self.own),
            traits=frozenset({"refittable"}),
        )
        monkeypatch.setattr(engine_job, "verify_manifest", lambda plan: manifest)
        monkeypatch.setattr(engine_job, "refit_engine", self)
        return folder / "engine.plan"

    def __call__(
        self, plan: Path, model: onnx.ModelProto, *, output: Path | None, plugin: Path | None
    ) -> Any:
        self.model, self.arguments = model, (plan, output, plugin)
        return self


@pytest.mark.parametrize("kept", [(), ("conv0", "conv1")])
@pytest.mark.parametrize("opset", [20, 22])
def test_other_weights_are_written_as_the_engines_own_model_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: tuple[str, ...], opset: int
) -> None:
    own = model_in_precision(attention_network(opset=18), "fp16", keep_fp32=kept)
    next(entry for entry in own.opset_import if not entry.domain).version = opset
    refitted = Refitted(own)
    plan = refitted.install(monkeypatch, tmp_path)
    save_onnx(attention_network(opset=18), tmp_path / "other.onnx")
    result = refit_from_network(plan, tmp_path / "other.onnx", output=Path("o.plan"), plugin=Path("p.so"))
    assert result is refitted  # type: ignore[comparison-overlap]
    assert refitted.arguments == (plan, Path("o.plan"), Path("p.so"))
    assert (opset_of(refitted.model), base_precision_from_model(refitted.model)) == (opset, "fp16")
    assert float32_nodes(refitted.model) == kept


def test_typed_weights_are_taken_as_they_are_and_of_another_type_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refitted = Refitted(model_in_precision(attention_network(), "fp16", keep_fp32=["conv1"]))
    plan = refitted.install(monkeypatch, tmp_path)
    fp16 = write_attention_network(tmp_path / "FP16.ONNX", precision="fp16")
    refit_from_network(plan, fp16)
    assert float32_nodes(refitted.model) == ()
    assert refitted.arguments == (plan, None, None)
    with pytest.raises(UsageError, match=r"--checkpoint: fp16, but \S*bf16\.onnx computes in bf16"):
        refit_from_network(plan, write_attention_network(tmp_path / "bf16.onnx", precision="bf16"))
    float32 = Refitted(attention_network())
    plan = float32.install(monkeypatch, tmp_path)
    refit_from_network(plan, write_attention_network(tmp_path / "fp32.onnx"))
    assert base_precision_from_model(float32.model) == "fp32"


@pytest.mark.parametrize(("network", "res_scale"), [("net.pt", 0.25), ("net.onnx", None), ("NET.ONNX", None)])
def test_a_checkpoint_has_the_factor_of_the_engines_own_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str, res_scale: float | None
) -> None:
    from trt_hspan.graph import OnnxMetadata, variants_from_model, with_metadata

    own = with_metadata(attention_network(), OnnxMetadata(res_scale=0.25))
    plan = Refitted(own).install(monkeypatch, tmp_path)
    asked: list[tuple[object, float | None]] = []

    def variants_from_path(name: object, *, res_scale: float | None) -> object:
        asked.append((name, res_scale))
        return variants_from_model(own, "net")

    monkeypatch.setattr(engine_job, "variants_from_path", variants_from_path)
    refit_from_network(plan, network)
    assert asked == [(network, res_scale)]


def test_an_engine_is_called_after_its_network_and_type(tmp_path: Path) -> None:
    path = write_attention_network(tmp_path / "net.onnx", precision="fp16")
    assert default_engine_path(path, None) == Path("engines/net_fp16.plan")
    assert default_engine_path(path, "int8") == Path("engines/net_int8.plan")
    assert default_engine_path(Path("gone.pt"), "bf16") == Path("engines/gone_bf16.plan")
    assert default_engine_path("hspan-tiny-x2", None) == Path("engines/hspan-tiny-x2_fp32.plan")
    model = attention_network()
    del model.graph.node[1]
    save_onnx(model, tmp_path / "plain.onnx")
    with pytest.raises(HspanError, match=r"plain\.onnx: contains no hspan::"):
        default_engine_path(tmp_path / "plain.onnx", None)
