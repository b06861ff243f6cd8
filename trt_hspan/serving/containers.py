"""NVIDIA's Triton images: which holds which TensorRT. A table; knows nothing of engines.

A classic engine runs only with the TensorRT version that built it, so the image decides. Source: the table of container
versions in the Triton Inference Server release notes,
https://docs.nvidia.com/deeplearning/triton-inference-server/release-notes/ .
"""

from __future__ import annotations

from typing import Final

from trt_hspan.errors import HspanError

#: Image tag -> TensorRT's major.minor.patch.
TENSORRT_BY_IMAGE: Final = {
    "24.08": "10.3.0",
    "24.09": "10.4.0",
    "24.10": "10.5.0",
    "24.11": "10.6.0",
    "24.12": "10.7.0",
    "25.01": "10.8.0",
    "25.02": "10.8.0",
    "25.03": "10.9.0",
    "25.04": "10.9.0",
    "25.05": "10.10.0",
    "25.06": "10.11.0",
}
#: For repositories that need no TensorRT of the image.
DEFAULT_IMAGE: Final = "25.06"


def image_name(tag: str) -> str:
    """The full name of an image."""
    return f"nvcr.io/nvidia/tritonserver:{tag}-py3"


def image_for_tensorrt(version: str) -> str:
    """The newest known image with this TensorRT.

    Args:
        version: "10.8.0.43" or "10.8.0".

    Raises:
        HspanError: none is known.
    """
    wanted = ".".join(version.split(".")[:3])
    tags = [tag for tag, holds in TENSORRT_BY_IMAGE.items() if holds == wanted]
    if not tags:
        known = ", ".join(dict.fromkeys(TENSORRT_BY_IMAGE.values()))
        raise HspanError(
            f"TensorRT {version}",
            f"no Triton image is known to hold it; known are {known}",
            "name an image with --image, or build the engine with one of these",
        )
    return image_name(max(tags))
