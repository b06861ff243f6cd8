"""Building this project's wheels and its source distribution, and proving what system a platform wheel needs."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.native.build import build_cpu_library, build_cuda_library, build_plugin, require_current
from trt_hspan.native.progress import BuildProgress
from trt_hspan.native.sources import sources_folder

#: The oldest glibc that a platform wheel promises to run on; pip reads it from the wheel's name.
OLDEST_GLIBC: Final = (2, 28)
MACHINES: Final = ("x86_64", "aarch64")

_SECONDS: Final = 300

OnProgress = Callable[[BuildProgress], None]


def build_distributions(
    output: Path,
    machines: Iterable[str] = MACHINES,
    *,
    jobs: int = 2,
    on_progress: OnProgress = lambda _: None,
) -> list[Path]:
    """Builds the source distribution and a wheel for each machine; compiles only what is not up to date.

    Args:
        output: their folder; created if need be.
        machines: of MACHINES: this one, and "aarch64" also where the cross compiler for it is installed.
        jobs: compilers at a time.
        on_progress: called at each step.

    Returns:
        The source distribution and the wheels, in order.

    Raises:
        UsageError: a machine that is not compiled for here.
        HspanError: something needed is missing, does not compile, or needs a newer system than OLDEST_GLIBC's.
    """
    built = [_hatchling("sdist", output)]
    for machine in machines:
        libraries = libraries_for(machine, jobs=jobs, on_progress=on_progress)
        on_progress(BuildProgress(fraction=1.0, phase=f"packing for {machine}"))
        with tempfile.TemporaryDirectory(prefix="trt-hspan-wheel-") as scratch:
            wheel = build_wheel(Path(scratch), libraries, platform_tag(machine))
            check_wheel(wheel)
            output.mkdir(parents=True, exist_ok=True)
            built.append(Path(shutil.move(wheel, output / wheel.name)))
    return built


def platform_tag(machine: str) -> str:
    """As in a wheel's name: "manylinux_2_28_x86_64"."""
    return f"manylinux_{OLDEST_GLIBC[0]}_{OLDEST_GLIBC[1]}_{machine}"


def libraries_for(machine: str, *, jobs: int = 2, on_progress: OnProgress = lambda _: None) -> list[Path]:
    """The compiled libraries for a machine, compiled now where they are not up to date. Raises: as above."""
    if machine == platform.machine():
        builds = (build_plugin, build_cuda_library, build_cpu_library)
        return [build(jobs=jobs, on_progress=on_progress).path for build in builds]
    if machine != "aarch64":
        raise UsageError(
            "--machine", f"got {machine}, here wheels are built for {platform.machine()}, aarch64"
        )
    from tools.jetson_package import cross_build

    name = "linux-aarch64"
    for_gpus = cross_build.build_gpu_libraries(name, "cuda-13", jobs=jobs, on_progress=on_progress)
    return [*for_gpus, cross_build.build_cpu_library(name, jobs=jobs, on_progress=on_progress)]


def build_wheel(folder: Path, libraries: Sequence[Path] = (), platform_name: str | None = None) -> Path:
    """A wheel of this project, without those of its dependencies.

    Args:
        folder: where it goes.
        libraries: what goes into it compiled.
        platform_name: what they were compiled for; None, and no libraries, is a wheel for any platform, which compiles
            where it is installed.

    Raises:
        HspanError: this is no checkout, a library was compiled from other sources, or the wheel cannot be built.
    """
    if platform_name is None:
        return _hatchling("wheel", folder)
    with tempfile.TemporaryDirectory(prefix="trt-hspan-libraries-") as scratch:
        for library in libraries:
            require_current(library)
            shutil.copyfile(library, Path(scratch) / library.name)
        variables = {"TRT_HSPAN_WHEEL_LIBRARIES": scratch, "TRT_HSPAN_WHEEL_PLATFORM": platform_name}
        return _hatchling("wheel", folder, variables)


def check_wheel(wheel: Path) -> None:
    """Refuses a platform wheel whose libraries need more than its name says, as auditwheel reads their symbols.

    Raises:
        HspanError: they do, or auditwheel is missing or cannot read the wheel.
    """
    report = json.loads(_output(["auditwheel", "show", "--json", str(wheel)], wheel))
    match = re.fullmatch(r"manylinux_(\d+)_(\d+)_(\w+)", report["overall_tag"])
    if match is None or report["external_libs"]:
        what = f"needs libraries that systems do not have: {report['overall_tag']}, {report['external_libs']}"
    elif (int(match[1]), int(match[2])) > OLDEST_GLIBC:
        what = f"needs {match[0]}, {platform_tag(match[3])} was expected"
    else:
        return
    raise HspanError(wheel.name, what, f"see auditwheel show {wheel}")


def _hatchling(
    target: Literal["sdist", "wheel"], folder: Path, variables: Mapping[str, str] | None = None
) -> Path:
    root = sources_folder()
    if not (root / "pyproject.toml").is_file():
        raise HspanError(root, "contains no pyproject.toml", "build in a checkout of this project")
    with tempfile.TemporaryDirectory(prefix=f"trt-hspan-{target}-") as scratch:
        _output(["hatchling", "build", "--target", target, "--directory", scratch], root, variables)
        (built,) = Path(scratch).iterdir()
        folder.mkdir(parents=True, exist_ok=True)
        return Path(shutil.move(built, folder / built.name))


def _output(words: Sequence[str], where: Path, variables: Mapping[str, str] | None = None) -> str:
    """What a Python tool prints. Runs in the folder `where`, or that of the file."""
    try:
        completed = subprocess.run(
            [sys.executable, "-m", *words],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
            cwd=where if where.is_dir() else where.parent,
            env=os.environ | dict(variables or {}),
        )
    except subprocess.TimeoutExpired as error:
        raise HspanError(where, f"{words[0]}: no answer in {_SECONDS} s", "try again") from error
    if completed.returncode != 0:
        reason = " ".join(completed.stderr.split())[-300:] or "no message"
        raise HspanError(where, f"{words[0]}: {reason}", f"pip install {words[0]}, or see what it says")
    return completed.stdout
