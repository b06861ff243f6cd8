"""The only module that imports `tensorrt` or `tensorrt_rtx`: choosing, loading, its log, its plugins.

Both packages have one API; code elsewhere takes the module that `load_tensorrt` returns. What differs
between releases is here.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import logging
import os
import re
import sys
import tempfile
import threading
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from trt_hspan.engine import rtx_wheel
from trt_hspan.engine.builder_log import is_about_scales, is_figure, line_from_errors
from trt_hspan.engine.spec import Flavor, Trait
from trt_hspan.errors import HspanError, OutOfMemoryError, UsageError
from trt_hspan.files import sha256_from_file
from trt_hspan.machine.gpu import advice_for_cuda_message, gpu_architectures
from trt_hspan.machine.install_advice import install_advice, install_command
from trt_hspan.names import OP_TYPE
from trt_hspan.native.progress import PhaseTracker

MODULE_OF: dict[Flavor, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_LOG = logging.getLogger("trt_hspan.tensorrt")
# Major versions that the calls of this package were checked against.
_GENERATIONS: dict[Flavor, tuple[int, ...]] = {"tensorrt": (10, 11), "tensorrt-rtx": (1,)}


def installed_flavors() -> tuple[Flavor, ...]:
    """The TensorRT packages that Python can find; nothing is imported."""
    return tuple(flavor for flavor, module in MODULE_OF.items() if _is_findable(module))


def select_flavor(requested: Flavor | None = None) -> Flavor:
    """The requested flavor, else `tensorrt` where it works on a GPU, else what is installed."""
    installed = installed_flavors()
    if requested is not None:
        if requested not in installed:
            raise _not_installed(requested)
        return requested
    if "tensorrt" in installed and gpu_architectures():
        with contextlib.suppress(HspanError):  # the package may be there without its libraries
            load_tensorrt("tensorrt")
            return "tensorrt"
    if "tensorrt-rtx" in installed:
        return "tensorrt-rtx"
    if "tensorrt" in installed:
        return "tensorrt"
    raise HspanError(
        "TensorRT",
        "neither tensorrt-rtx nor tensorrt is installed",
        f"{install_command('rtx')} builds without a GPU, with [gpu] it is for a machine with one",
    )


def load_tensorrt(flavor: Flavor) -> Any:
    """Imports the package of a flavor and returns the module."""
    if not _is_findable(MODULE_OF[flavor]):
        raise _not_installed(flavor)
    if flavor == "tensorrt-rtx":
        rtx_wheel.preload_with_unversioned_name()
    try:
        module = importlib.import_module(MODULE_OF[flavor])
    except (ImportError, OSError, RuntimeError) as error:
        raise HspanError(
            MODULE_OF[flavor], f"is installed but does not load: {error}", "install the package again"
        ) from error
    _note_generation(flavor, str(getattr(module, "__version__", "")))
    return module


@functools.cache
def _note_generation(flavor: Flavor, version: str) -> None:
    """Warns once of a generation that may have changed what this package calls."""
    major = re.match(r"\d+", version)
    if major is not None and int(major[0]) not in _GENERATIONS[flavor]:
        checked = " and ".join(map(str, _GENERATIONS[flavor]))
        _LOG.warning(
            "%s %s is of a generation that this trt-hspan does not know (%s): take a newer trt-hspan if it fails",
            flavor,
            version,
            checked,
        )


def load_plugin_library(trt: Any, path: Path) -> None:
    """Registers the plugins of a shared library with TensorRT, once a process. The library's code runs."""
    if trt.__name__ == MODULE_OF["tensorrt-rtx"]:
        rtx_wheel.ensure_unversioned_name()
    sha256 = sha256_from_file(path)
    loaded = _PLUGINS_LOADED.setdefault(trt.__name__, {})
    if sha256 in loaded:
        return
    if loaded:
        first = next(iter(loaded.values()))
        raise HspanError(path, f"this process has loaded {first} already", "start a new one for this library")
    tensorrt_logger(trt)  # the registry reports to the logger that is there first
    registry = trt.get_plugin_registry()
    is_taken = any(creator.name == OP_TYPE for creator in registry.all_creators)
    with collected_log(trt) as log:
        handle = registry.load_library(str(path.resolve()))
    cause = log.first_error or "it registers no new plugin"
    if handle is None and is_taken and path.read_bytes().startswith(b"\x7fELF"):
        raise HspanError(
            path,
            "this process has opened another library of the plugin already",
            "start a new one for this library",
        )
    if handle is None:
        raise HspanError(
            path,
            f"TensorRT cannot load this plugin library: {cause}",
            "build it again with trt-hspan plugin build",
        )
    loaded[sha256] = path


