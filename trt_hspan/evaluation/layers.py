"""Where along a network its error arises: each module's output, in its FP32 graph against the engine's, on a CPU.

Modules are matched by the names that export gives to nodes.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper

from trt_hspan.graph import model_for_cpu, model_with_attention_function
from trt_hspan.graph.headroom import is_hspan
from trt_hspan.runtime.onnxruntime_session import open_session, run_session
from trt_hspan.runtime.runner import Float32Array

# Of an HSPAN: head, blocks and modules of the body, the tail's layers, the network's output. Of others all modules.
_MODULES: Final = re.compile(r"head\.0|body\.\d+(\.body\.\d+)?|tail\.\d+(\.\d+)?|add_mean")
_NO_MODULE: Final = ("Cast", "QuantizeLinear", "DequantizeLinear")
# Side in input pixels of the part that is looked at; the function body keeps (64 * 64)^2 scores there.
LAYER_SIDE: Final = 64


@dataclass(frozen=True, kw_only=True)
class LayerError:
    """PSNR of one module's output, such as "body.0.body.2": the engine's graph against the FP32 one.

    The peak is the largest absolute value of the latter; infinite when equal, NaN when a value is not finite.
    """

    module: str
    psnr_db: float


def layer_errors(
    model: onnx.ModelProto, reference: onnx.ModelProto, batch: Float32Array, *, threads: int | None = None
) -> list[LayerError]:
    """Compares the outputs of the modules that both have, in the graph's order.

    FP16 exports divide the tail's features by a power of two (see `headroom`); that factor is taken out.

    Args:
        model: the engine's ONNX file, in any precision; its nodes are named after modules.
        reference: the same network in float32, likewise.
        batch: (1, 3, H, W) float32; small, for the function body keeps (H * W)^2 scores.
        threads: CPU threads; None takes those that the process may use.
    """
    tensors, of_reference = _module_tensors(model), _module_tensors(reference)
    modules = [module for module in tensors if module in of_reference]
    outputs = _outputs(model, [tensors[module] for module in modules], batch, threads)
    expected = _outputs(reference, [of_reference[module] for module in modules], batch, threads)
    return [
        LayerError(module=module, psnr_db=_psnr_db(output, theirs))
        for module, output, theirs in zip(modules, outputs, expected, strict=True)
    ]


def _outputs(
    model: onnx.ModelProto, tensors: Sequence[str], batch: Float32Array, threads: int | None
) -> list[Float32Array]:
    if not tensors:
        return []
    runnable = copy.deepcopy(model_for_cpu(model_with_attention_function(model)))
    have = {value.name for value in runnable.graph.output}
    for tensor in dict.fromkeys(tensors):
        if tensor not in have:
            runnable.graph.output.append(helper.make_tensor_value_info(tensor, TensorProto.FLOAT, None))
    session = open_session(runnable, "layer errors", threads=threads)
    outputs = run_session(session, tensors, batch, "layer errors")
    return [np.asarray(output, np.float32) for output in outputs]


def _module_tensors(model: onnx.ModelProto) -> dict[str, str]:
    """Module -> the tensor that its last node makes, in the order of those nodes."""
    tensors: dict[str, str] = {}
    shown = _MODULES if is_hspan(model) else re.compile(".+")
    for node in model.graph.node:
        module = node.name.rpartition("/")[0]
        if node.op_type not in _NO_MODULE and shown.fullmatch(module):
            tensors.pop(module, None)
            tensors[module] = node.output[0]
    return tensors


def _psnr_db(output: Float32Array, expected: Float32Array) -> float:
    if output.shape != expected.shape or not (np.isfinite(output).all() and np.isfinite(expected).all()):
        return math.nan
    ours, theirs = output.astype(np.float64), expected.astype(np.float64)
    power, expected_power = float(np.mean(ours**2)), float(np.mean(theirs**2))
    if power > 0 and expected_power > 0:
        ours *= 2.0 ** round(math.log2(expected_power / power) / 2)
    error = float(np.mean((ours - theirs) ** 2))
    peak = float(np.abs(theirs).max())
    if error == 0.0:
        return math.inf
    return -math.inf if peak == 0.0 else 10.0 * math.log10(peak**2 / error)
