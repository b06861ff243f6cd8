"""A compiled plugin library: where it lies, what it is, which GPUs it serves. Never runs its code."""

from __future__ import annotations

import json
import os
import platform
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.files import error_from_os_error
from trt_hspan.names import OP_TYPE
from trt_hspan.native.compatibility import TEGRA, CompiledCode, Version, require_runs
from trt_hspan.native.sources import LibraryPlaces, plugin_sources_sha256

LIBRARY_NAME: Final = "libhspan_plugin.so"
#: Names the library, wherever it was compiled.
LIBRARY_VARIABLE: Final = "TRT_HSPAN_PLUGIN"

#: Must equal kABI_VERSION in plugins/tensorrt/plugin_abi.h.
PLUGIN_ABI_VERSION: Final = 4

#: `trt-hspan plugin build` writes to `PLACES.own_path()`.
PLACES: Final = LibraryPlaces(
    file_name=LIBRARY_NAME, variable=LIBRARY_VARIABLE, folder="plugin", sources_sha256=plugin_sources_sha256
)

_MARKER: Final = b"hspan-plugin-info:{"
_ELF_MACHINES: Final = {3: "i386", 62: "x86_64", 183: "aarch64"}
_ELF_SHARED_OBJECT: Final = 3


@dataclass(frozen=True, kw_only=True)
class PluginInfo(CompiledCode):
    """What a plugin library says about itself: its CUDA code, and

    Attributes:
        name, version, namespace: the plugin's key in TensorRT's plugin registry.
        abi_version: engines and libraries work together only when this agrees.
        machine: processor the library is for, "x86_64" or "aarch64".
        tensorrt_header_version: of the headers it was compiled with; it serves other versions too.
        source_sha256: hash of its sources and build options; empty when CMake was run by hand.
    """

    name: str
    version: str
    namespace: str
    abi_version: int
    machine: str
    tensorrt_header_version: str
    source_sha256: str


def default_plugin_path() -> Path:
    """Where commands look for the library; see `LibraryPlaces.path`."""
    return PLACES.path()


def plugin_info_from_library(path: str | os.PathLike[str]) -> PluginInfo:
    """What the library is, read from the file: nothing of it is loaded or run, so any processor's library will do."""
    library = Path(path)
    try:
        data = library.read_bytes()
    except FileNotFoundError as error:
        raise HspanError(
            library, "there is no plugin library here", "build one with trt-hspan plugin build"
        ) from error
    except OSError as error:
        raise error_from_os_error(library, error, action="read") from error
    machine = _elf_machine(library, data)
    fields = embedded_fields(library, data, _MARKER)
    if fields.get("name") != OP_TYPE:
        raise _not_ours(library, "it describes another plugin")
    abi_version = fields.get("abi_version")
    if abi_version != PLUGIN_ABI_VERSION:
        raise HspanError(
            library,
            f"has plugin ABI version {abi_version}, this package needs {PLUGIN_ABI_VERSION}",
            "rebuild it with trt-hspan plugin build",
        )
    try:
        return PluginInfo(
            path=library,
            name=str(fields["name"]),
            version=str(fields["version"]),
            namespace=str(fields["namespace"]),
            abi_version=PLUGIN_ABI_VERSION,
            machine=machine,
            **_code_fields(fields),
            tensorrt_header_version=str(fields["tensorrt_header_version"]),
            source_sha256=str(fields["source_sha256"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _not_ours(library, "its description is incomplete") from error


def check_plugin_serves(
    info: PluginInfo, targets: Iterable[str | int], driver: Version | None = None
) -> None:
    """Raises HspanError unless the library can be loaded here and runs on every target, such as "sm_86" or 86.

    `driver` is the newest CUDA that this machine's driver runs; None where the engine is for other machines.
    """
    here = platform.machine()
    if info.machine != here:
        raise HspanError(
            info.path,
            f"is for {info.machine}, this machine is {here}",
            "build one here: trt-hspan plugin build",
        )
    require_runs(info, map(architecture_from_target, targets), driver)


def code_in_plan(plan: Path) -> CompiledCode:
    """The CUDA code of the library inside a plan, which TensorRT stores as it is.

    Raises:
        HspanError: the plan cannot be read, or contains no plugin.
    """
    try:
        data = plan.read_bytes()
    except OSError as error:
        raise error_from_os_error(plan, error, action="read") from error
    fields = embedded_fields(plan, data, _MARKER)
    try:
        return CompiledCode(path=plan, **_code_fields(fields))
    except (KeyError, TypeError, ValueError) as error:
        raise _not_ours(plan, "its description is incomplete") from error


def is_tegra(target: str | int) -> bool:
    """Whether a compute capability is that of a Jetson or another of NVIDIA's systems on a chip."""
    return architecture_from_target(target) in TEGRA


def _code_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `CompiledCode` that a description contains."""
    return {
        "cubin_architectures": tuple(int(number) for number in fields["cubin_architectures"]),
        "ptx_architectures": tuple(int(number) for number in fields["ptx_architectures"]),
        "cuda_version": str(fields["cuda_version"]),
        "ptx_isa_version": str(fields["ptx_isa_version"]),
    }


def architecture_from_target(target: str | int, *, option: str = "architecture") -> int:
    """86 from "sm_86", "8.6", "86" or 86. Raises: UsageError for anything else, about the option."""
    text = str(target).strip().lower()
    match = re.fullmatch(r"(?:sm_?|compute_)?(?:([1-9]\d{1,2})|([1-9]\d?)\.(\d))", text, re.ASCII)
    if match is None:
        raise UsageError(option, f"got {target!r}, expected a compute capability like 86, sm_86 or 8.6")
    return int(match[1] or match[2] + match[3])


def _elf_machine(library: Path, data: bytes) -> str:
    if data[:4] != b"\x7fELF" or len(data) < 20:
        raise HspanError(library, "is no shared library", "name a file that trt-hspan plugin build wrote")
    kind, machine = struct.unpack_from("<HH", data, 16)
    if kind != _ELF_SHARED_OBJECT:
        raise HspanError(
            library, "is an ELF file but no shared library", "name a file that trt-hspan plugin build wrote"
        )
    return _ELF_MACHINES.get(machine, f"machine {machine}")


def embedded_fields(library: Path, data: bytes, marker: bytes) -> dict[str, Any]:
    """The JSON object after a marker, which ends in the object's brace, in a library's bytes.

    Raises:
        HspanError: there is none, or it is damaged.
    """
    start = data.find(marker)
    if start < 0:
        raise _not_ours(library, "it contains no description")
    start += len(marker) - 1
    try:
        fields: dict[str, Any] = json.loads(data[start:].partition(b"\0")[0])
    except ValueError as error:
        raise _not_ours(library, "its description is damaged") from error
    return fields


def _not_ours(library: Path, why: str) -> HspanError:
    return HspanError(
        library, f"is not the library of this plugin: {why}", "build one with trt-hspan plugin build"
    )
