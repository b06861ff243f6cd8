"""The packages for Jetson boards: what they contain, and the order in which it is built."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tools.jetson_package.archive import JetsonPackage, PackageContents, PackageFile, pack
from tools.jetson_package.cross_build import (
    PROGRAM_NAME,
    RUNTIME_LIBRARY_NAME,
    CrossBuild,
    build_cpu_library,
    build_for_target,
)
from tools.jetson_package.cross_sysroot import linked_versions, notices
from tools.jetson_package.portable_files import COMMANDS, SYSTEM_FILES, portable_files
from tools.jetson_package.targets import Target
from trt_hspan.native.cpu_attention import LIBRARY_NAME as CPU_LIBRARY_NAME
from trt_hspan.native.plugin import LIBRARY_NAME
from trt_hspan.native.progress import BuildProgress


def build_jetson_packages(
    targets: Sequence[Target],
    output: Path,
    *,
    jobs: int = 2,
    on_progress: Callable[[BuildProgress], None] = lambda _: None,
) -> list[JetsonPackage]:
    """Builds everything for each target and packs it.

    Args:
        targets: what for.
        output: folder of the packages; created if need be.
        jobs: compilers at a time.
        on_progress: called at each step.

    Raises:
        HspanError: the cross compiler or something to fetch is missing, a source does not compile, the wheel or a
            network cannot be built, or what came out would not run on the target.
    """
    packages = []
    with tempfile.TemporaryDirectory(prefix="trt-hspan-package-") as scratch:
        portable: list[PackageFile] = []
        for target in targets:
            built = build_for_target(target, jobs=jobs, on_progress=on_progress)
            cpu = build_cpu_library(target.name, jobs=jobs, on_progress=on_progress)
            portable = portable or portable_files(
                Path(scratch), on_step=lambda what: on_progress(BuildProgress(fraction=1.0, phase=what))
            )
            on_progress(BuildProgress(fraction=1.0, phase=f"packing for {target.name}"))
            packages.append(pack(target, contents_from_build(built, cpu, portable), output))
    return packages


def contents_from_build(built: CrossBuild, cpu: Path, portable: Sequence[PackageFile]) -> PackageContents:
    """The package's tree from what was compiled for the target and what is the same for all."""
    soname = built.runtime_soname
    documents = "share/doc/hspan/third-party"
    return PackageContents(
        files=[
            PackageFile(built.plugin, f"lib/{LIBRARY_NAME}"),
            PackageFile(cpu, f"lib/{CPU_LIBRARY_NAME}"),
            PackageFile(built.runtime, f"lib/{soname}"),
            PackageFile(built.program, f"bin/{PROGRAM_NAME}"),
            PackageFile(built.header, "include/hspan/runtime.h"),
            *portable,
            *(PackageFile(path, f"{documents}/{path.parent.name}") for path in notices(built.sysroot)),
        ],
        links={f"lib/{RUNTIME_LIBRARY_NAME}": soname},
        commands=(PROGRAM_NAME, *COMMANDS),
        system_files=SYSTEM_FILES,
        linked_in=linked_versions(built.sysroot),
    )
