"""Range audit: how near a network's values come to the limits of FP16 or BF16 on real pictures.

Everything is computed in float32 on a CPU, and looked at while it is in memory: with the native library, the tensors
between two attention nodes at a time, and scores in chunks of queries. Never imports torch.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from trt_hspan.engine.range_record import (
    LIMITS,
    RESERVE,
    SCORE_ERROR_LIMIT,
    UPDATE_SNR_LIMIT_DB,
    LowPrecision,
    NodeRange,
    RangeAudit,
)
from trt_hspan.errors import HspanError, UsageError
from trt_hspan.evaluation.datasets import Sample
from trt_hspan.graph import OUTPUT_NAME, attention_nodes, require_attention
from trt_hspan.graph.float32_twin import Float32Twin, float32_twin, float_outputs
from trt_hspan.media.pixels import tensor_from_image
from trt_hspan.precision.network import OnProgress, input_sizes, no_progress
from trt_hspan.runtime.cpu_network import Array
from trt_hspan.runtime.onnxruntime_session import cpu_network, with_outputs
from trt_hspan.runtime.runner import Float32Array
from trt_hspan.sizes import ImageSize
from trt_hspan.upscaling.tile_size import SizeRange, trimmed_tile
from trt_hspan.upscaling.tiling import tile_plan
from trt_hspan.upscaling.upscaler import grown

DEFAULT_TILE: Final = 64
_LOW_TYPES: Final[dict[LowPrecision, npt.DTypeLike]] = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
# Scores in memory at a time.
_SCORES: Final = 1 << 18
# What overflows or is no number is a finding, and no warning of numpy's.
_QUIET: Final = np.errstate(over="ignore", invalid="ignore")
_WHERE: Final = "range audit"


def audit_ranges(
    model: onnx.ModelProto,
    samples: Sequence[Sample],
    precision: str,
    *,
    keep_fp32: Sequence[str] = (),
    tile: int = DEFAULT_TILE,
    threads: int | None = None,
    on_progress: OnProgress = no_progress,
) -> RangeAudit:
    """Measures every node of a network on pictures, and says where a type is not enough.

    A risk is reported for a node whose result is in the low type: the node itself computes in it, or one that
    reads the result does. See `range_record` for the kinds of risk and their thresholds.

    Args:
        model: an ONNX file of this project in any precision. Of a float32 one, every node is taken to compute
            in the low type but those of `keep_fp32`; another says itself which do.
        samples: at least one picture; their low-resolution sides are the network's inputs.
        precision: "fp16" or "bf16".
        keep_fp32: names or patterns (as in `fnmatch`) of the nodes that stay in float32 anyway.
        tile: pictures are cut into parts of at most tile x tile pixels, which bounds time; 16 or more.
        threads: CPU threads; None takes those that the process may use.
        on_progress: called with what is being done, how many pictures are audited, and how many there are.

    Raises:
        UsageError: another precision, or a tile below 16.
        HspanError: no pictures, one cannot be read, the model contains no attention, or ONNX Runtime fails.
    """
    low_type = checked_low_precision(precision)
    check_tile(tile)
    where = model.graph.name or "model"
    require_attention(model, where)
    if not samples:
        raise HspanError(_WHERE, "there are no pictures to audit", "name a folder of pictures")
    for sample in samples:  # headers alone: a bad file is an error before the first run
        sample.size()
    twin = float32_twin(model)
    sizes = input_sizes(model)
    nodes = float_outputs(twin.model)
    gathered = {tensor: _Gathered() for _, tensor in nodes}
    attentions = {name: node.input for node in attention_nodes(twin.model) for name in node.output}
    low_dtype = _LOW_TYPES[low_type]

    def observe(values: dict[str, Array], names: Sequence[str]) -> None:
        for name in gathered.keys() & names:
            gathered[name].add(values[name], low_dtype)
            if name in attentions:
                query, key = (values[each] for each in attentions[name][:2])
                gathered[name].add_scores(query, key, low_dtype)

    network = cpu_network(with_outputs(twin.model, gathered), _WHERE, threads=threads)
    on_progress("auditing", 0, len(samples))
    for complete, sample in enumerate(samples, 1):
        for batch in _tiles(sample, sizes, tile):
            network.run(batch, observe)
        on_progress(f"audited {sample.name}", complete, len(samples))
    low_nodes = _low_nodes(twin, keep_fp32)
    return RangeAudit(
        precision=low_type,
        limit=LIMITS[low_type],
        pictures=len(samples),
        tile=tile,
        nodes=_Verdict(twin, nodes, gathered, low_nodes, low_type).ranges(),
    )


def check_tile(tile: int) -> None:
    """Raises: UsageError for tiles in which convolutions see more padding than picture."""
    if tile < 16:
        raise UsageError("--tile", f"got {tile}, expected at least 16 pixels")


def checked_low_precision(text: str) -> LowPrecision:
    """The type of this name. Raises: UsageError unless it is "fp16" or "bf16"."""
    for precision in LIMITS:
        if text == precision:
            return precision
    raise UsageError("--precision", f"{text!r} has no range to audit", f"choose {', '.join(LIMITS)}")


def _low_nodes(twin: Float32Twin, keep_fp32: Sequence[str]) -> frozenset[str]:
    if twin.low_nodes:
        return twin.low_nodes
    names = (node.name for node in twin.model.graph.node)
    return frozenset(n for n in names if not any(fnmatch.fnmatchcase(n, pattern) for pattern in keep_fp32))


@dataclass
class _Gathered:
    """Statistics of one tensor over all parts of all pictures. Powers are sums of squares, float64."""

    largest: float = 0.0
    power: float = 0.0
    error_power: float = 0.0
    largest_score: float = 0.0
    score_error: float = 0.0

    @_QUIET
    def add(self, values: Array, low: npt.DTypeLike) -> None:
        """Values, and how far rounding them to the low type moves them."""
        self.largest = _larger(self.largest, float(np.abs(values).max()))
        self.power += _power(values)
        self.error_power += _power(_rounded(values, low) - values)

    @_QUIET
    def add_scores(self, query: Array, key: Array, low: npt.DTypeLike) -> None:
        """The largest |q . k|, and the most that rounding (1, C, H, W) query and key moves one that can have a weight.

        These are the scores within 1 of their row's largest: the threshold lies in [-1, 0) below it.
        """
        query_lc, key_cl = query.reshape(query.shape[1], -1).T, key.reshape(key.shape[1], -1)
        low_lc, low_cl = _rounded(query_lc, low), _rounded(key_cl, low)
        step = max(1, _SCORES // len(query_lc))
        for start in range(0, len(query_lc), step):
            rows = slice(start, start + step)
            scores = query_lc[rows] @ key_cl
            moved = np.abs(low_lc[rows] @ low_cl - scores)
            moved[np.isnan(moved)] = math.inf
            deciding = scores - scores.max(axis=1, keepdims=True) > -1.0
            self.largest_score = _larger(self.largest_score, float(np.abs(scores).max()))
            self.score_error = _larger(self.score_error, float(np.where(deciding, moved, 0.0).max()))


def _rounded(values: Array, low: npt.DTypeLike) -> Array:
    return values.astype(low).astype(np.float32)


def _power(values: Array) -> float:
    flat = values.ravel()
    return float(np.einsum("i,i->", flat, flat, dtype=np.float64))


def _larger(a: float, b: float) -> float:
    """The larger one; NaN when either is."""
    return math.nan if math.isnan(a) or math.isnan(b) else max(a, b)


def _tiles(sample: Sample, sizes: SizeRange, side: int) -> Iterator[Float32Array]:
    """The picture's low-resolution side in tiles of at most side x side, or of what the network takes at least."""
    image, _ = sample.load()
    picture = ImageSize(*image.shape[:2])
    tile = trimmed_tile(picture, sizes.within(ImageSize(side, side)), 0, sizes)
    plan = tile_plan(picture, tile, 0, minimum=sizes.low, step=sizes.step)
    image = grown(image, ImageSize(plan.rows[-1].end, plan.columns[-1].end))
    for row in plan.rows:
        for column in plan.columns:
            yield tensor_from_image(image[row.start : row.end, column.start : column.end])


