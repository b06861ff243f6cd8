"""Can an engine run on this machine? Compares its manifest with GPU, TensorRT and plugin before the plan is opened.

Each mismatch is one line with the command that corrects it. Loads no plan and no plugin library.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trt_hspan.engine.spec import OPTION_OF_TRAIT, RTX_DEFAULT_TARGETS
from trt_hspan.errors import HspanError
from trt_hspan.files import sha256_from_file
from trt_hspan.machine.gpu import GpuDriver, gpu_driver
from trt_hspan.machine.install_advice import install_advice, requirement
from trt_hspan.machine.jetson import is_jetson
from trt_hspan.names import OP_TYPE, PLUGIN_VERSION
from trt_hspan.native.plugin import architecture_from_target, check_plugin_serves, is_tegra

FIRST_AMPERE = 80

if TYPE_CHECKING:
    from trt_hspan.engine.manifest import EngineManifest
    from trt_hspan.engine.spec import Flavor
    from trt_hspan.native.plugin import PluginInfo


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What this machine can run engines with.

    Attributes:
        architecture: of the GPU that would run the engine, such as "sm_86"; None where there is none.
        driver: what the NVIDIA driver says.
        flavors: TensorRT packages that Python can find.
        version_of: a flavor's version; raises HspanError when the package does not load.
    """

    architecture: str | None
    driver: GpuDriver
    flavors: tuple[Flavor, ...]
    version_of: Callable[[Flavor], str]


def this_machine(index: int = 0) -> Machine:
    """The machine that this runs on, with its GPU of this index. Imports no TensorRT until a version is requested."""
    from trt_hspan.engine.tensorrt_api import installed_flavors, load_tensorrt

    driver = gpu_driver()
    gpus = driver.architectures
    return Machine(
        architecture=gpus[index] if index < len(gpus) else None,
        driver=driver,
        flavors=installed_flavors(),
        version_of=lambda flavor: str(load_tensorrt(flavor).__version__),
    )


def engine_mismatches(
    plan: Path, manifest: EngineManifest, machine: Machine, *, plugin: Path | None = None
) -> list[HspanError]:
    """Every reason against an engine on a machine, before it is opened.

    Hashes of plan and ONNX file are checked before, by `verify_manifest`. Without `plugin`, its library is the one that
    `trt-hspan plugin build` writes.
    """
    checks = [_gpu, _flavor, _version, _target]
    if manifest.plugin is not None:
        checks.append(_library if manifest.needs_library else _embedded_plugin)
    errors = (check(plan, manifest, machine, plugin) for check in checks)
    return [error for error in errors if error is not None]


def require_match(
    plan: Path, manifest: EngineManifest, machine: Machine, *, plugin: Path | None = None
) -> None:
    """Raises: HspanError, the first of `engine_mismatches`."""
    for error in engine_mismatches(plan, manifest, machine, plugin=plugin):
        raise error


def built_for(manifest: EngineManifest, architecture: str) -> bool:
    """Whether the engine is for GPUs of a compute capability such as "sm_86".

    "ampere+" is TensorRT's for all GPUs from 8.0 on but Jetson's, and not for engines built on a Jetson.
    """
    if "ampere+" in manifest.traits and not any(map(is_tegra, (architecture, *manifest.targets))):
        return architecture_from_target(architecture) >= FIRST_AMPERE
    if manifest.targets:
        return architecture in manifest.targets
    newest = RTX_DEFAULT_TARGETS[-1]
    return architecture in RTX_DEFAULT_TARGETS or (
        architecture_from_target(architecture) > architecture_from_target(newest)
    )


def build_command(
    plan: Path, manifest: EngineManifest, plugin: Path | None = None, *, target: str | None = None
) -> str:
    """The command that builds the engine again from its own model, for its own GPUs or for `target`."""
    model = plan.parent / manifest.onnx_file
    words = ["trt-hspan", "build", "--onnx", str(model), "--flavor", manifest.flavor]
    if manifest.flavor == "tensorrt-rtx":
        words += [word for each in ([target] if target else manifest.targets) for word in ("--target", each)]
    words += ["--attention", manifest.attention]
    if manifest.attention == "plugin" and plugin is not None:
        words += ["--plugin", str(plugin)]
    words += [word for trait in manifest.traits for word in OPTION_OF_TRAIT[trait].split()]
    words += [word for profile in manifest.profiles for word in ("--profile", str(profile))]
    return shlex.join([*words, "-o", str(plan)])


