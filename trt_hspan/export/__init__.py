"""From PyTorch to the ONNX file. Needs torch, onnxscript and onnxruntime (the `export` extra)."""

from trt_hspan.export.to_onnx import export_onnx, onnx_from_model

__all__ = ["export_onnx", "onnx_from_model"]
