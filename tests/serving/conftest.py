"""One server for all tests that only ask it things."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest
from support.serve_process import ServeProcess, still_runs
from support.served_pictures import png

from trt_hspan.runtime.opening import open_runner
from trt_hspan.runtime.runner import Runner

NETWORK = "hspan-tiny-x4"


@pytest.fixture(scope="session")
def server() -> Iterator[ServeProcess]:
    """Limits: 2,000,000 bytes, 20,000 pixels, 16 in the queue, 1.5 s for a body, 100 connections; tiles of 48x48."""
    running = ServeProcess(
        NETWORK,
        *("--page", "--instances", 1, "--tile", "48x48"),
        *("--max-bytes", 2_000_000, "--max-pixels", 20_000),
        *("--queue-length", 16, "--body-time-ms", 1500, "--connections", 100),
    )
    yield running
    processes = running.everything()
    assert running.stop() == 0, running.stderr
    psutil.wait_procs(processes, timeout=3)
    assert not [process for process in processes if still_runs(process)]


@pytest.fixture(scope="session")
def runner() -> Iterator[Runner]:
    """The network that the server serves, in this process."""
    with open_runner(NETWORK, threads=1) as active:
        yield active


@pytest.fixture(scope="session")
def picture() -> bytes:
    """A PNG of 30x20 pixels."""
    return png(30, 20)
