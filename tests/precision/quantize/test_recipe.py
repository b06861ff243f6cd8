"""The recipe: reads back as written, makes the same bytes again, and fits one model only."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml
from support.export_cache import ExportCache
from support.small_networks import attention_network

from trt_hspan import HspanError
from trt_hspan.graph import metadata_from_model, variants_from_model
from trt_hspan.precision.quantize.pipeline import Quantized, write_quantized
from trt_hspan.precision.quantize.recipe import Choice, model_from_recipe, new_recipe, read_recipe
from trt_hspan.precision.quantize.source import Source, source_from_path, source_from_variants
from trt_hspan.precision.quantize.table import TABLE_FORMAT, CalibrationTable, TensorRange


def test_the_same_source_and_recipe_give_the_same_bytes(
    int8: Quantized, exported: ExportCache, tmp_path: Path
) -> None:
    model_file, recipe_file, table_file = write_quantized(int8, tmp_path / "net.onnx")
    assert table_file.name == "net.calibration.json"
    recipe = read_recipe(recipe_file)
    assert recipe == int8.recipe
    fresh = source_from_path(exported("small_x2"), base="fp16")
    again = model_from_recipe(fresh, recipe)
    assert again.SerializeToString(deterministic=True) == model_file.read_bytes()
    assert metadata_from_model(again).recipe_sha256 == recipe.sha256
    assert metadata_from_model(again).calibration_sha256 == recipe.calibration_sha256


def test_the_recipe_reads_well(int8: Quantized) -> None:
    document = yaml.safe_load(int8.recipe.as_yaml())
    assert list(document)[:2] == ["format", "model"]
    layer = next(entry for entry in document["layers"] if entry["name"] == "body.0.body.0.body.0/Conv")
    assert layer["type"] == "int8"
    assert layer["why"]
    assert all(isinstance(scale, float) for scale in layer["scale"].values())


@pytest.mark.parametrize("scale", [1.5e-05, 1e-05, 2.5e-300, 1.0, 1e16, 1.7e308])
def test_scales_of_any_size_read_back_as_they_were(int8: Quantized, tmp_path: Path, scale: float) -> None:
    """YAML 1.1 takes 1e-05, without a point, for text."""
    layer = dataclasses.replace(int8.recipe.layers[0], scale={"input": scale}, weight_scale=(scale, 0.5))
    recipe = dataclasses.replace(int8.recipe, layers=(layer,), budget_db=scale)
    (tmp_path / "r.yaml").write_text(recipe.as_yaml())
    assert read_recipe(tmp_path / "r.yaml") == recipe


@pytest.mark.parametrize("text", ["1.5e-05", "'1.5e-05'", "1e-05", "-1.0", "0.0", ".nan", ".inf"])
def test_scales_that_are_edited_by_hand_are_numbers_above_zero(
    int8: Quantized, tmp_path: Path, text: str
) -> None:
    layer = dataclasses.replace(int8.recipe.layers[0], scale={"input": 0.125}, weight_scale=())
    recipe = dataclasses.replace(int8.recipe, layers=(layer,))
    (tmp_path / "r.yaml").write_text(recipe.as_yaml().replace("0.125", text))
    if text == "1.5e-05":
        assert read_recipe(tmp_path / "r.yaml").layers[0].scale == {"input": 1.5e-05}
    else:
        with pytest.raises(HspanError, match="scale"):
            read_recipe(tmp_path / "r.yaml")


def test_an_edited_scale_changes_the_model_and_its_hash(int8: Quantized, source: Source) -> None:
    layers = list(int8.recipe.layers)
    name = next(iter(layers[0].scale))
    layers[0] = dataclasses.replace(layers[0], scale={name: 2.0 * layers[0].scale[name]})
    edited = dataclasses.replace(int8.recipe, layers=tuple(layers))
    assert edited.sha256 != int8.recipe.sha256
    assert model_from_recipe(source, edited) != int8.model


def test_a_layer_that_is_set_to_the_base_type_is_not_quantized(int8: Quantized, source: Source) -> None:
    layers = [dataclasses.replace(layer, type="fp16") for layer in int8.recipe.layers[:1]]
    edited = dataclasses.replace(int8.recipe, layers=(*layers, *int8.recipe.layers[1:]))
    model = model_from_recipe(source, edited)
    node = next(node for node in model.graph.node if node.name == layers[0].name)
    assert not node.input[1].endswith("_dequantized")


def test_a_recipe_for_another_model_is_refused(int8: Quantized, exported: ExportCache) -> None:
    for other in (
        source_from_path(exported("small_x3"), base="fp16"),
        source_from_path(exported("small_x2"), base="bf16"),
    ):
        with pytest.raises(
            HspanError, match=r"net\.yaml: is for another model: small_x2.*; give the model"
        ) as caught:
            model_from_recipe(other, int8.recipe, where="net.yaml")
        assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_as_text_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(HspanError, match=r"gone\.yaml: no such file"):
        read_recipe(tmp_path / "gone.yaml")
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(HspanError, match=r"r\.yaml: is not a recipe: malformed YAML"):
        read_recipe(tmp_path / "r.yaml")


def small() -> Source:
    return source_from_variants(
        variants_from_model(attention_network(blocks=2, opset=18), "folder/größe.onnx")
    )


def table(**ranges: float) -> CalibrationTable:
    return CalibrationTable(
        format=TABLE_FORMAT,
        model_sha256=small().sha256,
        precision="int8",
        method="minmax",
        pictures=1,
        tiles=1,
        pictures_sha256="0" * 64,
        tensors={name: TensorRange(min=0.0, max=reach, range=reach) for name, reach in ranges.items()},
        rounding={},
    )


def test_a_recipe_says_of_every_layer_what_it_is_and_why() -> None:
    choices = {
        "conv2": Choice(quantized=True, why="is fast"),
        "conv1": Choice(quantized=False, why="is fine"),
        "attention1": Choice(quantized=True, why="was requested"),
    }
    recipe = new_recipe(small(), choices, table(attention1=254.0, conv1=127.0), budget_db=0.25)
    attention, conv1, conv2 = sorted(recipe.layers, key=lambda layer: layer.name)
    assert [layer.name for layer in recipe.layers] == ["conv1", "attention1", "conv2"]
    assert (conv1.type, conv1.why, dict(conv1.scale), conv1.weight_scale) == ("fp16", "is fine", {}, ())
    assert (attention.type, dict(attention.scale), attention.weight_scale) == ("int8", {"conv1": 1.0}, ())
    assert (conv2.type, conv2.why, dict(conv2.scale)) == ("int8", "is fast", {"attention1": 2.0})
    assert len(conv2.weight_scale) == 8
    assert recipe.quantized == ("attention1", "conv2")
    assert (recipe.model, recipe.budget_db, recipe.loss_db, recipe.psnr_db) == (
        "größe.onnx",
        0.25,
        None,
        None,
    )
    text = recipe.as_yaml()
    assert "größe" in text
    assert "weight_scale: [" in text


def test_a_layer_without_a_range_or_with_one_that_has_no_scale_is_named() -> None:
    choices = {"conv2": Choice(quantized=True, why="")}
    with pytest.raises(
        HspanError, match="attention1: has no range in the calibration table; calibrate again"
    ):
        new_recipe(small(), choices, table(conv1=1.0), budget_db=None)
    with pytest.raises(
        HspanError, match="conv2: its input attention1: a range of 1e-08 has no int8 scale in float16"
    ):
        new_recipe(small(), choices, table(attention1=1e-8), budget_db=None)


def test_a_recipe_of_another_model_is_called_a_recipe_where_it_has_no_file(int8: Quantized) -> None:
    with pytest.raises(HspanError, match="recipe: is for another model"):
        model_from_recipe(small(), int8.recipe)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: text[: len(text) // 2] + "\n\t- [", "malformed YAML"),
        (lambda _: "", "its format is not"),
        (lambda _: "- 1\n- 2\n", "its format is not"),
        (lambda text: text.replace("trt-hspan recipe 1", "trt-hspan recipe 9"), "its format is not"),
        (lambda text: text.replace("base: fp16", "base: fp64"), "base is 'fp64', expected one of"),
        (lambda text: text.replace("precision:", "precison:"), "the key precision is missing"),
        (lambda text: text.replace("  type: int8", "  type: int4", 1), "expected one of int8, fp8"),
        (lambda text: text.replace("relu: ", "relu: -", 1), "a scale of body.0.body.0.body.2/Conv is -"),
        (lambda text: text.replace("    relu: ", "    gone: ", 1), "its scales are for gone"),
        (
            lambda text: text.replace("body.0.body.0.body.0/Conv", "gone/Conv"),
            "gone/Conv is no convolution of the",
        ),
        (lambda text: text.replace("rounding: ", "rounding: A", 1), "its rounding is damaged"),
        (
            lambda text: text.replace("weight_scale: [", "weight_scale: [-", 1),
            "a scale of body.0.body.0.body.0/Conv is -",
        ),
        (lambda _: "[" * 1000, "malformed YAML"),
    ],
)
def test_a_recipe_that_does_not_serve_is_one_error_line(
    int8: Quantized, source: Source, tmp_path: Path, spoil: object, message: str
) -> None:
    path = tmp_path / "net.yaml"
    assert callable(spoil)
    path.write_text(spoil(int8.recipe.as_yaml()))
    with pytest.raises(HspanError) as caught:
        model_from_recipe(source, read_recipe(path), where=path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
