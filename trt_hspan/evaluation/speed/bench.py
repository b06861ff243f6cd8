"""The benchmark: every network at every size and batch, in one process, with what it ran on.

Times are those of this machine and this run; nothing is extrapolated or compared with a figure from elsewhere.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.evaluation.speed.sampling import Latency, sample_latency
from trt_hspan.machine.facts import PeakMemory, clock_states, machine_facts
from trt_hspan.runtime.memory import require_memory
from trt_hspan.runtime.opening import (
    device_from_text,
    open_runner,
    require_threads,
)
from trt_hspan.runtime.runner import CHANNELS, Float32Array, Runner
from trt_hspan.sizes import ImageSize
from trt_hspan.upscaling.tile_size import batch_limits, size_ranges

GraphChoice = Literal["on", "off", "both"]
DEFAULT_SIZES: Final = (ImageSize(height=48, width=48), ImageSize(height=96, width=96))
_STAGE_RUNS: Final = 5


@dataclass(frozen=True, kw_only=True)
class BenchSpec:
    """What to measure.

    Args:
        sources: engines, ONNX files, checkpoints or presets.
        sizes: of the input; empty takes the network's fixed size, or 48x48 and 96x96 within its limits, for an engine
            with several profiles within those of each.
        batches: pictures in one run; empty is 1, or the fewest that a network takes.
        device: as `open_runner` takes it.
        graphs: CUDA graphs of engines on a GPU; None is "both" there.
        seconds: of sampling for each figure.
        peer: "torch" measures eager PyTorch in the same run.
        checkpoint: of the peer; None where the sources are one checkpoint.
        res_scale: of checkpoints.
        threads: CPU threads; None leaves it to the backend.
        plugin: the plugin library of engines.
        precisions: of checkpoints, as `TorchRunner` takes them; empty is "fp32".

    Raises:
        UsageError: nothing to measure, a batch or time that makes no sense, a peer without a checkpoint, or
            precisions where no source is a checkpoint.
    """

    sources: tuple[str, ...]
    sizes: tuple[ImageSize, ...] = ()
    batches: tuple[int, ...] = ()
    device: str = "auto"
    graphs: GraphChoice | None = None
    seconds: float = 3.0
    peer: Literal["torch"] | None = None
    checkpoint: str | None = None
    res_scale: float | None = None
    threads: int | None = None
    plugin: Path | None = None
    precisions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.sources:
            raise UsageError("bench", "nothing to measure", "name an engine, an ONNX file or a checkpoint")
        if any(batch < 1 for batch in self.batches):
            raise UsageError("--batch", f"got {min(self.batches)}, expected at least 1")
        if not 0 < self.seconds < float("inf"):
            raise UsageError("--seconds", f"got {self.seconds}, expected a positive number")
        if self.threads is not None:
            require_threads(self.threads)
        if self.graphs not in (None, "on", "off", "both"):
            raise UsageError("--cuda-graph", f"got {self.graphs!r}, expected on, off or both")
        if self.precisions and not self._checkpoints:
            raise UsageError(
                "--precision", "is for checkpoints; ONNX files and engines have theirs", "leave it out"
            )
        if self.peer not in (None, "torch"):
            raise UsageError("--peer", f"got {self.peer!r}, expected torch")
        if self.peer is None and self.checkpoint is not None:
            raise UsageError("--checkpoint", "is the network of the peer", "add --peer torch")
        if self.peer is not None and self.peer_checkpoint is None:
            raise UsageError("--peer", "needs the network's checkpoint", "name it by --checkpoint")

    @property
    def peer_checkpoint(self) -> str | None:
        """The named one, else the only measured one."""
        return self.checkpoint or (self._checkpoints[0] if len(self._checkpoints) == 1 else None)

    @property
    def _checkpoints(self) -> list[str]:
        return [source for source in self.sources if _is_checkpoint(source)]


def _is_checkpoint(source: str) -> bool:
    return Path(source).suffix.lower() not in (".plan", ".onnx")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One network at one size and batch.

    Attributes:
        network: backend and precision.
        source: the file or preset; for the peer its checkpoint.
        cuda_graph: whether shapes were replayed as CUDA graphs; None where there is no such thing.
        latency: of one run, from host memory to host memory.
        images_per_second: throughput; of engines on a GPU with upload, compute and download overlapped.
        gpu_stages_ms: medians of upload, compute and download by CUDA events, of engines on a GPU; else None.
        end_to_end_ms: medians of decode, infer and encode of a PNG picture of this size; None for batches.
        host_peak_bytes: how far resident memory rose while it ran; None where Linux does not report it.
        gpu_bytes: device memory for activations, inputs and outputs, of engines on a GPU; else None.
        speedup_over_peer: the peer's median latency over this one's; None without a peer.
        profile: the engine's optimization profile that took the shape, where it has several; None without a GPU.
        note: why there is no CUDA graph, when one was requested.
    """

    network: str
    source: str
    precision: str
    emulated: bool
    height: int
    width: int
    batch: int
    cuda_graph: bool | None
    latency: Latency
    images_per_second: float
    gpu_stages_ms: dict[str, float] | None = None
    end_to_end_ms: dict[str, float] | None = None
    host_peak_bytes: int | None = None
    gpu_bytes: dict[str, int] | None = None
    speedup_over_peer: float | None = None
    profile: int | None = None
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """All measurements, what they ran on, and how backends were picked."""

    measurements: tuple[Measurement, ...]
    machine: dict[str, Any]
    picked: dict[str, str] = field(default_factory=dict)

    def name_of(self, measurement: Measurement) -> str:
        """Backend and precision, after the file's name where another file has the same."""
        sources = {item.source for item in self.measurements if item.network == measurement.network}
        prefix = f"{Path(measurement.source).name}: " if len(sources) > 1 else ""
        return prefix + measurement.network


