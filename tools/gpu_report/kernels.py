"""Step c: the kernels alone, called by ctypes on tensors of torch's, against float64.

Every configuration, element type and layout gets every regime (`inputs.py`), so that each route is taken: lists,
lists that overflow, dense and flat rows, NaN and infinities, refined scores. Every call runs twice and must give the
same bits. L goes from 1 to 65,536; from 4,097 positions on, 512 rows of each image are compared with float64, and all
of them bit for bit between the two runs, and the plain kernels come last.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from tools.gpu_report.inputs import REGIMES, Inputs, Sizes, photograph_inputs, random_inputs
from tools.gpu_report.reference import reference_of, wrong_in
from trt_hspan.native.cuda_attention import CudaLibrary, CudaProblem, DeviceAddresses
from trt_hspan.native.loading import ElementType

TYPES: Final[dict[ElementType, torch.dtype]] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
_TYPE_NAMES: Final = {dtype: name for name, dtype in TYPES.items()}
MOST_ROWS: Final = 512
_REGIMES_OF_LARGE: Final = ("photograph", "long", "dense", "nan", "sparse", "flat", "huge", "mixed")
# Above that the plain kernels come last: they compute every score of every pass on FP32 units, and take seconds a call.
_LONG_ROW: Final = 4096
_ALIGNMENT: Final = 256


@dataclass(frozen=True, kw_only=True)
class Case:
    """Inputs that all types, layouts and configurations get, the plain ones or the others for long rows.

    Regime "photograph" has the sizes of its side.
    """

    regime: str
    sizes: Sizes
    is_plain: bool = False  # of long rows

    def takes(self, configuration: str) -> bool:
        return self.sizes.positions <= _LONG_ROW or configuration.startswith("plain") == self.is_plain

    def inputs(self, dtype: torch.dtype, device: str) -> Inputs:
        if self.regime == "photograph":
            side, is_published = round(self.sizes.positions**0.5), self.sizes.score_channels == 96
            return photograph_inputs(side, dtype, device, published_channels=is_published)
        return random_inputs(self.sizes, self.regime, dtype, device)


def _sizes(images: int, score_channels: int, value_channels: int, positions: int) -> Sizes:
    return Sizes(
        images=images, score_channels=score_channels, value_channels=value_channels, positions=positions
    )


def quick_cases() -> list[Case]:
    """One size around a tile for each regime: what the interpreter and compute-sanitizer can run."""
    return [Case(regime=regime, sizes=_sizes(1, 16, 24, 65)) for regime in REGIMES]


def all_cases() -> list[Case]:
    """From one position to 65,536; those that may be left out for lack of time come last."""
    small = [
        Case(regime=regime, sizes=_sizes(*sizes, positions))
        for positions in (1, 31, 32, 33, 65, 129, 577)
        for sizes in ((2, 3, 5), (1, 16, 24), (1, 96, 192))
        for regime in REGIMES
    ]
    odd = [
        Case(regime=regime, sizes=_sizes(*sizes))
        for sizes in ((1, 1, 1, 70), (1, 17, 97, 70), (1, 128, 256, 70), (1, 200, 300, 65), (131, 3, 5, 7))
        for regime in ("sparse", "mid", "dense", "huge")
    ]
    overflow = [  # more keys with a weight than a list takes, 1,024
        Case(regime=regime, sizes=_sizes(1, 16, 24, 1200)) for regime in REGIMES
    ]
    large = [
        Case(regime=regime, sizes=_sizes(1, *channels, positions))
        for positions in (2304, 9216, 65536, 36864)  # 48x48, 96x96, 256x256, 192x192
        for channels in ((16, 32), (96, 192))
        for regime in _REGIMES_OF_LARGE[: 8 if positions < 10000 else 4]
    ]
    long_plain = [replace(case, is_plain=True) for case in large if case.sizes.positions > _LONG_ROW]
    return small + odd + overflow + large + sorted(long_plain, key=lambda case: case.sizes.positions)


class Attention:
    """The library's attention on (N, L, channels) tensors.

    Args:
        library: compiled for the GPU.
        device: "cuda", or "cpu" for a library whose device memory is this machine's.
    """

    def __init__(self, library: CudaLibrary, device: str) -> None:
        self.library, self.device = library, device

    def problem(self, inputs: Inputs, configuration: str, *, channels_last: bool) -> CudaProblem:
        sizes = inputs.sizes
        return CudaProblem(
            batch=sizes.images,
            score_channels=sizes.score_channels,
            value_channels=sizes.value_channels,
            positions=sizes.positions,
            element_type=_TYPE_NAMES[inputs.query.dtype],
            channels_last=channels_last,
            configuration=configuration,
        )

    def memory_of(self, inputs: Inputs, problem: CudaProblem) -> Memory:
        """Tensors as the problem's layout has them; what pads channels is NaN, and must not count."""
        pitch = self.library.channel_pitch

        def laid_out(tensor: Tensor) -> Tensor:
            if not problem.channels_last:
                return tensor.transpose(1, 2).contiguous()
            padding = pitch(problem.element_type, tensor.shape[2]) - tensor.shape[2]
            return torch.nn.functional.pad(tensor, (0, padding), value=torch.nan).contiguous()

        value = laid_out(inputs.value)
        needed = self.library.workspace_bytes(problem)
        return Memory(
            query=laid_out(inputs.query),
            key=laid_out(inputs.key),
            value=value,
            output=torch.full_like(value, torch.nan),
            workspace=torch.empty(needed + _ALIGNMENT, dtype=torch.uint8, device=self.device),
            workspace_bytes=needed,
        )

    def start(self, problem: CudaProblem, memory: Memory) -> None:
        """Queues the kernels on torch's current stream."""
        stream = torch.cuda.current_stream().cuda_stream if self.device == "cuda" else 0
        self.library.attend(problem, memory.addresses(), stream=stream)

    def serves(self, problem: CudaProblem, memory: Memory) -> bool:
        """Whether the configuration serves type, sizes and GPU; runs it once where it does."""
        try:
            self.start(problem, memory)
        except ValueError as error:
            if "does not serve" in str(error):
                return False
            raise
        return True

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Device memory of one call: (N, channels, L), or (N, L, pitch) for channels last."""

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    workspace: Tensor
    workspace_bytes: int

    def addresses(self) -> DeviceAddresses:
        start = self.workspace.data_ptr()
        return DeviceAddresses(
            query=self.query.data_ptr(),
            key=self.key.data_ptr(),
            value=self.value.data_ptr(),
            output=self.output.data_ptr(),
            workspace=start + -start % _ALIGNMENT,
            workspace_bytes=self.workspace_bytes,
        )


@dataclass(kw_only=True)
class Outcome:
    """What came of the cases; `of_bound` by type: the greatest error over its bound."""

    runs: int = 0
    failures: list[str] = field(default_factory=list)
    of_bound: dict[str, float] = field(default_factory=dict)
    runs_by_configuration: dict[str, int] = field(default_factory=dict)
    not_run: list[str] = field(default_factory=list)  # for lack of time

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "failures": self.failures[:50], "failure_count": len(self.failures)}


def run_cases(attention: Attention, cases: list[Case], *, budget_seconds: float) -> Outcome:
    """Runs every case in every type, layout and configuration; what does not fit the time is in `not_run`."""
    outcome, deadline = Outcome(), time.monotonic() + budget_seconds
    for case in cases:
        for name, dtype in TYPES.items():
            if time.monotonic() > deadline:
                kernels = " plain kernels" if case.is_plain else ""
                outcome.not_run.append(f"{case.regime} {case.sizes} {name}{kernels}")
                continue
            _run_case(attention, case, name, dtype, outcome)
    return outcome


def _run_case(attention: Attention, case: Case, name: str, dtype: torch.dtype, outcome: Outcome) -> None:
    inputs = case.inputs(dtype, attention.device)
    reference = reference_of(inputs, most_rows=4096 if inputs.sizes.positions <= 4096 else MOST_ROWS)
    for channels_last in (False, True):
        for configuration in attention.library.configurations:
            if not case.takes(configuration):
                continue
            problem = attention.problem(inputs, configuration, channels_last=channels_last)
            memory = attention.memory_of(inputs, problem)
            where = f"{configuration} {name} {'HWC' if channels_last else 'CHW'} {case.regime} {inputs.sizes}"
            try:
                first = _two_runs(attention, problem, memory)
            except RuntimeError as error:  # of a kernel that ran, and shows when it is waited for
                raise RuntimeError(f"{where}: {error}") from error
            if first is None:
                continue
            outcome.runs += 2
            runs = outcome.runs_by_configuration
            runs[configuration] = runs.get(configuration, 0) + 2
            wrong, of_bound = _judged(memory.output, first, reference, inputs, channels_last)
            outcome.of_bound[name] = max(outcome.of_bound.get(name, 0.0), of_bound)
            outcome.failures += [f"{where}: {line}" for line in wrong]


def _two_runs(attention: Attention, problem: CudaProblem, memory: Memory) -> Tensor | None:
    """The output of the first run; that of the second is in memory. None: the configuration does not serve this."""
    if not attention.serves(problem, memory):
        return None
    attention.wait()
    first = memory.output.clone()
    memory.output.fill_(torch.nan)
    attention.start(problem, memory)
    attention.wait()
    return first


def _judged(
    output: Tensor, first: Tensor, reference: Any, inputs: Inputs, channels_last: bool
) -> tuple[list[str], float]:
    wrong = []
    if not torch.equal(output.view(torch.uint8), first.view(torch.uint8)):
        wrong.append("two runs gave different bits")
    channels = inputs.sizes.value_channels
    tokens = output if channels_last else output.transpose(1, 2)
    if channels_last and bool((tokens[:, :, channels:] != 0).any()):
        wrong.append("the padding is not zero")
    of_bound, line = wrong_in(tokens[:, reference.rows, :channels], reference)
    return wrong + ([line] if line else []), of_bound


def interleaved_streams(attention: Attention) -> Iterator[str]:
    """What two streams at a time and a replayed CUDA graph do wrong: the bits must be those of a call alone."""
    inputs = random_inputs(_sizes(1, 16, 24, 1200), "mid", torch.float16, attention.device)
    problem = attention.problem(inputs, "automatic", channels_last=False)
    alone = attention.memory_of(inputs, problem)
    attention.start(problem, alone)
    attention.wait()
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]  # type: ignore[no-untyped-call]
    memories = [attention.memory_of(inputs, problem) for _ in streams]
    attention.wait()
    for _ in range(20):
        for stream, memory in zip(streams, memories, strict=True):
            with torch.cuda.stream(stream):
                attention.start(problem, memory)
    attention.wait()
    if any(not torch.equal(memory.output, alone.output) for memory in memories):
        yield "two streams at a time: other bits than alone"
    memory, graph = memories[0], torch.cuda.CUDAGraph()
    memory.output.fill_(torch.nan)
    with torch.cuda.graph(graph):
        attention.start(problem, memory)
    graph.replay()
    attention.wait()
    if not torch.equal(memory.output, alone.output):
        yield "a replayed CUDA graph: other bits than a call"


def run(library: Path, *, device: str, budget_seconds: float, quick: bool) -> dict[str, Any]:
    """The step; `quick` is what runs under compute-sanitizer, and on the interpreter."""
    attention = Attention(CudaLibrary(library), device)
    outcome = run_cases(attention, quick_cases() if quick else all_cases(), budget_seconds=budget_seconds)
    if device == "cuda" and not quick:
        outcome.failures += interleaved_streams(attention)
    return outcome.as_json()