def own_library(plan: Path, manifest: EngineManifest, named: Path | None) -> PluginInfo:
    """The library that an engine was built with, at the place that was named, else where commands look for it.

    Raises:
        HspanError: there is none, or another one.
    """
    from trt_hspan.native.plugin import default_plugin_path, plugin_info_from_library

    record = manifest.plugin
    assert record is not None
    path = named or default_plugin_path()
    info, sha256 = plugin_info_from_library(path), sha256_from_file(path)
    if sha256 == record.sha256:
        return info
    what = f"SHA-256 is {sha256[:12]}..., but {plan.name} was built with {record.sha256[:12]}..."
    next_step = build_command(plan, manifest, named)
    if (info.name, info.version) != (OP_TYPE, PLUGIN_VERSION):
        what = f"is plugin {info.name} version {info.version}, {plan.name} needs {OP_TYPE} version {PLUGIN_VERSION}"
        next_step = "trt-hspan plugin build"
    elif info.abi_version != record.abi_version:
        what = f"has plugin ABI version {info.abi_version}, {plan.name} was built with {record.abi_version}"
    else:
        next_step = f"name the library that it was built with by --plugin, or {next_step}"
    raise HspanError(path, what, next_step)


def _gpu(plan: Path, _: EngineManifest, machine: Machine, __: Path | None) -> HspanError | None:
    if machine.architecture is not None:
        return None
    error = machine.driver.error
    if error is None:
        count = len(machine.driver.architectures)
        return HspanError(
            plan, f"needs a GPU that is not there: this machine has {count}", "take --device gpu:0"
        )
    return HspanError(
        plan, f"needs a GPU: {error.what}", f"{error.next_step}, or run its ONNX file with --device cpu"
    )


def _flavor(plan: Path, manifest: EngineManifest, machine: Machine, _: Path | None) -> HspanError | None:
    if manifest.flavor in machine.flavors:
        return None
    advice = install_advice(manifest.flavor)
    if not is_jetson():
        advice += f" '{requirement(manifest.flavor, manifest.tensorrt_version)}'"
    return HspanError(plan, f"was built by {manifest.flavor}, which is not installed here", advice)


def _version(
    plan: Path, manifest: EngineManifest, machine: Machine, plugin: Path | None
) -> HspanError | None:
    if manifest.flavor not in machine.flavors:
        return None
    try:
        installed = machine.version_of(manifest.flavor)
    except HspanError as error:
        return error
    if installed == manifest.tensorrt_version:
        return None
    built = f"was built by {manifest.flavor} version {manifest.tensorrt_version}"
    if "version-compatible" in manifest.traits:
        if _release(installed) >= _release(manifest.tensorrt_version):
            return None
        built += " for it and later ones"
    advice = build_command(plan, manifest, plugin)
    if not is_jetson():
        advice += f", or pip install '{requirement(manifest.flavor, manifest.tensorrt_version)}'"
    return HspanError(plan, f"{built}, installed is {installed}", advice)


def _target(plan: Path, manifest: EngineManifest, machine: Machine, plugin: Path | None) -> HspanError | None:
    if machine.architecture is None or built_for(manifest, machine.architecture):
        return None
    targets = (
        ", ".join(manifest.targets) + (", for Ampere and later" if "ampere+" in manifest.traits else "")
        or f"TensorRT-RTX's default set ({', '.join(RTX_DEFAULT_TARGETS)} and later)"
    )
    return HspanError(
        plan,
        f"was built for {targets}, this GPU is {machine.architecture}",
        build_command(plan, manifest, plugin, target=machine.architecture),
    )


def _embedded_plugin(
    plan: Path, manifest: EngineManifest, machine: Machine, plugin: Path | None
) -> HspanError | None:
    """Why the library inside the plan cannot run here."""
    from trt_hspan.native.compatibility import error_from_verdict
    from trt_hspan.native.plugin import code_in_plan

    if machine.architecture is None:
        return None
    try:
        code = code_in_plan(plan)
    except HspanError as error:
        return error
    gpu = architecture_from_target(machine.architecture)
    wrong = error_from_verdict(code, gpu, machine.driver.cuda_version)
    if wrong is None:
        return None
    rebuild = build_command(plan, manifest, plugin, target=machine.architecture)
    return HspanError(plan, f"the plugin inside: {wrong.what}", f"{wrong.next_step}, then {rebuild}")


def _library(plan: Path, manifest: EngineManifest, machine: Machine, named: Path | None) -> HspanError | None:
    """Why the library cannot be the one that the engine was built with, or cannot run; the first reason."""
    try:
        info = own_library(plan, manifest, named)
        if machine.architecture is not None:
            check_plugin_serves(info, [machine.architecture], machine.driver.cuda_version)
    except HspanError as error:
        return error
    return None


def _release(version: str) -> tuple[int, ...]:
    """(10, 3, 0) of "10.3.0.26": engines of one release do not depend on its build."""
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
