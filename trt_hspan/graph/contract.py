"""What an ONNX file of this project contains: its input, attention and metadata; reading, checking and writing it."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import onnx

from trt_hspan.errors import HspanError
from trt_hspan.files import error_from_os_error, write_bytes
from trt_hspan.graph.attention_function import model_in_own_domain
from trt_hspan.names import DOMAIN, OP_TYPE

# input: (N, 3, H, W) float32 RGB in [0, 1]; output: (N, 3, H * scale, W * scale) float32, not clamped.
INPUT_NAME: Final = "input"
OUTPUT_NAME: Final = "output"

_PREFIX: Final = "trt_hspan."


@dataclass(frozen=True, kw_only=True)
class OnnxMetadata:
    """What a model says about itself. Fields are None in models that this project did not write.

    Attributes:
        scale: upscaling factor.
        size_multiple: sides of inputs are multiples of this; None is 1.
        min_size: the smallest side of an input; None is 1.
        architecture: one line naming every size.
        precision: type of the body's arithmetic: "fp32", "fp16" or "bf16"; "int8" or "fp8" when it is quantized.
        res_scale: the factor that checkpoints do not store.
        source_sha256: SHA-256 of the checkpoint file (of the weights, for random presets).
        tool_version: version of trt-hspan that wrote the file.
        recipe_sha256: of a quantized model: hash of the recipe that makes it from its source.
        calibration_sha256: of a quantized model: hash of the calibration table behind its scales.
    """

    scale: int | None = None
    size_multiple: int | None = None
    min_size: int | None = None
    architecture: str | None = None
    precision: str | None = None
    res_scale: float | None = None
    source_sha256: str | None = None
    tool_version: str | None = None
    recipe_sha256: str | None = None
    calibration_sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class ImageInput:
    """The input of a network: its name, and its shape (N, C, H, W) with None for what is free."""

    name: str
    shape: tuple[int | None, int | None, int | None, int | None]


def load_onnx(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Reads an ONNX file; attention nodes that are written for ONNX Runtime's TensorRT provider come in the own domain.

    Raises:
        HspanError: no such file, not ONNX, or truncated.
    """
    return model_in_own_domain(read_onnx(path))


def read_onnx(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """An ONNX file as it is written. Raises: HspanError as `load_onnx`."""
    source = Path(path)
    try:
        data = source.read_bytes()
    except OSError as error:
        raise error_from_os_error(source, error, action="read") from error
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(data)
        if any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer):
            onnx.external_data_helper.load_external_data_for_model(model, str(source.parent))
    except DecodeError as error:
        raise HspanError(source, "not an ONNX file, or truncated", "export it again") from error
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise HspanError(
            source, f"its external weights cannot be read ({error})", "keep them beside it"
        ) from error
    if not model.graph.node or not model.opset_import:
        raise HspanError(source, "not an ONNX model: it contains no graph", "export it again")
    return model


def save_onnx(model: onnx.ModelProto, path: str | os.PathLike[str]) -> None:
    """Writes a model as one file, whole or not at all. Raises: HspanError as `files.write_bytes` does."""
    write_bytes(path, model.SerializeToString(deterministic=True))


def check_model(model: onnx.ModelProto, where: object) -> None:
    """The full ONNX check, shape inference included.

    Raises:
        HspanError: the model is not valid ONNX.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise HspanError(where, f"not a valid ONNX model: {error}", "export it again") from error


def attention_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The attention nodes of the main graph, in order."""
    return [node for node in model.graph.node if node.domain == DOMAIN and node.op_type == OP_TYPE]


def require_attention(model: onnx.ModelProto, where: object) -> None:
    """Raises: HspanError when the graph contains no attention node."""
    if not attention_nodes(model):
        raise HspanError(
            where,
            f"contains no {DOMAIN}::{OP_TYPE} node",
            f"export a checkpoint of an HSPAN, or a network that contains trt_hspan.{OP_TYPE}",
        )


def model_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """What a run must be given: the graph's inputs, weights that are listed there left out."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def image_input(model: onnx.ModelProto, where: object) -> ImageInput:
    """The one input of a network. Raises: HspanError when there are more, or it is no (N, C, H, W)."""
    inputs = model_inputs(model)
    dimensions = inputs[0].type.tensor_type.shape.dim if len(inputs) == 1 else []
    if len(dimensions) != 4:
        raise HspanError(where, "expected one input (N, C, H, W)", "export it with trt-hspan export")
    n, channels, height, width = (dimension.dim_value or None for dimension in dimensions)
    return ImageInput(name=inputs[0].name, shape=(n, channels, height, width))


def with_fixed_input(
    model: onnx.ModelProto, shape: tuple[int, int, int, int], *, scale: int
) -> onnx.ModelProto:
    """A copy of a network for free sizes that takes this (N, C, H, W) alone; its nodes are the same."""
    result = copy.deepcopy(model)
    n, channels, height, width = shape
    for value in result.graph.value_info:
        value.type.tensor_type.ClearField("shape")
    sides = (
        (result.graph.input[0], shape),
        (result.graph.output[0], (n, channels, height * scale, width * scale)),
    )
    for value, sizes in sides:
        element_type = value.type.tensor_type.elem_type
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, element_type, sizes))
    return result


def tensor_types(model: onnx.ModelProto) -> dict[str, int]:
    """Tensor name -> ONNX element type, initializers included; tensors whose type cannot be inferred are left out."""
    inferred = onnx.shape_inference.infer_shapes(model)
    values = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def names_read(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """The tensors that nodes read, with those that bodies of loops and branches take from around them."""
    names: set[str] = set()
    for node in nodes:
        names.update(name for name in node.input if name)
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                own = {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
                own |= {name for inner in graph.node for name in inner.output}
                names |= (names_read(graph.node) | {value.name for value in graph.output}) - own
    return names


def metadata_from_model(model: onnx.ModelProto) -> OnnxMetadata:
    """Reads the metadata; unknown or malformed entries count as absent."""
    texts = {
        entry.key[len(_PREFIX) :]: entry.value
        for entry in model.metadata_props
        if entry.key.startswith(_PREFIX)
    }
    kinds = {"scale": int, "size_multiple": int, "min_size": int, "res_scale": float}
    return OnnxMetadata(
        **{
            field.name: _converted(kinds.get(field.name, str), texts.get(field.name))
            for field in fields(OnnxMetadata)
        }
    )


def with_metadata(model: onnx.ModelProto, metadata: OnnxMetadata) -> onnx.ModelProto:
    """A copy of the model with this metadata; other entries stay."""
    result = copy.deepcopy(model)
    names = {_PREFIX + field.name for field in fields(OnnxMetadata)}
    entries = {entry.key: entry.value for entry in model.metadata_props if entry.key not in names}
    entries |= {_PREFIX + name: str(value) for name, value in asdict(metadata).items() if value is not None}
    del result.metadata_props[:]
    onnx.helper.set_model_props(result, entries)
    return result


def _converted(kind: Callable[[str], Any], text: str | None) -> Any:
    try:
        return None if text is None else kind(text)
    except ValueError:
        return None
