"""The ONNX file, contract between model and engine: reading, checking and rewriting it. Never imports torch."""

from trt_hspan.graph.attention_function import (
    model_with_attention_function,
    model_with_inlined_functions,
    model_with_plugin_nodes,
)
from trt_hspan.graph.contract import (
    INPUT_NAME,
    OUTPUT_NAME,
    ImageInput,
    OnnxMetadata,
    attention_nodes,
    check_model,
    image_input,
    load_onnx,
    metadata_from_model,
    model_inputs,
    require_attention,
    save_onnx,
    tensor_types,
    with_metadata,
)
from trt_hspan.graph.cpu import model_for_cpu
from trt_hspan.graph.precision import (
    NETWORK_PRECISIONS,
    PRECISIONS,
    NetworkPrecision,
    Precision,
    base_precision_from_model,
    checked_precision,
    model_in_precision,
    precision_from_model,
)
from trt_hspan.graph.quantized import QuantizationFacts, QuantizedType, quantization_from_model
from trt_hspan.graph.variants import Variants, variants_from_model

__all__ = [
    "INPUT_NAME",
    "NETWORK_PRECISIONS",
    "OUTPUT_NAME",
    "PRECISIONS",
    "ImageInput",
    "NetworkPrecision",
    "OnnxMetadata",
    "Precision",
    "QuantizationFacts",
    "QuantizedType",
    "Variants",
    "attention_nodes",
    "base_precision_from_model",
    "check_model",
    "checked_precision",
    "image_input",
    "load_onnx",
    "metadata_from_model",
    "model_for_cpu",
    "model_in_precision",
    "model_inputs",
    "model_with_attention_function",
    "model_with_inlined_functions",
    "model_with_plugin_nodes",
    "precision_from_model",
    "quantization_from_model",
    "require_attention",
    "save_onnx",
    "tensor_types",
    "variants_from_model",
    "with_metadata",
]
