"""How much each layer costs when only it is quantised. Owns the measuring loop and its report; draws nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnx

from trt_hspan.graph import Precision, QuantizedType
from trt_hspan.graph.quantized import convolution_macs
from trt_hspan.quantization.insertion import model_with_qdq
from trt_hspan.quantization.measure import HeldOut, Measurement
from trt_hspan.quantization.recipe import layer_scales, recipe_layer
from trt_hspan.quantization.source import Source
from trt_hspan.quantization.table import CalibrationTable


@dataclass(frozen=True, kw_only=True)
class LayerSensitivity:
    """One layer quantised, all others in the base type.

    Attributes:
        name: of the node.
        mac_share: its share of the convolutions' multiply-accumulates, 0..1.
        psnr_db: against float32, mean over tiles; infinite when nothing changed.
        loss_db: of PSNR-Y against ground truth; None without any.
    """

    name: str
    mac_share: float
    psnr_db: float
    loss_db: float | None


@dataclass(frozen=True, kw_only=True)
class SensitivityReport:
    """Attributes: `base` is nothing quantised, `everything` all layers; `layers` has the most sensitive first."""

    model: str
    model_sha256: str
    precision: QuantizedType
    base_precision: Precision
    method: str
    tiles: int
    reference_psnr_y_db: float | None
    base: Measurement
    everything: Measurement
    layers: tuple[LayerSensitivity, ...]

    def as_dict(self) -> dict[str, Any]:
        """Nested dictionaries of plain values, for JSON."""
        return asdict(self)


def variant(source: Source, nodes: Sequence[onnx.NodeProto], table: CalibrationTable) -> onnx.ModelProto:
    """The base graph with just these layers quantised. Raises: HspanError as `recipe_layer`."""
    layers = tuple(recipe_layer(source, node, table, quantized=True, why="") for node in nodes)
    return model_with_qdq(
        source.base, layer_scales(source, layers, table.precision, where=source.where), table.precision
    )


def layer_sensitivities(
    source: Source,
    nodes: Sequence[onnx.NodeProto],
    table: CalibrationTable,
    held_out: HeldOut,
    *,
    on_layer: Callable[[], None] | None = None,
) -> list[LayerSensitivity]:
    """Measures layer by layer; the most sensitive comes first. Raises: HspanError when a run fails."""
    macs = convolution_macs(source.base)
    total = sum(macs.values())
    found = []
    for node in nodes:
        measured = held_out.measure(variant(source, [node], table))
        found.append(
            LayerSensitivity(
                name=node.name,
                mac_share=macs.get(node.name, 0) / total,
                psnr_db=measured.psnr_db,
                loss_db=measured.loss_db,
            )
        )
        if on_layer is not None:
            on_layer()
    return sorted(found, key=lambda layer: layer.psnr_db)


def sensitivity_report(
    source: Source,
    nodes: Sequence[onnx.NodeProto],
    table: CalibrationTable,
    held_out: HeldOut,
    *,
    on_layer: Callable[[], None] | None = None,
) -> SensitivityReport:
    """`layer_sensitivities`, with the base type alone and with everything quantised beside it."""
    return SensitivityReport(
        model=source.where,
        model_sha256=source.sha256,
        precision=table.precision,
        base_precision=source.precision,
        method=table.method,
        tiles=len(held_out),
        reference_psnr_y_db=held_out.reference_psnr_y_db,
        base=held_out.measure(source.base),
        everything=held_out.measure(variant(source, nodes, table)),
        layers=tuple(layer_sensitivities(source, nodes, table, held_out, on_layer=on_layer)),
    )
