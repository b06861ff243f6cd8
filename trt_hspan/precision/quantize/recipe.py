"""The recipe: everything that turns a network into its quantized form, as YAML.

Numbers are written with all their digits, so the same source and recipe give the same bytes, on any machine and
without pictures.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import onnx
from onnx import helper, numpy_helper

from trt_hspan.errors import HspanError
from trt_hspan.files import error_from_os_error
from trt_hspan.graph import Precision, QuantizedType
from trt_hspan.graph.variants import finished_model
from trt_hspan.precision.quantize.insertion import LayerScales, model_with_qdq
from trt_hspan.precision.quantize.scales import scale_from_range, weight_scales
from trt_hspan.precision.quantize.source import Source
from trt_hspan.precision.quantize.table import CalibrationTable, flips_from_text
from trt_hspan.records import MistypedError, dataclass_from_json

RECIPE_FORMAT: Final = "trt-hspan recipe 1"
_AGAIN: Final = "make one with trt-hspan quantize"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Whether a layer is quantized, and why, in one phrase."""

    quantized: bool
    why: str


@dataclass(frozen=True, kw_only=True)
class RecipeLayer:
    """One layer that was considered.

    Args:
        name: of the node.
        type: "int8" or "fp8", or the type that it was left in.
        why: one phrase.
        scale: activation -> scale; empty for a layer that was left as it is.
        weight_scale: one for each output channel; empty likewise, and for layers without weights.
        rounding: weights that are not rounded to nearest, as `table.text_from_flips` writes them; empty: none.
    """

    name: str
    type: Literal["int8", "fp8", "fp32", "fp16", "bf16"]
    why: str
    scale: Mapping[str, float]
    weight_scale: tuple[float, ...]
    rounding: str


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole recipe.

    Args:
        format: `RECIPE_FORMAT`.
        model: file name or preset of the source, for people.
        model_sha256: of the graph in its base type: `Source.sha256`.
        precision: of the quantized layers.
        base, keep_fp32, res_scale: how the source becomes that graph, as `source_from_path` takes them.
        method: how ranges were chosen.
        calibration_sha256: of the calibration table.
        budget_db: the requested budget; None quantized every layer.
        loss_db, psnr_db: what was measured on held-out pictures, as in `Measurement`; None when nothing was.
        layers: every layer that was considered, in graph order.
    """

    format: str
    model: str
    model_sha256: str
    precision: QuantizedType
    base: Precision
    keep_fp32: tuple[str, ...]
    res_scale: float | None
    method: str
    calibration_sha256: str
    budget_db: float | None
    loss_db: float | None
    psnr_db: float | None
    layers: tuple[RecipeLayer, ...]

    def as_yaml(self) -> str:
        """The recipe as YAML: scalars first, then the layers."""
        import yaml

        document = dataclasses.asdict(self)
        document["layers"] = list(document["layers"])
        return yaml.dump(document, Dumper=_dumper(), sort_keys=False, width=110, allow_unicode=True)

    @property
    def sha256(self) -> str:
        """Hash of `as_yaml`."""
        return hashlib.sha256(self.as_yaml().encode()).hexdigest()

    @property
    def quantized(self) -> tuple[str, ...]:
        """Names of the layers that are quantized."""
        return tuple(layer.name for layer in self.layers if layer.type == self.precision)


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Reads a recipe.

    Raises:
        HspanError: missing, not YAML, or a key missing, unknown or mistyped.
    """
    import yaml

    source = Path(path)
    try:
        document = yaml.safe_load(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise error_from_os_error(source, error, action="read") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise HspanError(source, f"is not a recipe: malformed YAML ({error})", _AGAIN) from None
    if not isinstance(document, dict) or document.get("format") != RECIPE_FORMAT:
        raise HspanError(source, f"is not a recipe: its format is not {RECIPE_FORMAT!r}", _AGAIN)
    try:
        recipe = dataclass_from_json(document, Recipe)
    except MistypedError as error:
        raise HspanError(source, f"is not a recipe: {error}", _AGAIN) from None
    for layer in recipe.layers:
        for scale in (*layer.scale.values(), *layer.weight_scale):
            if not 0.0 < scale < math.inf:
                raise HspanError(source, f"a scale of {layer.name} is {scale}", "give positive numbers")
    return recipe


def new_recipe(
    source: Source,
    choices: Mapping[str, Choice],
    table: CalibrationTable,
    *,
    budget_db: float | None,
) -> Recipe:
    """The recipe that makes these choices, without measurement. Raises: HspanError: the table lacks a scale."""
    return Recipe(
        format=RECIPE_FORMAT,
        model=Path(source.where).name,
        model_sha256=source.sha256,
        precision=table.precision,
        base=source.precision,
        keep_fp32=source.keep_fp32,
        res_scale=source.metadata.res_scale,
        method=table.method,
        calibration_sha256=table.sha256,
        budget_db=budget_db,
        loss_db=None,
        psnr_db=None,
        layers=tuple(
            _recipe_layer(source, node, table, choices[node.name])
            for node in source.base.graph.node
            if node.name in choices
        ),
    )


def variant(source: Source, nodes: Sequence[onnx.NodeProto], table: CalibrationTable) -> onnx.ModelProto:
    """The base graph with just these layers quantized. Raises: HspanError as `new_recipe`."""
    choice = Choice(quantized=True, why="")
    layers = tuple(_recipe_layer(source, node, table, choice) for node in nodes)
    return graph_from_layers(source, layers, table.precision, where=source.where)


def _recipe_layer(
    source: Source, node: onnx.NodeProto, table: CalibrationTable, choice: Choice
) -> RecipeLayer:
    if not choice.quantized:
        return RecipeLayer(
            name=node.name, type=source.precision, why=choice.why, scale={}, weight_scale=(), rounding=""
        )
    weights = {tensor.name: tensor for tensor in source.base.graph.initializer}
    scales = {}
    for name in node.input:
        if not name or name in weights:
            continue
        if name not in table.tensors:
            raise HspanError(name, "has no range in the calibration table", "calibrate again")
        dtype = helper.tensor_dtype_to_np_dtype(source.types[name])
        try:
            scales[name] = scale_from_range(table.tensors[name].range, table.precision, dtype)
        except ValueError as error:
            raise HspanError(
                node.name, f"its input {name}: {error}", "exclude it, or give more pictures"
            ) from None
    per_channel: tuple[float, ...] = ()
    if node.op_type == "Conv":
        values = numpy_helper.to_array(weights[node.input[1]])
        per_channel = tuple(weight_scales(values, table.precision, values.dtype).tolist())
    return RecipeLayer(
        name=node.name,
        type=table.precision,
        why=choice.why,
        scale=scales,
        weight_scale=per_channel,
        rounding=table.rounding.get(node.name, ""),
    )


def model_from_recipe(
    source: Source, recipe: Recipe, *, where: object = "recipe", graph: onnx.ModelProto | None = None
) -> onnx.ModelProto:
    """The quantized model, function body and metadata included: the same bytes for the same source and recipe.

    Args:
        graph: of the recipe's layers, by `graph_from_layers`; None makes it.

    Raises:
        HspanError: the recipe is for another model, or does not fit it.
    """
    if recipe.model_sha256 != source.sha256:
        raise HspanError(
            where,
            f"is for another model: {recipe.model} {recipe.model_sha256[:12]}..., not {source.where} "
            f"{source.sha256[:12]}... in {source.precision}",
            "give the model that it is for, or quantize this one",
        )
    if graph is None:
        graph = graph_from_layers(source, recipe.layers, recipe.precision, where=where)
    metadata = dataclasses.replace(
        source.metadata,
        precision=recipe.precision,
        recipe_sha256=recipe.sha256,
        calibration_sha256=recipe.calibration_sha256,
    )
    return finished_model(graph, metadata, where)


def graph_from_layers(
    source: Source, layers: tuple[RecipeLayer, ...], kind: QuantizedType, *, where: object
) -> onnx.ModelProto:
    """The base graph with those of the layers quantized that are of this type. Raises: HspanError: one does not fit."""
    dims = {tensor.name: tuple(tensor.dims) for tensor in source.base.graph.initializer}
    shapes = {node.name: dims.get(node.input[1]) for node in source.base.graph.node if len(node.input) > 1}
    scales = {}
    for layer in layers:
        if layer.type != kind:
            continue
        flips = None
        if layer.rounding:
            if (shape := shapes.get(layer.name)) is None:
                raise HspanError(where, f"{layer.name} is no convolution of the model", "quantize it anew")
            flips = flips_from_text(layer.rounding, shape, f"{where}, {layer.name}")
        scales[layer.name] = LayerScales(
            activations=layer.scale, weight=layer.weight_scale or None, flips=flips
        )
    return model_with_qdq(source.base, scales, kind)


def _dumper() -> Any:
    import yaml

    class Dumper(yaml.SafeDumper):
        """Tuples as one-line lists."""

    def flow(dumper: Any, data: tuple[object, ...]) -> Any:
        return dumper.represent_sequence("tag:yaml.org,2002:seq", list(data), flow_style=True)

    Dumper.add_representer(tuple, flow)
    return Dumper
