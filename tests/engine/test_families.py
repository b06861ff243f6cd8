"""Which engines are of one network, and the plugin library that they share: on manifests alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.manifest_corpus import BASE as CORPUS_BASE

from trt_hspan.engine import families
from trt_hspan.engine.families import families_from_engines
from trt_hspan.engine.manifest import (
    EngineManifest,
    IoTensor,
    PluginRecord,
    ProfileRecord,
    manifest_from_json,
)
from trt_hspan.errors import HspanError
from trt_hspan.files import sha256_from_file
from trt_hspan.names import OP_TYPE, PLUGIN_VERSION
from trt_hspan.native import plugin as plugins

BASE = dataclasses.replace(
    manifest_from_json(json.dumps(CORPUS_BASE).encode(), where="base"),
    io_tensors=tuple(
        IoTensor(name=mode, dtype="float32", shape=(-1, 3, -1, -1), mode=mode)  # type: ignore[arg-type]
        for mode in ("input", "output")
    ),
    plugin=None,
    traits=(),
    scale=4,
    source_sha256="5" * 64,
)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> dict[Path, EngineManifest]:
    """Engines by their manifests, which a test fills in."""
    known: dict[Path, EngineManifest] = {}
    monkeypatch.setattr(families, "verify_manifest", known.__getitem__)
    return known


def add(engines: dict[Path, EngineManifest], name: str, **changes: Any) -> Path:
    engines[Path(name)] = dataclasses.replace(BASE, **changes)
    return Path(name)


def profile(side: int) -> ProfileRecord:
    shape = (1, 3, side, side)
    return ProfileRecord(min=shape, opt=shape, max=shape, activation_memory_bytes=None)


def test_engines_of_one_network_precision_scale_and_release_are_a_family(
    engines: dict[Path, EngineManifest],
) -> None:
    add(engines, "a")
    add(engines, "same network, another file", onnx_sha256="7" * 64)
    add(engines, "other weights", source_sha256="6" * 64)
    add(engines, "other precision", precision="fp32" if BASE.precision != "fp32" else "fp16")
    add(engines, "other scale", scale=2)
    add(engines, "other flavor", flavor="tensorrt" if BASE.flavor != "tensorrt" else "tensorrt-rtx")
    add(engines, "other release", tensorrt_version="99.0.0")
    add(engines, "unknown weights", source_sha256=None, onnx_sha256="8" * 64)
    add(engines, "the same unknown weights", source_sha256=None, onnx_sha256="8" * 64)
    found = families_from_engines(list(engines))
    assert [[str(path) for path, _ in family.members] for family in found] == [
        ["a", "same network, another file"],
        *(
            [name]
            for name in ("other weights", "other precision", "other scale", "other flavor", "other release")
        ),
        ["unknown weights", "the same unknown weights"],
    ]
    assert [family.scale for family in found] == [4, 4, 4, 2, 4, 4, 4]
    assert all(family.plugin is None for family in found)
    first = found[0]
    assert (first.flavor, first.tensorrt_version) == (BASE.flavor, BASE.tensorrt_version)
    assert first.size_multiple == BASE.size_multiple


def test_a_family_travels_if_all_of_its_engines_do(engines: dict[Path, EngineManifest]) -> None:
    add(engines, "a", traits=("version-compatible",))
    add(engines, "b", traits=("version-compatible", "refittable"))
    (family,) = families_from_engines(list(engines))
    assert family.version_compatible
    add(engines, "c")
    (family,) = families_from_engines(list(engines))
    assert not family.version_compatible


def test_engines_for_the_same_shapes_are_one_group(engines: dict[Path, EngineManifest]) -> None:
    for name, sides in (("a", (8, 16)), ("b", (16, 8)), ("c", (8, 16))):
        add(engines, name, profiles=tuple(map(profile, sides)))
    (family,) = families_from_engines(list(engines))
    assert [[str(path) for path, _ in group] for group in family.by_profiles()] == [["a", "c"], ["b"]]


def test_networks_of_other_programs_are_refused(engines: dict[Path, EngineManifest]) -> None:
    with pytest.raises(
        HspanError, match="no scale: its manifest contains no scale; name engines of networks"
    ):
        families_from_engines([add(engines, "no scale", scale=None)])
    renamed = (BASE.io_tensors[0], dataclasses.replace(BASE.io_tensors[1], name="result"))
    for tensors in (renamed, BASE.io_tensors[:1]):
        with pytest.raises(HspanError, match="its tensors are not named input and output"):
            families_from_engines([add(engines, "renamed", io_tensors=tensors)])


def test_the_library_is_the_one_that_all_were_built_with(
    engines: dict[Path, EngineManifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, other = tmp_path / "own.so", tmp_path / "other.so"
    library.write_bytes(b"own")
    other.write_bytes(b"other")
    info = SimpleNamespace(name=OP_TYPE, version=PLUGIN_VERSION, abi_version=1)
    monkeypatch.setattr(plugins, "plugin_info_from_library", lambda _: info)
    monkeypatch.setattr(plugins, "default_plugin_path", lambda: library)
    record = PluginRecord(file="p.so", sha256=sha256_from_file(library), abi_version=1, architectures=())
    add(engines, "a")
    add(engines, "b", plugin=record)
    add(engines, "inside", plugin=dataclasses.replace(record, sha256="0" * 64), traits=("embedded-plugin",))
    for named in (None, library):
        (family,) = families_from_engines(list(engines), plugin=named)
        assert family.plugin == library
    with pytest.raises(HspanError, match=r"other\.so: SHA-256 is .*, but b was built with .*--plugin"):
        families_from_engines(list(engines), plugin=other)
    del engines[Path("b")]
    (family,) = families_from_engines(list(engines), plugin=other)
    assert family.plugin is None
