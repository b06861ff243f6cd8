#!/usr/bin/env python3
"""What servers cost over the bare runner at one client: `trt-hspan serve` and tritonserver, HTTP and gRPC.

Both serve one network with one instance on one thread, as processes of their own: an FP32 engine of TensorRT-RTX, built
here, whose ONNX file all run on the CPU. The same network runs here on one thread. Runs alternate: once here, once over
a way to a server, with the same input, and so on for each way. The bare side does all that a server does for it: the
tensor's run, or decoding, the same tiles, and encoding. A figure is the median over the pairs; the overhead is the
median of the differences within a pair, so that what else the machine does, and what lies in its caches, falls on both
sides alike. Exit code 1 when `trt-hspan serve` is above its limit of 3 % + 2 ms.

On a machine that others keep busy, clocks tell of them. `--clock cpu` takes the processor time of this process and of
all processes of the servers instead; at one client they work one after the other, so that it is what a clock would show
on an idle machine, or more where they overlap.

    python benchmarks/serving.py [--json] [--network NAME] [--sizes 64 128 256] [--seconds 25] [--clock wall|cpu]
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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from trt_hspan.runtime.runner import Runner
    from trt_hspan.serving.client import UpscaleClient

#: Allowed over the bare runner.
RATIO: Final = 0.03
MILLISECONDS: Final = 2.0
#: The engine's largest picture, and so the largest tile.
TILE: Final = 128
_LEAST_ROUNDS, _MOST_ROUNDS = 8, 200


class Server(NamedTuple):
    """One that is ready."""

    name: str
    http: str
    grpc: str
    pid: int


Way = Callable[[], object]
Clock = Callable[[], float]


def engine(network: str, folder: Path) -> Path:
    """An FP32 engine of TensorRT-RTX for pictures of up to 128x128."""
    from trt_hspan.engine.build import build_engine
    from trt_hspan.engine.spec import EngineSpec, ProfileRequest
    from trt_hspan.export import export_onnx
    from trt_hspan.sizes import ImageSize

    onnx = export_onnx(network, folder / "network.onnx", precision="fp32")
    profile = ProfileRequest(max=ImageSize(height=TILE, width=TILE), max_batch=1)
    plan = folder / "network.plan"
    build_engine(
        EngineSpec(onnx=onnx, output=plan, flavor="tensorrt-rtx", profiles=(profile,), targets=("sm_86",))
    )
    return plan


@contextlib.contextmanager
def server(plan: Path) -> Iterator[Server]:
    """`trt-hspan serve`, with one instance on one thread."""
    command = [
        sys.executable,
        "-m",
        "trt_hspan",
        "serve",
        "run",
        str(plan),
        "--port",
        "0",
        "--grpc-port",
        "0",
    ]
    command += ["--json", "--instances", "1", "--threads", "1"]
    with tempfile.TemporaryFile("w+") as log, subprocess.Popen(command, stdout=log) as process:
        try:
            ready = _ready_event(log, process)
            yield Server("trt-hspan", ready["http"], f"grpc://{ready['grpc']}", process.pid)
        finally:
            process.terminate()


@contextlib.contextmanager
def triton(plan: Path, folder: Path) -> Iterator[Server]:
    """tritonserver on the exported repository, started by its start.sh."""
    from tools.load_test.tritonserver import StartedRepository
    from trt_hspan.model_repository.networks import networks_from_engines
    from trt_hspan.model_repository.repository import CODE, SUMS, write_repository

    write_repository(folder, networks_from_engines([plan]))
    # The package that is installed here runs in both servers, with its compiled attention.
    for archive in folder.glob(f"*/1/{CODE}"):
        archive.unlink()
    sums = (folder / SUMS).read_text().splitlines(keepends=True)
    (folder / SUMS).write_text("".join(line for line in sums if CODE not in line))
    with StartedRepository(folder) as started:
        yield Server("tritonserver", f"http://{started.http}", f"grpc://{started.grpc}", started.process.pid)


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
    stack: contextlib.ExitStack, servers: Sequence[Server], runner: Runner, side: int
) -> dict[str, Way]:
    """The raw model: here, and over each way. The first is the bare one."""
    import numpy as np

    batch = np.ascontiguousarray(photograph(side).astype(np.float32).transpose(2, 0, 1)[None] / 255)
    ways: dict[str, Way] = {"bare": lambda: runner.run(batch)}
    for name, client in _clients(stack, servers):
        ways[name] = lambda client=client: client.upscale_tensor(batch)
    return ways


def ways_of_pictures(
    stack: contextlib.ExitStack, servers: Sequence[Server], runner: Runner, side: int
) -> dict[str, Way]:
    """The picture model: decoding, tiles and encoding here, and over each way."""
    from dataclasses import replace

    from trt_hspan.media.pictures import Picture, decode_image
    from trt_hspan.media.writing import encode_image
    from trt_hspan.upscaling.options import UpscaleOptions
    from trt_hspan.upscaling.upscaler import upscale_array

    file = encode_image(Picture(pixels=photograph(side)), ".png")
    options = UpscaleOptions(tile=(TILE, TILE))

    def bare() -> bytes:
        picture = decode_image(file)
        return encode_image(replace(picture, pixels=upscale_array(runner, picture.pixels, options)), ".png")

    ways: dict[str, Way] = {"bare": bare}
    for name, client in _clients(stack, servers):
        ways[name] = lambda client=client: client.upscale_picture(file)

    def post() -> bytes:
        connection = http.client.HTTPConnection(servers[0].http.removeprefix("http://"))
        with contextlib.closing(connection):
            connection.request("POST", "/upscale", body=file)
            return connection.getresponse().read()

    ways[f"{servers[0].name}, POST /upscale"] = post
    return ways


def _clients(stack: contextlib.ExitStack, servers: Sequence[Server]) -> Iterator[tuple[str, UpscaleClient]]:
    from trt_hspan.serving.client import UpscaleClient

    for each in servers:
        for protocol, url in (("HTTP", each.http), ("gRPC", each.grpc)):
            yield f"{each.name}, {protocol}", stack.enter_context(UpscaleClient(url))


def cpu_clock(servers: Sequence[Server]) -> Clock:
    """Seconds of processor time of this process and of the servers with all their children (proc_pid_schedstat)."""
    import psutil

    pids = [os.getpid()]
    for each in servers:
        pids += [each.pid, *(child.pid for child in psutil.Process(each.pid).children(recursive=True))]

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
        allowed = RATIO * bare + MILLISECONDS if name.startswith("trt-hspan") else None
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
                "allowed_ms": None if allowed is None else round(allowed, 2),
                "within": allowed is None or overhead <= allowed,
            }
        )
    return rows


def print_table(rows: list[dict[str, Any]]) -> None:
    """The rows as a Markdown table."""
    print("| model | side | way | pairs | bare, ms | server, ms | overhead, ms | % | allowed, ms | |")
    print("| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    for row in rows:
        *cells, within = row.values()
        words = ["" if cell is None else str(cell) for cell in cells]
        print(f"| {' | '.join(words)} | {'' if row['allowed_ms'] is None else 'ok' if within else 'ABOVE'} |")
    print(f"load of the machine, mean of a minute: {os.getloadavg()[0]:.2f}")


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--network", default="hspan-tiny-x4")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256], help="sides of the pictures")
    parser.add_argument("--seconds", type=float, default=25.0, help="for each model and size")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    options = parser.parse_args(words)
    os.environ["OMP_NUM_THREADS"] = "1"
    from trt_hspan.machine.memory import keep_freed_memory
    from trt_hspan.runtime.opening import open_runner

    keep_freed_memory()  # as the server's processes do

    rows: list[dict[str, Any]] = []
    with contextlib.ExitStack() as outer:
        folder = Path(outer.enter_context(tempfile.TemporaryDirectory(prefix="trt-hspan-serving-")))
        plan = engine(options.network, folder)
        runner = outer.enter_context(open_runner(plan, threads=1))
        servers = [outer.enter_context(server(plan)), outer.enter_context(triton(plan, folder / "models"))]
        clock = cpu_clock(servers) if options.clock == "cpu" else time.perf_counter
        for side in options.sizes:
            for model, make in (("tensor", ways_of_tensors), ("picture", ways_of_pictures)):
                if model == "tensor" and side > TILE:
                    continue
                with contextlib.ExitStack() as stack:
                    pairs = measure(make(stack, servers, runner, side), options.seconds, clock)
                rows += rows_from_pairs(model, side, pairs)
    if options.json:
        print(json.dumps({"load_average": round(os.getloadavg()[0], 2), "rows": rows}, indent=2))
    else:
        print_table(rows)
    return 0 if all(row["within"] for row in rows) else 1


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for tools
    sys.exit(main())
