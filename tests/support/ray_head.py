"""A Ray cluster of one node that is a process of its own, as `ray start --head` makes it, with a client server."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def ray_head(processors: int = 2) -> Iterator[str]:
    """Its ray:// address. Ray's sockets want a short path, so it does not live in pytest's folder."""
    port = free_port()
    # Ray takes a token from the user's home otherwise, and then wants one from clients too.
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    # Ray's client server starts a process for each client; gRPC's handlers of forks abort it now and then.
    environment["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    with tempfile.TemporaryDirectory(prefix="ray_", dir="/tmp", ignore_cleanup_errors=True) as folder:
        command = [
            *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--port=0"),
            *(f"--ray-client-server-port={port}", f"--num-cpus={processors}", f"--temp-dir={folder}"),
            *("--include-dashboard=false", "--disable-usage-stats", "--object-store-memory=100000000"),
        ]
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            try:
                deadline = time.monotonic() + 120
                while not _listens(port):
                    assert process.poll() is None, "ray start ended"
                    assert time.monotonic() < deadline, "ray start takes too long"
                    time.sleep(0.2)
                yield f"ray://127.0.0.1:{port}"
            except BaseException:
                for log in sorted(Path(folder).glob("session_latest/logs/ray_client_server*.err")):
                    # pytest shows it with the failure.
                    sys.stderr.write(f"{log.name}\n{log.read_text()[-3000:]}\n")
                raise
            finally:
                # Told to end, Ray takes half a minute to end its processes one after the other.
                started = psutil.Process(process.pid)
                for one in (started, *started.children(recursive=True)):
                    with suppress(psutil.NoSuchProcess):
                        one.kill()
                process.wait(60)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
