"""ONNX files on a CPU: the same numbers as PyTorch, honest FP16 and BF16, and every file that does not fit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from support.export_cache import ExportCache
from support.golden import GoldenNetwork
from support.small_networks import attention_network, write_attention_network

from trt_hspan.errors import HspanError
from trt_hspan.files import sha256_from_file
from trt_hspan.graph import model_with_plugin_nodes, save_onnx
from trt_hspan.native import cpu_attention as native
from trt_hspan.ops.attention import high_similarity_pass_attention
from trt_hspan.runtime import onnxruntime_session
from trt_hspan.runtime.onnxruntime_runner import OnnxRuntimeRunner


def test_fp32_computes_what_the_official_network_computed(
    exported: ExportCache, golden_network: GoldenNetwork
) -> None:
    with OnnxRuntimeRunner(exported(golden_network.name)) as runner:
        output = runner.run(golden_network.input)
    np.testing.assert_allclose(output, golden_network.output, atol=1e-4)


def test_says_what_it_is(exported: ExportCache, small_x4: GoldenNetwork) -> None:
    import onnxruntime

    runner = OnnxRuntimeRunner(exported("small_x4", precision="fp16"))
    assert runner.label == f"ONNX Runtime {onnxruntime.__version__}, FP16, emulated on CPU"
    assert (runner.scale, runner.res_scale, runner.emulated) == (4, small_x4.res_scale, True)
    assert runner.source_sha256 == sha256_from_file(small_x4.checkpoint)
    assert runner.fixed_shape == (None, 3, None, None)


# Honest emulation
# -----------------------------------------------------------------------------------------------


def emulated_reference(model: onnx.ModelProto, image: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """The layers of `attention_network` in PyTorch float32, each result rounded to `dtype`."""

    def rounded(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(dtype).float()

    first, second, last = (
        rounded(torch.from_numpy(numpy_helper.to_array(weight).astype(np.float32)))
        for weight in model.graph.initializer
        if "weight" in weight.name
    )
    features = rounded(F.conv2d(rounded(torch.from_numpy(image)), first, padding=1))
    features = rounded(high_similarity_pass_attention(features, features, features))
    features = rounded(F.conv2d(features, second, padding=1))
    return rounded(F.conv2d(features, last, padding=1)).numpy()


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_every_rounding_of_the_graph_is_computed(tmp_path: Path, precision, dtype: torch.dtype) -> None:
    image = np.random.default_rng(1).random((1, 3, 20, 24), dtype=np.float32)
    expected = emulated_reference(attention_network(precision=precision), image, dtype)
    exact = emulated_reference(attention_network(), image, torch.float32)
    with OnnxRuntimeRunner(write_attention_network(tmp_path / "a.onnx", precision=precision)) as runner:
        output = runner.run(image)
    # Sums in another order flip single roundings. Were the roundings dropped, as ONNX Runtime does with an
    # FP16 graph left to itself, the distance to the reference would be that of the exact result.
    rounding_error = np.abs(expected - exact).mean()
    assert np.abs(output - expected).mean() < rounding_error / 20
    assert (output == expected).mean() > 0.9


def test_fp16_overflow_shows_as_infinity(tmp_path: Path) -> None:
    image = np.full((1, 3, 8, 8), 4, np.float32)
    results = {}
    for precision in ("fp32", "fp16", "bf16"):
        model = attention_network(precision=precision)
        weight = next(t for t in model.graph.initializer if t.name.startswith("conv2.weight"))
        values = np.full(tuple(weight.dims), 6e4, np.float32)
        kind = onnx.helper.tensor_dtype_to_np_dtype(weight.data_type)
        weight.CopyFrom(numpy_helper.from_array(values.astype(kind), weight.name))
        save_onnx(model, tmp_path / f"{precision}.onnx")
        with OnnxRuntimeRunner(tmp_path / f"{precision}.onnx") as runner:
            results[precision] = runner.run(image)
    assert np.abs(results["fp32"]).max() > 65504  # more than FP16 holds
    assert not np.isfinite(results["fp16"]).all()
    assert np.isfinite(results["fp32"]).all()
    assert np.isfinite(results["bf16"]).all()


@pytest.fixture
def without_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where no native library is: attention by the function body."""
    monkeypatch.setattr(native, "native_library", lambda: None)


