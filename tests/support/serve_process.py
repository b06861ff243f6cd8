"""`trt-hspan serve` as a process of its own, as users run it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import psutil


class ServeProcess:
    """A running server. `ready` is what it said when it was ready."""

    def __init__(
        self,
        *words: object,
        ports: tuple[int, int] = (0, 0),
        timeout: float = 120,
        environment: dict[str, str] | None = None,
        command: Sequence[object] = (sys.executable, "-m", "trt_hspan"),
    ) -> None:
        options = ["--port", str(ports[0]), "--grpc-port", str(ports[1])]
        self.events: list[dict[str, Any]] = []
        self.stderr = ""
        self.process = subprocess.Popen(
            [*map(str, command), "serve", "run", *map(str, words), *options, "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        )
        self._arrived = threading.Condition()
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._read, self._read_errors)
        ]
        for thread in self._threads:
            thread.start()
        try:
            self.ready = self.wait_for("ready", timeout)
        except BaseException:
            self.process.kill()
            raise

    @property
    def http(self) -> str:
        return str(self.ready["http"])

    @property
    def http_address(self) -> str:
        return self.http.removeprefix("http://")

    @property
    def grpc_address(self) -> str:
        return str(self.ready["grpc"])

    @property
    def metrics(self) -> str:
        return f"{self.http}/metrics"

    @property
    def ports(self) -> tuple[int, int]:
        http, grpc = (int(text.rpartition(":")[2]) for text in (self.http, self.grpc_address))
        return http, grpc

    def wait_for(
        self, event: str, timeout: float = 60, *, after: int = 0, **fields: object
    ) -> dict[str, Any]:
        """The first event of this name, with these fields, from number `after` on."""
        expected = {"event": event, **fields}
        deadline = time.monotonic() + timeout
        with self._arrived:
            while True:
                for candidate in self.events[after:]:
                    if expected.items() <= candidate.items():
                        return candidate
                left = deadline - time.monotonic()
                if left <= 0 or (self.process.poll() is not None and not self._threads[0].is_alive()):
                    raise AssertionError(f"no event {event!r}: {self.events[-20:]} {self.stderr}")
                self._arrived.wait(min(left, 0.5))

    def decoders(self) -> list[psutil.Process]:
        """The processes that read and write pictures."""
        return [p for p in psutil.Process(self.process.pid).children() if still_runs(p)]

    def everything(self) -> list[psutil.Process]:
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def stop(self, number: int = signal.SIGTERM, timeout: float = 60) -> int:
        """Tells it to stop; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(timeout)
        for thread in self._threads:
            thread.join(10)
        return code

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._arrived:
                self.events.append(json.loads(line))
                self._arrived.notify_all()

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.stderr += line


def still_runs(process: psutil.Process) -> bool:
    """Not if it has ended and waits for its parent to ask: that is as good as gone."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
