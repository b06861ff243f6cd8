"""Which of Triton's interfaces a client may use. Owns the two lists; the doors ask.

What changes the server (loading models, which may bring code along; traces and logs, which write files) is not among
them: a server is changed by the files that it serves. Shared memory is for clients on the same machine, and for regions
of their own: Triton would open any name, its own Python backend's included.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from trt_hspan.serving.server import SHM_PREFIX

_MODEL: Final = r"/v2/models/[^/]+(?:/versions/[0-9]+)?"
_OPEN_GET: Final = re.compile(
    rf"/v2|/v2/health/(?:live|ready)|/v2/models/stats|{_MODEL}(?:/(?:ready|config|stats))?", re.ASCII
)
_INFER: Final = re.compile(rf"{_MODEL}/infer", re.ASCII)
_SHARED_GET: Final = re.compile(r"/v2/systemsharedmemory(?:/region/[^/]+)?/status", re.ASCII)
_SHARED_POST: Final = re.compile(
    r"/v2/systemsharedmemory(?:/region/[^/]+)?/(?:register|unregister)", re.ASCII
)
_SHARED_KEY: Final = re.compile(r"/?[A-Za-z0-9][A-Za-z0-9_.-]{0,200}", re.ASCII)

#: gRPC methods of inference.GRPCInferenceService that any client may call.
OPEN_METHODS: Final = frozenset(
    [
        "ServerLive",
        "ServerReady",
        "ModelReady",
        "ServerMetadata",
        "ModelMetadata",
        "ModelInfer",
        "ModelStreamInfer",
        "ModelConfig",
        "ModelStatistics",
        "RepositoryIndex",
    ]
)
SHARED_METHODS: Final = frozenset(
    ["SystemSharedMemoryStatus", "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister"]
)


def http_refusal(method: str, path: str, peer: str | None) -> tuple[int, str] | None:
    """Why a request may not pass, as HTTP status and text; None when it may. `path` is decoded, without a query."""
    allowed: str | None = None
    if _OPEN_GET.fullmatch(path):
        allowed = "GET"
    elif _INFER.fullmatch(path) or path == "/v2/repository/index":
        allowed = "POST"
    elif _SHARED_GET.fullmatch(path) or _SHARED_POST.fullmatch(path):
        if not is_local(peer):
            return 403, "shared memory is for clients on the server's machine"
        allowed = "GET" if _SHARED_GET.fullmatch(path) else "POST"
    elif path.startswith("/v2/"):
        return 403, f"{path} is not open to clients: only inference, metadata, statistics and health are"
    if allowed is None:
        return 404, f"{path}: no such path; see /v2"
    if method not in (allowed, "HEAD" if allowed == "GET" else allowed):
        return 405, f"{path} takes {allowed}, got {method}"
    return None


def shared_memory_refusal(key: object) -> str | None:
    """Why a shared-memory region of this name may not be registered; None when it may."""
    if not isinstance(key, str) or not _SHARED_KEY.fullmatch(key):
        return "the key of a shared-memory region is a plain name, such as /my_region"
    if key.lstrip("/").startswith((SHM_PREFIX, "triton_python_backend_shm")):
        return "this region is the server's own"
    return None


def is_local(peer: str | None) -> bool:
    """Whether an address is this machine's loopback, or a Unix socket."""
    if peer is None:
        return False
    try:
        return ipaddress.ip_address(peer.split("%")[0]).is_loopback
    except ValueError:
        return peer == "unix"
