"""One server for all tests that only ask it things."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest
from support.serve_process import ServeProcess, left_in_shared_memory, still_runs
from support.served_pictures import png

from trt_hspan.runtime.opening import open_runner
from trt_hspan.runtime.runner import Runner

NETWORK = "hspan-tiny-x4"


@pytest.fixture(scope="session")
def server() -> Iterator[ServeProcess]:
    """Limits: 2,000,000 bytes, 20,000 pixels, 16 in the queue, 1.5 s for a body; tiles of 48x48."""
    running = ServeProcess(
        NETWORK,
        *("--page", "--instances", 1, "--tile", "48x48"),
        *("--max-bytes", 2_000_000, "--max-pixels", 20_000),
        *("--queue-length", 16, "--body-time-ms", 1500),
    )
    yield running
    processes = running.everything()
    assert running.stop() == 0, running.stderr
    # What watches a process looks twice a second.
    # One that has ended and waits for its parent to ask is as good as gone.
    psutil.wait_procs(processes, timeout=3)
    assert not [process for process in processes if still_runs(process)]
    assert not left_in_shared_memory(running.process.pid)


@pytest.fixture(scope="session")
def runner() -> Iterator[Runner]:
    """The network that the server serves, in this process."""
    with open_runner(NETWORK, threads=1) as active:
        yield active


@pytest.fixture(scope="session")
def picture() -> bytes:
    """A PNG of 30x20 pixels."""
    return png(30, 20)
