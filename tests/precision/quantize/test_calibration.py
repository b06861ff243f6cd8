"""Ranges against an independent calibration: plain ONNX Runtime and numpy on the very same tiles."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.calibrate import HistogramCollector
from PIL import Image
from support.quantization_plan import PLAN
from support.synthetic_pictures import picture

from trt_hspan import HspanError, UsageError
from trt_hspan.graph import QuantizedType, model_for_cpu, model_with_attention_function
from trt_hspan.precision.crops import Crops, Tile, samples_from_place
from trt_hspan.precision.quantize import calibration
from trt_hspan.precision.quantize.calibration import calibrate, mse_range
from trt_hspan.precision.quantize.layers import layers_to_quantize
from trt_hspan.precision.quantize.pipeline import (
    QuantizationRequest,
    measured_table,
    quantize,
)
from trt_hspan.precision.quantize.source import Source
from trt_hspan.precision.quantize.table import CalibrationTable, Method, calibration_folder, read_table

Values = dict[str, NDArray[np.float32]]


class KnownTiles(Crops):
    """Tiles that come from no picture file."""

    def __init__(self, tiles: Callable[[], Iterator[Tile]], *, pictures: int, count: int) -> None:
        self.tiles, self.pictures, self.count = tiles, pictures, count
        self.sha256 = "0" * 64

    def __iter__(self) -> Iterator[Tile]:
        return self.tiles()


def tiles_of(folder: Path) -> list[Tile]:
    return list(Crops(samples_from_place(str(folder), 2), PLAN))


@pytest.fixture(scope="session")
def observed(source: Source, photographs: Path) -> Values:
    """Every value that reaches each quantized layer, over all tiles, in one array a tensor."""
    model = model_for_cpu(model_with_attention_function(source.base))
    names = sorted({node.input[0] for node in layers_to_quantize(source.base)})
    model.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    runs = [
        session.run(names, {"input": tile.low.transpose(2, 0, 1)[None].astype(np.float32) / 255})
        for tile in tiles_of(photographs)
    ]
    return {name: np.concatenate([run[i].ravel() for run in runs]) for i, name in enumerate(names)}


def measured(
    source: Source, folder: Path, method: Method, kind: QuantizedType = "int8", *, adaptive: bool = False
) -> CalibrationTable:
    tiles = tiles_of(folder)
    data = KnownTiles(lambda: iter(tiles), pictures=6, count=len(tiles))
    return calibrate(
        source.base,
        layers_to_quantize(source.base),
        data,
        kind=kind,
        method=method,
        adaptive_rounding=adaptive,
        model_sha256=source.sha256,
    )


def test_minmax_ranges_are_the_largest_magnitudes(
    source: Source, photographs: Path, observed: Values
) -> None:
    table = measured(source, photographs, "minmax")
    assert set(table.tensors) == set(observed)
    for name, values in observed.items():
        tensor = table.tensors[name]
        # ONNX Runtime optimizes one of the two graphs: sums may round the other way in float16.
        np.testing.assert_allclose(
            [tensor.min, tensor.max], [values.min(), values.max()], rtol=2e-3, atol=1e-6
        )
        assert tensor.range == max(abs(tensor.min), abs(tensor.max))


def test_percentile_ranges_leave_out_one_value_in_a_hundred_thousand(
    source: Source, photographs: Path, observed: Values
) -> None:
    table = measured(source, photographs, "percentile")
    for name, values in observed.items():
        magnitudes = np.abs(values)
        bin_width = magnitudes.max() / calibration.BINS
        expected = np.percentile(magnitudes, 99.999, method="higher")
        assert abs(table.tensors[name].range - expected) <= 2 * bin_width + 2e-3 * expected, name


def test_mse_ranges_reconstruct_as_well_as_the_best_of_a_search_over_raw_values(
    source: Source, photographs: Path, observed: Values
) -> None:
    table = measured(source, photographs, "mse")

    def error(values: NDArray[np.float32], reach: float) -> float:
        scale = reach / 127
        back = np.clip(np.rint(values / scale), -127, 127) * scale
        return float(np.mean((back - values) ** 2))

    for name, values in observed.items():
        best = min(error(values, f * float(np.abs(values).max())) for f in np.linspace(0.3, 1, 71))
        # Bins are a sixteenth of a quantization step wide: 2 % covers them and the search's own steps.
        assert error(values, table.tensors[name].range) <= 1.02 * best, name


def test_entropy_ranges_are_the_librarys_for_255_levels_of_what_is_not_zero(
    source: Source, photographs: Path, observed: Values
) -> None:
    table = measured(source, photographs, "entropy")
    for name, values in observed.items():
        largest = np.float32(np.abs(values).max())
        collector = HistogramCollector("entropy", True, 1020, 255, None, None)
        counts, edges = np.histogram(values[values != 0], 1020, range=(-largest, largest))
        reach = collector.get_entropy_threshold(
            (counts, edges.astype(np.float32), -largest, largest, largest), 255
        )
        expected = max(abs(float(value)) for value in reach)
        # A value on the edge of a bin may fall on its other side, and a tie of two thresholds go the other way.
        assert abs(table.tensors[name].range - expected) <= 0.02 * largest, name
    assert any(table.tensors[n].range < 0.95 * np.abs(observed[n]).max() for n in observed)


def test_entropy_does_not_clip_a_relu_whose_output_is_mostly_zero(source: Source, photographs: Path) -> None:
    """Zeros are exact at every scale; counted, they made the method keep an eighth of the range."""
    base = onnx.ModelProto()
    base.CopyFrom(source.base)
    first = next(node for node in base.graph.node if node.name == "body.0.body.0.body.0/Conv")
    bias = next(tensor for tensor in base.graph.initializer if tensor.name == first.input[2])
    bias.raw_data = (numpy_helper.to_array(bias) - np.float16(0.2)).astype(np.float16).tobytes()
    sparse = replace(source, base=base)
    table = measured(sparse, photographs, "entropy")
    assert table.tensors["relu"].range > 0.5 * table.tensors["relu"].max


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_rare_outlier_is_clipped_and_a_full_range_is_not(kind: QuantizedType) -> None:
    uniform = np.full(2048, 1000)
    assert mse_range(uniform, 8.0, kind) > 7.0
    if kind == "int8":
        rare = np.zeros(2048, np.int64)
        rare[:400], rare[-1] = 10_000, 1
        assert mse_range(rare, 8.0, kind) < 4.0


def test_mse_of_fp8_measures_with_the_type_itself() -> None:
    values = np.abs(np.random.default_rng(0).normal(size=40_000))
    largest = float(values.max())
    histogram = np.histogram(values, bins=2048, range=(0, largest))[0]

    def error(reach: float) -> float:
        scale = reach / 448
        stored = np.minimum(values / scale, 448).astype(ml_dtypes.float8_e4m3fn)
        return float(np.mean((stored.astype(np.float64) * scale - values) ** 2))

    best = min(error(f * largest) for f in np.linspace(0.2, 1, 81))
    assert error(mse_range(histogram, largest, "fp8")) <= 1.03 * best


def test_the_order_of_tiles_does_not_matter_even_when_the_first_is_flat(source: Source) -> None:
    flat = Tile(name="flat", low=np.full((16, 16, 3), 90, np.uint8), truth=None, scale=2)
    busy = Tile(name="busy", low=picture(16, 16, seed=3), truth=None, scale=2)

    def ranges(*tiles: Tile) -> list[float]:
        data = KnownTiles(lambda: iter(tiles), pictures=2, count=2)
        nodes = layers_to_quantize(source.base)
        table = calibrate(
            source.base,
            nodes,
            data,
            kind="int8",
            method="percentile",
            adaptive_rounding=False,
            model_sha256=source.sha256,
        )
        return [tensor.range for tensor in table.tensors.values()]

    assert ranges(flat, busy) == ranges(busy, flat)


def test_one_tile_is_in_memory_at_a_time(source: Source) -> None:
    asked: list[int] = []
    done: list[int] = []

    def stream() -> Iterator[Tile]:
        for index in range(4):
            asked.append(index)
            assert len(done) == len(asked) - 1, "a tile was asked for before the last one was used"
            yield Tile(name="t", low=picture(16, 16, seed=index), truth=None, scale=2)

    calibrate(
        source.base,
        layers_to_quantize(source.base),
        KnownTiles(stream, pictures=4, count=4),
        kind="int8",
        method="mse",
        adaptive_rounding=True,
        model_sha256=source.sha256,
        on_tile=lambda: done.append(1),
    )
    assert len(done) == 8


def test_pictures_of_one_color_are_refused(source: Source, tmp_path: Path) -> None:
    for name, color in (("a", "gray"), ("b", "black")):
        Image.new("RGB", (32, 32), color).save(tmp_path / f"{name}.png")
    with pytest.raises(
        HspanError, match="every one of the 2 pictures is of a single color; give photographs"
    ):
        quantize(source, QuantizationRequest(precision="int8", calibration=str(tmp_path), tiles=PLAN))
    (tmp_path / "b.png").unlink()
    with pytest.raises(HspanError, match="calibration: the only picture is of a single color"):
        quantize(source, QuantizationRequest(precision="int8", calibration=str(tmp_path), tiles=PLAN))


def test_extremes_alone_take_one_pass_and_all_else_two() -> None:
    for kind in ("int8", "fp8"):
        for method in ("mse", "entropy", "percentile"):
            assert calibration.passes(method, kind, adaptive_rounding=False) == 2
        assert calibration.passes("minmax", kind, adaptive_rounding=False) == 1
        assert calibration.passes("minmax", kind, adaptive_rounding=True) == (2 if kind == "int8" else 1)


def test_an_overflow_of_fp16_is_one_line_and_no_warnings(source: Source, photographs: Path) -> None:
    base = onnx.ModelProto()
    base.CopyFrom(source.base)
    for node in base.graph.node:
        if node.name.startswith("body.0.body.0."):
            for tensor in base.graph.initializer:
                if tensor.name in node.input[1:]:
                    tensor.raw_data = np.full(tensor.dims, 60000, np.float16).tobytes()
    loud = replace(source, base=base)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # numpy's, of what is NaN throughout, would stand before the line
        with pytest.raises(
            HspanError, match=r"is not finite on these pictures; see where with trt-hspan audit"
        ):
            measured(loud, photographs, "minmax")


def test_a_layer_whose_input_is_always_zero_stays_in_the_base_type(source: Source, photographs: Path) -> None:
    """A dead ReLU: its convolution's bias is far below zero."""
    base = onnx.ModelProto()
    base.CopyFrom(source.base)
    first = next(node for node in base.graph.node if node.name == "body.0.body.0.body.0/Conv")
    bias = next(tensor for tensor in base.graph.initializer if tensor.name == first.input[2])
    bias.raw_data = np.full(bias.dims, -1000, np.float16).tobytes()
    dead = replace(source, base=base)
    request = QuantizationRequest(precision="int8", calibration=str(photographs), tiles=PLAN, method="minmax")
    recipe = quantize(dead, request).recipe
    layer = next(layer for layer in recipe.layers if layer.name == "body.0.body.0.body.2/Conv")
    assert layer.type == "fp16"
    assert layer.why == "its input was 0 on all calibration pictures"


