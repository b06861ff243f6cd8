"""NVIDIA's tritonserver, for tests and benchmarks: fetched once, unpacked into build/triton, started on a repository.

It comes from the nvidia-pytriton wheel, pinned and checked by its hash, which contains the program, its libraries, the
Python backend and a stub for each Python. The wheel forbids NumPy 2, so nothing of it is installed.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Final

from trt_hspan.downloads import unpack_pinned_wheel
from trt_hspan.errors import HspanError
from trt_hspan.serving.client import UpscaleClient

WHEEL: Final = "nvidia-pytriton==0.7.0"
SHA256: Final = "21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df"
#: The stub embeds this Python.
PYTHON: Final = f"{sys.version_info.major}.{sys.version_info.minor}"
_FOLDER: Final = (
    Path(__file__).parents[2] / "build" / "triton" / f"{WHEEL.partition('==')[2]}-{SHA256[:12]}-{PYTHON}"
)
_PARTS: Final = ("pytriton/tritonserver/", "nvidia_pytriton.libs/")


class NoTritonServerError(HspanError):
    """The wheel is not for this machine or this Python."""


def tritonserver() -> Path:
    """The folder with the unpacked wheel.

    Raises:
        NoTritonServerError: another system than Linux on x86-64, or a Python that it has no stub for.
        HspanError: it cannot be fetched.
    """
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        raise NoTritonServerError("tritonserver", "the wheel is for Linux on x86-64", "use such a machine")
    if not _FOLDER.is_dir():
        _FOLDER.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{_FOLDER.name}.", dir=_FOLDER.parent))
        try:
            unpack_pinned_wheel(
                WHEEL,
                SHA256,
                stage,
                place=lambda name: name if name.startswith(_PARTS) else None,
                advice="check the network and pip's index settings",
            )
            triton = stage / "pytriton" / "tritonserver"
            stub = triton / "python_backend_stubs" / PYTHON / "triton_python_backend_stub"
            if not stub.is_file():
                raise NoTritonServerError(WHEEL, f"has no stub for Python {PYTHON}", "use Python 3.11")
            shutil.copy(stub, triton / "backends" / "python")
            for program in (triton / "bin" / "tritonserver", triton / "backends" / "python" / stub.name):
                program.chmod(0o755)
            if not _FOLDER.is_dir():  # another process may have been quicker
                stage.replace(_FOLDER)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    return _FOLDER


def _environment(folder: Path) -> dict[str, str]:
    """Libraries of the wheel and libpython for the stub, which finds the packages by the first python3 on PATH."""
    libraries = [str(folder / "nvidia_pytriton.libs")]
    own = sysconfig.get_config_var("LIBDIR")
    if own and (Path(own) / f"libpython{PYTHON}.so.1.0").is_file():
        libraries.append(own)
    elif not ctypes.util.find_library(f"python{PYTHON}"):
        raise NoTritonServerError(
            "tritonserver", "this Python has no shared library", f"apt-get install libpython{PYTHON}"
        )
    return {
        **{name: value for name, value in os.environ.items() if name != "PYTHONHOME"},
        "LD_LIBRARY_PATH": os.pathsep.join(libraries),
        "PATH": os.pathsep.join([str(Path(sys.prefix) / "bin"), os.environ["PATH"]]),
        "TRITONSERVER": str(folder / "pytriton" / "tritonserver" / "bin" / "tritonserver"),
        "ADMIN_KEY": "secret",
        "OMP_NUM_THREADS": "1",
    }


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


class StartedRepository:
    """A repository whose start.sh runs, as a container runs it. A context manager that ends it."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.http, self.grpc, self.metrics = (f"127.0.0.1:{port}" for port in _free_ports(3))
        triton = tritonserver()
        backends = triton / "pytriton" / "tritonserver" / "backends"
        words = ["sh", str(folder / "start.sh"), f"--backend-directory={backends}"]
        for name, place in (("http", self.http), ("grpc", self.grpc), ("metrics", self.metrics)):
            address, _, port = place.partition(":")
            words += [f"--{name}-address={address}", f"--{name}-port={port}"]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed on exit
        self.process = subprocess.Popen(
            words,
            env=_environment(triton) | environment,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def __enter__(self) -> StartedRepository:
        deadline = time.monotonic() + 120
        with UpscaleClient(f"http://{self.http}") as client:
            while not client.is_ready():
                assert self.process.poll() is None, self.log[-3000:]
                assert time.monotonic() < deadline, self.log[-3000:]
                time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()  # it gives its shared memory back
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self._log.close()

    @property
    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def get(self, place: str, path: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
        """One request without our clients: status and text."""
        try:
            request = urllib.request.Request(f"http://{place}{path}", headers=headers or {})
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
