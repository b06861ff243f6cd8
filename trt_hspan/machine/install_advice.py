"""How to install what is missing, in lines that can be typed here. There is no release on a package index to name."""

from __future__ import annotations

import importlib.metadata
import json
import shlex
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit
from urllib.request import url2pathname

from trt_hspan.machine.gpu import gpu_driver

Part = Literal["tensorrt", "tensorrt-rtx", "pycuda"]

_DISTRIBUTION: Final = "trt-hspan"
_ROOT: Final = Path(__file__).resolve().parents[2]
_EXTRAS: Final[dict[Part, str]] = {"tensorrt": "gpu", "tensorrt-rtx": "rtx", "pycuda": "gpu"}


def install_command(*extras: str) -> str:
    """The line that installs extras of this package: from the checkout or the wheel file that it came from.

    Example:
        >>> from trt_hspan.machine.install_advice import install_command
        >>> install_command("cpu", "media")  # in a checkout -e '.[cpu,media]'
        "pip install ...[cpu,media]'"
    """
    source = _source()
    editable = "-e " if source == _ROOT else ""
    place = "." if source == Path.cwd() else source
    return f"pip install {editable}" + shlex.quote(f"{place}[{','.join(extras)}]" if extras else str(place))


def install_advice(part: Part) -> str:
    """The next step where `part` is missing on this machine: a driver of CUDA 12 takes packages of CUDA 12."""
    from trt_hspan.machine.jetson import (
        is_jetson,  # which needs numpy; `install_command` serves where nothing is yet
    )

    if not is_jetson():
        extra = _EXTRAS[part]
        return install_command("gpu-cuda12" if extra == "gpu" and _driver_is_of_cuda_12() else extra)
    if part == "tensorrt-rtx":
        return "TensorRT-RTX does not run on a Jetson: build the engine on it with trt-hspan build"
    return "sudo apt install python3-libnvinfer" if part == "tensorrt" else install_command("jetson")


def requirement(part: Part, version: str) -> str:
    """What pip installs to get this version of TensorRT, such as "tensorrt==10.14.1.48"."""
    return f"{'tensorrt-cu12' if part == 'tensorrt' and _driver_is_of_cuda_12() else part}=={version}"


def _driver_is_of_cuda_12() -> bool:
    version = gpu_driver().cuda_version
    return version is not None and version[0] == 12


def _source() -> Path | str:
    """The checkout or the wheel; the name alone where neither is there any more: pip knows what it has installed."""
    if (_ROOT / "pyproject.toml").is_file():
        return _ROOT
    try:
        record = importlib.metadata.distribution(_DISTRIBUTION).read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return _DISTRIBUTION
    path = Path(url2pathname(urlsplit(json.loads(record)["url"]).path)) if record else None
    return _DISTRIBUTION if path is None or not path.is_file() else path
