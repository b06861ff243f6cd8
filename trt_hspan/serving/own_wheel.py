"""This package as a wheel file, for images that have no index to install it from.

Format: the wheel specification, https://packaging.python.org/en/latest/specifications/binary-distribution-format/ .
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from trt_hspan.errors import HspanError
from trt_hspan.version import __version__

_DISTRIBUTION: Final = "trt-hspan"
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)  # the same bytes for the same files
#: Weights and photographs of the demo: a server gets its network otherwise.
_LEFT_OUT: Final = frozenset([".png", ".jpg", ".safetensors", ".pyc"])


def wheel_name() -> str:
    """The file name of the wheel."""
    return f"trt_hspan-{__version__}-py3-none-any.whl"


def write_own_wheel(folder: Path) -> Path:
    """Writes the installed package as a wheel into a folder."""
    try:
        metadata = importlib.metadata.distribution(_DISTRIBUTION).read_text("METADATA")
    except importlib.metadata.PackageNotFoundError:
        metadata = None
    if metadata is None:
        raise HspanError(_DISTRIBUTION, "is not installed, only on the path", "install it: pip install -e .")
    info = f"trt_hspan-{__version__}.dist-info"
    contents = {name: path.read_bytes() for name, path in _modules()}
    contents[f"{info}/METADATA"] = metadata.encode()
    contents[f"{info}/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: trt-hspan {__version__}\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    ).encode()
    record = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in contents.items()]
    contents[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    target = folder / wheel_name()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), data, zipfile.ZIP_DEFLATED)
    return target


def _modules() -> Iterator[tuple[str, Path]]:
    root = Path(__file__).parents[1]
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root.parent)
        if path.is_file() and path.suffix not in _LEFT_OUT and "_sources" not in name.parts:
            yield name.as_posix(), path


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
