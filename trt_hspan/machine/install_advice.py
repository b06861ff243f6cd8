"""How to install what runs engines. A Jetson's TensorRT is part of JetPack; PyPI's is for other machines."""

from __future__ import annotations

from typing import Final, Literal

from trt_hspan.machine.jetson import is_jetson

Part = Literal["tensorrt", "tensorrt-rtx", "pycuda"]

_ELSEWHERE: Final[dict[Part, str]] = {
    "tensorrt": "pip install 'trt-hspan[gpu]'",
    "tensorrt-rtx": "pip install 'trt-hspan[rtx]'",
    "pycuda": "pip install 'trt-hspan[gpu]'",
}
_ON_A_JETSON: Final[dict[Part, str]] = {
    "tensorrt": "sudo apt install python3-libnvinfer",
    "tensorrt-rtx": "TensorRT-RTX does not run on a Jetson: build the engine on it with trt-hspan build",
    "pycuda": "pip install 'trt-hspan[jetson]'",
}


def install_advice(part: Part) -> str:
    """The next step where `part` is missing on this machine."""
    return (_ON_A_JETSON if is_jetson() else _ELSEWHERE)[part]
