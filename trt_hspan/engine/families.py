"""Which engines are of one network, and the plugin library that they share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trt_hspan.engine.manifest import EngineManifest, verify_manifest
from trt_hspan.engine.passport import own_library
from trt_hspan.errors import HspanError
from trt_hspan.native import plugin as plugins

Member = tuple[Path, EngineManifest]


@dataclass(frozen=True, kw_only=True)
class EngineFamily:
    """Engines of one network, precision and TensorRT, each with its manifest.

    Attributes:
        plugin: the library that some need, None when they need none.
    """

    members: tuple[Member, ...]
    plugin: Path | None

    @property
    def scale(self) -> int:
        return self.members[0][1].scale or 1

    @property
    def size_multiple(self) -> int:
        return self.members[0][1].size_multiple

    @property
    def flavor(self) -> str:
        return self.members[0][1].flavor

    @property
    def tensorrt_version(self) -> str:
        return self.members[0][1].tensorrt_version

    @property
    def version_compatible(self) -> bool:
        """Whether later TensorRT releases run all of them too."""
        return all("version-compatible" in manifest.traits for _, manifest in self.members)

    def by_profiles(self) -> list[list[Member]]:
        """The engines in groups that take the same shapes and are for different GPUs."""
        groups: dict[object, list[Member]] = defaultdict(list)
        for member in self.members:
            groups[tuple((each.min, each.opt, each.max) for each in member[1].profiles)].append(member)
        return list(groups.values())


def families_from_engines(engines: Sequence[Path], *, plugin: Path | None = None) -> list[EngineFamily]:
    """The families of some engines, each checked against its manifest.

    Args:
        plugin: the plugin library; None takes the one that `trt-hspan plugin build` writes.

    Raises:
        HspanError: as `verify_manifest`; a network that trt-hspan did not export; another plugin library than theirs.
    """
    groups: dict[object, list[Member]] = defaultdict(list)
    for engine in engines:
        manifest = verify_manifest(engine)
        if manifest.scale is None:
            what = "its manifest contains no scale"
            raise HspanError(engine, what, "name engines of networks that trt-hspan exported")
        if {(tensor.mode, tensor.name) for tensor in manifest.io_tensors} != {
            ("input", "input"),
            ("output", "output"),
        }:
            what = "its tensors are not named input and output"
            raise HspanError(engine, what, "export it with trt-hspan export")
        network = manifest.source_sha256 or manifest.onnx_sha256
        key = (network, manifest.precision, manifest.scale, manifest.flavor, manifest.tensorrt_version)
        groups[key].append((engine, manifest))
    return [
        EngineFamily(members=tuple(members), plugin=_plugin_of(members, plugin))
        for members in groups.values()
    ]


def _plugin_of(members: list[Member], named: Path | None) -> Path | None:
    """The library, when it is the one that all were built with."""
    users = [member for member in members if member[1].needs_library]
    for engine, manifest in users:
        own_library(engine, manifest, named)
    return (named or plugins.default_plugin_path()) if users else None