def runtime_for(trt: Any, traits: Collection[Trait]) -> Any:
    """An IRuntime for a plan with these traits, whose hash must have been checked: code in it is allowed to run.

    TensorRT writes such code to a file and opens that: in TMPDIR or /tmp, where programs may run from there, else in
    memory, so that no folder need be writable.
    """
    runtime = trt.Runtime(tensorrt_logger(trt))
    if not {"embedded-plugin", "version-compatible"}.isdisjoint(traits):
        runtime.engine_host_code_allowed = True
        folder = _folder_for_code()
        if folder is not None:
            runtime.temporary_directory = folder
        else:
            runtime.tempfile_control_flags = 1 << int(trt.TempfileControlFlag.ALLOW_IN_MEMORY_FILES)
    return runtime


def _folder_for_code() -> str | None:
    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError:  # a read-only root without a writable /tmp
        return None
    return None if os.statvfs(folder).f_flag & os.ST_NOEXEC else folder


_PLUGINS_LOADED: dict[str, dict[str, Path]] = {}


class CollectedLog:
    """What TensorRT said during a `collected_log` block: errors, and the messages with figures."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.figures: list[str] = []

    @property
    def first_error(self) -> str | None:
        """The cause in TensorRT's words, one line, or None."""
        return line_from_errors(self.errors)


_COLLECTORS: list[CollectedLog] = []
_COLLECTORS_LOCK = threading.Lock()


@contextlib.contextmanager
def collected_log(trt: Any) -> Iterator[CollectedLog]:
    """Collects what `tensorrt_logger(trt)` receives inside the block, from all threads of the process."""
    tensorrt_logger(trt)
    log = CollectedLog()
    with _COLLECTORS_LOCK:
        _COLLECTORS.append(log)
    try:
        yield log
    finally:
        with _COLLECTORS_LOCK:
            _COLLECTORS.remove(log)


def refusal(
    where: str,
    what: str,
    log: CollectedLog,
    next_step: str | None,
    next_step_for_memory: str,
    *,
    raised: str | None = None,
) -> HspanError:
    """The error for a call that TensorRT refused, with the reason that it logged; OutOfMemoryError where that is it.

    Args:
        raised: what the Python binding said that raised in place of an answer.
    """
    cause = log.first_error or (raised and line_from_errors([raised])) or "TensorRT gives no reason"
    if "out of memory" in cause.lower() or "outofmemory" in cause.lower():
        return OutOfMemoryError(where, f"{what}: {cause}", next_step_for_memory)
    if (advice := advice_for_cuda_message(cause)) is not None:
        meaning, next_step = advice
        cause = f"{meaning} ({cause})"
    return HspanError(where, f"{what}: {cause}", next_step)


@functools.cache
def tensorrt_logger(trt: Any) -> Any:
    """The one ILogger of a process: passes TensorRT's messages to the logger "trt_hspan.tensorrt".

    Errors are logged as INFO: whoever sees one raises it, so that one failure is one line. What TensorRT calls verbose,
    thousands of lines a build, comes at level 5, below DEBUG.
    """
    severity = trt.ILogger.Severity
    errors = (severity.INTERNAL_ERROR, severity.ERROR)
    levels = {severity.WARNING: logging.WARNING, severity.VERBOSE: logging.DEBUG // 2}

    class PythonLogger(trt.ILogger):  # type: ignore[misc]  # the base exists only at run time
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, level: Any, message: str) -> None:
            with contextlib.suppress(Exception):  # no exception may cross into TensorRT
                with _COLLECTORS_LOCK:
                    for collected in _COLLECTORS:
                        collected.errors += [message] * (level in errors)
                        collected.figures += [message] * is_figure(message)
                expected = is_about_scales(message)
                _LOG.log(logging.DEBUG if expected else levels.get(level, logging.INFO), "%s", message)

    return PythonLogger()


def progress_monitor(trt: Any, tracker: PhaseTracker) -> Any:
    """An IProgressMonitor that reports to `tracker` and stops the build when the tracker says so."""

    class PythonMonitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            tracker.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return tracker.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            tracker.finish(phase_name)

    return PythonMonitor()


def strongly_typed_network(trt: Any, builder: Any) -> Any:
    """An empty network in which the ONNX file's types are law: TensorRT 10 needs the flag, 11 ignores it."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return builder.create_network(0 if flag is None else 1 << int(flag))


def known_targets(trt: Any) -> dict[str, Any]:
    """Compute capabilities that this TensorRT-RTX can build for, such as "sm_86", with its enum values."""
    members = getattr(getattr(trt, "ComputeCapability", None), "__members__", {})
    return {f"sm_{name[2:]}": value for name, value in members.items() if name.startswith("SM")}


def check_targets(trt: Any, targets: tuple[str, ...]) -> None:
    """Raises: UsageError when this TensorRT cannot build for one of the targets."""
    possible = known_targets(trt)
    for target in targets:
        if target not in possible:
            raise UsageError(
                "--target",
                f"{trt.__name__} {trt.__version__} cannot build for {target}",
                f"choose from {', '.join(possible)}",
            )


def _is_findable(module: str) -> bool:
    if module in sys.modules:
        return sys.modules[module] is not None
    return importlib.util.find_spec(module) is not None


def _not_installed(flavor: Flavor) -> HspanError:
    return HspanError(flavor, "is not installed", install_advice(flavor))
