#!/usr/bin/env python3
"""What each part of INT8 quantization costs or gains: weights and activations apart, roundings, methods, and two steps
that are not offered because of what is measured here (bias correction, equalization of convolution pairs).

Weights in FP32 but for the quantized layers. Calibrated as `trt-hspan quantize` does; the loss is a mean over one tile
of each picture.

    python benchmarks/ablation.py --images DIR [--json] [--calibration builtin|DIR] [--checkpoint hspan-tiny-x4]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trt_hspan.errors import HspanError

if TYPE_CHECKING:
    from trt_hspan.precision.crops import TilePlan
    from trt_hspan.precision.quantize.measure import Measurement
    from trt_hspan.precision.quantize.source import Source
    from trt_hspan.precision.quantize.table import CalibrationTable, Method


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row. None leaves weights or activations in FP32; `equalized` is how far: 0 not at all, 1 fully."""

    weights: str | None = None
    bias_correction: bool = False
    activations: Method | None = None
    equalized: float = 0.0


VARIANTS: Final = (
    Variant(weights="nearest"),
    Variant(weights="nearest", bias_correction=True),
    Variant(weights="adaptive"),
    Variant(weights="adaptive", bias_correction=True),
    *(Variant(activations=method) for method in ("minmax", "percentile", "entropy", "mse")),
    Variant(weights="nearest", activations="mse"),
    Variant(weights="adaptive", activations="mse"),
    Variant(weights="adaptive", bias_correction=True, activations="mse"),
    Variant(weights="adaptive", activations="mse", equalized=0.5),
    Variant(weights="adaptive", activations="mse", equalized=1.0),
)


class Ablation:
    """One network, pictures to calibrate on, and pictures to measure on."""

    def __init__(self, checkpoint: str, calibration: str, images: str, *, plan: TilePlan, side: int) -> None:
        from trt_hspan.precision import crops as tiles
        from trt_hspan.precision.quantize.layers import layers_to_quantize
        from trt_hspan.precision.quantize.measure import HeldOut
        from trt_hspan.precision.quantize.source import source_from_path

        self._source = source_from_path(checkpoint, base="fp32")
        self._nodes = layers_to_quantize(self._source.base)
        scale = self._source.metadata.scale
        assert scale is not None
        self._tiles = tiles.Crops(tiles.samples_from_place(calibration, scale), plan)
        measured_on = tiles.with_ground_truth(tiles.samples_from_place(images, scale))
        one_each = tiles.TilePlan(count=len(measured_on), side=side)
        self._held_out = HeldOut(
            self._source.reference,
            tiles.Crops(measured_on, one_each),
            where=self._source.where,
        )
        self._tables: dict[tuple[str, float], CalibrationTable] = {}
        self.pictures = len(measured_on)

    def measure(self, variant: Variant) -> Measurement:
        """Makes the network of a row and runs it on every tile."""
        from trt_hspan.precision.quantize.insertion import LayerScales, model_with_qdq
        from trt_hspan.precision.quantize.scales import scale_from_range

        source = self._equalized(variant.equalized)
        model = onnx.ModelProto()
        model.CopyFrom(source.base)
        if variant.weights is not None:
            self._quantize_weights(model, source, variant)
        if variant.activations is not None:
            ranges = self._table(source, variant.activations, variant.equalized).tensors
            scales = {}
            for node in self._nodes:
                name = node.input[0]
                scale = scale_from_range(ranges[name].range, "int8", np.float32)
                scales[node.name] = LayerScales(activations={name: scale}, weight=None)
            model = model_with_qdq(model, scales, "int8")
        return self._held_out.measure(model)

    def _equalized(self, part: float) -> Source:
        return self._source if part == 0 else replace(self._source, base=equalized(self._source.base, part))

    def _table(self, source: Source, method: Method, part: float) -> CalibrationTable:
        from trt_hspan.precision.quantize.pipeline import QuantizationRequest, measured_table

        if (method, part) not in self._tables:
            request = QuantizationRequest(
                precision="int8",
                calibration="given as samples",
                method=method,
                rounding="adaptive" if method == "mse" else "nearest",
                use_cache=False,
            )
            self._tables[method, part] = measured_table(source, self._nodes, self._tiles, request)[0]
        return self._tables[method, part]

    def _quantize_weights(self, model: onnx.ModelProto, source: Source, variant: Variant) -> None:
        """Replaces the layers' weights by what their quantized form stands for, and corrects biases on request."""
        from trt_hspan.precision.quantize.scales import quantized_weights, weight_scales
        from trt_hspan.precision.quantize.table import flips_from_text

        rounding = self._table(source, "mse", variant.equalized).rounding
        means = self._input_means(source.base) if variant.bias_correction else {}
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in self._nodes:
            weight = numpy_helper.to_array(tensors[node.input[1]])
            scales = weight_scales(weight, "int8", np.float32)
            flips = None
            if variant.weights == "adaptive":
                flips = flips_from_text(rounding[node.name], weight.shape, node.name)
            stored = quantized_weights(weight, scales, "int8", flips).astype(np.float32)
            stored *= scales.astype(np.float32).reshape(-1, 1, 1, 1)
            overwrite(tensors[node.input[1]], stored)
            if variant.bias_correction:  # Nagel et al., "Data-Free Quantization", ICCV 2019, section 4.2
                shift = np.einsum("ochw,c->o", stored - weight, means[node.input[0]])
                overwrite(tensors[node.input[2]], numpy_helper.to_array(tensors[node.input[2]]) - shift)

    def _input_means(self, model: onnx.ModelProto) -> dict[str, np.ndarray]:
        """Mean of each channel of each layer's input, over the calibration tiles."""
        from trt_hspan.graph import INPUT_NAME, model_with_attention_function
        from trt_hspan.media.pixels import tensor_from_image
        from trt_hspan.runtime.onnxruntime_session import open_session

        whole = model_with_attention_function(model)
        names = sorted({node.input[0] for node in self._nodes})
        whole.graph.output.extend(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names
        )
        session = open_session(whole, self._source.where)
        means: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for tile in self._tiles:
            outputs = session.run(names, {INPUT_NAME: tensor_from_image(tile.low)})
            for name, values in zip(names, outputs, strict=True):
                means[name].append(values.mean(axis=(0, 2, 3)))
        return {name: np.mean(values, axis=0) for name, values in means.items()}


