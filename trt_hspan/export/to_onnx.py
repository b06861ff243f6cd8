"""Exports a network: torch.export, translation to ONNX, tidying. Its types are written by `graph.variants`."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import onnx
import torch
from torch import nn

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.export.agreement import require_agreement
from trt_hspan.export.module_runs import device_of, evaluation_mode, taken_by_module, unwrapped
from trt_hspan.export.tidy import tidy
from trt_hspan.export.translations import scaled_dot_product_attention
from trt_hspan.graph import (
    INPUT_NAME,
    OUTPUT_NAME,
    AttentionForm,
    OnnxMetadata,
    Precision,
    Variants,
    attention_nodes,
    attention_schema,
    base_precision_from_model,
    model_in_form,
    save_onnx,
    variants_from_model,
    with_fixed_input,
)
from trt_hspan.graph.taken_sizes import TakenSizes, odd_sides
from trt_hspan.graph.variants import opset_to_write
from trt_hspan.model.checkpoint import load_model, source_sha256
from trt_hspan.names import DOMAIN, OP_TYPE, OP_VERSION
from trt_hspan.sizes import ImageSize

# torch.onnx translates to this version; others are reached by ONNX's own version converter.
_TRANSLATED_OPSET: Final = 18
# Of a run with the attention itself: its function body keeps (H * W)^2 scores.
_MOST_PIXELS_RUN: Final = 64 * 64


def export_onnx(
    checkpoint: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    precision: Precision = "fp32",
    res_scale: float | None = None,
    opset: int | None = None,
    static: tuple[int, int] | None = None,
    keep_fp32: Sequence[str] = (),
    form: AttentionForm = "function",
) -> Path:
    """Exports a checkpoint to an ONNX file, whole or not at all.

    Args:
        checkpoint: a path or preset, as `load_model` takes it.
        output: the `.onnx` file to write.
        precision: the type of the arithmetic, written into the graph. Input and output are float32 always.
        res_scale: factor on each attention and module; None is what the checkpoint says, else 0.1, as in
            the official commands.
        opset: version of the ONNX operators; None takes 18, or 22 for bf16.
        static: (height, width) fixes the input to one picture of that size; None leaves N, H, W free.
        keep_fp32: names or patterns of nodes that stay in float32, on top of what every HSPAN keeps.
        form: how the file holds the attention: "function" with a function body, so that any ONNX runtime can run it,
            "node" without, "ort-tensorrt" as the plugin of ONNX Runtime's TensorRT provider.

    Returns:
        The written file.

    Raises:
        HspanError: as `load_model`; a weight does not fit the precision; the file cannot be written.
        UsageError: unknown precision or opset, or a size below 1.

    Example:
        >>> from trt_hspan import export_onnx
        >>> export_onnx("hspan-tiny-x2", "hspan_tiny_x2.onnx", precision="fp16").name
        'hspan_tiny_x2.onnx'
    """
    target = Path(output)
    if target.suffix != ".onnx":
        raise UsageError(target, "an ONNX file's name ends in .onnx", "name another file")
    opset_to_write(precision, opset)
    variants = variants_from_checkpoint(checkpoint, res_scale=res_scale, static=static)
    model = variants.model(precision, keep_fp32=keep_fp32, opset=opset)
    save_onnx(model_in_form(model, form), target)
    return target


def onnx_from_model(
    model: nn.Module,
    *,
    precision: Precision = "fp32",
    opset: int | None = None,
    static: tuple[int, int] | None = None,
    channels: int = 3,
    size_multiple: int | None = None,
    keep_fp32: Sequence[str] | None = None,
    metadata: OnnxMetadata | None = None,
) -> onnx.ModelProto:
    """Exports any network that contains high-similarity-pass attention: (N, channels, H, W) float32 in and out.

    The graph is run once beside the module before it is returned, at a static size at that size.

    Args:
        model: one tensor in, one tensor out.
        precision, opset, static: as in `export_onnx`.
        channels: of the input.
        size_multiple: sides of inputs are multiples of this, such as the side of windows; None finds it by running the
            network. Pictures of other sizes are padded by what runs the model.
        keep_fp32: names or patterns of nodes that stay in float32; nodes are named `<module path>/<operator>`.
            None keeps what is best for an HSPAN, and nothing in other networks.
        metadata: stored in the model, with the precision, the tool's version, and the scale and the sizes that the
            network takes filled in.

    Returns:
        A checked model: one `hspan::HighSimilarityPassAttention` node for each block, with a function body.

    Raises:
        HspanError: the network cannot be exported, returns anything but one picture, or contains no such attention; its
            graph computes something else.
        UsageError: unknown precision or opset, or a size or multiple below 1.

    Example:
        >>> from torch import nn
        >>> from trt_hspan import HighSimilarityPassAttention, onnx_from_model
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), HighSimilarityPassAttention(channels=8))
        >>> [node.op_type for node in onnx_from_model(network).graph.node if node.domain == "hspan"]
        ['HighSimilarityPassAttention']
    """
    opset_to_write(precision, opset)
    if size_multiple is not None and size_multiple < 1:
        raise UsageError("size_multiple", f"got {size_multiple}, expected at least 1")
    where = type(model := unwrapped(model)).__name__
    require_float32(model)
    size = None if static is None else ImageSize(*static)
    with evaluation_mode(model):
        taken = taken_by_module(model, channels, fixed=size, size_multiple=size_multiple)
        graph = _agreeing_graph(model, channels, size, taken)
    recorded = taken.recorded_in(metadata or OnnxMetadata())
    variants = variants_from_model(graph, where, metadata=recorded, keep_fp32=keep_fp32)
    if variants.stored not in ("fp32", precision):
        raise HspanError(
            where,
            f"computes in {variants.stored} by itself, as in torch.autocast",
            f'name precision="{variants.stored}", or leave the autocast out',
        )
    return variants.model(precision, opset=opset)


def variants_from_checkpoint(
    checkpoint: str | os.PathLike[str],
    *,
    res_scale: float | None = None,
    static: tuple[int, int] | None = None,
) -> Variants:
    """A checkpoint's network, to be written in any type; arguments and errors as `export_onnx`."""
    model = load_model(checkpoint, res_scale=res_scale)
    metadata = OnnxMetadata(
        scale=model.config.scale,
        architecture=model.config.name,
        res_scale=model.config.res_scale,
        source_sha256=source_sha256(checkpoint),
    )
    # Nothing in an HSPAN depends on the size: a fixed one is the graph for free sizes, with its input fixed.
    size = None if static is None else ImageSize(*static)
    any_size = TakenSizes(scale=model.config.scale, size_multiple=1, min_size=1)
    graph = _agreeing_graph(model, 3, None, any_size)
    if size is not None:
        graph = with_fixed_input(graph, (1, 3, *size), scale=model.config.scale)
    return variants_from_model(graph, os.fspath(checkpoint), metadata=metadata)


