"""From a source and a request to a quantized model: calibrate, choose layers, write the recipe, apply it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from trt_hspan.errors import HspanError
from trt_hspan.files import staged_files
from trt_hspan.graph import QuantizationFacts, quantization_from_model
from trt_hspan.precision.crops import Crops, calibration_crops, check_place
from trt_hspan.precision.network import OnProgress, no_progress, variants_from_path
from trt_hspan.precision.quantize import calibration
from trt_hspan.precision.quantize.budget import choose_layers
from trt_hspan.precision.quantize.layers import layers_to_quantize
from trt_hspan.precision.quantize.measure import HeldOut, Measurement
from trt_hspan.precision.quantize.recipe import (
    Choice,
    Recipe,
    graph_from_layers,
    model_from_recipe,
    new_recipe,
)
from trt_hspan.precision.quantize.request import QuantizationJob, QuantizationRequest, RecipeFile
from trt_hspan.precision.quantize.sensitivity import SensitivityReport, sensitivity_report
from trt_hspan.precision.quantize.source import Source, source_from_variants
from trt_hspan.precision.quantize.table import CalibrationTable, Method, cached_table, read_table

DEFAULT_METHOD: Method = "mse"
_DEAD = Choice(quantized=False, why="its input was 0 on all calibration pictures")


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """A quantized model and where it comes from.

    Attributes:
        model: with function body and metadata.
        recipe: that makes it from its source.
        table: behind its scales; None when it follows a recipe.
        facts: what is quantized.
        measurement: on held-out tiles; None when there were none.
        calibration_was_cached: nothing was measured anew.
    """

    model: onnx.ModelProto
    recipe: Recipe
    table: CalibrationTable | None
    facts: QuantizationFacts
    measurement: Measurement | None = None
    calibration_was_cached: bool = False


def quantized_network(job: QuantizationJob, *, on_progress: OnProgress = no_progress) -> Quantized:
    """Reads or exports the network, and quantizes it.

    Raises:
        UsageError, HspanError: as `variants_from_path` and `quantize`; a recipe is for another model or leaves no
            convolution quantized.
    """
    if isinstance(job.how, QuantizationRequest):
        table = _named_table(job.how)
        return _quantized(_source(job, on_progress), job.how, table, on_progress)
    source = _source(job, on_progress)
    return _by_recipe(source, job.how.recipe, job.how.path, "make one with trt-hspan quantize")


def network_sensitivity(job: QuantizationJob, *, on_progress: OnProgress = no_progress) -> SensitivityReport:
    """Reads or exports the network, and measures what each layer costs when only it is quantized, on held-out pictures.

    Without `held_out`, every fourth picture of the calibration's is held out. Pictures that come without ground
    truth are inputs of the network, and the report has no loss then; shipped photographs have it.

    Raises:
        UsageError, HspanError: as `quantized_network`.
    """
    assert isinstance(job.how, QuantizationRequest), "a recipe has chosen its layers"
    table = _named_table(job.how)
    source = _source(job, on_progress)
    calibrated = _calibrated(source, job.how, table, on_progress, hold_out=True, need_truth=False)
    assert calibrated.held_out is not None
    on_layer = _counted(on_progress, "measuring", len(calibrated.alive))
    return sensitivity_report(
        source, calibrated.alive, calibrated.table, calibrated.held_out, on_layer=on_layer
    )


def quantize(
    source: Source, request: QuantizationRequest, *, on_progress: OnProgress = no_progress
) -> Quantized:
    """Quantizes a network.

    Example:
        >>> import trt_hspan
        >>> from trt_hspan.precision.crops import TilePlan
        >>> from trt_hspan.precision.quantize.pipeline import QuantizationRequest, quantize
        >>> from trt_hspan.precision.quantize.source import source_from_path
        >>> source = source_from_path(trt_hspan.export_onnx("hspan-tiny-x2", "tiny.onnx"))
        >>> tiles = TilePlan(count=2, side=16)
        >>> request = QuantizationRequest(precision="int8", calibration="builtin", method="minmax", tiles=tiles)
        >>> result = quantize(source, request)
        >>> result.facts.type, result.recipe.base
        ('int8', 'fp16')

    Args:
        source: the network in its base type.
        request: what to quantize, and the pictures to measure on.
        on_progress: called as the work goes on.

    Raises:
        UsageError: a pattern matches nothing.
        HspanError: pictures, table or budget do not serve; see the modules that do the work.
    """
    return _quantized(source, request, _named_table(request), on_progress)


def write_quantized(quantized: Quantized, target: Path) -> list[Path]:
    """Writes NAME.onnx, NAME.recipe.yaml and, where there is one, NAME.calibration.json: all or none.

    Returns:
        The written files, the model first.

    Raises:
        HspanError: the folder cannot be written.
    """
    texts = companion_texts(quantized)
    paths = [target, *(target.with_suffix(suffix) for suffix in texts)]
    with staged_files(paths) as (model_file, *others):
        model_file.write_bytes(quantized.model.SerializeToString(deterministic=True))
        for path, text in zip(others, texts.values(), strict=True):
            path.write_text(text, encoding="utf-8")
    return paths


def companion_texts(quantized: Quantized) -> dict[str, str]:
    """Suffix -> text of what lies beside a quantized model."""
    texts = {".recipe.yaml": quantized.recipe.as_yaml()}
    if quantized.table is not None:
        texts[".calibration.json"] = quantized.table.as_json()
    return texts


def _named_table(request: QuantizationRequest) -> CalibrationTable | None:
    """The table, and a look for the pictures; before the network is read, since an export takes its time."""
    for place in (request.calibration, request.held_out):
        if place is not None:
            check_place(place)
    return None if request.table is None else read_table(request.table)


def _quantized(
    source: Source, request: QuantizationRequest, table: CalibrationTable | None, on_progress: OnProgress
) -> Quantized:
    hold_out = request.held_out is not None or request.budget_db is not None
    calibrated = _calibrated(source, request, table, on_progress, hold_out=hold_out, need_truth=True)
    table, held_out, alive = calibrated.table, calibrated.held_out, calibrated.alive
    choices = {node.name: _DEAD for node in calibrated.nodes if table.is_dead(node)}
    measurement = None
    if held_out is not None and request.budget_db is not None:
        chosen, measurement = choose_layers(
            source, alive, table, held_out, request.budget_db, on_step=on_progress
        )
        choices |= chosen
    for node in alive:
        why = "was requested" if node.name in request.include else "no budget was set"
        choices.setdefault(node.name, Choice(quantized=True, why=why))
    recipe = new_recipe(source, choices, table, budget_db=request.budget_db)
    graph = graph_from_layers(source, recipe.layers, recipe.precision, where=source.where)
    if held_out is not None:
        measurement = measurement or held_out.measure(graph)
        recipe = replace(recipe, loss_db=measurement.loss_db, psnr_db=measurement.psnr_db)
    quantized = _by_recipe(source, recipe, source.where, "exclude fewer", graph=graph)
    return replace(
        quantized, table=table, measurement=measurement, calibration_was_cached=calibrated.was_cached
    )


def _by_recipe(
    source: Source, recipe: Recipe, where: object, next_step: str, *, graph: onnx.ModelProto | None = None
) -> Quantized:
    model = model_from_recipe(source, recipe, where=where, graph=graph)
    facts = quantization_from_model(model)
    if facts is None:
        raise HspanError(where, "quantizes no convolution", next_step)
    return Quantized(model=model, recipe=recipe, table=None, facts=facts)


def _source(job: QuantizationJob, on_progress: OnProgress) -> Source:
    base, keep_fp32, res_scale = job.base, job.keep_fp32, job.res_scale
    if isinstance(job.how, RecipeFile):
        recipe = job.how.recipe
        base, keep_fp32 = recipe.base, recipe.keep_fp32
        if res_scale is None and Path(job.model).suffix.lower() not in (".onnx", ".plan"):
            res_scale = recipe.res_scale
    on_progress(f"reading {job.model}", 0, 0)
    network = variants_from_path(job.model, res_scale=res_scale)
    if isinstance(job.how, RecipeFile) and network.stored != "fp32":
        return source_from_variants(network)  # as it is; its hash says whether it is the recipe's
    return source_from_variants(network, base=base, keep_fp32=keep_fp32)


@dataclass(frozen=True, kw_only=True)
class _Calibrated:
    """Layers to quantize, those of them that have a scale, their ranges, and what a variant is measured on."""

    nodes: list[onnx.NodeProto]
    alive: list[onnx.NodeProto]
    table: CalibrationTable
    was_cached: bool
    held_out: HeldOut | None


def _calibrated(
    source: Source,
    request: QuantizationRequest,
    table: CalibrationTable | None,
    on_progress: OnProgress,
    *,
    hold_out: bool,
    need_truth: bool,
) -> _Calibrated:
    nodes = layers_to_quantize(source.base, include=request.include, exclude=request.exclude)
    tiles, measured = calibration_crops(
        request.calibration,
        request.held_out,
        request.tiles,
        source.scale,
        source.sizes,
        hold_out=hold_out,
        need_truth=need_truth,
    )
    was_cached = table is not None
    if table is not None:
        _check_table(table, source, request)
    else:
        table, was_cached = measured_table(source, nodes, tiles, request, on_progress)
    alive = [node for node in nodes if not table.is_dead(node)]
    if not alive:
        raise HspanError(source.where, "every layer's input was 0 on the calibration pictures", "give others")
    held_out = None
    if measured.count:
        on_tile = _counted(on_progress, "float32 on held-out pictures", measured.count)
        held_out = HeldOut(source.reference, measured, where=source.where, on_tile=on_tile)
    return _Calibrated(nodes=nodes, alive=alive, table=table, was_cached=was_cached, held_out=held_out)


def _check_table(table: CalibrationTable, source: Source, request: QuantizationRequest) -> None:
    if table.model_sha256 != source.sha256:
        raise HspanError(
            request.table,
            f"is for another model ({table.model_sha256[:12]}..., not {source.sha256[:12]}...)",
            "calibrate again with --calibration",
        )
    if table.precision != request.precision:
        raise HspanError(
            request.table, f"contains {table.precision} ranges", f"add --precision {table.precision}"
        )


def measured_table(
    source: Source,
    nodes: Sequence[onnx.NodeProto],
    tiles: Crops,
    request: QuantizationRequest,
    on_progress: OnProgress = no_progress,
) -> tuple[CalibrationTable, bool]:
    """The table of these tiles, measured or from the cache, and whether it is from there. Raises: HspanError."""
    method = request.method or DEFAULT_METHOD
    adaptive = request.precision == "int8" and request.rounding != "nearest"

    def measure() -> CalibrationTable:
        total = tiles.count * calibration.passes(method, request.precision, adaptive_rounding=adaptive)
        return calibration.calibrate(
            source.base,
            nodes,
            tiles,
            kind=request.precision,
            method=method,
            adaptive_rounding=adaptive,
            model_sha256=source.sha256,
            on_tile=_counted(on_progress, "calibrating", total),
        )

    if not request.use_cache:
        return measure(), False
    names = [node.name for node in nodes]
    return cached_table([source.sha256, tiles.sha256, request.precision, method, adaptive, names], measure)


def _counted(on_progress: OnProgress, what: str, total: int) -> Callable[[], None]:
    """Each call reports one more step."""
    on_progress(what, 0, total)
    steps = itertools.count(1)
    return lambda: on_progress(what, next(steps), total)
