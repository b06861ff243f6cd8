"""From a request to a quantized model: what is measured, reported, chosen and written, on a network of four layers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper
from support.quantization_plan import PLAN
from support.small_networks import attention_network, write_attention_network

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.graph import metadata_from_model, variants_from_model
from trt_hspan.precision.quantize.pipeline import (
    QuantizationRequest,
    Quantized,
    companion_texts,
    network_sensitivity,
    quantize,
    quantized_network,
    write_quantized,
)
from trt_hspan.precision.quantize.request import QuantizationJob, RecipeFile
from trt_hspan.precision.quantize.source import Source, graph_sha256, source_from_variants

Progress = list[tuple[str, float, float]]


@pytest.fixture(scope="module")
def network() -> Source:
    """conv0, two attention nodes with conv1 and conv2 behind them, conv3; conv1 and conv2 are quantized by default."""
    return source_from_variants(variants_from_model(attention_network(blocks=2, opset=18), "folder/net.onnx"))


def request(folder: Path, **options: Any) -> QuantizationRequest:
    fixed: dict[str, Any] = {
        "precision": "int8",
        "calibration": str(folder),
        "tiles": PLAN,
        "use_cache": False,
    }
    return QuantizationRequest(**{**fixed, **options})


def choices(quantized: Quantized) -> dict[str, tuple[str, str]]:
    return {layer.name: (layer.type, layer.why) for layer in quantized.recipe.layers}


def test_without_held_out_pictures_everything_is_quantized_and_nothing_measured(
    network: Source, photographs: Path
) -> None:
    shown: Progress = []
    result = quantize(network, request(photographs), on_progress=lambda *moment: shown.append(moment))
    assert choices(result) == dict.fromkeys(("conv1", "conv2"), ("int8", "no budget was set"))
    assert (result.measurement, result.recipe.loss_db, result.recipe.psnr_db) == (None, None, None)
    assert not result.calibration_was_cached
    assert result.table is not None
    assert (result.table.method, result.table.pictures, result.table.tiles) == ("mse", 6, 6)
    assert set(result.table.rounding) == {
        "conv1",
        "conv2",
    }  # INT8 is rounded adaptively unless asked not to be
    assert shown == [("calibrating", step, 12) for step in range(13)]
    assert (result.facts.convolutions, result.facts.quantized_convolutions) == (4, 2)
    recipe = result.recipe
    assert (recipe.model, recipe.base, recipe.method, recipe.budget_db) == ("net.onnx", "fp16", "mse", None)
    assert recipe.quantized == ("conv1", "conv2")


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"rounding": "nearest"}, 12),
        ({"rounding": "nearest", "method": "minmax"}, 6),
        ({"rounding": "adaptive", "method": "minmax"}, 12),
        ({"precision": "fp8"}, 12),
        ({"precision": "fp8", "method": "minmax"}, 6),
    ],
)
def test_tiles_are_passed_as_often_as_the_method_and_the_rounding_need(
    network: Source, photographs: Path, options: dict[str, Any], steps: int
) -> None:
    shown: Progress = []
    result = quantize(network, request(photographs, **options), on_progress=lambda *each: shown.append(each))
    assert shown[-1] == ("calibrating", steps, steps)
    assert result.table is not None
    assert bool(result.table.rounding) is (
        options["rounding"] == "adaptive" if "rounding" in options else False
    )


def test_held_out_pictures_without_a_budget_are_measured_on(network: Source, photographs: Path) -> None:
    shown: Progress = []
    wanted = request(photographs, held_out=str(photographs), include=("conv0",))
    result = quantize(network, wanted, on_progress=lambda *moment: shown.append(moment))
    assert choices(result) == {
        "conv0": ("int8", "was requested"),
        **dict.fromkeys(("conv1", "conv2"), ("int8", "no budget was set")),
    }
    assert result.measurement is not None
    assert result.measurement.loss_db is not None
    assert (result.recipe.loss_db, result.recipe.psnr_db) == (
        result.measurement.loss_db,
        result.measurement.psnr_db,
    )
    assert result.table is not None
    assert result.table.pictures == 6
    assert [each for each in shown if each[0] != "calibrating"] == [
        ("float32 on held-out pictures", step, 6) for step in range(7)
    ]


def test_a_budget_holds_out_every_fourth_picture_and_chooses_layers(
    network: Source, photographs: Path
) -> None:
    shown: Progress = []
    wanted = request(photographs, budget_db=50.0)
    result = quantize(network, wanted, on_progress=lambda *moment: shown.append(moment))
    assert result.table is not None
    assert result.table.pictures == 5
    assert result.measurement is not None
    why = f"with every layer in INT8 the loss is {result.measurement.loss_db:.4f} dB"
    assert choices(result) == dict.fromkeys(("conv1", "conv2"), ("int8", why))
    assert (result.recipe.budget_db, result.recipe.loss_db) == (50.0, result.measurement.loss_db)
    assert shown[-1] == ("everything quantized", 0, 1)


def test_a_layer_without_input_keeps_its_type_and_a_network_of_such_layers_is_refused(
    network: Source, photographs: Path
) -> None:
    def with_zeros(*layers: str) -> Source:
        model = attention_network(blocks=2, opset=18)
        for weight in model.graph.initializer:
            if weight.name.split(".")[0] in layers:
                weight.CopyFrom(
                    numpy_helper.from_array(np.zeros(tuple(weight.dims), np.float32), weight.name)
                )
        return source_from_variants(variants_from_model(model, "net.onnx"))

    result = quantize(with_zeros("conv1"), request(photographs, method="minmax"))
    assert choices(result) == {
        "conv1": ("int8", "no budget was set"),
        "conv2": ("fp16", "its input was 0 on all calibration pictures"),
    }
    with pytest.raises(HspanError, match=r"net\.onnx: every layer's input was 0 on the calibration pictures"):
        quantize(with_zeros("conv0"), request(photographs, method="minmax"))
    only_attention = request(photographs, include=("attention1",), exclude=("conv*",))
    with pytest.raises(HspanError, match=r"net\.onnx: quantizes no convolution; exclude fewer"):
        quantize(network, only_attention)


def test_a_table_is_kept_from_one_run_to_the_next(network: Source, photographs: Path, tmp_path: Path) -> None:
    first = quantize(network, request(photographs, use_cache=True))
    second = quantize(network, request(photographs, use_cache=True))
    assert (first.calibration_was_cached, second.calibration_was_cached) == (False, True)
    assert second.model == first.model
    _, _, table = write_quantized(first, tmp_path / "net.onnx")
    assert table.name == "net.calibration.json"
    by_table = quantize(network, QuantizationRequest(precision="int8", table=table))
    assert (by_table.calibration_was_cached, by_table.model) == (True, first.model)


def test_a_job_reads_its_network_and_quantizes_it(photographs: Path, tmp_path: Path) -> None:
    path = write_attention_network(tmp_path / "net.onnx", blocks=2)
    shown: Progress = []
    job = QuantizationJob(model=path, how=request(photographs), base="bf16", keep_fp32=("conv3",))
    result = quantized_network(job, on_progress=lambda *moment: shown.append(moment))
    assert shown[:2] == [(f"reading {path}", 0, 0), ("calibrating", 0, 12)]
    assert (result.recipe.base, result.recipe.keep_fp32) == ("bf16", ("conv3",))
    assert metadata_from_model(result.model).precision == "int8"

    recipe_file = write_quantized(result, tmp_path / "int8.onnx")[1]
    by_recipe = QuantizationJob(model=path, how=RecipeFile(path=recipe_file, recipe=result.recipe))
    assert by_recipe.how.precision == "int8"
    again = quantized_network(by_recipe)
    assert again.model == result.model
    assert (again.table, again.measurement, again.calibration_was_cached) == (None, None, False)
    assert list(companion_texts(again)) == [".recipe.yaml"]
    assert [each.name for each in write_quantized(again, tmp_path / "again.onnx")] == [
        "again.onnx",
        "again.recipe.yaml",
    ]

    nothing = replace(
        result.recipe, layers=tuple(replace(each, type="bf16") for each in result.recipe.layers)
    )
    with pytest.raises(
        HspanError, match=r"r\.yaml: quantizes no convolution; make one with trt-hspan quantize"
    ):
        quantized_network(QuantizationJob(model=path, how=RecipeFile(path=Path("r.yaml"), recipe=nothing)))


def test_a_recipe_fits_the_typed_file_that_it_was_made_from(photographs: Path, tmp_path: Path) -> None:
    path = write_attention_network(tmp_path / "net.onnx", precision="fp16", blocks=2)
    result = quantized_network(QuantizationJob(model=path, how=request(photographs)))
    followed = QuantizationJob(model=path, how=RecipeFile(path=Path("r.yaml"), recipe=result.recipe))
    assert quantized_network(followed).model == result.model
    other = write_attention_network(tmp_path / "other.onnx", precision="bf16", blocks=2)
    with pytest.raises(
        HspanError, match=r"r\.yaml: is for another model: net\.onnx .* in bf16; give the model"
    ):
        quantized_network(replace(followed, model=other))


@pytest.mark.parametrize(
    ("model", "asked", "expected"),
    [("net.pt", None, 0.25), ("net.pt", 0.5, 0.5), ("NET.ONNX", None, None), ("net.plan", None, None)],
)
def test_the_factor_of_a_checkpoint_is_that_of_the_recipe_unless_it_is_named(
    network: Source,
    photographs: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    asked: float | None,
    expected: float | None,
) -> None:
    from trt_hspan.precision.quantize import pipeline

    result = quantize(network, request(photographs, method="minmax"))
    factors: list[float | None] = []

    def variants_from_path(_: object, *, res_scale: float | None) -> object:
        factors.append(res_scale)
        return variants_from_model(attention_network(blocks=2, opset=18), "net")

    monkeypatch.setattr(pipeline, "variants_from_path", variants_from_path)
    recipe = RecipeFile(path=Path("r.yaml"), recipe=replace(result.recipe, res_scale=0.25))
    quantized_network(QuantizationJob(model=model, how=recipe, res_scale=asked))
    quantized_network(QuantizationJob(model=model, how=request(photographs), res_scale=asked))
    assert factors == [expected, asked]


def test_pictures_and_tables_are_looked_for_before_the_network_is_read(
    photographs: Path, tmp_path: Path
) -> None:
    for options, name in (
        ({"calibration": "gone_a"}, "gone_a"),
        ({"held_out": "gone_b"}, "gone_b"),
        ({"table": tmp_path / "gone_c"}, "gone_c"),
    ):
        job = QuantizationJob(model="gone.onnx", how=request(photographs, **options))
        for run in (quantized_network, network_sensitivity):
            with pytest.raises(HspanError, match=f"{name}: no such"):
                run(job)


def test_sensitivity_is_measured_on_every_fourth_picture(photographs: Path, tmp_path: Path) -> None:
    path = write_attention_network(tmp_path / "net.onnx", blocks=2)
    shown: Progress = []
    report = network_sensitivity(
        QuantizationJob(model=path, how=request(photographs)), on_progress=lambda *each: shown.append(each)
    )
    assert {layer.name for layer in report.layers} == {"conv1", "conv2"}
    assert (report.tiles, report.precision, report.base_precision) == (6, "int8", "fp16")
    assert [layer.loss_db for layer in report.layers] == [None, None]  # the pictures have no ground truth
    assert shown[-1] == ("measuring", 2, 2)
    assert ("calibrating", 20, 20) in shown
    report = network_sensitivity(
        QuantizationJob(model=path, how=request(photographs, held_out=str(photographs)))
    )
    assert report.tiles == 6


def test_a_quantized_network_and_one_without_a_scale_have_no_source(photographs: Path) -> None:
    network = variants_from_model(attention_network(blocks=2, opset=18), "net.onnx")
    quantized = quantize(source_from_variants(network), request(photographs, method="minmax"))
    with pytest.raises(
        HspanError, match=r"int8\.onnx: is quantized already; give the model that it comes from"
    ):
        source_from_variants(variants_from_model(quantized.model, "int8.onnx"))
    unscaled = replace(network, metadata=replace(network.metadata, scale=None))
    with pytest.raises(HspanError, match=r"net\.onnx: its output is no whole multiple of its input"):
        source_from_variants(unscaled)
    typed = variants_from_model(attention_network(precision="bf16"), "net.onnx")
    assert source_from_variants(typed).precision == "bf16"
    with pytest.raises(UsageError, match=r"--base: fp16, but net\.onnx computes in bf16"):
        source_from_variants(typed, base="fp16")


def test_a_graphs_hash_follows_its_nodes_and_weights_and_opset_alone() -> None:
    model = attention_network(blocks=2, opset=18)
    expected = graph_sha256(model)
    described = attention_network(blocks=2, opset=18)
    del described.metadata_props[:], described.functions[:], described.graph.value_info[:]
    del described.opset_import[1]
    described.graph.name = "other"
    assert graph_sha256(described) == expected
    for spoil in range(3):
        other = attention_network(blocks=2, opset=18)
        if spoil == 0:
            other.graph.node[0].name = "other"
        elif spoil == 1:
            other.graph.initializer[0].raw_data = b"\0" * len(other.graph.initializer[0].raw_data)
        else:
            next(entry for entry in other.opset_import if not entry.domain).version = 19
        assert graph_sha256(other) != expected
