"""The operator's one name, shared by the PyTorch operator, the ONNX node and the TensorRT plugin. Pure data."""

from typing import Final

DOMAIN: Final = "hspan"
OP_TYPE: Final = "HighSimilarityPassAttention"
OP_VERSION: Final = 1
#: The domain in which ONNX Runtime's TensorRT provider looks plugins up, and its version.
ORT_TENSORRT_DOMAIN: Final = "trt.plugins"
ORT_TENSORRT_VERSION: Final = 1
TORCH_OP: Final = "hspan::high_similarity_pass_attention"
PLUGIN_VERSION: Final = "1"
