"""One tritonserver process: started, ready, reloaded, stopped. Owns the process and what it leaves behind.

It listens on loopback ports only; what faces clients is the front door.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trt_hspan.errors import HspanError
from trt_hspan.serving.events import log_event
from trt_hspan.serving.triton_install import TritonInstall

LOOPBACK: Final = "127.0.0.1"
# Of the names in /dev/shm of Triton's Python backend; the process id of the server's parent follows.
SHM_PREFIX: Final = "trt_hspan_"
_SHM: Final = Path("/dev/shm")
# "2026-11-22T22:24:23Z 31613 I 22:24:23.472 server.cc:631] text"; what lies between differs between versions.
_LINE: Final = re.compile(r"^\d{4}-\d\d-\d\dT\S+Z\s+(?:\d+\s+)?([IWEF])\s+(?:\d+\s+)?(\S+?:\d+)\]\s*(.*)$")
# Always printed on a machine without a GPU.
_EXPECTED: Final = (
    "DCGM unable to start",
    "Failed to initialize NVML",
    "Unable to allocate pinned",
    "CUDA memory pool disabled",
    "CudaDriverHelper has not been initialized",
    "failed to allocate pinned system memory",
)
# Starts the program so that it dies with this process, however this one ends (prctl(2), PR_SET_PDEATHSIG is 1).
_TRAMPOLINE: Final = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); "
    "os.getppid() == int(sys.argv[1]) and os.execv(sys.argv[2], sys.argv[2:])"
)


@dataclass(frozen=True, kw_only=True)
class TritonPorts:
    """Where the process listens, on the loopback address."""

    http: int
    grpc: int
    metrics: int


def _held_ports(stack: contextlib.ExitStack) -> TritonPorts:
    """Three ports of the kernel's choice that are nobody else's until the stack is closed.

    The sockets are bound and never listen, so that a program with SO_REUSEADDR, as tritonserver is one, listens there
    beside them; and for others the ports are taken even while tritonserver is started again.
    """
    numbers = []
    for _ in range(3):
        sock = stack.enter_context(socket.socket())
        sock.bind((LOOPBACK, 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        numbers.append(sock.getsockname()[1])
    return TritonPorts(http=numbers[0], grpc=numbers[1], metrics=numbers[2])


class TritonServer:
    """A tritonserver on a model repository.

    Args:
        on_line: called with each line that the server writes: level "info", "warning" or "error", and the text.
        arguments: further options of tritonserver.
    """

    def __init__(
        self,
        install: TritonInstall,
        repository: Path,
        *,
        on_line: Callable[[str, str], None] | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        self._install, self._repository, self._arguments = install, repository, tuple(arguments)
        self._on_line = on_line or (lambda _level, _text: None)
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._errors: deque[str] = deque(maxlen=50)
        self._holding = contextlib.ExitStack()
        self.ports = _held_ports(self._holding)
        self.shm_prefix = f"{SHM_PREFIX}{os.getpid()}_"

    @property
    def pid(self) -> int | None:
        """Of the process; None before the start."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Starts the process; `wait_until_ready` returns when it serves."""
        self._errors.clear()
        remove_stale_shared_memory()
        command = [
            str(self._install.program),
            f"--model-repository={self._repository}",
            f"--backend-directory={self._install.backends}",
            "--model-control-mode=explicit",
            "--load-model=*",
            "--disable-auto-complete-config",
            "--exit-timeout-secs=30",
            "--log-format=ISO8601",
            f"--http-address={LOOPBACK}",
            f"--grpc-address={LOOPBACK}",
            f"--metrics-address={LOOPBACK}",
            f"--http-port={self.ports.http}",
            f"--grpc-port={self.ports.grpc}",
            f"--metrics-port={self.ports.metrics}",
            f"--backend-config=python,shm-region-prefix-name={self.shm_prefix}",
            *self._arguments,
        ]
        launcher = [sys.executable, "-I", "-S", "-c", _TRAMPOLINE, str(os.getpid())]
        self._process = await asyncio.create_subprocess_exec(
            *launcher,
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self._install.environment(),
            start_new_session=True,
            limit=1 << 20,
        )
        self._reader = asyncio.create_task(self._read(self._process))

    async def wait_until_ready(self, timeout: float = 300.0) -> None:
        """Returns when the server and every model are ready; raises HspanError when they cannot be."""
        import aiohttp

        assert self._process is not None
        url = f"http://{LOOPBACK}:{self.ports.http}/v2/health/ready"
        deadline = time.monotonic() + timeout
        async with aiohttp.ClientSession() as session:
            while self._process.returncode is None:
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(url) as response:
                        if response.status == 200:
                            return
                if time.monotonic() > deadline:
                    raise HspanError("tritonserver", f"was not ready after {timeout:.0f} s", "see --verbose")
                await asyncio.sleep(0.05)
        if self._reader is not None:
            await self._reader
        raise HspanError("tritonserver", self.failure(), "see the lines above, or --verbose")

    def failure(self) -> str:
        """Why the process ended, from its own words."""
        code = None if self._process is None else self._process.returncode
        reasons = [_model_error(line) for line in self._errors]
        causes = [reason for reason in reasons if reason is not None]
        if causes:
            return causes[0]
        last = f": {self._errors[-1][:300]}" if self._errors else ""
        return f"ended with code {code}{last}"

    async def wait(self) -> int:
        """Waits for the end of the process; its exit code."""
        assert self._process is not None
        code = await self._process.wait()
        if self._reader is not None:
            await self._reader
        self._remove_left_overs()
        return code

    async def load(self, model: str) -> None:
        """Loads a model's new versions; the old ones answer until the new are ready, or for good if that fails."""
        import aiohttp

        url = f"http://{LOOPBACK}:{self.ports.http}/v2/repository/models/{model}/load"
        async with aiohttp.ClientSession() as session, session.post(url, json={}) as response:
            if response.status != 200:
                text = await response.text()
                raise HspanError(
                    model, _model_error(text) or text[:300], "the version before is still served"
                )

    def stub_counts(self) -> Counter[str]:
        """How many Python processes each model has now."""
        import psutil

        instances: Counter[str] = Counter()
        try:
            children = [] if self.pid is None else psutil.Process(self.pid).children(recursive=True)
        except psutil.Error:
            children = []
        for process in children:
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                if process.status() != psutil.STATUS_ZOMBIE and len(words) > 1 and words[1].endswith(".py"):
                    instances[Path(words[1]).parts[-3]] += 1  # .../MODEL/VERSION/model.py
        return instances

    async def revive(self, model: str) -> None:
        """Loads a model anew whose Python processes died.

        *Measured*: Triton 2.51 starts a stub again that dies at work, but not one that dies while it waits.
        """
        versions = [path for path in (self._repository / model).iterdir() if path.name.isdigit()]
        newest = max(versions, key=lambda path: int(path.name))
        (newest / "model.py").touch()  # Triton loads again only what changed
        await self.load(model)

    async def stop(self, grace: float = 35.0) -> None:
        """Ends the process: gracefully at first, by force after `grace` seconds. Nothing is left behind."""
        with self._holding:
            await self._end(grace)

    async def _end(self, grace: float) -> None:
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), grace)
            except asyncio.TimeoutError:
                log_event("forced-stop", level=logging.WARNING, seconds=grace)
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        self._remove_left_overs()
        if self._reader is not None:
            await self._reader

    def _remove_left_overs(self) -> None:
        """Stubs that outlived the server, and their shared memory."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        _remove_shared_memory(self.shm_prefix)

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # a line longer than the limit
                continue
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            if text:
                self._tell(text)

    def _tell(self, text: str) -> None:
        match = _LINE.match(text)
        level, message = (match[1], match[3].strip('"')) if match else ("I", text)
        if level in "EF" or text.startswith("error:"):
            self._errors.append(message)
        if any(phrase in text for phrase in _EXPECTED):
            level = "I"
        self._on_line({"W": "warning", "E": "error", "F": "error"}.get(level, "info"), message)


def remove_stale_shared_memory() -> None:
    """Removes what servers left in /dev/shm whose process was killed."""
    for path in _SHM.glob(f"{SHM_PREFIX}*"):
        match = re.match(rf"{SHM_PREFIX}(\d+)_", path.name)
        if match and not Path(f"/proc/{match[1]}").exists():
            with contextlib.suppress(OSError):
                path.unlink()


def _remove_shared_memory(prefix: str) -> None:
    for path in _SHM.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            path.unlink()


def _model_error(text: str) -> str | None:
    """The cause in one of Triton's lines about a model that cannot be loaded."""
    match = re.search(r"TritonModelException: (.*?)(?:\\n|\n|$)", text) or re.search(
        r"failed to load '([^']+)' version \d+: (.*)", text
    )
    if match is None:
        return None
    return ": ".join(match.groups())[:400]