def run_bench(spec: BenchSpec, *, on_step: Callable[[str], None] = lambda _: None) -> BenchReport:
    """Measures everything in a spec; `on_step` is called with what is measured next.

    Raises:
        HspanError, UsageError: a source cannot be opened, a size does not fit a network, or a run fails.
    """
    runners = [(source, list(_variants(source, spec))) for source in spec.sources]
    plans = [(source, variants, sizes_for(variants[0][0], spec)) for source, variants in runners]
    _require_same_network(spec, [variants[0][0] for _, variants in runners])
    clocks = {"before": clock_states()}
    peers: dict[tuple[int, int, int], Measurement] = {}
    if spec.peer is not None:
        peer_shapes = {
            (size.height, size.width, batch)
            for _, variants, sizes in plans
            for size in sizes
            for batch in batches_for(variants[0][0], size, spec)
        }
        peers = {
            (m.height, m.width, m.batch): m for m in _peer_measurements(spec, sorted(peer_shapes), on_step)
        }
    measurements = [
        measurement
        for _, variants, sizes in plans
        for runner, graphs in variants
        for measurement in _measurements(runner, graphs, sizes, spec=spec, peers=peers, on_step=on_step)
    ]
    picked = {source: variants[0][0].picked for source, variants in runners}
    machine = machine_facts() | {"clocks": clocks | {"after": clock_states()}}
    return BenchReport(measurements=(*peers.values(), *measurements), machine=machine, picked=picked)


def sizes_for(runner: Runner, spec: BenchSpec) -> tuple[ImageSize, ...]:
    """The sizes to measure on a network. Raises: HspanError when one does not fit it or the memory."""
    sizes = spec.sizes or tuple(
        dict.fromkeys(taken.bounded(size) for taken in size_ranges(runner) for size in DEFAULT_SIZES)
    )
    for size in sizes:
        for batch in batches_for(runner, size, spec):
            shape = (batch, CHANNELS, *size)
            what = f"--size {size}, --batch {batch}"
            runner.require_shape(shape, what)
            require_memory(runner, shape, what, "measure a smaller size")
    return sizes


def batches_for(runner: Runner, size: ImageSize, spec: BenchSpec) -> tuple[int, ...]:
    """The requested batches, else one picture in a run, or the fewest that the network takes."""
    return spec.batches or (batch_limits(runner, size, requested=1)[0],)


def _require_same_network(spec: BenchSpec, runners: Iterable[Runner]) -> None:
    """A peer with other weights would be no peer."""
    if spec.peer_checkpoint is None or spec.peer is None:
        return
    from trt_hspan.model.checkpoint import source_sha256

    expected = source_sha256(spec.peer_checkpoint)
    for runner in runners:
        if runner.source_sha256 not in (None, expected):
            raise HspanError(
                spec.peer_checkpoint,
                f"is not the checkpoint that {runner.where} was exported from",
                "name the right one by --checkpoint",
            )


def _variants(source: str, spec: BenchSpec) -> Iterator[tuple[Runner, bool | None]]:
    """The runners of a source: a checkpoint in each precision, an engine on a GPU with and without CUDA graphs."""
    from trt_hspan.runtime.tensorrt_runner import TensorRtRunner

    if _is_checkpoint(source):
        if spec.graphs is not None:
            raise _no_graphs(source, "PyTorch")
        for precision in spec.precisions or (None,):
            checkpoint_runner = open_runner(
                source,
                device=spec.device,
                res_scale=spec.res_scale,
                threads=spec.threads,
                precision=precision,
            )
            yield checkpoint_runner, None
        return
    runner = open_runner(
        source, device=spec.device, res_scale=spec.res_scale, threads=spec.threads, plugin=spec.plugin
    )
    if not isinstance(runner, TensorRtRunner):
        if spec.graphs is not None:
            raise _no_graphs(source, runner.label)
        yield runner, None
        return
    for graphs in {"on": (True,), "off": (False,)}.get(spec.graphs or "both", (True, False)):
        index = device_from_text(spec.device).index
        timed = TensorRtRunner(source, plugin=spec.plugin, index=index, use_graphs=graphs, timing=True)
        timed.picked = runner.picked
        yield timed, graphs


def _no_graphs(source: str, label: str) -> UsageError:
    return UsageError(
        "--cuda-graph", f"is for engines on a GPU, but {source} is run by {label}", "leave it out"
    )


