"""Exports a network: torch.export, translation to ONNX, tidying, precision, function body, metadata."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import onnx
import torch
from torch import nn

import trt_hspan
from trt_hspan.errors import HspanError, UsageError
from trt_hspan.export.tidy import fold_constants, name_nodes
from trt_hspan.graph import (
    INPUT_NAME,
    NETWORK_PRECISIONS,
    OUTPUT_NAME,
    PRECISIONS,
    OnnxMetadata,
    Precision,
    check_model,
    model_in_precision,
    model_with_attention_function,
    require_attention,
    save_onnx,
    with_metadata,
)
from trt_hspan.graph.attention_function import LOWEST_OPSET
from trt_hspan.graph.headroom import HSPAN_KEEP_FP32 as HSPAN_KEEP_FP32  # noqa: PLC0414  # re-exported
from trt_hspan.graph.headroom import tail_with_headroom
from trt_hspan.graph.precision import BF16_OPSET
from trt_hspan.model.checkpoint import load_model, source_sha256
from trt_hspan.model.hspan import HSPAN
from trt_hspan.ops.names import DOMAIN, OP_TYPE, OP_VERSION

# torch.onnx translates to this version; others are reached by ONNX's own version converter.
_TRANSLATED_OPSET: Final = 18
# Beyond this, builders lag behind: the newest version that TensorRT-RTX 1.7 and ONNX Runtime both take here.
HIGHEST_OPSET: Final = 23


def export_onnx(
    checkpoint: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    precision: Precision = "fp32",
    res_scale: float = 0.1,
    opset: int | None = None,
    static: tuple[int, int] | None = None,
    keep_fp32: Sequence[str] = (),
) -> Path:
    """Exports a checkpoint to an ONNX file, whole or not at all.

    Args:
        checkpoint: a path or preset, as `load_model` takes it.
        output: the `.onnx` file to write.
        precision: the type of the arithmetic, written into the graph. Input and output are float32 always.
        res_scale: factor on each attention and module; checkpoints do not store it.
        opset: version of the ONNX operators; None takes 18, or 22 for bf16.
        static: (height, width) fixes the input to one picture of that size; None leaves N, H, W free.
        keep_fp32: names or patterns of nodes that stay in float32, on top of `HSPAN_KEEP_FP32`.

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
    model = load_model(checkpoint, res_scale=res_scale)
    exported = onnx_from_model(
        model,
        precision=precision,
        opset=opset,
        static=static,
        keep_fp32=(*HSPAN_KEEP_FP32, *keep_fp32),
        metadata=checkpoint_metadata(checkpoint, model, precision),
    )
    save_onnx(exported, target)
    return target


def checkpoint_metadata(
    checkpoint: str | os.PathLike[str], model: HSPAN, precision: Precision
) -> OnnxMetadata:
    """What an export of this checkpoint says about itself. Raises: HspanError when the file cannot be read."""
    return OnnxMetadata(
        scale=model.config.scale,
        architecture=model.config.name,
        precision=precision,
        res_scale=model.config.res_scale,
        source_sha256=source_sha256(checkpoint),
        tool_version=trt_hspan.__version__,
    )


def onnx_from_model(
    model: nn.Module,
    *,
    precision: Precision = "fp32",
    opset: int | None = None,
    static: tuple[int, int] | None = None,
    channels: int = 3,
    keep_fp32: Sequence[str] | None = None,
    metadata: OnnxMetadata | None = None,
) -> onnx.ModelProto:
    """Exports any network that contains high-similarity-pass attention: (N, channels, H, W) float32 in and out.

    Args:
        model: one tensor in, one tensor out.
        precision, opset, static: as in `export_onnx`.
        channels: of the input.
        keep_fp32: names or patterns of nodes that stay in float32; nodes are named `<module path>/<operator>`.
            None keeps what is best for an HSPAN, and nothing in other networks.
        metadata: stored in the model; None stores precision and tool version alone.

    Returns:
        A checked model: one `hspan::HighSimilarityPassAttention` node for each block, with a function body.

    Raises:
        HspanError: the network cannot be exported, or contains no such attention.
        UsageError: unknown precision or opset, or a size below 1.

    Example:
        >>> from torch import nn
        >>> from trt_hspan import HighSimilarityPassAttention, onnx_from_model
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), HighSimilarityPassAttention(channels=8))
        >>> [node.op_type for node in onnx_from_model(network).graph.node if node.domain == "hspan"]
        ['HighSimilarityPassAttention']
    """
    graph = float32_onnx_from_model(model, precision=precision, opset=opset, static=static, channels=channels)
    if keep_fp32 is None:
        keep_fp32 = HSPAN_KEEP_FP32 if isinstance(model, HSPAN) else ()
    return typed_onnx(
        graph,
        precision,
        keep_fp32=keep_fp32,
        metadata=metadata or _metadata(precision),
        where=type(model).__name__,
    )