def test_an_unknown_method_is_wrong_usage() -> None:
    with pytest.raises(
        UsageError, match="--method: got 'kl', expected one of minmax, percentile, entropy, mse"
    ):
        QuantizationRequest(precision="int8", calibration="builtin", method="kl")  # type: ignore[arg-type]


def table_of(source: Source, folder: Path, **options: object) -> tuple[CalibrationTable, bool]:
    request = QuantizationRequest(precision="int8", calibration=str(folder), tiles=PLAN, **options)  # type: ignore[arg-type]
    tiles = Crops(samples_from_place(str(folder), 2), PLAN)
    return measured_table(source, layers_to_quantize(source.base), tiles, request)


def test_a_table_is_kept_for_the_same_model_pictures_and_method_only(
    source: Source, photographs: Path, tmp_path: Path
) -> None:
    first, cached = table_of(source, photographs, method="minmax", rounding="nearest")
    assert not cached
    assert table_of(source, photographs, method="minmax", rounding="nearest") == (first, True)
    assert not table_of(source, photographs, method="percentile", rounding="nearest")[1]
    assert not table_of(replace(source, sha256="1" * 64), photographs, method="minmax", rounding="nearest")[1]
    other = tmp_path / "other"
    other.mkdir()
    for path in photographs.iterdir():
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(other / path.name)
    assert not table_of(source, other, method="minmax", rounding="nearest")[1]


