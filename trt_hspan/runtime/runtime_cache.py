"""The kernels that TensorRT-RTX compiled for an engine, kept beside the plan.

`NAME.runtime_cache` is one line of JSON and TensorRT-RTX's own data. Like a plan the data are code, so they are used
only when the line names them: their SHA-256, and the plan and the release that they belong to. TensorRT-RTX
itself checks GPU and driver. The file can be deleted at any time; it is then written anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any, Final

from trt_hspan.errors import HspanError
from trt_hspan.files import write_bytes

SUFFIX: Final = ".runtime_cache"
_FORMAT: Final = 1
_LOG = logging.getLogger(__name__)


def runtime_cache_path(plan: Path) -> Path:
    """`NAME.runtime_cache` for `NAME.plan`."""
    return plan.with_suffix(SUFFIX)


def read_runtime_cache(path: Path, *, plan_sha256: str, tensorrt_version: str) -> bytes | None:
    """The data, or None when there are none for this plan and release; why is logged, and nothing is raised."""
    try:
        header, _, data = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        _LOG.warning("%s: cannot be read: %s", path, error.strerror)
        return None
    try:
        stored: Any = json.loads(header)
    except ValueError:
        stored = None
    if stored != _header(data, plan_sha256=plan_sha256, tensorrt_version=tensorrt_version):
        _LOG.info("%s: of another plan or release, or damaged; a new one is written", path)
        return None
    return data


def write_runtime_cache(path: Path, data: bytes, *, plan_sha256: str, tensorrt_version: str) -> bool:
    """Writes the file, whole or not at all. A folder that cannot be written costs time at the next start, no more:
    it is logged as a warning, and False is returned.
    """
    header = _header(data, plan_sha256=plan_sha256, tensorrt_version=tensorrt_version)
    try:
        write_bytes(path, json.dumps(header).encode() + b"\n" + data)
    except HspanError as error:
        _LOG.warning("the runtime cache is not kept: %s", error)
        return False
    return True


def _header(data: bytes, *, plan_sha256: str, tensorrt_version: str) -> dict[str, object]:
    return {
        "format": _FORMAT,
        "plan_sha256": plan_sha256,
        "tensorrt_version": tensorrt_version,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
