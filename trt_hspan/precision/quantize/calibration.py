"""Ranges of activations, measured by ONNX Runtime's own calibrators on tiles of real pictures.

One tile is in memory at a time, and what is kept does not grow with their number. ONNX Runtime finds the extremes,
collects the histograms, and computes the percentile and entropy thresholds; the search of the `mse` method is ours. The
graph that runs is the one that is quantized afterwards, in its base type as `graph.model_for_cpu` emulates it.
"""

from __future__ import annotations

import contextlib
import io
import math
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, get_args

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.graph import INPUT_NAME, QuantizedType, model_for_cpu, model_with_attention_function
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
from trt_hspan.runtime.onnxruntime_session import open_session

#: What a user may choose; "none" is the method of a table without measurements.
METHODS: Final[tuple[Method, ...]] = get_args(Method)[:-1]
#: Bins of a histogram over 0..largest.
BINS: Final = 2048
#: Values of a quantized activation that the entropy method counts with; ONNX Runtime's default of 128 is for 7 bits.
ENTROPY_LEVELS: Final = 255
#: Its bins over -largest..largest. It merges whole bins to levels, so their number is a multiple of the levels'; the
#: time of its search grows with the square.
ENTROPY_BINS: Final = 4 * ENTROPY_LEVELS
#: Thresholds that the mse method tries, as parts of the largest magnitude.
_TRIED: Final = np.linspace(0.2, 1.0, 161)


def checked_method(text: str) -> Method:
    """The method of this name. Raises: UsageError when there is none."""
    for method in METHODS:
        if text == method:
            return method
    raise UsageError("--method", f"{text!r} is unknown", f"choose {', '.join(METHODS)}")


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
    step = on_tile or (lambda: None)
    moments = (
        {
            node.name: InputMoments(node, tuple(weights[node.input[1]].dims))
            for node in layers
            if InputMoments.is_possible(node)
        }
        if adaptive_rounding and kind == "int8"
        else {}
    )
    with tempfile.TemporaryDirectory(prefix="trt-hspan-") as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model_for_cpu(model_with_attention_function(model)), path)
        extremes = _extremes(path, names, data, step)
        ranges = {name: max(abs(low), abs(high)) for name, (low, high) in extremes.items()}
        if method != "minmax" or moments:
            ranges |= _histogram_ranges(path, ranges, data, step, kind=kind, method=method, moments=moments)
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


def _feeds(data: Crops, step: Callable[[], None]) -> Iterator[_OneTile]:
    """Each tile as a data reader of its own; refuses a set of tiles that shows nothing."""
    varied = False
    for tile in data:
        varied = varied or bool((tile.low != tile.low[:1, :1]).any())
        yield _OneTile({INPUT_NAME: tensor_from_image(tile.low)})
        step()
    if not varied:
        which = "the only picture" if data.pictures == 1 else f"every one of the {data.pictures} pictures"
        raise HspanError("calibration", f"{which} is of a single color", "give photographs")


class _OneTile:
    """ONNX Runtime's CalibrationDataReader for a single input."""

    def __init__(self, feed: dict[str, Any]) -> None:
        self._feed: dict[str, Any] | None = feed

    def get_next(self) -> dict[str, Any] | None:
        feed, self._feed = self._feed, None
        return feed


def _extremes(
    path: Path, names: Sequence[str], data: Crops, step: Callable[[], None]
) -> dict[str, tuple[float, float]]:
    imported_onnxruntime()
    from onnxruntime.quantization.calibrate import MinMaxCalibrater

    class Extremes(MinMaxCalibrater):  # type: ignore[misc]
        def select_tensors_to_calibrate(self, model: onnx.ModelProto) -> tuple[set[str], dict[str, Any]]:
            return _selected(model, names)

        def create_inference_session(self) -> None:
            self.infer_session = open_session(Path(self.augmented_model_path), str(path), optimize=False)

    calibrater = Extremes(path, augmented_model_path=str(path.with_name("extremes.onnx")))
    calibrater.augment_graph()
    calibrater.create_inference_session()
    with warnings.catch_warnings():  # numpy's, of tensors that are NaN throughout: they are an error below
        warnings.simplefilter("ignore", RuntimeWarning)
        for feed in _feeds(data, step):
            calibrater.collect_data(feed)
        thresholds = calibrater.compute_data()
    result = {}
    for name in names:
        low, high = (float(np.min(v)) for v in thresholds[name].range_value)
        if not (math.isfinite(low) and math.isfinite(high)):
            raise HspanError(
                name,
                "is not finite on these pictures",
                "choose --base bf16 or fp32: FP16 overflows at 65504, and trt-hspan audit shows where",
            )
        result[name] = (low, high)
    return result


