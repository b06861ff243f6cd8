"""`trt-hspan build --precision int8|fp8` and `--recipe`: the chain from a network to its quantized engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from trt_hspan.cli import options
from trt_hspan.cli.progress import quantize_with_progress, source_with_progress
from trt_hspan.errors import UsageError

if TYPE_CHECKING:
    from trt_hspan.engine.manifest import EngineManifest
    from trt_hspan.engine.spec import EngineSpec, Precision
    from trt_hspan.graph import Precision as BasePrecision
    from trt_hspan.precision.quantize.pipeline import QuantizationRequest, Quantized
    from trt_hspan.precision.quantize.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Chain:
    """How the network is quantized before it is built: by a request or by a recipe.

    Args:
        precision: "int8" or "fp8".
        base: what `--base` said.
        request: None with a recipe.
        recipe, recipe_file: None without.
    """

    precision: Precision
    base: BasePrecision | None
    request: QuantizationRequest | None = None
    recipe: Recipe | None = None
    recipe_file: Path | None = None

    def refuse(self, *, opset: int | None, audit: str | None, keep_fp32: Sequence[str] | None) -> None:
        """Raises: UsageError for options of a float export that have no meaning here."""
        if opset is not None:
            raise UsageError("--opset", f"follows from the precision for {self.precision}", "leave it out")
        if audit is not None:
            raise UsageError(
                "--audit", "is for float networks", "audit the fp16 network first: trt-hspan audit"
            )
        if keep_fp32 and self.recipe is not None:
            raise UsageError("--keep-fp32", "is told by the recipe", "leave it or --recipe out")
        if "at-risk" in (keep_fp32 or ()):
            raise UsageError("--keep-fp32", "at-risk needs --audit of a float network", "name the nodes")


def chain_from_options(
    *,
    checkpoint: str | None,
    precision: str | None,
    recipe: Path | None,
    tiles: int,
    tile: int,
    no_cache: bool,
    **given: Any,
) -> Chain | None:
    """What the options ask for; None when nothing is to be quantized here.

    Args:
        checkpoint: None with an ONNX file, which may be quantized already.
        given: the options of `options.request_from_options`, and `base`.

    Raises:
        UsageError: the options contradict each other.
        HspanError: the recipe cannot be read.
    """
    base = options.base_from_option(given.pop("base"))
    wanted = any(given.values()) or base is not None
    if recipe is not None:
        from trt_hspan.precision.quantize.recipe import read_recipe

        options.refuse_beside_recipe(base=base, **given)
        loaded = read_recipe(recipe)
        if precision not in (None, loaded.precision):
            raise UsageError(
                "--precision", f"{precision}, but {recipe} is for {loaded.precision}", "leave it out"
            )
        return Chain(precision=loaded.precision, base=None, recipe=loaded, recipe_file=recipe)
    if precision not in ("int8", "fp8"):
        if wanted:
            name = next((name for name, value in given.items() if value), "base")
            raise UsageError(
                f"--{name.replace('_', '-')}", "is for quantized engines", "add --precision int8 or fp8"
            )
        return None
    if checkpoint is None and not wanted:
        return None
    request = options.request_from_options(
        precision=precision, tiles=tiles, tile=tile, no_cache=no_cache, **given
    )
    return Chain(precision=cast("Precision", precision), base=base, request=request)


def build_quantized(
    model: str | Path,
    spec: EngineSpec,
    chain: Chain,
    *,
    res_scale: float | None,
    keep_fp32: Sequence[str],
) -> EngineManifest:
    """Quantizes in a temporary folder, builds, and writes the recipe (and calibration table) beside the engine.

    What makes the build impossible is found before the calibration.

    Raises:
        UsageError, HspanError: as quantizing and building do.
    """
    import tempfile

    from trt_hspan.cli.progress import build_with_progress
    from trt_hspan.engine.build import check_buildable
    from trt_hspan.files import staged_files
    from trt_hspan.graph import save_onnx
    from trt_hspan.precision.quantize.pipeline import check_places, companion_texts

    check_buildable(spec)
    if chain.request is not None:
        check_places(chain.request)
    quantized = _quantized(model, chain, res_scale=res_scale, keep_fp32=keep_fp32)
    with tempfile.TemporaryDirectory(prefix="trt-hspan-") as folder:
        path = Path(folder) / spec.onnx_output.name
        save_onnx(quantized.model, path)
        texts = companion_texts(quantized)
        with staged_files([spec.output.with_suffix(suffix) for suffix in texts]) as staged:
            for file, text in zip(staged, texts.values(), strict=True):
                file.write_text(text, encoding="utf-8")
            return build_with_progress(replace(spec, onnx=path))


def _quantized(
    model: str | Path, chain: Chain, *, res_scale: float | None, keep_fp32: Sequence[str]
) -> Quantized:
    if chain.recipe is not None and chain.recipe_file is not None:
        return options.quantize_from_recipe(model, chain.recipe, where=chain.recipe_file, res_scale=res_scale)
    assert chain.request is not None
    source = source_with_progress(model, base=chain.base, res_scale=res_scale, keep_fp32=keep_fp32)
    return quantize_with_progress(source, chain.request)
