"""From a file to its quantized network in one call: by a request, or exactly as a recipe says."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from trt_hspan.graph import Precision, QuantizedType
from trt_hspan.precision.network import OnProgress, no_progress, variants_from_path
from trt_hspan.precision.quantize.pipeline import (
    QuantizationRequest,
    Quantized,
    check_places,
    measure_sensitivity,
    quantize,
    quantize_by_recipe,
)
from trt_hspan.precision.quantize.recipe import Recipe, read_recipe
from trt_hspan.precision.quantize.sensitivity import SensitivityReport
from trt_hspan.precision.quantize.source import Source, source_from_variants


@dataclass(frozen=True, kw_only=True)
class RecipeFile:
    """A recipe, and the file that errors about it name."""

    path: Path
    recipe: Recipe

    @property
    def precision(self) -> QuantizedType:
        """Of the quantized layers."""
        return self.recipe.precision


def recipe_from_file(path: Path) -> RecipeFile:
    """Raises: HspanError as `read_recipe`."""
    return RecipeFile(path=path, recipe=read_recipe(path))


@dataclass(frozen=True, kw_only=True)
class QuantizationJob:
    """A network that is to be quantized.

    Args:
        model: an ONNX file, a checkpoint file or a preset.
        how: what to measure, or the recipe to follow.
        base, res_scale, keep_fp32: as `source_from_path` takes them; a recipe contains its own.
    """

    model: str | os.PathLike[str]
    how: QuantizationRequest | RecipeFile
    base: Precision | None = None
    res_scale: float | None = None
    keep_fp32: tuple[str, ...] = ()

    def check_places(self) -> None:
        """Looks for pictures and table before anybody waits for an export. Raises: HspanError."""
        if isinstance(self.how, QuantizationRequest):
            check_places(self.how)


def quantized_network(job: QuantizationJob, *, on_progress: OnProgress = no_progress) -> Quantized:
    """Reads or exports the network, and quantizes it.

    Raises:
        UsageError, HspanError: as `source_from_variants`, and as `quantize` or `quantize_by_recipe`.
    """
    job.check_places()
    on_progress(f"reading {job.model}", 0, 0)
    if isinstance(job.how, RecipeFile):
        return quantize_by_recipe(_source(job), job.how.recipe, where=job.how.path)
    return quantize(_source(job), job.how, on_progress=on_progress)


def network_sensitivity(job: QuantizationJob, *, on_progress: OnProgress = no_progress) -> SensitivityReport:
    """Reads or exports the network, and measures each of its layers.

    Raises:
        UsageError, HspanError: as `source_from_variants` and `measure_sensitivity`.
    """
    assert isinstance(job.how, QuantizationRequest), "a recipe has chosen its layers"
    job.check_places()
    on_progress(f"reading {job.model}", 0, 0)
    return measure_sensitivity(_source(job), job.how, on_progress=on_progress)


def _source(job: QuantizationJob) -> Source:
    base, keep_fp32, res_scale = job.base, job.keep_fp32, job.res_scale
    if isinstance(job.how, RecipeFile):
        recipe = job.how.recipe
        base, keep_fp32 = recipe.base, recipe.keep_fp32
        if res_scale is None and Path(job.model).suffix.lower() not in (".onnx", ".plan"):
            res_scale = recipe.res_scale
    network = variants_from_path(job.model, res_scale=res_scale)
    if isinstance(job.how, RecipeFile) and network.stored != "fp32":
        return source_from_variants(network)  # as it is; its hash says whether it is the recipe's
    return source_from_variants(network, base=base, keep_fp32=keep_fp32)