def _histogram_ranges(
    path: Path,
    largest: Mapping[str, float],
    data: Crops,
    step: Callable[[], None],
    *,
    kind: QuantizedType,
    method: Method,
    moments: Mapping[str, InputMoments],
) -> dict[str, float]:
    """Ranges by percentile, entropy or mse; none by minmax, which needs only the moments."""
    imported_onnxruntime()
    from onnxruntime.quantization import calibrate as ort

    entropy = method == "entropy"
    family = ort.EntropyCalibrater if entropy else ort.PercentileCalibrater
    bins = {"num_bins": BINS}
    if entropy:
        bins = {"num_bins": ENTROPY_BINS, "num_quantized_bins": ENTROPY_LEVELS}
    names = [name for name, value in largest.items() if value > 0.0]
    measured = sorted({*names, *(m.tensor for m in moments.values())})

    class Histograms(family):  # type: ignore[misc,valid-type]
        """Collects tile by tile; the library's own would keep every tile's tensors."""

        def select_tensors_to_calibrate(self, model: onnx.ModelProto) -> tuple[set[str], dict[str, Any]]:
            return _selected(model, measured)

        def create_inference_session(self) -> None:
            self.infer_session = open_session(Path(self.augmented_model_path), str(path), optimize=False)

        def collect_data(self, data_reader: _OneTile) -> None:
            feed = data_reader.get_next()
            values = dict(zip(measured, self.infer_session.run(measured, feed), strict=True))
            if method != "minmax":
                self.collector.collect(
                    {name: [_nonzero(values[name]) if entropy else values[name]] for name in names}
                )
            for moment in moments.values():
                moment.add(values[moment.tensor])

    calibrater = Histograms(
        path, augmented_model_path=str(path.with_name("histograms.onnx")), symmetric=True, **bins
    )
    calibrater.augment_graph()
    calibrater.create_inference_session()
    calibrater.collector = _empty_collector(ort, calibrater, {name: largest[name] for name in names})
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
        for feed in _feeds(data, step):
            calibrater.collect_data(feed)
        if method == "minmax":
            return {}
        if method == "mse":
            histograms = calibrater.collector.get_histogram_dict()
            return {name: mse_range(histograms[name][0], largest[name], kind) for name in names}
        thresholds = calibrater.compute_data()
    return {name: max(abs(float(v)) for v in thresholds[name].range_value) for name in names}


def _nonzero(values: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Values that matter for entropy: those that are not 0, which every scale keeps exactly.

    After a ReLU nine of ten are 0. Counted, they would be all that entropy sees: it would keep the bin around 0 narrow
    and cut the range to an eighth.
    """
    nonzero: npt.NDArray[np.floating] = values[values != 0]
    return nonzero


def _empty_collector(ort: Any, calibrater: Any, largest: Mapping[str, float]) -> Any:
    """A collector whose histograms reach over the measured extremes from the start.

    Left to itself it takes its bins from the first tile, however flat that is, and adds bins of that width for ever.
    """
    collector = ort.HistogramCollector(
        calibrater.method,
        True,
        calibrater.num_bins,
        calibrater.num_quantized_bins,
        calibrater.percentile,
        calibrater.scenario,
    )
    bins = calibrater.num_bins
    for name, value in largest.items():
        top = np.float32(value)
        if calibrater.method == "entropy":
            edges = np.linspace(-top, top, bins + 1, dtype=np.float32)
            collector.histogram_dict[name] = (
                np.zeros(bins, np.int64),
                edges,
                np.float32(0),
                np.float32(0),
                top,
            )
        else:
            edges = np.linspace(0, top, bins + 1, dtype=np.float32)
            collector.histogram_dict[name] = (np.zeros(bins, np.int64), edges, np.float32(0), np.float32(0))
    return collector


def _selected(model: onnx.ModelProto, names: Iterable[str]) -> tuple[set[str], dict[str, Any]]:
    """The tensors to look at, declared float32: shape inference does not see through the attention's body."""
    declared = {value.name for value in (*model.graph.value_info, *model.graph.input, *model.graph.output)}
    for name in names:
        if name not in declared:
            model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return set(names), {value.name: value for value in (*model.graph.value_info, *model.graph.input)}
