"""Which layers stay in the base type so that the whole network loses no more than a budget.

Greedy with re-measurement: everything is quantized first; while the loss on held-out tiles is above the budget, the
layer whose own error is largest for the work that it does goes back to the base type, and the network is measured
anew. Then the layers that went back are tried again, largest work first, and stay quantized where the budget allows it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import onnx

from trt_hspan.errors import HspanError
from trt_hspan.precision.quantize.measure import HeldOut, Measurement
from trt_hspan.precision.quantize.recipe import Choice, variant
from trt_hspan.precision.quantize.sensitivity import LayerSensitivity, layer_sensitivities
from trt_hspan.precision.quantize.source import Source
from trt_hspan.precision.quantize.table import CalibrationTable

# Sums and attention have no multiply-accumulates of a convolution; they count as a little work.
_LEAST_SHARE: Final = 1e-4


def choose_layers(
    source: Source,
    nodes: Sequence[onnx.NodeProto],
    table: CalibrationTable,
    held_out: HeldOut,
    budget_db: float,
    *,
    on_step: Callable[[str, int, int], None] = lambda *_: None,
) -> tuple[dict[str, Choice], Measurement]:
    """Searches for the layers to quantize within a budget.

    Args:
        nodes: candidates; at least one.
        held_out: tiles with ground truth.
        budget_db: largest loss of PSNR-Y, mean over tiles, against the float32 network.
        on_step: called with a phrase, the steps that are complete, and how many there may be.

    Returns:
        Choices by layer name, and the measurement of the network that they make.

    Raises:
        HspanError: no choice with at least one quantized layer meets the budget; the error says the best one.
    """
    quantized = {node.name: node for node in nodes}
    kind = table.precision.upper()
    on_step("everything quantized", 0, 1)
    measured = _measured(source, quantized, table, held_out)
    if fits(measured, budget_db):
        why = f"with every layer in {kind} the loss is {measured.loss_db:.4f} dB"
        return {name: Choice(quantized=True, why=why) for name in quantized}, measured
    best = [(measured.loss_db or 0.0, len(quantized))]
    ranked = _ranked(source, nodes, table, held_out, on_step)
    choices = {layer.name: Choice(quantized=True, why=_alone(layer)) for layer in ranked}
    restored: list[tuple[LayerSensitivity, onnx.NodeProto]] = []
    for layer in ranked[:-1]:  # at least one layer stays, or nothing is quantized
        restored.append((layer, quantized.pop(layer.name)))
        on_step("back to the base type", len(restored), len(ranked))
        measured = _measured(source, quantized, table, held_out)
        why = f"{_alone(layer)}; with it in {source.precision.upper()} the loss falls to {measured.loss_db:.4f} dB"
        choices[layer.name] = Choice(quantized=False, why=why)
        best.append((measured.loss_db or 0.0, len(quantized)))
        if fits(measured, budget_db):
            break
    else:
        loss, count = min(best, key=lambda entry: entry[0])
        raise HspanError(
            "--budget-db",
            f"{budget_db:g} dB cannot be met: the best choice loses {loss:.4f} dB with {count} of {len(nodes)} layers "
            f"in {kind}",
            f"allow that much, calibrate on more pictures, or build {source.precision}",
        )
    for step, (layer, node) in enumerate(sorted(restored[:-1], key=lambda pair: -pair[0].mac_share)):
        on_step("trying again", step, len(restored))
        again = _measured(source, quantized | {layer.name: node}, table, held_out)
        if fits(again, budget_db):
            quantized[layer.name], measured = node, again
            why = f"{_alone(layer)}; tried again, the loss is {again.loss_db:.4f} dB"
            choices[layer.name] = Choice(quantized=True, why=why)
    return choices, measured


def fits(measured: Measurement, budget_db: float) -> bool:
    """Whether a network loses no more than a budget."""
    return measured.loss_db is not None and measured.loss_db <= budget_db


def _measured(
    source: Source, quantized: Mapping[str, onnx.NodeProto], table: CalibrationTable, held_out: HeldOut
) -> Measurement:
    """Of the network with these layers quantized, whatever order they have come in."""
    nodes = [node for node in source.base.graph.node if node.name in quantized]
    return held_out.measure(variant(source, nodes, table))


def _ranked(
    source: Source,
    nodes: Sequence[onnx.NodeProto],
    table: CalibrationTable,
    held_out: HeldOut,
    on_step: Callable[[str, int, int], None],
) -> list[LayerSensitivity]:
    """The one whose return takes away most error for its work comes first."""
    steps = itertools.count(1)
    layers = layer_sensitivities(
        source, nodes, table, held_out, on_layer=lambda: on_step("layer by layer", next(steps), len(nodes))
    )
    return sorted(layers, key=lambda layer: -_energy_per_work(layer))


def _energy_per_work(layer: LayerSensitivity) -> float:
    """Squared error that its return takes away, for each part of the work that it takes from the fast type."""
    return float(10.0 ** (-layer.psnr_db / 10.0)) / max(layer.mac_share, _LEAST_SHARE)


def _alone(layer: LayerSensitivity) -> str:
    return f"alone it loses {layer.loss_db:.4f} dB ({layer.psnr_db:.1f} dB against FP32)"
