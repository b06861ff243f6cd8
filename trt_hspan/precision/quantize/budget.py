"""Which layers stay in the base type so that the whole network loses no more than a budget.

Greedy with re-measurement: everything is quantized first; while the loss on held-out tiles is above the budget, the
layer whose own error is largest for the work that it does goes back to the base type, and the network is measured
anew. Then the layers that went back are tried again, largest work first, and stay quantized where the budget allows it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True)
class BudgetResult:
    """Attributes: `choices` by layer name, `measurement` of the network that they make."""

    choices: dict[str, Choice]
    measurement: Measurement


def choose_layers(
    source: Source,
    nodes: Sequence[onnx.NodeProto],
    table: CalibrationTable,
    held_out: HeldOut,
    budget_db: float,
    *,
    on_step: Callable[[str, int, int], None] | None = None,
) -> BudgetResult:
    """Finds layers to quantize within a budget.

    Args:
        nodes: candidates; at least one.
        held_out: tiles with ground truth.
        budget_db: largest loss of PSNR-Y, mean over tiles, against the float32 network.
        on_step: called with a phrase, the steps that are complete, and how many there may be.

    Raises:
        HspanError: no choice with at least one quantized layer meets the budget; the error says the best one.
    """
    search = _Search(
        source, nodes, table, held_out, budget_db=budget_db, on_step=on_step or (lambda *_: None)
    )
    return search.run()


class _Search:
    def __init__(
        self,
        source: Source,
        nodes: Sequence[onnx.NodeProto],
        table: CalibrationTable,
        held_out: HeldOut,
        *,
        budget_db: float,
        on_step: Callable[[str, int, int], None],
    ) -> None:
        self._source, self._table, self._held_out = source, table, held_out
        self._nodes = {node.name: node for node in nodes}
        self._budget_db = budget_db
        self._on_step = on_step
        self._kind = table.precision.upper()
        self._base = source.precision.upper()
        self._best: tuple[float, int] | None = None

    def run(self) -> BudgetResult:
        names = list(self._nodes)
        self._on_step("everything quantized", 0, 1)
        measured = self._measure(set(names))
        if self._fits(measured):
            why = f"with every layer in {self._kind} the loss is {measured.loss_db:.4f} dB"
            return BudgetResult(
                choices={name: Choice(quantized=True, why=why) for name in names}, measurement=measured
            )
        return self._restore(self._ranked())

    def _ranked(self) -> list[LayerSensitivity]:
        count = 0

        def on_layer() -> None:
            nonlocal count
            count += 1
            self._on_step("layer by layer", count, len(self._nodes))

        layers = layer_sensitivities(
            self._source, list(self._nodes.values()), self._table, self._held_out, on_layer=on_layer
        )
        return sorted(layers, key=lambda layer: -_energy_per_work(layer))

    def _restore(self, ranked: Sequence[LayerSensitivity]) -> BudgetResult:
        quantized = set(self._nodes)
        choices = {layer.name: Choice(quantized=True, why=_alone(layer)) for layer in ranked}
        restored: list[LayerSensitivity] = []
        measured: Measurement | None = None
        for layer in ranked[:-1]:  # at least one layer stays, or nothing is quantized
            quantized.remove(layer.name)
            restored.append(layer)
            self._on_step("back to the base type", len(restored), len(ranked))
            measured = self._measure(quantized)
            choices[layer.name] = Choice(
                quantized=False,
                why=f"{_alone(layer)}; with it in {self._base} the loss falls to {measured.loss_db:.4f} dB",
            )
            if self._fits(measured):
                break
        if measured is None or not self._fits(measured):
            raise self._unmet()
        for step, layer in enumerate(sorted(restored[:-1], key=lambda layer: -layer.mac_share)):
            self._on_step("trying again", step, len(restored))
            again = self._measure(quantized | {layer.name})
            if self._fits(again):
                quantized.add(layer.name)
                measured = again
                choices[layer.name] = Choice(
                    quantized=True, why=f"{_alone(layer)}; tried again, the loss is {again.loss_db:.4f} dB"
                )
        return BudgetResult(choices=choices, measurement=measured)

    def _measure(self, quantized: set[str]) -> Measurement:
        nodes = [node for name, node in self._nodes.items() if name in quantized]
        measured = self._held_out.measure(variant(self._source, nodes, self._table))
        assert measured.loss_db is not None
        if self._best is None or measured.loss_db < self._best[0]:
            self._best = (measured.loss_db, len(nodes))
        return measured

    def _fits(self, measured: Measurement) -> bool:
        return measured.loss_db is not None and measured.loss_db <= self._budget_db

    def _unmet(self) -> HspanError:
        assert self._best is not None
        loss, count = self._best
        return HspanError(
            "--budget-db",
            f"{self._budget_db:g} dB cannot be met: the best choice loses {loss:.4f} dB with {count} of "
            f"{len(self._nodes)} layers in {self._kind}",
            f"allow that much, calibrate on more pictures, or build {self._source.precision}",
        )


def _energy_per_work(layer: LayerSensitivity) -> float:
    """Squared error that its return takes away, for each part of the work that it takes from the fast type."""
    return float(10.0 ** (-layer.psnr_db / 10.0)) / max(layer.mac_share, _LEAST_SHARE)


def _alone(layer: LayerSensitivity) -> str:
    return f"alone it loses {layer.loss_db:.4f} dB ({layer.psnr_db:.1f} dB against FP32)"
