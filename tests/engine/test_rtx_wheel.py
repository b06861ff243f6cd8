"""The name that TensorRT-RTX's wheel lacks. TensorRT is in processes of their own, each with an installation of links.

Without a cure, such a process ends with SIGABRT; `test_the_quirk_is_there` shows it, and fails when NVIDIA mends it.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib.util
import logging
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from trt_hspan.engine import rtx_wheel
from trt_hspan.engine.rtx_wheel import LIBRARY, library_folder
from trt_hspan.errors import HspanError

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
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two small libraries with the wheel's names, which nothing has loaded."""
    folder = tmp_path / "wheel"
    folder.mkdir()
    for name in ("liba_parser.so.1", f"{LIBRARY}.1"):
        source = f"int of_{name[3]}(void) {{ return 1; }}"
        command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", folder / name]
        subprocess.run(command, input=source, text=True, check=True)
    monkeypatch.setattr(rtx_wheel, "library_folder", lambda: folder)
    monkeypatch.delitem(sys.modules, "tensorrt_rtx_libs", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(atexit, "register", lambda *_, **__: None)
    return folder


def links(wheel: Path) -> dict[str, Path]:
    """What the private folder beside the wheel contains, if there is one."""
    return {path.name: path.readlink() for path in wheel.parent.glob("trt-hspan-*/*")}


def test_libraries_are_loaded_through_links_with_the_missing_name(wheel: Path) -> None:
    rtx_wheel.preload_with_unversioned_name()
    assert links(wheel) == {
        "liba_parser.so.1": wheel / "liba_parser.so.1",
        f"{LIBRARY}.1": wheel / f"{LIBRARY}.1",
        LIBRARY: wheel / f"{LIBRARY}.1",
    }
    (folder,) = wheel.parent.glob("trt-hspan-*")
    assert rtx_wheel._origin(wheel / f"{LIBRARY}.1") == folder
    rtx_wheel.ensure_unversioned_name()  # it is there
    assert sorted(path.name for path in wheel.iterdir()) == ["liba_parser.so.1", f"{LIBRARY}.1"]


@pytest.mark.parametrize("why", ["no wheel", "has the name", "was imported"])
def test_nothing_is_loaded_where_that_is_of_no_use(
    wheel: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    if why == "no wheel":
        monkeypatch.setattr(rtx_wheel, "library_folder", lambda: None)
    elif why == "has the name":
        (wheel / LIBRARY).touch()
    else:
        monkeypatch.setitem(sys.modules, "tensorrt_rtx_libs", sys)
    rtx_wheel.preload_with_unversioned_name()
    assert links(wheel) == {}


@pytest.mark.parametrize("is_empty", [True, False])
def test_a_wheel_that_is_not_loaded_so_is_noted(
    wheel: Path, caplog: pytest.LogCaptureFixture, is_empty: bool
) -> None:
    caplog.set_level(logging.INFO)
    for library in wheel.iterdir():
        library.unlink() if is_empty else library.write_bytes(b"damaged")
    rtx_wheel.preload_with_unversioned_name()
    assert [message.partition(":")[0] for message in caplog.messages] == ["TensorRT-RTX is not preloaded"]


def test_a_link_beside_a_library_that_was_loaded_is_made_where_it_can_be(
    wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rtx_wheel, "library_folder", lambda: None)
    rtx_wheel.ensure_unversioned_name()
    monkeypatch.setattr(rtx_wheel, "library_folder", lambda: wheel)
    (wheel / LIBRARY).symlink_to("nowhere")  # in the way
    with pytest.raises(HspanError, match=rf"wheel: has no {LIBRARY}, .* cannot be written; run ln -s"):
        rtx_wheel.ensure_unversioned_name()
    (wheel / LIBRARY).unlink()
    rtx_wheel.ensure_unversioned_name()
    assert (wheel / LIBRARY).readlink() == Path(f"{LIBRARY}.1")


def test_the_folder_of_a_library_is_that_of_its_file_where_nothing_says_another(
    wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rtx_wheel._origin(wheel / "liba_parser.so.1") == wheel
    load = ctypes.CDLL
    broken = SimpleNamespace(dlinfo=lambda *_: 1)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: broken if name is None else load(name))
    assert rtx_wheel._origin(wheel / "liba_parser.so.1") == wheel


def test_an_installation_of_another_kind_has_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    assert library_folder() is not None
    for spec in (None, SimpleNamespace(submodule_search_locations=None)):
        monkeypatch.setattr(importlib.util, "find_spec", lambda _, spec=spec: spec)
        assert library_folder() is None


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
