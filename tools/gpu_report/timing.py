"""Step d: how long the kernels take, beside softmax attention, the dense form, and what the GPU itself can do.

Times are those of CUDA events around one call, the median of several, after warm-up calls; before each the second level
cache is overwritten. A time stands only when the output that it was measured with is right.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from tools.gpu_report.inputs import Inputs, Sizes, photograph_inputs, random_inputs
from tools.gpu_report.kernels import TYPES, Attention
from tools.gpu_report.reference import reference_of, wrong_in
from trt_hspan.native.cuda_attention import CudaLibrary
from trt_hspan.native.loading import ElementType

SIDES: Final = (24, 48, 96, 192, 256)  # L 576, 2,304, 9,216, 36,864, 65,536
CHANNELS: Final = ((16, 32), (96, 192))
_PRECISIONS: Final[tuple[ElementType, ...]] = ("float16", "float32")
_WARM_UPS, _MOST_RUNS, _SECONDS_FOR_A_ROW = 3, 30, 0.15
_CHECKED_ROWS: Final = 64
_SDPA: Final = {
    "softmax, flash": SDPBackend.FLASH_ATTENTION,
    "softmax, memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "softmax, math": SDPBackend.MATH,
}
# Bytes for each score that the dense form has at its peak: scores, sorted scores, their 64-bit indices, running sums.
_DENSE_BYTES: Final = 4 + 4 + 8 + 4 + 8
_MATH_BYTES: Final = 4 + 4 + 4


class Clock:
    """Measures calls on the current stream; on "cpu", where the step is rehearsed, by the processor's clock."""

    def __init__(self, device: str) -> None:
        self.device = device
        cache_bytes = 1 << 20
        if device == "cuda":
            cache_bytes = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 64 << 20)
        self._flush = torch.empty(2 * cache_bytes, dtype=torch.uint8, device=device)

    def times_ms(self, call: Callable[[], object]) -> list[float]:
        for _ in range(_WARM_UPS):
            call()
        if self.device == "cuda":
            torch.cuda.synchronize()
        started = time.monotonic()
        times: list[float] = []
        while len(times) < _MOST_RUNS and (not times or time.monotonic() - started < _SECONDS_FOR_A_ROW):
            self._flush.zero_()
            times.append(self._time_ms(call))
        return times

    def _time_ms(self, call: Callable[[], object]) -> float:
        if self.device == "cpu":
            first = time.perf_counter()
            call()
            return 1000 * (time.perf_counter() - first)
        begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))


def measured_rates(clock: Clock, *, copied_bytes: int = 1 << 30, side: int = 8192) -> dict[str, float]:
    """What this GPU does when nothing else is asked of it: GB/s of a copy, TFLOP/s of matrix products without TF32."""
    source = torch.empty(copied_bytes, dtype=torch.uint8, device=clock.device)
    target = torch.empty_like(source)
    copy_ms = statistics.median(clock.times_ms(lambda: target.copy_(source)))
    rates = {"copy_gb_per_s": 2 * source.numel() / copy_ms / 1e6}
    for name in (*_PRECISIONS, "bfloat16"):
        left = torch.randn(side, side, device=clock.device).to(TYPES[name])
        product = torch.empty_like(left)
        ms = statistics.median(clock.times_ms(lambda a=left, out=product: torch.mm(a, a, out=out)))  # type: ignore[misc]
        rates[f"{name}_tflop_per_s"] = 2 * side**3 / ms / 1e9
    return rates


def floor_ms(sizes: Sizes, name: ElementType, rates: dict[str, float]) -> float:
    """Nothing computes the attention in less at the measured rates: a product of queries and keys, and its tensors."""
    flops = 2 * sizes.images * sizes.positions**2 * sizes.score_channels
    elements = 2 * sizes.images * sizes.positions * (sizes.score_channels + sizes.value_channels)
    traffic_ms = elements * TYPES[name].itemsize / rates["copy_gb_per_s"] / 1e6
    return max(flops / rates[f"{name}_tflop_per_s"] / 1e9, traffic_ms)