@dataclass
class _Verdict:
    """Turns statistics into risks and their cure."""

    twin: Float32Twin
    nodes: Sequence[tuple[onnx.NodeProto, str]]
    gathered: dict[str, _Gathered]
    low_nodes: frozenset[str]
    precision: LowPrecision
    readers: dict[str, list[str]] = field(init=False)
    makers: dict[str, onnx.NodeProto] = field(init=False)
    weights: dict[str, onnx.TensorProto] = field(init=False)

    def __post_init__(self) -> None:
        self.readers, self.makers = {}, {}
        for node in self.twin.model.graph.node:
            self.makers |= dict.fromkeys(node.output, node)
            for name in node.input:
                self.readers.setdefault(name, []).append(node.name)
        self.weights = {tensor.name: tensor for tensor in self.twin.model.graph.initializer}

    def ranges(self) -> tuple[NodeRange, ...]:
        return tuple(self._range(node, tensor) for node, tensor in self.nodes)

    def _range(self, node: onnx.NodeProto, tensor: str) -> NodeRange:
        measured = self.gathered[tensor]
        is_low_node = node.name in self.low_nodes
        low_readers = [name for name in self.readers.get(tensor, ()) if name in self.low_nodes]
        # The output is float32 by contract, and nothing reads it in another type.
        low = bool(low_readers) or (is_low_node and tensor != OUTPUT_NAME)
        weight = self._largest_weight(node)
        update = self._update_snr(node, tensor)
        is_attention = any(tensor in each.output for each in attention_nodes(self.twin.model))
        limit = LIMITS[self.precision]
        risks: list[str] = []
        cure: set[str] = set()
        if not math.isfinite(measured.largest) or not math.isfinite(measured.power):
            risks.append("not finite")
        if is_low_node and weight is not None and weight > limit:
            risks.append("weight")
            cure.add(node.name)
        if low and measured.largest * RESERVE > limit:
            risks.append("activation")
            cure |= {node.name, *low_readers}
        if is_attention and is_low_node:
            if measured.largest_score * RESERVE > limit:
                risks.append("score")
            if measured.score_error > SCORE_ERROR_LIMIT:
                risks.append("score precision")
            if "score" in risks or "score precision" in risks:
                cure |= {node.name, *self._chain(node.input[0]), *self._chain(node.input[1])}
        if is_low_node and update is not None and update < UPDATE_SNR_LIMIT_DB:
            risks.append("update")
            cure.add(node.name)
        return NodeRange(
            node=node.name,
            op_type=node.op_type,
            low=low,
            largest=_finite(measured.largest),
            rounding_snr_db=_finite(_ratio_db(measured.power, measured.error_power)),
            update_snr_db=_finite(update),
            largest_weight=weight,
            largest_score=_finite(measured.largest_score) if is_attention else None,
            score_error=_finite(measured.score_error) if is_attention else None,
            risks=tuple(risks),
            cure=tuple(sorted(cure & self.low_nodes)),
        )

    def _largest_weight(self, node: onnx.NodeProto) -> float | None:
        arrays = [numpy_helper.to_array(self.weights[name]) for name in node.input if name in self.weights]
        floats = [array for array in arrays if array.dtype == np.float32 and array.size]
        return max((float(np.abs(array).max()) for array in floats), default=None)

    def _update_snr(self, node: onnx.NodeProto, tensor: str) -> float | None:
        """Of a residual sum; both summands have as many elements as the sum."""
        if node.op_type != "Add" or not all(name in self.gathered for name in node.input):
            return None
        smaller = min(self.gathered[name].power for name in node.input)
        return _ratio_db(smaller, self.gathered[tensor].error_power)

    def _chain(self, tensor: str) -> Iterator[str]:
        """The nodes that lead to a tensor alone, back to one that others read too."""
        while tensor in self.makers and len(self.readers[tensor]) == 1:
            node = self.makers[tensor]
            yield node.name
            tensor = node.input[0]


def _ratio_db(power: float, error_power: float) -> float:
    if error_power == 0.0:
        return math.inf
    if not math.isfinite(error_power) or power == 0.0:
        return -math.inf
    return 10.0 * math.log10(power / error_power)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