def float32_onnx_from_model(
    model: nn.Module,
    *,
    precision: Precision = "fp32",
    opset: int | None = None,
    static: tuple[int, int] | None = None,
    channels: int = 3,
) -> onnx.ModelProto:
    """The first half of `onnx_from_model`: the graph that `precision` is to be written into, still in float32.

    An HSPAN that is meant for fp16 has the headroom of `tail_with_headroom`. No function body, no metadata.

    Raises:
        HspanError, UsageError: as `onnx_from_model`.
    """
    version = opset_to_write(precision, opset)
    translated = name_nodes(_translate(model, channels, static))
    require_attention(translated, type(model).__name__)
    if version != _TRANSLATED_OPSET:
        translated = _converted(translated, version)
    folded = fold_constants(translated)
    return tail_with_headroom(folded) if precision == "fp16" and isinstance(model, HSPAN) else folded


def typed_onnx(
    graph: onnx.ModelProto,
    precision: Precision,
    *,
    keep_fp32: Sequence[str],
    metadata: OnnxMetadata,
    where: object,
) -> onnx.ModelProto:
    """The second half of `onnx_from_model`: precision, function body and metadata.

    Args:
        graph: of `float32_onnx_from_model` for the same precision.
        precision: the type of the arithmetic.
        keep_fp32: names or patterns of nodes that stay in float32.
        metadata: stored in the model.
        where: what errors name.

    Raises:
        HspanError: a weight does not fit the precision.
    """
    described = with_metadata(model_in_precision(graph, precision, keep_fp32=keep_fp32), metadata)
    described.producer_name, described.producer_version = "trt-hspan", trt_hspan.__version__
    finished = model_with_attention_function(described)
    check_model(finished, where)
    return finished


def _metadata(precision: Precision) -> OnnxMetadata:
    return OnnxMetadata(precision=precision, tool_version=trt_hspan.__version__)


def checked_precision(text: str) -> Precision:
    """The precision of this name. Raises: UsageError when there is none."""
    for precision in PRECISIONS:
        if text == precision:
            return precision
    if text in NETWORK_PRECISIONS:
        raise UsageError(
            "--precision", f"{text} needs pictures to measure ranges on", "use trt-hspan quantize"
        )
    raise UsageError("--precision", f"{text!r} is unknown", f"choose {', '.join(PRECISIONS)}")


def opset_to_write(precision: Precision, opset: int | None) -> int:
    """The version of the ONNX operators that a request comes to. Raises: UsageError when there is none."""
    checked_precision(precision)
    lowest = BF16_OPSET if precision == "bf16" else LOWEST_OPSET
    if opset is None:
        return lowest
    if not lowest <= opset <= HIGHEST_OPSET:
        raise UsageError("--opset", f"{opset} cannot hold {precision}", f"choose {lowest} to {HIGHEST_OPSET}")
    return opset


def _translate(model: nn.Module, channels: int, static: tuple[int, int] | None) -> onnx.ModelProto:
    """torch.export, then torch.onnx with the attention kept as one node."""
    if static is not None and min(static) < 1:
        raise UsageError("--static", f"{static[0]}x{static[1]} is no picture", "give HxW, both at least 1")
    parameter = next(iter(model.parameters()), torch.zeros(0))
    # Sizes that are told apart from each other, from 1, and from usual channel counts.
    shape = (1, channels, *static) if static else (2, channels, 22, 26)
    example = torch.zeros(shape, dtype=torch.float32, device=parameter.device)
    dynamic = None if static else ({0: "batch", 2: "height", 3: "width"},)
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
            raise HspanError(type(model).__name__, f"cannot be exported: {cause}", "see --debug") from error
    assert program is not None
    translated: onnx.ModelProto = program.model_proto
    return translated


@contextlib.contextmanager
def _attention_translation() -> Iterator[dict[Any, Any]]:
    """The translation of the attention operator, with its schema known to ONNX while it lasts."""
    import onnxscript

    schema = onnx.defs.OpSchema(
        OP_TYPE,
        DOMAIN,
        OP_VERSION,
        inputs=[onnx.defs.OpSchema.FormalParameter(name, "T") for name in ("query", "key", "value")],
        outputs=[onnx.defs.OpSchema.FormalParameter("output", "T")],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "any float type")],
    )
    operator = torch.ops.hspan.high_similarity_pass_attention.default
    onnx.defs.register_schema(schema)
    try:
        domain = onnxscript.values.Opset(DOMAIN, OP_VERSION)

        def translate(query: Any, key: Any, value: Any) -> Any:
            return getattr(domain, OP_TYPE)(query, key, value)

        yield {operator: translate}
    finally:
        onnx.defs.deregister_schema(OP_TYPE, OP_VERSION, DOMAIN)


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keeps notes about packages that nobody asked for (torchvision) off the user's screen."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _converted(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    converted = onnx.version_converter.convert_version(model, opset)
    converted.ir_version = model.ir_version
    return converted