def test_an_interrupted_calibration_leaves_nothing_and_the_next_one_starts_clean(
    source: Source, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = table_of(source, photographs, use_cache=False)
    original = calibration._values

    def interrupted(*arguments: object) -> Iterator[object]:
        tiles = original(*arguments)  # type: ignore[arg-type]
        yield next(tiles)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(calibration, "_values", interrupted)
        with pytest.raises(KeyboardInterrupt):
            table_of(source, photographs)
    assert not calibration_folder().exists()
    assert table_of(source, photographs) == (expected, False)


def test_a_damaged_table_in_the_cache_is_measured_anew(source: Source, photographs: Path) -> None:
    first, _ = table_of(source, photographs, method="minmax", rounding="nearest")
    (kept,) = calibration_folder().iterdir()
    kept.write_text(kept.read_text()[:100])
    assert table_of(source, photographs, method="minmax", rounding="nearest") == (first, False)
    assert read_table(kept) == first


def test_a_table_can_be_reviewed_edited_and_fed_back(
    source: Source, photographs: Path, tmp_path: Path
) -> None:
    table, _ = table_of(source, photographs)
    document = json.loads(table.as_json())
    document["tensors"]["relu"]["range"] = 127.0
    edited = tmp_path / "edited.json"
    edited.write_text(json.dumps(document))
    result = quantize(source, QuantizationRequest(precision="int8", table=edited))
    scales = {name: scale for layer in result.recipe.layers for name, scale in layer.scale.items()}
    assert scales["relu"] == 1.0
    assert all(layer.rounding for layer in result.recipe.layers)
    assert result.recipe.calibration_sha256 != table.sha256


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"format": "1"}, "its format is '1'"),
        ({"method": "kl"}, "method is 'kl', expected one of"),
        ({"tiles": "6"}, "tiles is '6', expected an integer"),
        ({"extra": 1}, "the key extra is unknown"),
        ({"tensors": {"relu": {"min": 0.0, "max": 1.0, "range": -1.0}}}, "the range of relu is -1.0"),
        ({"tensors": {}}, "has no range in the calibration table"),
        ({"rounding": {"body.0.body.0.body.0/Conv": "!"}}, "its rounding is damaged"),
        ({"model_sha256": "0" * 64}, "is for another model"),
        ({"precision": "fp8"}, "contains fp8 ranges"),
    ],
)
def test_a_table_that_does_not_serve_is_one_error_line(
    source: Source, photographs: Path, tmp_path: Path, spoil: dict[str, object], message: str
) -> None:
    table, _ = table_of(source, photographs, method="minmax", rounding="nearest")
    spoiled = tmp_path / "spoiled.json"
    spoiled.write_text(json.dumps(json.loads(table.as_json()) | spoil))
    with pytest.raises(HspanError) as caught:
        quantize(source, QuantizationRequest(precision="int8", table=spoiled))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
