"""The name that TensorRT-RTX's wheel lacks. Each case runs in a process of its own, against an installation of links.

Without a cure, such a process ends with SIGABRT; `test_the_quirk_is_there` shows it, and fails when NVIDIA mends it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trt_hspan.engine import rtx_wheel
from trt_hspan.engine.rtx_wheel import LIBRARY, library_folder

ROOT = Path(rtx_wheel.__file__).parents[2]  # of the package that is tested

# Parses a network with a plugin that Python provides, which makes the parser open the name.
PARSE = """
class Plugin(trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild):
    def __init__(self):
        for base in (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild):
            base.__init__(self)
        self.num_outputs, self.plugin_namespace = 1, ""
        self.plugin_name, self.plugin_version = "HighSimilarityPassAttention", "1"
    def get_capability_interface(self, kind): return self
    def get_output_data_types(self, types): return [types[0]]
    def get_output_shapes(self, inputs, shape_inputs, builder): return [trt.DimsExprs(inputs[2])]
    def clone(self): return Plugin()

class Creator(trt.IPluginCreatorV3One):
    def __init__(self):
        trt.IPluginCreatorV3One.__init__(self)
        self.name, self.plugin_version, self.plugin_namespace = "HighSimilarityPassAttention", "1", ""
        self.field_names = trt.PluginFieldCollection([])
    def create_plugin(self, name, fields, phase): return Plugin()

creator = Creator()
assert trt.get_plugin_registry().register_creator(creator, "")
from support.small_networks import attention_network
from trt_hspan.graph import model_with_plugin_nodes
logger = trt.Logger(trt.Logger.ERROR)
network = trt.Builder(logger).create_network(1)
parser = trt.OnnxParser(network, logger)
assert parser.parse(model_with_plugin_nodes(attention_network()).SerializeToString())
print("parsed", sum(network.get_layer(i).type == trt.LayerType.PLUGIN_V3 for i in range(network.num_layers)))
"""
LOAD_FIRST = "from trt_hspan.engine.tensorrt_api import load_tensorrt\ntrt = load_tensorrt('tensorrt-rtx')\n"
IMPORT_FIRST = "import tensorrt_rtx as trt\n"
ENSURE = "from trt_hspan.engine import rtx_wheel\nrtx_wheel.ensure_unversioned_name()\n"
READ_ONLY = """
from support.permissions import read_only
from trt_hspan.engine import rtx_wheel
from trt_hspan.errors import HspanError
block = read_only(rtx_wheel.library_folder())
block.__enter__()
"""
REPORT = """
try:
    rtx_wheel.ensure_unversioned_name()
except HspanError as error:
    print(error)
"""


@pytest.fixture
def installation(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH that holds the wheel as it comes, its libraries as links."""
    real = library_folder()
    assert real is not None
    wheel = tmp_path / "site" / real.name
    wheel.mkdir(parents=True)
    (wheel / "__init__.py").write_text((real / "__init__.py").read_text())
    for library in real.glob("lib*.so.*"):
        (wheel / library.name).symlink_to(library)
    return wheel.parent


def run(installation: Path, script: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(map(str, (installation, ROOT, ROOT / "tests")))
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(installation.parent)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def names(installation: Path) -> list[str]:
    return [path.name for path in (installation / "tensorrt_rtx_libs").iterdir()]


def test_the_quirk_is_there(installation: Path) -> None:
    assert run(installation, IMPORT_FIRST + PARSE).returncode == -signal.SIGABRT


def test_loading_through_trt_hspan_cures_it_and_leaves_the_installation_alone(installation: Path) -> None:
    result = run(installation, LOAD_FIRST + PARSE)
    assert (result.returncode, result.stdout) == (0, "parsed 1\n"), result.stderr
    assert LIBRARY not in names(installation)
    assert not list(installation.parent.glob("trt-hspan-*")), "the folder of links outlived its process"


def test_a_read_only_installation_is_cured_too(installation: Path) -> None:
    result = run(installation, READ_ONLY + LOAD_FIRST + PARSE)
    assert (result.returncode, result.stdout) == (0, "parsed 1\n"), result.stderr
    assert LIBRARY not in names(installation)


def test_when_tensorrt_was_there_first_a_link_beside_its_library_cures_it(installation: Path) -> None:
    result = run(installation, IMPORT_FIRST + ENSURE + PARSE)
    assert (result.returncode, result.stdout) == (0, "parsed 1\n"), result.stderr
    assert LIBRARY in names(installation)
    assert run(installation, IMPORT_FIRST + PARSE).returncode == 0


def test_when_nothing_cures_it_one_line_says_so_and_the_process_lives(installation: Path) -> None:
    result = run(installation, IMPORT_FIRST + READ_ONLY + REPORT)
    assert result.returncode == 0, result.stderr
    line = result.stdout.strip()
    assert f"has no {LIBRARY}" in line
    assert "cannot be written; run ln -s" in line
    assert "\n" not in line
