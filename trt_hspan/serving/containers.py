"""NVIDIA's Triton images, and the TensorRT in each.

A classic engine runs only with the TensorRT version that built it, so the image decides. Only what NVIDIA's release
notes spell out for the plain -py3 image stands here. Source of each line: docs/introduction/release_notes.md of
https://github.com/triton-inference-server/server at the commit beside it. Later notes name no TensorRT but refer to a
support matrix; the matrix in docs/introduction/compatibility.md is of the -trtllm images, which contain other versions.
"""

from __future__ import annotations

from typing import Final

from trt_hspan.errors import HspanError

#: Image tag -> the TensorRT in it.
TENSORRT_BY_IMAGE: Final = {
    "24.08": "10.3.0.26",  # 7669321, 2024-11-15
    "24.10": "10.5.0.18",  # 9fac69d, 2024-12-18
    "24.12": "10.7.0.23",  # tag v2.53.0
}
#: For repositories that need no TensorRT of the image; tag v2.64.0 of the same repository. Newer than 25.07, which
#: mended Triton's fault with chunked bodies.
DEFAULT_IMAGE: Final = "25.12"


def image_name(tag: str) -> str:
    """The full name of an image."""
    return f"nvcr.io/nvidia/tritonserver:{tag}-py3"


def image_for_tensorrt(version: str) -> str:
    """The newest image with this TensorRT; a version of three numbers, "10.7.0", stands for any build of it."""
    tags = [
        tag
        for tag, contained in TENSORRT_BY_IMAGE.items()
        if version in (contained, contained.rpartition(".")[0])
    ]
    if not tags:
        versions = ", ".join(TENSORRT_BY_IMAGE.values())
        raise HspanError(
            f"TensorRT {version}",
            f"no Triton image is known to contain it, only {versions}",
            "name an image with --image, or build the engine with one of these",
        )
    return image_name(max(tags))
