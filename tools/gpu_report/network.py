"""Step e: the whole network in PyTorch on the GPU, against the same weights in float64 on the CPU."""

from __future__ import annotations

import copy
import logging
import math
import statistics
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, Final

import torch

from tools.gpu_report.inputs import photograph, shipped_network
from tools.gpu_report.timing import Clock
from trt_hspan.native.cuda_attention import LIBRARY_VARIABLE

SIDES: Final = (48, 96)
TIMED_SIDES: Final = (96, 256)
#: Least PSNR against float64, in dB: FP32's rounding over some 20 layers, and the bar of `trt-hspan validate` for FP16.
BARS: Final = {"float32": 100.0, "float16": 50.0}


class _Warnings(logging.Handler):
    """What the package warns of: that the attention runs without its kernels, for one."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def run(library: Path, environment: MutableMapping[str, str], device: str = "cuda") -> dict[str, Any]:
    """The step. `environment` is the process's: the package finds the library by its variable."""
    environment[LIBRARY_VARIABLE] = str(library)
    warnings = _Warnings()
    logging.getLogger("trt_hspan").addHandler(warnings)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    model, rows, failures = shipped_network(), [], []
    with torch.inference_mode():
        exact = {side: copy.deepcopy(model).double()(photograph(side).double()) for side in SIDES}
        for name, bar in BARS.items():
            own = copy.deepcopy(model).to(device, getattr(torch, name))
            for side in SIDES:
                output = own(photograph(side).to(device, getattr(torch, name))).double().cpu()
                worst = float((output - exact[side]).abs().max())
                psnr = 10 * math.log10(1 / max(1e-20, float((output - exact[side]).square().mean())))
                rows.append(
                    {"type": name, "side": side, "psnr_db": psnr, "largest_error": worst, "bar_db": bar}
                )
                if not psnr >= bar:
                    failures.append(
                        f"{name} {side}x{side}: {psnr:.1f} dB against float64, {bar:.0f} are the bar"
                    )
            if device == "cuda":
                failures += _graph_failures(own, name)
    times = _times(model, device)
    return {"rows": rows, "times": times, "failures": failures, "warnings": sorted(set(warnings.lines))}


def _graph_failures(model: torch.nn.Module, name: str) -> list[str]:
    """A CUDA graph of the network, replayed, must give the bits of a run without."""
    picture = photograph(48).to("cuda", getattr(torch, name))
    for _ in range(2):
        expected = model(picture)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            output = model(picture)
    except RuntimeError as error:
        return [f"{name}: cannot be captured in a CUDA graph: {str(error).splitlines()[0]}"]
    graph.replay()
    torch.cuda.synchronize()
    return [] if torch.equal(output, expected) else [f"{name}: a CUDA graph gives other bits than a run"]


def _times(model: torch.nn.Module, device: str) -> list[dict[str, Any]]:
    clock, rows = Clock(device), []
    with torch.inference_mode():
        for name in BARS:
            own = copy.deepcopy(model).to(device, getattr(torch, name))
            for side in TIMED_SIDES:
                picture = photograph(side).to(device, getattr(torch, name))
                times = clock.times_ms(lambda m=own, p=picture: m(p))  # type: ignore[misc]
                rows.append(
                    {"type": name, "side": side, "median_ms": statistics.median(times), "runs": len(times)}
                )
    return rows
