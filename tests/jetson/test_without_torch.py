"""What a board has to do is done where neither PyTorch nor any other optional package can be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support.small_networks import write_attention_network

ROOT = Path(__file__).parents[2]
# The core's dependencies stay, and what they import; TensorRT is the double of JetPack's.
SCRIPT = """
import sys
from pathlib import Path

BLOCKED = {"onnxscript", "onnxruntime", "openvino", "polygraphy", "safetensors", "jinja2", "skimage", "matplotlib",
           "torch", "pyvips", "av", "ray", "fsspec", "tritonclient", "aiohttp", "psutil", "elftools", "tensorrt_rtx"}

for name in BLOCKED:
    sys.modules[name] = None  # as if it were not installed
from support.jetson_root import write_jetson_root
from support.tensorrt_double import releases

release = next(iter(releases()))
sys.modules["tensorrt"] = release.module
from trt_hspan.cli import main
from trt_hspan.jetson import board_build
from trt_hspan.machine import jetson as device
from trt_hspan.engine import build, builder, tensorrt_api
from trt_hspan.native.plugin import default_plugin_path

folder = Path(sys.argv[1])
facts = device.device_from_root(write_jetson_root(folder / "root"))
device.this_device = lambda: facts
for module in (board_build, build, builder, tensorrt_api):
    module.gpu_architectures = lambda: ("sm_87",)

def run(*words, code=0):
    try:
        main([str(word) for word in words])
    except SystemExit as stopped:
        assert stopped.code == code, (words, stopped.code)

plugin = ("--plugin", default_plugin_path())
run("jetson", "boards")
run("jetson", "plan", "--board", "auto", "--size", "360x640", "--scale", "2")
run("jetson", "build", folder / "net.onnx", "-o", folder / "net.plan", *plugin)
run("jetson", "plan", "--board", "auto", "--size", "48x64", "--engine", folder / "net.plan")
# No GPU executes here, and ONNX Runtime, which would stand in, is not installed on a board.
run("jetson", "validate", folder / "net.plan", *plugin, code=1)
run("jetson", "reference", "hspan-tiny-x2", "-o", folder / "r.npz", code=1)
assert all(sys.modules[name] is None for name in BLOCKED)
print("all of it")
"""


def test_build_and_plan_need_the_core_alone(tmp_path: Path) -> None:
    write_attention_network(tmp_path / "net.onnx", precision="fp16", blocks=2)
    completed = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT / "tests",
    )
    assert completed.returncode == 0, completed.stderr[-3000:]
    assert completed.stdout.endswith("all of it\n")
    assert "Traceback" not in completed.stderr
    errors = [line for line in completed.stderr.splitlines() if "error:" in line]
    assert len(errors) == 2, errors
    assert "ONNX Runtime, which would emulate it, is not installed" in errors[0]
    assert "ONNX Runtime: is not installed" in errors[1]  # it runs the shipped networks, without PyTorch