def require_float32(model: nn.Module) -> None:
    """Raises: HspanError for weights of another type or layout."""
    where, tensors = type(model).__name__, [*model.parameters(), *model.buffers()]
    if any(tensor.layout != torch.strided for tensor in tensors):
        raise HspanError(
            where, "some of its weights are sparse, expected dense ones", "call .to_dense() on them first"
        )
    if any(tensor.is_meta for tensor in tensors):
        raise HspanError(where, "its weights are without values (meta tensors)", "load them first")
    others = {t.dtype for t in tensors if t.is_floating_point() or t.is_complex()} - {torch.float32}
    if others:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in others))
        raise HspanError(
            where,
            f"its weights are {names}, expected float32",
            'call .float() first; precision="fp16" or "bf16" writes those types',
        )


def _agreeing_graph(
    model: nn.Module, channels: int, static: ImageSize | None, taken: TakenSizes
) -> onnx.ModelProto:
    """The translated graph, run once against the module, at another size than it was traced at if sizes are free."""
    traced = static or odd_sides(taken.size_multiple)
    graph = tidy(_translate(model, channels, traced, is_static=static is not None))
    if attention_nodes(graph):
        step = taken.size_multiple
        side = -(-max(12, taken.min_size) // step) * step
        size = static or ImageSize(side, side + -(-4 // step) * step)
        cheap = size.pixels > _MOST_PIXELS_RUN
        low = base_precision_from_model(graph) != "fp32"
        example = torch.rand((1, channels, *size), generator=torch.Generator().manual_seed(0))
        require_agreement(
            graph, model, example.to(device_of(model)), type(model).__name__, low=low, cheap=cheap
        )
    return graph


def _translate(model: nn.Module, channels: int, size: ImageSize, *, is_static: bool) -> onnx.ModelProto:
    """torch.export, then torch.onnx with the attention kept as one node."""
    example = torch.zeros((1 if is_static else 2, channels, *size), device=device_of(model))
    free: Any = {0: "batch", 2: "height", 3: "width"}
    takes_all = [p.kind for p in inspect.signature(model.forward).parameters.values()][:1] == [
        inspect.Parameter.VAR_POSITIONAL
    ]
    dynamic = None if is_static else ((free,),) if takes_all else (free,)
    with _attention_translation() as table, _quiet_exporter():
        try:
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                opset_version=_TRANSLATED_OPSET,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_shapes=dynamic,
                custom_translation_table=table,
                optimize=False,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            cause = " ".join(str(error.__cause__ or error).split())[:300]
            operation = re.match(r"Error when translating node .*?target=torch\.ops\.([\w.]+)", cause)
            if operation:
                raise HspanError(
                    type(model).__name__,
                    f"cannot be exported: torch.onnx does not translate {operation[1]} as it is used here",
                    "write that part of forward() with other operations",
                ) from error
            raise HspanError(
                type(model).__name__,
                f"cannot be exported: {cause}",
                "export a fixed size, static=(height, width), or change that line",
            ) from error
    assert program is not None
    translated: onnx.ModelProto = program.model_proto
    return translated


@contextlib.contextmanager
def _attention_translation() -> Iterator[dict[Any, Any]]:
    """Translations of the attention operators; ONNX knows the schema of this project's meanwhile."""
    import onnxscript

    operator = torch.ops.hspan.high_similarity_pass_attention.default
    with attention_schema():
        domain = onnxscript.values.Opset(DOMAIN, OP_VERSION)

        def translate(query: Any, key: Any, value: Any) -> Any:
            return getattr(domain, OP_TYPE)(query, key, value)

        yield {
            operator: translate,
            torch.ops.aten.scaled_dot_product_attention.default: scaled_dot_product_attention,
        }


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keeps what torch and onnxscript log off the user's screen; what matters of it is in the error."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
