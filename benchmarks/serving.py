#!/usr/bin/env python3
"""What the server costs over the bare runner at one client: HTTP and gRPC, tensors and pictures.

`trt-hspan serve` runs as a process of its own with one instance of the network, and the same network runs here, each on
one thread. Runs alternate: once here, once over a way to the server, with the same input, and so on for each way. The
bare side does all that the server does for it: the tensor's run, or decoding, the same tiles, and encoding. A figure is
the median over the pairs; the overhead is the median of the differences within a pair, so that what else the machine
does, and what lies in its caches, falls on both sides alike. Exit code 1 when one is above the limit of 10 % + 5 ms.

On a machine that others keep busy, clocks tell of them. `--clock cpu` takes the processor time of this process and of
all processes of the server instead; at one client they work one after the other, so that it is what a clock would show
on an idle machine, or more where they overlap.

    python benchmarks/serving.py [--json] [--network hspan-tiny-x4] [--sizes 64 128] [--seconds 25] [--clock wall|cpu]
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from trt_hspan.runtime.runner import Runner

#: Allowed over the bare runner.
RATIO: Final = 0.10
MILLISECONDS: Final = 5.0
TILE: Final = 64
_LEAST_ROUNDS, _MOST_ROUNDS = 8, 200

Way = Callable[[], object]
Clock = Callable[[], float]


@contextlib.contextmanager
def server(network: str, tile: int) -> Iterator[dict[str, Any]]:
    """A server of one instance on one thread; gives what it said when it was ready."""
    ports = ("--port", "0", "--grpc-port", "0")
    command = [sys.executable, "-m", "trt_hspan", "serve", "run", network, *ports, "--json"]
    command += ["--instances", "1", "--threads", "1", "--tile", f"{tile}x{tile}"]
    with tempfile.TemporaryFile("w+") as log, subprocess.Popen(command, stdout=log) as process:
        try:
            yield {**_ready_event(log, process), "pid": process.pid}
        finally:
            process.terminate()


def _ready_event(log: IO[str], process: subprocess.Popen[bytes]) -> dict[str, Any]:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        log.seek(0)
        for line in log:
            if line.endswith("\n") and json.loads(line)["event"] == "ready":
                return dict(json.loads(line))
        time.sleep(0.1)
    raise RuntimeError("the server did not start")


def photograph(side: int) -> npt.NDArray[np.uint8]:
    """(side, side, 3) uint8 RGB: the middle of the shipped photograph."""
    from importlib.resources import as_file, files

    from trt_hspan.media.pictures import read_image

    with as_file(files("trt_hspan") / "data" / "chelsea.png") as path:
        image = read_image(path)
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    crop: npt.NDArray[np.uint8] = image[top : top + side, left : left + side, :3].copy()
    return crop


def ways_of_tensors(
    stack: contextlib.ExitStack, ready: dict[str, Any], runner: Runner, side: int
) -> dict[str, Way]:
    """The raw model: here, and over each way. The first is the bare one."""
    import numpy as np

    from trt_hspan.serving.client import UpscaleClient

    batch = np.ascontiguousarray(photograph(side).astype(np.float32).transpose(2, 0, 1)[None] / 255)
    ways: dict[str, Way] = {"bare": lambda: runner.run(batch)}
    for name, url in _urls(ready).items():
        client = stack.enter_context(UpscaleClient(url))
        ways[name] = lambda client=client: client.upscale_tensor(batch)
    return ways


def ways_of_pictures(
    stack: contextlib.ExitStack, ready: dict[str, Any], runner: Runner, side: int
) -> dict[str, Way]:
    """The picture model: decoding, tiles and encoding here, and over each way."""
    from dataclasses import replace

    from trt_hspan.media.pictures import Picture, decode_image
    from trt_hspan.media.writing import encode_image
    from trt_hspan.serving.client import UpscaleClient
    from trt_hspan.upscaling.options import UpscaleOptions
    from trt_hspan.upscaling.upscaler import upscale_array

    file = encode_image(Picture(pixels=photograph(side)), ".png")
    options = UpscaleOptions(tile=(TILE, TILE))

    def bare() -> bytes:
        picture = decode_image(file)
        return encode_image(replace(picture, pixels=upscale_array(runner, picture.pixels, options)), ".png")

    ways: dict[str, Way] = {"bare": bare}
    for name, url in _urls(ready).items():
        client = stack.enter_context(UpscaleClient(url))
        ways[name] = lambda client=client: client.upscale_picture(file)
    connection = http.client.HTTPConnection(ready["http"].removeprefix("http://"))
    stack.callback(connection.close)

    def post() -> bytes:
        connection.request("POST", "/upscale", body=file)
        return connection.getresponse().read()

    ways["POST /upscale"] = post
    return ways


def _urls(ready: dict[str, Any]) -> dict[str, str]:
    return {"HTTP": ready["http"], "gRPC": f"grpc://{ready['grpc']}"}


def cpu_clock(pid: int) -> Clock:
    """Seconds of processor time of this process and of `pid` with all its children (proc_pid_schedstat)."""
    import psutil

    server = psutil.Process(pid)
    pids = [os.getpid(), pid, *(child.pid for child in server.children(recursive=True))]

    def now() -> float:
        total = 0
        for one in pids:
            with contextlib.suppress(
                OSError
            ):  # a watcher's process or a thread that ends, after next to nothing
                for thread in Path(f"/proc/{one}/task").iterdir():
                    total += int((thread / "schedstat").read_text().split()[0])
        return total / 1e9

    return now


def measure(
    ways: dict[str, Way], seconds: float, clock: Clock = time.perf_counter
) -> dict[str, list[tuple[float, float]]]:
    """For each way to the server, pairs of milliseconds, here and there, until the time is up."""
    for way in ways.values():
        way()
        way()
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in ways if name != "bare"}
    started = time.perf_counter()
    for turn in range(_MOST_ROUNDS):
        if turn >= _LEAST_ROUNDS and time.perf_counter() - started > seconds:
            break
        for name, taken in pairs.items():
            taken.append((_milliseconds(ways["bare"], clock), _milliseconds(ways[name], clock)))
    return pairs


def _milliseconds(way: Way, clock: Clock) -> float:
    started = clock()
    way()
    return 1000 * (clock() - started)


def rows_from_pairs(
    model: str, side: int, pairs: dict[str, list[tuple[float, float]]]
) -> list[dict[str, Any]]:
    """One row for each way to the server."""
    rows = []
    for name, taken in pairs.items():
        bare = statistics.median(here for here, _ in taken)
        overhead = statistics.median(there - here for here, there in taken)
        allowed = RATIO * bare + MILLISECONDS
        rows.append(
            {
                "model": model,
                "side": side,
                "way": name,
                "pairs": len(taken),
                "bare_ms": round(bare, 2),
                "server_ms": round(statistics.median(there for _, there in taken), 2),
                "overhead_ms": round(overhead, 2),
                "overhead_percent": round(100 * overhead / bare, 1),
                "allowed_ms": round(allowed, 2),
                "within": overhead <= allowed,
            }
        )
    return rows


def print_table(rows: list[dict[str, Any]]) -> None:
    """The rows as a Markdown table."""
    print("| model | side | way | pairs | bare, ms | server, ms | overhead, ms | % | allowed, ms | |")
    print("| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    for row in rows:
        *cells, within = row.values()
        print(f"| {' | '.join(map(str, cells))} | {'ok' if within else 'ABOVE'} |")
    print(f"load of the machine, mean of a minute: {os.getloadavg()[0]:.2f}")


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--network", default="hspan-tiny-x4")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128], help="sides of the pictures")
    parser.add_argument("--seconds", type=float, default=25.0, help="for each model and size")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    options = parser.parse_args(words)
    os.environ["OMP_NUM_THREADS"] = "1"
    from trt_hspan.machine.memory import keep_freed_memory
    from trt_hspan.runtime.opening import open_runner

    keep_freed_memory()  # as the server's processes do

    rows: list[dict[str, Any]] = []
    with (
        open_runner(options.network, threads=1) as runner,
        server(options.network, TILE) as ready,
    ):
        clock = cpu_clock(ready["pid"]) if options.clock == "cpu" else time.perf_counter
        for side in options.sizes:
            for model, make in (("tensor", ways_of_tensors), ("picture", ways_of_pictures)):
                with contextlib.ExitStack() as stack:
                    pairs = measure(make(stack, ready, runner, side), options.seconds, clock)
                rows += rows_from_pairs(model, side, pairs)
    if options.json:
        print(json.dumps({"load_average": round(os.getloadavg()[0], 2), "rows": rows}, indent=2))
    else:
        print_table(rows)
    return 0 if all(row["within"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
