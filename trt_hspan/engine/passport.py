"""Can an engine run on this machine? Compares its manifest with GPU, TensorRT and plugin before the plan is opened.

Each mismatch is one line with the command that corrects it. Loads no plan and no plugin library.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trt_hspan.engine.spec import OPTION_OF_TRAIT, RTX_DEFAULT_TARGETS
from trt_hspan.errors import HspanError
from trt_hspan.machine.gpu import GpuDriver, gpu_driver
from trt_hspan.machine.install_advice import install_advice, requirement
from trt_hspan.machine.jetson import is_jetson
from trt_hspan.names import OP_TYPE, PLUGIN_VERSION
from trt_hspan.native.plugin import is_tegra

FIRST_AMPERE = 80

if TYPE_CHECKING:
    from trt_hspan.engine.manifest import EngineManifest
    from trt_hspan.engine.spec import Flavor


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
    """Everything that is known to keep an engine from running here.

    Hashes of plan and ONNX file are checked before, by `verify_manifest`. Without `plugin`, its library is the one that
    `trt-hspan plugin build` writes.
    """
    checks = (_gpu, _flavor, _version, _target)
    errors = [check(plan, manifest, machine) for check in checks]
    if manifest.needs_library:
        errors.append(_plugin(plan, manifest, machine, plugin))
    elif manifest.plugin is not None:
        errors.append(_embedded_plugin(plan, manifest, machine))
    return [error for error in errors if error is not None]


def built_for(manifest: EngineManifest, architecture: str) -> bool:
    """Whether the engine is for GPUs of a compute capability such as "sm_86".

    "ampere+" is TensorRT's for all GPUs from 8.0 on but Jetson's, and not for engines built on a Jetson.
    """
    if "ampere+" in manifest.traits and not any(map(is_tegra, (architecture, *manifest.targets))):
        return _number(architecture) >= FIRST_AMPERE
    if manifest.targets:
        return architecture in manifest.targets
    return architecture in RTX_DEFAULT_TARGETS or _number(architecture) > _number(RTX_DEFAULT_TARGETS[-1])


def build_command(plan: Path, manifest: EngineManifest, *, target: str | None = None) -> str:
    """The command that builds the engine again from its own model, for its own GPUs or for `target`."""
    words = ["trt-hspan build --onnx", str(plan.parent / manifest.onnx_file), "--flavor", manifest.flavor]
    if manifest.flavor == "tensorrt-rtx":
        words += [f"--target {each}" for each in ([target] if target else manifest.targets)]
    if manifest.attention == "plugin":
        words += ["--attention", "plugin"]
    words += [OPTION_OF_TRAIT[trait] for trait in manifest.traits]
    if len(manifest.profiles) == 1 and manifest.profiles[0].max[0] == 1:
        low, _, high = manifest.profiles[0].sizes
        words += ["--min", str(low), "--max", str(high)]
    else:
        for profile in manifest.profiles:
            shapes = {"min": profile.min, "opt": profile.opt, "max": profile.max}
            words += ["--profile", ",".join(f"{name}={n}x{h}x{w}" for name, (n, _, h, w) in shapes.items())]
    return " ".join([*words, "-o", str(plan)])


def _gpu(plan: Path, manifest: EngineManifest, machine: Machine) -> HspanError | None:
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


def _flavor(plan: Path, manifest: EngineManifest, machine: Machine) -> HspanError | None:
    if manifest.flavor in machine.flavors:
        return None
    advice = install_advice(manifest.flavor)
    if not is_jetson():
        advice += f" '{requirement(manifest.flavor, manifest.tensorrt_version)}'"
    return HspanError(plan, f"was built by {manifest.flavor}, which is not installed here", advice)


def _version(plan: Path, manifest: EngineManifest, machine: Machine) -> HspanError | None:
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
    advice = build_command(plan, manifest)
    if not is_jetson():
        advice += f", or pip install '{requirement(manifest.flavor, manifest.tensorrt_version)}'"
    return HspanError(plan, f"{built}, installed is {installed}", advice)


def _target(plan: Path, manifest: EngineManifest, machine: Machine) -> HspanError | None:
    if machine.architecture is None or built_for(manifest, machine.architecture):
        return None
    targets = (
        ", ".join(manifest.targets) + (", for Ampere and later" if "ampere+" in manifest.traits else "")
        or f"TensorRT-RTX's default set ({', '.join(RTX_DEFAULT_TARGETS)} and later)"
    )
    return HspanError(
        plan,
        f"was built for {targets}, this GPU is {machine.architecture}",
        build_command(plan, manifest, target=machine.architecture),
    )


def _embedded_plugin(plan: Path, manifest: EngineManifest, machine: Machine) -> HspanError | None:
    """Why the library inside the plan cannot run here."""
    from trt_hspan.native.compatibility import error_from_verdict
    from trt_hspan.native.plugin import architecture_from_target, code_in_plan

    if machine.architecture is None:
        return None
    try:
        code = code_in_plan(plan)
    except HspanError as error:
        return error
    gpu = architecture_from_target(machine.architecture)
    found = error_from_verdict(code, gpu, machine.driver.cuda_version)
    if found is None:
        return None
    rebuild = build_command(plan, manifest, target=machine.architecture)
    return HspanError(plan, f"the plugin inside: {found.what}", f"{found.next_step}, then {rebuild}")


def _plugin(plan: Path, manifest: EngineManifest, machine: Machine, named: Path | None) -> HspanError | None:
    """Why the library cannot be the one that the engine was built with, or cannot run; the first reason."""
    from trt_hspan.files import sha256_from_file
    from trt_hspan.native.plugin import check_plugin_serves, default_plugin_path, plugin_info_from_library

    record = manifest.plugin
    assert record is not None
    path = named or default_plugin_path()
    rebuild = build_command(plan, manifest)
    try:
        sha256, info = sha256_from_file(path), plugin_info_from_library(path)
        if sha256 == record.sha256:
            if machine.architecture is not None:
                check_plugin_serves(info, [machine.architecture], machine.driver.cuda_version)
            return None
    except HspanError as error:
        return error
    if (info.name, info.version) != (OP_TYPE, PLUGIN_VERSION):
        return HspanError(
            path,
            f"is plugin {info.name} version {info.version}, {plan.name} needs {OP_TYPE} version {PLUGIN_VERSION}",
            "trt-hspan plugin build",
        )
    if info.abi_version != record.abi_version:
        return HspanError(
            path,
            f"has plugin ABI version {info.abi_version}, {plan.name} was built with {record.abi_version}",
            rebuild,
        )
    return HspanError(
        path,
        f"SHA-256 is {sha256[:12]}..., but {plan.name} was built with {record.sha256[:12]}...",
        f"name the library that it was built with by --plugin, or {rebuild}",
    )


def _release(version: str) -> tuple[int, ...]:
    """(10, 3, 0) of "10.3.0.26": engines of one release do not depend on its build."""
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())


def _number(architecture: str) -> int:
    return int(architecture.removeprefix("sm_"))
