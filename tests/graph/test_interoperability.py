"""Other tools on an exported file with its function body: what they write computes what the file computes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxsim
import onnxslim
import pytest
from numpy.typing import NDArray
from support.export_cache import ExportCache
from support.golden import GoldenNetwork
from support.modelopt_folder import run_with_modelopt

from trt_hspan.graph import attention_nodes, base_precision_from_model, quantization_from_model

# Tools may sum in another order: some ulps of float32 in values of order 1, through a few dozen layers.
SAME = 1e-5


def run_as_written(path: Path, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """The file under ONNX Runtime as any user opens it; only the function body makes the attention run."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"input": image})
    assert isinstance(result, np.ndarray)
    return result


def polygraphy(*words: str | Path) -> str:
    program = Path(sys.executable).with_name("polygraphy")
    completed = subprocess.run([program, *words], capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return completed.stdout


def sanitized(source: Path, target: Path) -> None:
    polygraphy("surgeon", "sanitize", source, "--fold-constants", "-o", target)


def slimmed(source: Path, target: Path) -> None:
    onnx.save(onnxslim.slim(onnx.load(source)), target)


def simplified(source: Path, target: Path) -> None:
    model, ok = onnxsim.simplify(onnx.load(source))
    assert ok
    onnx.save(model, target)


@pytest.mark.parametrize(
    ("tool", "precision"), [(sanitized, "fp16"), (slimmed, "fp32"), (slimmed, "fp16"), (simplified, "fp16")]
)
def test_a_rewritten_file_keeps_the_body_and_computes_the_same(
    tmp_path: Path,
    exported: ExportCache,
    small_x4: GoldenNetwork,
    tool: Callable[[Path, Path], None],
    precision: str,
) -> None:
    source, target = exported("small_x4", precision=precision), tmp_path / "rewritten.onnx"
    tool(source, target)
    rewritten = onnx.load(target)
    assert len(attention_nodes(rewritten)) == len(attention_nodes(onnx.load(source)))
    assert [function.name for function in rewritten.functions] == ["HighSimilarityPassAttention"]
    before, after = (run_as_written(path, small_x4.input) for path in (source, target))
    assert np.abs(after - before).max() <= SAME


def test_polygraphy_inspects_and_runs_the_file(exported: ExportCache) -> None:
    source = exported("small_x4")
    assert "HighSimilarityPassAttention" in polygraphy("inspect", "model", source, "--show", "layers")
    assert "PASSED" in polygraphy("run", source, "--onnxrt", "--input-shapes", "input:[1,3,9,7]")


def test_modelopt_quantizes_a_file_of_opset_19_or_later_to_int8(
    tmp_path: Path, exported: ExportCache, small_x4: GoldenNetwork
) -> None:
    """Below 19 ModelOpt converts the file with ONNX's version converter, which drops function bodies."""
    source, target = exported("small_x4", opset=21), tmp_path / "int8.onnx"
    pictures = tmp_path / "pictures.npy"
    np.save(pictures, small_x4.input)
    shape = "x".join(map(str, small_x4.input.shape))
    words = ["--quantize_mode=int8", "--high_precision_dtype=fp32", "--calibration_eps", "cpu"]
    words += [f"--onnx_path={source}", f"--output_path={target}", f"--calibration_data={pictures}"]
    run_with_modelopt(
        ["-m", "modelopt.onnx.quantization", *words, f"--calibration_shapes=input:{shape}"], tmp_path
    )
    quantized = onnx.load(target)
    facts = quantization_from_model(quantized)
    assert facts is not None
    assert facts.type == "int8"
    assert len(attention_nodes(quantized)) == 2
    # Both ends are quantized too here, and steps are 1/127 of a channel's range: some hundredths of white.
    assert np.abs(run_as_written(target, small_x4.input) - small_x4.output).mean() <= 0.05


def test_modelopt_casts_a_file_once_onnx_knows_the_operator(
    tmp_path: Path, exported: ExportCache, small_x4: GoldenNetwork
) -> None:
    source, target, script = exported("small_x4"), tmp_path / "fp16.onnx", tmp_path / "autocast.py"
    script.write_text(
        "import sys, onnx\n"
        "from modelopt.onnx.autocast import convert_to_mixed_precision\n"
        "from trt_hspan.graph import attention_schema\n"
        "with attention_schema():\n"
        "    model = convert_to_mixed_precision(\n"
        "        sys.argv[1], keep_io_types=True, low_precision_type='fp16', providers=['cpu'])\n"
        "onnx.save(model, sys.argv[2])\n"
    )
    run_with_modelopt([script, source, target], tmp_path)
    cast = onnx.load(target)
    assert base_precision_from_model(cast) == "fp16"
    assert len(attention_nodes(cast)) == 2
    # FP16 keeps 11 bits: 2^-11 of values of order 1, a few times over.
    assert np.abs(run_as_written(target, small_x4.input) - small_x4.output).max() <= 2**-8
