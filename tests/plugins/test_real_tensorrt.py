"""TensorRT's own releases, as far as a package index carries them and they run without a GPU.

The lean runtime of TensorRT 11 is there as a wheel: the plugin library is put into its registry, by the tables of
virtual functions that `loaded_tensorrt.h` contains. Of TensorRT 10 only Python bindings are there, which need a library
to be imported; they are searched for the names that this package uses, and `test_tensorrt_side.py` checks the table
against headers.
"""

from __future__ import annotations

import ast
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from trt_hspan.downloads import unpack_pinned_wheel
from trt_hspan.errors import HspanError
from trt_hspan.files import cache_folder

PROGRAM = Path(__file__).with_name("tensorrt_registry.py")
PYTHON = f"cp{sys.version_info.major}{sys.version_info.minor}"
LEAN_LIBRARIES = {
    "11.0.0.114": "0595554ff4ae46c780cbe4c992e4aa313e57045e2b9b93eae20a833ac1a96b0b",
    "11.4.0.106": "e022b8d0e21f19258657aec6760e1de8b454ed176f76217e3f7ec2036c5a9410",
}
LEAN_BINDINGS = {
    ("11.0.0.114", "cp310"): "41f9668a5f25e5d1245506c221d5d88108a738870fd3496bc2275e7ec9f4e4e7",
    ("11.0.0.114", "cp311"): "49c47eb656dff12e7691cc13c2202628e777d534526f296913759576743f2eb7",
    ("11.0.0.114", "cp312"): "f8eb180d16e0bbbfc8509ef1ae65065242cadf4ff9a6dd350f8107264e6e57b1",
    ("11.0.0.114", "cp313"): "a2ff40ab43f871d616329c0ac6379ad289e97dbe189107665328d6baa26afcda",
    ("11.4.0.106", "cp310"): "9c5828a52253d80c67366b428eb037a779a4d17b47e8276631d1c9862c199b42",
    ("11.4.0.106", "cp311"): "539faf8524d7e8c5d893857d97d170ef3636f3e71262aafa670797f740e9086a",
    ("11.4.0.106", "cp312"): "c6b70743ca9de8314c7bea75ca2d6221ba9cbc6aadeb0703ed313363f8396071",
    ("11.4.0.106", "cp313"): "e82be4860441f4b719faa11abb8c087b7a82b277c8272dba679617bd4f877f84",
}
# Those of Python 3.11: their bytes are searched, whichever Python runs.
BINDINGS = {
    "tensorrt-cu12-bindings==10.3.0": "59ace22d7f2ca1e9dcde2cb0cb5916912cb3cd5a9d72dd7852be0160d9b3a0ee",
    "tensorrt-cu12-bindings==10.16.1.11": "150ef2b672487e29a8ea916353467c3e199994fb33589167e3641a928e243aa7",
    "tensorrt-cu13-bindings==11.4.0.106": "d072ac2a095e2be749fefc847adfb25d5ebe70303401df62ede8fe67a59f27fc",
}

# What only TensorRT-RTX and later releases have; each use stands behind a question for the flavor or the attribute.
OF_OTHERS = {
    "CudaGraphStrategy",
    "DISABLED",
    "EAGER",
    "SUBOPTIMAL",
    "VALID",
    "DynamicShapesKernelSpecializationStrategy",
    "EngineInvalidityDiagnostics",
    "EngineValidity",
    "create_runtime_cache",
    "get_engine_stat",
    "create_runtime_config",
    "cuda_graph_strategy",
    "dynamic_shapes_kernel_specialization_strategy",
    "num_compute_capabilities",
    "set_compute_capability",
    "set_execution_context_allocation_strategy",
    "set_runtime_cache",
}
OWN = {"create_context", "profiles", "trt", "where"}  # of a session's engine
OBJECTS = {
    "builder",
    "config",
    "context",
    "engine",
    "inspector",
    "network",
    "parser",
    "profile",
    "refitter",
    "registry",
}
OBJECTS |= {"runtime", "trt", "_config", "_engine", "_runtime"}
MODULES = (
    "engine/builder",
    "engine/refit",
    "engine/tensorrt_api",
    "runtime/engine_loading",
    "runtime/engine_session",
)

pytestmark = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="the pinned wheels are for Linux on x86-64",
)


def unpacked(requirement: str, sha256: str) -> Path:
    """The wheel's files in the cache, fetched once."""
    folder = cache_folder() / "tests" / sha256[:16]
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            whole = Path(temporary) / "wheel"
            try:
                unpack_pinned_wheel(
                    requirement, sha256, whole, place=lambda name: name, advice="needs an index"
                )
            except HspanError as error:
                pytest.skip(f"{requirement} cannot be fetched: {error}")
            whole.replace(folder)
    return folder


@pytest.mark.parametrize("version", LEAN_LIBRARIES)
def test_the_plugin_registers_itself_with_real_releases_of_tensorrt_11(
    version: str, plugin_library: Path, tmp_path: Path
) -> None:
    if (version, PYTHON) not in LEAN_BINDINGS:
        pytest.skip(f"no bindings of TensorRT {version} are pinned for {PYTHON}")
    bindings = unpacked(f"tensorrt-lean-cu13-bindings=={version}", LEAN_BINDINGS[version, PYTHON])
    libraries = unpacked(f"tensorrt-lean-cu13-libs=={version}", LEAN_LIBRARIES[version])
    for folder in (bindings, libraries):
        for package in folder.glob("tensorrt_lean_*s"):
            (tmp_path / package.name).symlink_to(package)
    command = [sys.executable, PROGRAM, tmp_path, plugin_library]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    ours = [["HighSimilarityPassAttention", "1", ""]]
    expected = {"version": version, "before": [], "opened": ours, "loaded": ours, "unloaded": []}
    assert json.loads(completed.stdout) == expected
    assert completed.stderr == ""


def names_used() -> set[str]:
    """Attributes of TensorRT's objects in the modules that call it."""
    root = Path(__file__).parents[2] / "trt_hspan"
    used = {name for module in MODULES for name in attributes(ast.parse((root / f"{module}.py").read_text()))}
    assert {"BuilderFlag", "set_flag", "refit_from_bytes", "execute_async_v3"} <= used
    return {name for name in used if not name.startswith("_")} - OF_OTHERS - OWN


def attributes(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        owner = node.value
        if isinstance(owner, ast.Attribute) and isinstance(owner.value, ast.Name) and owner.value.id == "trt":
            yield node.attr  # a member of an enumeration
        name = (
            owner.id
            if isinstance(owner, ast.Name)
            else owner.attr
            if isinstance(owner, ast.Attribute)
            else ""
        )
        if name in OBJECTS:
            yield node.attr


@pytest.mark.parametrize("requirement", BINDINGS)
def test_every_name_that_is_used_is_one_of_the_bindings(requirement: str) -> None:
    if PYTHON != "cp311":
        pytest.skip("the pinned bindings are those of Python 3.11")
    (library,) = unpacked(requirement, BINDINGS[requirement]).glob("tensorrt*/tensorrt.so")
    data = library.read_bytes()
    missing = sorted(name for name in names_used() if name.encode() + b"\0" not in data)
    assert missing == []