def test_native_attention_gives_what_the_function_body_gives(
    exported: ExportCache, small_x4: GoldenNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    for precision, tolerance in (("fp32", 1e-5), ("fp16", 2e-3), ("bf16", 2e-2)):
        runner = OnnxRuntimeRunner(exported("small_x4", precision=precision))
        with runner:
            native_output = runner.run(small_x4.input)
        with monkeypatch.context() as patch:
            patch.setattr(native, "native_library", lambda: None)
            with runner:
                body_output = runner.run(small_x4.input)
        # FP32: rounding of the sums alone. FP16, BF16: a value on the edge may round the other way, and does so
        # by one unit in the last place of a feature.
        np.testing.assert_allclose(native_output, body_output, atol=tolerance)


@pytest.mark.parametrize("native_attention", [True, False])
def test_a_file_without_a_function_body_gives_the_same(
    tmp_path: Path, request: pytest.FixtureRequest, native_attention: bool
) -> None:
    if not native_attention:
        request.getfixturevalue("without_library")
    save_onnx(model_with_plugin_nodes(attention_network()), tmp_path / "a.onnx")
    write_attention_network(tmp_path / "b.onnx")
    batch = np.random.default_rng(0).random((2, 3, 9, 11), dtype=np.float32)
    outputs = []
    for name in ("a.onnx", "b.onnx"):
        with OnnxRuntimeRunner(tmp_path / name) as runner:
            outputs.append(runner.run(batch))
    np.testing.assert_array_equal(*outputs)


def test_what_onnxruntime_cannot_load_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = attention_network()
    pads = next(a for a in model.graph.node[0].attribute if a.name == "pads")
    pads.ints[:] = [1, 1]  # of four
    save_onnx(model, tmp_path / "a.onnx")
    with (
        pytest.raises(HspanError, match="ONNX Runtime cannot load it") as caught,
        OnnxRuntimeRunner(tmp_path / "a.onnx"),
    ):
        pass
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_what_fails_while_running_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # A weight that says 4 channels behind a declared input of 3: found only when the network runs.
    model = attention_network()
    weight = next(t for t in model.graph.initializer if t.name == "conv0.weight")
    weight.CopyFrom(numpy_helper.from_array(np.zeros((8, 4, 3, 3), np.float32), "conv0.weight"))
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "C"
    save_onnx(model, tmp_path / "a.onnx")
    runner = OnnxRuntimeRunner(tmp_path / "a.onnx")
    with runner, pytest.raises(HspanError, match="ONNX Runtime failed") as caught:
        runner.run(np.zeros((1, 3, 8, 8), np.float32))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


_SCRIPT = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "tensorrt", "tensorrt_rtx", "polygraphy"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocker())
import numpy as np
from trt_hspan.runtime.opening import open_runner
with open_runner(sys.argv[1]) as runner:
    print(runner.run(np.zeros((1, 3, 8, 8), np.float32)).shape)
"""


def test_needs_neither_torch_nor_tensorrt_nor_polygraphy(tmp_path: Path) -> None:
    path = write_attention_network(tmp_path / "a.onnx", precision="fp16")
    completed = subprocess.run(
        [sys.executable, "-c", _SCRIPT, path], capture_output=True, text=True, check=False, timeout=120
    )
    assert (completed.returncode, completed.stdout.strip()) == (0, "(1, 3, 8, 8)"), completed.stderr


_PEAK = """
import sys
from pathlib import Path
import numpy as np
from trt_hspan.runtime.onnxruntime_runner import OnnxRuntimeRunner

def high_water_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))

with OnnxRuntimeRunner(sys.argv[1]) as runner:
    runner.run(np.zeros((1, 3, 8, 8), np.float32))
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = high_water_bytes()
    shape = (1, 3, 48, 56)
    runner.run(np.random.default_rng(0).random(shape, dtype=np.float32))
    print((high_water_bytes() - before) / runner.memory_bytes(shape))
"""


def test_memory_estimate_is_what_a_run_really_takes(tmp_path: Path) -> None:
    path = write_attention_network(tmp_path / "a.onnx")
    completed = subprocess.run(
        [sys.executable, "-c", _PEAK, path],
        env=os.environ | {native.LIBRARY_VARIABLE: str(tmp_path / "absent.so")},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    # Measured 0.93 to 1.07 over sizes, batches and precisions. The estimate must neither refuse pictures that
    # would fit by far nor let through what needs much more.
    assert 0.8 < float(completed.stdout) < 1.25


def test_a_run_too_small_to_share_takes_sessions_of_one_thread(
    exported: ExportCache, small_x4: GoldenNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int | None] = []
    opened = onnxruntime_session.open_session

    def counted(*arguments: Any, **options: Any) -> Any:
        threads.append(options["threads"])
        return opened(*arguments, **options)

    monkeypatch.setattr(onnxruntime_session, "open_session", counted)
    with OnnxRuntimeRunner(exported("small_x4"), threads=3) as runner:
        assert set(threads) == {3}
        runner.run(np.zeros((1, 3, 64, 64), np.float32))
        assert set(threads) == {3}
        picture = small_x4.input[:, :, :8, :8]
        small = runner.run(picture)
        assert set(threads) == {3, 1}
        count = len(threads)
        runner.run(np.zeros((1, 3, 4, 5), np.float32))
        assert len(threads) == count
    with OnnxRuntimeRunner(exported("small_x4"), threads=1) as runner:
        np.testing.assert_array_equal(small, runner.run(picture))
