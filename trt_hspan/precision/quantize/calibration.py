"""Ranges of activations, measured under ONNX Runtime on tiles of real pictures.

One tile is in memory at a time, and what is kept does not grow with their number. The entropy threshold is that of ONNX
Runtime's own calibration. The graph that runs is the one that is quantized afterwards, in its base type as
`graph.model_for_cpu` emulates it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from trt_hspan.errors import HspanError
from trt_hspan.graph import QuantizedType, model_for_cpu, model_with_attention_function
from trt_hspan.machine.onnx_runtime import imported_onnxruntime
from trt_hspan.media.pixels import tensor_from_image
from trt_hspan.precision.crops import Crops
from trt_hspan.precision.quantize.rounding import InputMoments, best_flips
from trt_hspan.precision.quantize.scales import LARGEST, weight_scales
from trt_hspan.precision.quantize.table import (
    TABLE_FORMAT,
    CalibrationTable,
    Method,
    TensorRange,
    text_from_flips,
)
from trt_hspan.runtime.onnxruntime_session import open_session, run_session, with_outputs
from trt_hspan.runtime.runner import Float32Array

#: Bins of a histogram over 0..largest.
BINS: Final = 2048
#: Values of a quantized activation that the entropy method counts with; ONNX Runtime's default of 128 is for 7 bits.
ENTROPY_LEVELS: Final = 255
#: Its bins over -largest..largest. It merges whole bins to levels, so their number is a multiple of the levels'; the
#: time of its search grows with the square.
ENTROPY_BINS: Final = 4 * ENTROPY_LEVELS
#: The part of all magnitudes that the percentile method keeps.
_PERCENTILE: Final = 0.99999
#: Thresholds that the mse method tries, as parts of the largest magnitude.
_TRIED: Final = np.linspace(0.2, 1.0, 161)


def calibrate(
    model: onnx.ModelProto,
    layers: Sequence[onnx.NodeProto],
    data: Crops,
    *,
    kind: QuantizedType,
    method: Method,
    adaptive_rounding: bool,
    model_sha256: str,
    on_tile: Callable[[], None] | None = None,
) -> CalibrationTable:
    """Measures the inputs of layers and chooses their ranges.

    Args:
        model: the graph in its base type, without function bodies.
        layers: nodes whose activations are measured.
        data: tiles to run on; passed over once for `minmax` with nearest rounding, else twice (`passes`).
        adaptive_rounding: also find how INT8 weights are best rounded.
        on_tile: called after each tile of each pass, for progress.

    Raises:
        HspanError: every tile is of one color, an activation is not finite, or a picture cannot be read.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    names = sorted({name for node in layers for name in node.input if name and name not in weights})
    moments = (
        {
            node.name: InputMoments(node, tuple(weights[node.input[1]].dims))
            for node in layers
            if InputMoments.is_possible(node)
        }
        if adaptive_rounding and kind == "int8"
        else {}
    )
    tensors = sorted({*names, *(moment.tensor for moment in moments.values())})
    observed = with_outputs(model_for_cpu(model_with_attention_function(model)), tensors)
    session = open_session(observed, "calibration", optimize=False)
    extremes = _extremes(names, _values(session, tensors, data, on_tile))
    ranges = {name: max(abs(low), abs(high)) for name, (low, high) in extremes.items()}
    if method != "minmax" or moments:
        histograms = {} if method == "minmax" else _empty_histograms(ranges, method)
        for values in _values(session, tensors, data, on_tile):
            for name, (counts, edges) in histograms.items():
                counts[:] += _histogram(values[name], edges, method)
            for moment in moments.values():
                moment.add(values[moment.tensor])
        for name, (counts, edges) in histograms.items():
            ranges[name] = _threshold(counts, edges, extremes[name], kind=kind, method=method)
    return CalibrationTable(
        format=TABLE_FORMAT,
        model_sha256=model_sha256,
        precision=kind,
        method=method,
        pictures=data.pictures,
        tiles=data.count,
        pictures_sha256=data.sha256,
        tensors={
            name: TensorRange(min=extremes[name][0], max=extremes[name][1], range=ranges[name])
            for name in names
        },
        rounding={
            node.name: text_from_flips(_flips(weights[node.input[1]], moments[node.name]))
            for node in layers
            if node.name in moments
        },
    )


def passes(method: Method, kind: QuantizedType, *, adaptive_rounding: bool) -> int:
    """How often `calibrate` passes over the tiles."""
    return 1 if method == "minmax" and not (adaptive_rounding and kind == "int8") else 2


