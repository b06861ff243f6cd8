"""Steps g and h: what runs engines without Python, and a server; on the engines that step f left in the folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from tools.gpu_report.engines import Checks, command_line, last_line
from tools.gpu_report.machine import ROOT

_PICTURE: Final = ROOT / "trt_hspan" / "data" / "chelsea.png"
_READY_SECONDS: Final = 90


def run_programs(folder: Path) -> dict[str, Any]:
    """Step g: hspan-upscale, the C++ runtime's program, and trtexec."""
    checks, plan = Checks(), folder / "engines" / "fp16.plan"
    if not plan.is_file():
        checks.skipped("C++ runtime, trtexec", "step f left no engine")
        return checks.as_json()
    _check_upscale_program(checks, folder, plan)
    _check_trtexec(checks, folder, plan)
    return checks.as_json()


def run_server(folder: Path) -> dict[str, Any]:
    """Step h: `trt-hspan serve` with the engine, and a picture through it."""
    checks, plan = Checks(), folder / "engines" / "fp16.plan"
    if not plan.is_file():
        checks.skipped("Triton", "step f left no engine")
        return checks.as_json()
    command = [sys.executable, "-m", "trt_hspan", "serve", "run", str(plan), "--device", "gpu", "--json"]
    command += [word for name in ("--port", "--grpc-port", "--metrics-port") for word in (name, "0")]
    log = folder / "server.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stream, text=True, env=dict(os.environ)
        )
    try:
        address = _address_when_ready(process)
        if address is None:
            last = (log.read_text().strip().splitlines() or ["it said nothing"])[-1]
            checks.skipped("Triton", f"no server came up: {last}")
            return checks.as_json()
        output = folder / "served.png"
        completed = command_line("client", _PICTURE, "--url", address, "-o", output)
        _check_picture(checks, "Triton", plan, completed, output)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
    return checks.as_json()


def _address_when_ready(process: subprocess.Popen[str]) -> str | None:
    """The HTTP address that the server says when it is ready; None when it ends or takes too long."""
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        line = process.stdout.readline()
        if not line:
            time.sleep(0.2)
            continue
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if event.get("event") == "ready":
            return str(event["http"])
    return None


def _check_upscale_program(checks: Checks, folder: Path, plan: Path) -> None:
    from trt_hspan.errors import HspanError
    from trt_hspan.native.toolchain import find_cmake, find_tensorrt_headers

    build, log = folder / "runtime", folder / "runtime.log"
    try:
        configure: list[str | Path] = [find_cmake(), "-S", ROOT, "-B", build, "-DCMAKE_BUILD_TYPE=Release"]
        configure += [
            "-DHSPAN_BUILD_PLUGIN=OFF",
            "-DHSPAN_BUILD_RUNTIME=ON",
            "-DHSPAN_BUILD_RUNTIME_TESTS=OFF",
        ]
        configure += ["-DHSPAN_TENSORRT_LOAD=ON", f"-DHSPAN_TENSORRT_INCLUDE={find_tensorrt_headers()}"]
    except HspanError as error:
        checks.skipped("hspan-upscale", str(error))
        return
    with log.open("w") as stream:
        for command in (configure, [configure[0], "--build", build, "--parallel", str(os.cpu_count() or 1)]):
            if subprocess.run(command, stdout=stream, stderr=stream, check=False).returncode != 0:
                checks.skipped("hspan-upscale", f"it does not build here, see {log}")
                return
    program = build / "plugins" / "runtime" / "hspan-upscale"
    if not program.is_file():
        checks.skipped("hspan-upscale", f"CUDA's runtime or a library is missing, see {log}")
        return
    command = [
        program,
        "-e",
        plan,
        "--plugin",
        os.environ["TRT_HSPAN_PLUGIN"],
        _PICTURE,
        "-o",
        folder / "program.png",
        "--overwrite",
    ]
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": f"{_tensorrt_folder()}:{os.environ.get('LD_LIBRARY_PATH', '')}",
    }
    completed = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    _check_picture(checks, "hspan-upscale", plan, completed, folder / "program.png")


def _check_picture(
    checks: Checks, name: str, plan: Path, completed: subprocess.CompletedProcess[str], output: Path
) -> None:
    """The picture must be the one that `trt-hspan upscale` makes with the same engine."""
    if completed.returncode != 0:
        checks.failed(name, last_line(completed))
        return
    expected = output.with_name("expected.png")
    own = command_line("upscale", _PICTURE, "--engine", plan, "--device", "gpu", "-o", expected)
    if own.returncode != 0:
        checks.failed(name, f"there is nothing to compare with: {last_line(own)}")
        return
    difference = _greatest_difference(expected, output)
    # Tiles are chosen by each program for itself, and one step of 255 is what rounding may turn on.
    (checks.passed if difference <= 1 else checks.failed)(
        name, f"at most {difference} of 255 from trt-hspan upscale"
    )


def _greatest_difference(left: Path, right: Path) -> int:
    from PIL import Image

    pictures = [np.asarray(Image.open(path).convert("RGB")).astype(np.int16) for path in (left, right)]
    return int(np.abs(pictures[0] - pictures[1]).max())


def _check_trtexec(checks: Checks, folder: Path, plan: Path) -> None:
    program = shutil.which("trtexec")
    if program is None:
        checks.skipped("trtexec", "not installed")
        return
    command = [program, f"--loadEngine={plan}", f"--dynamicPlugins={os.environ['TRT_HSPAN_PLUGIN']}"]
    command += ["--shapes=input:1x3x64x64", "--duration=2", "--useCudaGraph"]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    (folder / "trtexec.log").write_text(completed.stdout + completed.stderr)
    if completed.returncode != 0:
        checks.failed("trtexec", f"ended with code {completed.returncode}, see {folder / 'trtexec.log'}")
        return
    times = [line for line in completed.stdout.splitlines() if "GPU Compute Time" in line]
    checks.passed("trtexec", times[0].split("] ")[-1] if times else "it ran the engine")


def _tensorrt_folder() -> Path:
    """Where pip put TensorRT's libraries."""
    import tensorrt

    package = Path(tensorrt.__file__).parent
    beside = package.parent / "tensorrt_libs"
    return beside if beside.is_dir() else package
