"""Plans with the plugin library inside, built and opened by the real TensorRT-RTX: no second file, anywhere."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.small_networks import write_attention_network

from trt_hspan.engine.build import build_engine
from trt_hspan.engine.manifest import verify_manifest
from trt_hspan.engine.spec import EngineSpec, ProfileRequest
from trt_hspan.errors import HspanError, UsageError
from trt_hspan.sizes import ImageSize

# A process that has never seen the library. Without a GPU no engine comes out of a plan; the plugin inside is there by
# then, in the registry of the runtime that opens it.
OPEN = """
import json, os, sys
from pathlib import Path
from trt_hspan.engine import tensorrt_api
from trt_hspan.engine.manifest import verify_manifest
from trt_hspan.engine.tensorrt_api import collected_log, load_tensorrt, runtime_for
trt = load_tensorrt("tensorrt-rtx")
if "NO_FOLDER" in os.environ:
    tensorrt_api._folder_for_code = lambda: None
found = []
for plan in map(Path, sys.argv[1:]):
    manifest = verify_manifest(plan)
    with collected_log(trt) as log:
        runtime = runtime_for(trt, manifest.traits)
        runtime.deserialize_cuda_engine(plan.read_bytes())
    names = [creator.name for creator in runtime.get_plugin_registry().all_creators]
    mapped = [line for line in open("/proc/self/maps") if "libhspan_plugin" in line]
    found.append([names.count("HighSimilarityPassAttention"), log.errors, mapped])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory, plugin_library: Path) -> dict[str, Path]:
    """Two plans with the plugin inside and one without it."""
    folder = tmp_path_factory.mktemp("embedded")
    network = write_attention_network(folder / "net.onnx")
    plans = {}
    for name, embedded in (("first", True), ("second", True), ("bare", False)):
        spec = EngineSpec(
            onnx=network,
            output=folder / f"{name}.plan",
            profiles=(ProfileRequest(max=ImageSize(height=32, width=32)),),
            flavor="tensorrt-rtx",
            attention="plugin",
            plugin=plugin_library,
            targets=("sm_86",),
            traits=frozenset({"embedded-plugin"} if embedded else ()),
        )
        build_engine(spec)
        plans[name] = spec.output
    return plans


def opened(*plans: Path, **environment: str) -> Any:
    """For each plan: creators of the plugin, TensorRT's errors, and pages of a library file of that name."""
    completed = subprocess.run(
        [sys.executable, "-c", OPEN, *plans],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path), **environment},
    )
    assert completed.returncode == 0, completed.stderr
    return json.loads(completed.stdout.splitlines()[-1])


def test_the_manifest_says_that_the_plugin_is_inside(plans: dict[str, Path], plugin_library: Path) -> None:
    manifest = verify_manifest(plans["first"])
    assert manifest.traits == ("embedded-plugin",)
    assert not manifest.needs_library
    assert manifest.plugin is not None
    assert manifest.plugin.file == plugin_library.name
    assert verify_manifest(plans["bare"]).traits == ()
    without, inside = (plans[name].stat().st_size for name in ("bare", "first"))
    assert inside - without == pytest.approx(plugin_library.stat().st_size, rel=0.01)


def test_a_process_that_never_saw_the_library_finds_the_plugin_in_the_plan(plans: dict[str, Path]) -> None:
    (creators, _, library) = opened(plans["first"])[0]
    assert (creators, library) == (1, [])
    (creators, _, library) = opened(plans["bare"])[0]
    assert (creators, library) == (0, [])


def test_two_plans_of_one_build_open_in_one_process(plans: dict[str, Path]) -> None:
    for creators, errors, _ in opened(plans["first"], plans["second"]):
        assert creators == 1
        assert not any("creator" in error for error in errors)


def test_nothing_need_be_writable(plans: dict[str, Path], tmp_path: Path) -> None:
    """TMPDIR is TensorRT's own choice; where it is not there, Python finds another folder, or memory is used."""
    assert opened(plans["first"], TMPDIR=str(tmp_path / "none"))[0][0] == 1
    assert opened(plans["first"], NO_FOLDER="yes")[0][0] == 1


def test_without_the_plugin_there_is_nothing_to_embed(tmp_path: Path) -> None:
    network = write_attention_network(tmp_path / "net.onnx")
    spec = EngineSpec(
        onnx=network,
        output=tmp_path / "net.plan",
        flavor="tensorrt-rtx",
        traits=frozenset({"embedded-plugin"}),
    )
    with pytest.raises(UsageError, match="--embed-plugin: has no use: tensorrt-rtx takes the function body"):
        build_engine(spec)


def test_a_plan_is_code_and_its_hash_is_checked_all_the_same(plans: dict[str, Path], tmp_path: Path) -> None:
    for suffix in (".plan", ".json", ".onnx"):
        path = plans["first"].with_suffix(suffix)
        (tmp_path / path.name).write_bytes(path.read_bytes())
    plan = tmp_path / plans["first"].name
    data = bytearray(plan.read_bytes())
    data[-1] ^= 1
    plan.write_bytes(data)
    with pytest.raises(HspanError, match="SHA-256"):
        verify_manifest(plan)