def mse_range(histogram: npt.NDArray[np.integer], largest: float, kind: QuantizedType) -> float:
    """The threshold whose quantization brings the magnitudes back with the least squared error.

    Args:
        histogram: counts of magnitudes in bins of one width over 0..largest.
        largest: above 0.
    """
    width = largest / len(histogram)
    centers = (np.arange(len(histogram)) + 0.5) * width
    thresholds = largest * _TRIED[:, None]
    scale = thresholds / LARGEST[kind]
    ratio = np.minimum(centers / scale, LARGEST[kind])
    codes = np.rint(ratio) if kind == "int8" else ratio.astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
    errors = (histogram * (codes * scale - centers) ** 2).sum(axis=1)
    return float(thresholds[errors.argmin(), 0])


def _flips(weight: onnx.TensorProto, moments: InputMoments) -> npt.NDArray[np.bool_]:
    values = numpy_helper.to_array(weight)
    return best_flips(values, weight_scales(values, "int8", values.dtype), moments.mean)


def _values(
    session: Any, tensors: Sequence[str], data: Crops, on_tile: Callable[[], None] | None
) -> Iterator[dict[str, Float32Array]]:
    """What the tensors contain on each tile; refuses a set of tiles that shows nothing."""
    varied = False
    for tile in data:
        varied = varied or bool((tile.low != tile.low[:1, :1]).any())
        arrays = run_session(session, tensors, tensor_from_image(tile.low), "calibration")
        yield dict(zip(tensors, arrays, strict=True))
        if on_tile is not None:
            on_tile()
    if not varied:
        which = "the only picture" if data.pictures == 1 else f"every one of the {data.pictures} pictures"
        raise HspanError("calibration", f"{which} is of a single color", "give photographs")


def _extremes(
    names: Sequence[str], tiles: Iterator[dict[str, Float32Array]]
) -> dict[str, tuple[float, float]]:
    """The smallest and the largest value of each tensor."""
    ends = [[(values[name].min(), values[name].max()) for name in names] for values in tiles]
    lows, highs = np.moveaxis(np.array(ends, np.float64), 2, 0)
    result = {}
    for name, low, high in zip(names, lows.min(axis=0), highs.max(axis=0), strict=True):
        if not (math.isfinite(low) and math.isfinite(high)):
            raise HspanError(
                name,
                "is not finite on these pictures",
                "see where with trt-hspan audit; --base fp16 overflows at 65504, bf16 and fp32 do not",
            )
        result[name] = (float(low), float(high))
    return result


_Histogram = tuple[npt.NDArray[np.int64], Float32Array]


def _empty_histograms(ranges: Mapping[str, float], method: Method) -> dict[str, _Histogram]:
    """Counts and edges of bins for each tensor that is not 0 throughout: of values for entropy, else of magnitudes."""
    result = {}
    for name, largest in ranges.items():
        if largest > 0.0:
            end = np.float32(largest)
            count, start = (ENTROPY_BINS, -end) if method == "entropy" else (BINS, np.float32(0))
            result[name] = (np.zeros(count, np.int64), np.linspace(start, end, count + 1, dtype=np.float32))
    return result


def _histogram(values: Float32Array, edges: Float32Array, method: Method) -> npt.NDArray[np.int64]:
    """For entropy, of values that are not 0, which every scale keeps exactly.

    After a ReLU nine of ten are 0. Counted, they would be all that entropy sees: it would keep the bin around 0 narrow
    and cut the range to an eighth.
    """
    if method == "entropy":
        counts = np.histogram(values[values != 0], len(edges) - 1, range=(edges[0], edges[-1]))[0]
    else:
        counts = np.histogram(np.abs(values), edges)[0]
    return counts


def _threshold(
    counts: npt.NDArray[np.int64],
    edges: Float32Array,
    extremes: tuple[float, float],
    *,
    kind: QuantizedType,
    method: Method,
) -> float:
    if method == "mse":
        return mse_range(counts, float(edges[-1]), kind)
    if method == "percentile":
        return float(edges[np.searchsorted(np.cumsum(counts / counts.sum()), _PERCENTILE)])
    imported_onnxruntime()
    from onnxruntime.quantization.calibrate import HistogramCollector

    collector = HistogramCollector(method, True, ENTROPY_BINS, ENTROPY_LEVELS, None, None)
    low, high = np.float32(min(extremes[0], 0.0)), np.float32(max(extremes[1], 0.0))
    reach = collector.get_entropy_threshold((counts, edges, low, high, edges[-1]), ENTROPY_LEVELS)
    return max(abs(float(value)) for value in reach)