def _measurements(
    runner: Runner,
    graphs: bool | None,
    sizes: Iterable[ImageSize],
    *,
    spec: BenchSpec,
    peers: dict[tuple[int, int, int], Measurement],
    on_step: Callable[[str], None],
) -> Iterator[Measurement]:
    suffix = "" if graphs is None else ", CUDA graph " + ("on" if graphs else "off")
    with runner:
        for size in sizes:
            for number in batches_for(runner, size, spec):
                on_step(f"{runner.label}{suffix}, {number}x{size}")
                yield _measure(runner, graphs, (number, CHANNELS, size.height, size.width), spec, peers)


def _measure(
    runner: Runner,
    graphs: bool | None,
    shape: tuple[int, int, int, int],
    spec: BenchSpec,
    peers: dict[tuple[int, int, int], Measurement],
) -> Measurement:
    from trt_hspan.runtime.tensorrt_runner import TensorRtRunner

    batch = _batch(shape)
    stages: dict[str, list[float]] = {"upload": [], "compute": [], "download": []}
    session = runner.session if isinstance(runner, TensorRtRunner) else None

    def note_stages() -> None:
        if session is not None and (times := session.last_times) is not None:
            for name, values in stages.items():
                values.append(getattr(times, f"{name}_ms"))

    with PeakMemory() as peak:
        latency = sample_latency(lambda: runner.run(batch), seconds=spec.seconds, on_run=note_stages)
    rate = shape[0] * 1e3 / latency.mean_ms if session is None else _overlapped_rate(runner, batch, latency)
    peer = peers.get((shape[2], shape[3], shape[0]))
    return Measurement(
        network=runner.label,
        source=runner.where,
        precision=runner.precision,
        emulated=runner.emulated,
        height=shape[2],
        width=shape[3],
        batch=shape[0],
        cuda_graph=graphs,
        latency=latency,
        images_per_second=rate,
        gpu_stages_ms={name: statistics.median(values) for name, values in stages.items()}
        if session
        else None,
        end_to_end_ms=_end_to_end(runner, batch) if shape[0] == 1 else None,
        host_peak_bytes=peak.bytes,
        gpu_bytes=asdict(session.memory) if session else None,
        speedup_over_peer=None if peer is None else peer.latency.p50_ms / latency.p50_ms,
        profile=session.profile_for(shape) if session and len(runner.shape_ranges) > 1 else None,
        note=session.capture_failures.get(shape) if session else None,
    )


def _overlapped_rate(runner: Runner, batch: Float32Array, latency: Latency) -> float:
    """Pictures in a second through `run_many`, as many runs as were sampled."""
    for _ in runner.run_many([batch] * 8):  # buffers and graphs of all slots
        pass
    started = time.perf_counter()
    for _ in runner.run_many(batch for _ in range(latency.runs)):
        pass
    return float(latency.runs * batch.shape[0] / (time.perf_counter() - started))


def _end_to_end(runner: Runner, batch: Float32Array) -> dict[str, float]:
    """Medians of the three steps from the bytes of a PNG file to the bytes of a PNG file."""
    from trt_hspan.media.pictures import decode_image
    from trt_hspan.media.pixels import image_from_tensor, tensor_from_image
    from trt_hspan.media.writing import encode_image

    data = encode_image(image_from_tensor(batch, where="benchmark"), ".png")
    times: dict[str, list[float]] = {"decode": [], "infer": [], "encode": []}
    for _ in range(_STAGE_RUNS):
        marks = [time.perf_counter()]
        source = tensor_from_image(decode_image(data).pixels)
        marks.append(time.perf_counter())
        output = runner.run(source)
        marks.append(time.perf_counter())
        encode_image(image_from_tensor(output, where=runner.where), ".png")
        marks.append(time.perf_counter())
        for name, begin, end in zip(times, marks, marks[1:], strict=False):
            times[name].append((end - begin) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def _peer_measurements(
    spec: BenchSpec, shapes: list[tuple[int, int, int]], on_step: Callable[[str], None]
) -> Iterator[Measurement]:
    from trt_hspan.evaluation.speed.peer import EagerRunner

    assert spec.peer_checkpoint is not None
    with EagerRunner(spec.peer_checkpoint, res_scale=spec.res_scale, threads=spec.threads) as runner:
        for height, width, number in shapes:
            on_step(f"{runner.label}, {number}x{height}x{width}")
            yield _measure(runner, None, (number, CHANNELS, height, width), spec, {})


def _batch(shape: tuple[int, int, int, int]) -> Float32Array:
    """The shipped photograph, repeated as far as needed: flat and detailed parts, as pictures have them."""
    from trt_hspan.data import DEMO_PHOTOGRAPH
    from trt_hspan.media.pictures import read_image

    photograph = read_image(DEMO_PHOTOGRAPH)
    rows = np.resize(np.arange(photograph.shape[0]), shape[2])
    columns = np.resize(np.arange(photograph.shape[1]), shape[3])
    image = photograph[np.ix_(rows, columns)].transpose(2, 0, 1).astype(np.float32) / 255
    return np.ascontiguousarray(np.broadcast_to(image, shape))