def overwrite(tensor: onnx.TensorProto, values: np.ndarray) -> None:
    """Puts other float32 values into an initializer."""
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))


def equalized(model: onnx.ModelProto, part: float) -> onnx.ModelProto:
    """Moves scale between the channels of convolution pairs that a ReLU or a pixel shuffle joins; the same function.

    Channel c of the first is divided, of the second multiplied, by (r1 / r2)^(part / 2), r being the largest weights
    of the channel in each: Nagel et al., section 4.1, with part 1.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in result.graph.initializer}
    for first, second in _pairs(result):
        before, after = (numpy_helper.to_array(tensors[node.input[1]]) for node in (first, second))
        channels = after.shape[1]
        repeat = before.shape[0] // channels  # of a pixel shuffle
        reach = np.abs(before).reshape(channels, -1).max(axis=1)
        other = np.abs(after).max(axis=(0, 2, 3))
        factor = np.where((reach > 0) & (other > 0), reach / np.maximum(other, 1e-30), 1.0) ** (part / 2)
        spread = np.repeat(factor, repeat)
        overwrite(tensors[first.input[1]], before / spread[:, None, None, None])
        overwrite(tensors[first.input[2]], numpy_helper.to_array(tensors[first.input[2]]) / spread)
        overwrite(tensors[second.input[1]], after * factor[None, :, None, None])
    return result


def _pairs(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, onnx.NodeProto]]:
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for node in model.graph.node:
        if node.op_type != "Conv" or len(node.input) < 3:
            continue
        between = readers.get(node.output[0], [])
        if len(between) != 1 or between[0].op_type not in ("Relu", "DepthToSpace"):
            continue
        after = readers.get(between[0].output[0], [])
        if len(after) == 1 and after[0].op_type == "Conv":
            yield node, after[0]


def main() -> int:
    """Parses the command line, measures, prints."""
    parser = argparse.ArgumentParser(description=" ".join(__doc__.split("\n\n")[0].split()))
    parser.add_argument("--checkpoint", default="hspan-tiny-x4", help="a path or a preset's name")
    parser.add_argument("--images", required=True, help="folder or benchmark set to measure on")
    parser.add_argument("--calibration", default="builtin", help="folder of pictures, or builtin")
    parser.add_argument("--tiles", type=int, default=32, help="calibration tiles")
    parser.add_argument("--side", type=int, default=96, help="of the tiles to measure on, in input pixels")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    from trt_hspan.precision.crops import TilePlan

    try:
        ablation = Ablation(
            arguments.checkpoint,
            arguments.calibration,
            arguments.images,
            plan=TilePlan(count=arguments.tiles),
            side=arguments.side,
        )
        rows = []
        for number, variant in enumerate(VARIANTS, start=1):
            print(f"ablation: {number} of {len(VARIANTS)}", file=sys.stderr)
            rows.append(asdict(variant) | asdict(ablation.measure(variant)))
    except HspanError as error:
        print(f"ablation: error: {error}", file=sys.stderr)
        return error.exit_code
    if arguments.json:
        print(json.dumps({"pictures": ablation.pictures, "side": arguments.side, "rows": rows}, indent=2))
    else:
        print_table(f"{arguments.checkpoint}, {ablation.pictures} pictures of {arguments.images}", rows)
    return 0


def print_table(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """The rows as a table for people."""
    from trt_hspan.cli.output import print_rows, rounded

    shown = []
    for row in rows:
        weights = row["weights"] or "-"
        if row["bias_correction"]:
            weights += ", bias corrected"
        if row["equalized"]:
            weights += f", equalized {row['equalized']:g}"
        figures = (
            f"{rounded(row['loss_db'], 4):+.4f}",
            f"{row['psnr_db']:.2f}",
            f"{row['worst_psnr_db']:.2f}",
        )
        shown.append([weights, row["activations"] or "-", *figures])
    print_rows(title, ["weights", "activations", "lost dB", "PSNR mean dB", "worst dB"], shown)


if __name__ == "__main__":
    sys.exit(main())