def dense_form(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Sparsemax as entmax computes it, by sorting whole rows of an L x L matrix: (1, L, C), (1, L, D) -> (1, L, D)."""
    scores = (query @ key.transpose(1, 2)).float()
    scores -= scores.amax(-1, keepdim=True)
    descending = scores.sort(-1, descending=True).values
    counts = torch.arange(1, scores.shape[-1] + 1, device=scores.device)
    candidates = descending.cumsum(-1).sub_(1).div_(counts)
    support = (descending > candidates).sum(-1, keepdim=True)
    del descending
    weights = scores.sub_(candidates.gather(-1, support - 1)).clamp_min_(0)
    return weights.to(value.dtype) @ value


def run(library: Path, *, budget_seconds: float) -> dict[str, Any]:
    """The step: rates of the GPU, and rows of times."""
    clock = Clock("cuda")
    attention = Attention(CudaLibrary(library), "cuda")
    return times_of(clock, attention, measured_rates(clock), sides=SIDES, budget_seconds=budget_seconds)


def times_of(
    clock: Clock,
    attention: Attention,
    rates: dict[str, float],
    *,
    sides: tuple[int, ...],
    budget_seconds: float,
) -> dict[str, Any]:
    """A row of times for each side, channels, type, data and form, as long as there is time."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    deadline = time.monotonic() + budget_seconds
    rows, failures, not_run = [], [], []
    for side in sides:
        for channels in CHANNELS:
            for name in _PRECISIONS:
                for data in ("photograph", "random"):
                    if time.monotonic() > deadline:
                        not_run.append(f"L {side * side} C {channels[0]} {name} {data}")
                        continue
                    inputs = _inputs(side, channels, TYPES[name], data, clock.device)
                    common = {
                        "positions": side * side,
                        "score_channels": channels[0],
                        "value_channels": channels[1],
                        "type": name,
                        "data": data,
                        "floor_ms": floor_ms(inputs.sizes, name, rates),
                    }
                    new, wrong = _rows(clock, attention, inputs)
                    rows += [common | row for row in new]
                    failures += wrong
    return {"rates": rates, "rows": rows, "failures": failures, "not_run": not_run}


def _inputs(side: int, channels: tuple[int, int], dtype: torch.dtype, data: str, device: str) -> Inputs:
    if data == "photograph":
        return photograph_inputs(side, dtype, device, published_channels=channels == CHANNELS[1])
    sizes = Sizes(images=1, score_channels=channels[0], value_channels=channels[1], positions=side * side)
    return random_inputs(sizes, "sparse", dtype, device)


def _rows(clock: Clock, attention: Attention, inputs: Inputs) -> tuple[list[dict[str, Any]], list[str]]:
    """A row of times for each form, and what came out wrong."""
    rows: list[dict[str, Any]] = []
    failures = []
    reference = reference_of(inputs, most_rows=_CHECKED_ROWS)
    for configuration in _configurations(attention, inputs.sizes):
        problem = attention.problem(inputs, configuration, channels_last=False)
        memory = attention.memory_of(inputs, problem)
        if not attention.serves(problem, memory):
            continue
        times = clock.times_ms(lambda p=problem, m=memory: attention.start(p, m))  # type: ignore[misc]
        _, wrong = wrong_in(memory.output.transpose(1, 2)[:, reference.rows], reference)
        if wrong is not None:
            failures.append(f"{configuration} {inputs.value.dtype} {inputs.sizes}: {wrong}")
            continue
        rows.append({"form": f"this, {configuration}", **_summary(times)})
        del memory
    for form, call in _peers(inputs):
        try:
            rows.append({"form": form, **_summary(clock.times_ms(call))})
        except (
            RuntimeError
        ) as error:  # torch says so when a backend does not take the type, or memory runs out
            rows.append({"form": form, "left_out": str(error).splitlines()[0][:120]})
    if clock.device == "cuda":
        torch.cuda.empty_cache()
    return rows, failures


def _configurations(attention: Attention, sizes: Sizes) -> tuple[str, ...]:
    """All of them at 96x96, elsewhere the automatic choice."""
    if sizes.positions == 96 * 96:
        return tuple(name for name in attention.library.configurations if not name.startswith("plain"))
    return ("automatic",)


def _summary(times: list[float]) -> dict[str, Any]:
    return {"median_ms": statistics.median(times), "least_ms": min(times), "runs": len(times)}


def _peers(inputs: Inputs) -> Iterator[tuple[str, Callable[[], object]]]:
    """Other ways to attend on the same tensors. Flash attention wants heads of one size, so C is padded to D."""
    query, key, value = inputs.query, inputs.key, inputs.value
    padding = inputs.sizes.value_channels - inputs.sizes.score_channels
    padded = [functional.pad(tensor, (0, padding))[:, None] for tensor in (query, key)]
    heads = (padded[0], padded[1], value[:, None])
    scores = inputs.sizes.positions**2
    free_bytes = torch.cuda.mem_get_info()[0] if query.is_cuda else 1 << 30

    def softmax(backend: SDPBackend) -> Callable[[], object]:
        def call() -> Tensor:
            with sdpa_kernel(backend):
                return functional.scaled_dot_product_attention(*heads, scale=1.0)

        return call

    def left_out() -> object:
        raise RuntimeError("its L x L matrices do not fit the GPU's memory")

    for form, backend in _SDPA.items():
        fits = backend != SDPBackend.MATH or scores * _MATH_BYTES < 0.8 * free_bytes
        yield form, softmax(backend) if fits else left_out
    fits = scores * _DENSE_BYTES < 0.8 * free_bytes
    yield "dense sparsemax, by sorting", (lambda: dense_form(query, key, value)) if fits else left_out
