"""The command behind `make jetson`: arguments, progress, what is printed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tools.jetson_package.targets import TARGETS, Target, target_from_name
from tools.running import exit_code
from trt_hspan.errors import UsageError


def main(words: list[str] | None = None) -> int:
    """Builds the packages named, or all. The exit code is that of the error, which is one line on stderr."""
    parser = argparse.ArgumentParser(
        prog="jetson_package", description="Builds packages for Jetson boards, on a machine that is none."
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(each.name for each in TARGETS))
    parser.add_argument("-o", "--output", type=Path, default=Path("dist"), help="the packages' folder (dist)")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time (2)")
    parser.add_argument(
        "--json", action="store_true", help="print where the packages are, and their manifests"
    )
    parser.add_argument(
        "--refresh-lock",
        action="store_true",
        help="pin the versions and hashes that Debian's mirror has now; builds nothing",
    )
    arguments = parser.parse_args(words)
    return exit_code("jetson_package", lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    if arguments.refresh_lock:
        if arguments.targets:
            raise UsageError("--refresh-lock", "builds nothing, so it takes no targets")
        _refresh()
        return
    if arguments.jobs < 1:
        raise UsageError("--jobs", f"got {arguments.jobs}, expected at least 1")
    targets = [target_from_name(name) for name in arguments.targets] or list(TARGETS)
    _build(targets, arguments.output, jobs=arguments.jobs, as_json=arguments.json)


def _refresh() -> None:
    from tools.jetson_package.cross_sysroot import refresh_lock
    from tools.jetson_package.package_lock import LOCK_FILE
    from trt_hspan.cli.output import print_table

    changed = refresh_lock()
    rows = {name: f"{each.version}, SHA-256 {each.sha256}" for name, each in changed.items()}
    print_table(str(LOCK_FILE), rows or {"changed": "nothing"})


def _build(targets: list[Target], output: Path, *, jobs: int, as_json: bool) -> None:
    from tools.jetson_package.jetson_package import build_jetson_packages
    from trt_hspan.cli.output import print_json, print_table
    from trt_hspan.cli.progress import progress

    with progress("building") as bar:
        packages = build_jetson_packages(targets, output, jobs=jobs, on_progress=bar.phases("building"))
    if as_json:
        listed = [
            {"archive": str(each.archive), "deb": each.deb and str(each.deb), "manifest": each.manifest}
            for each in packages
        ]
        print_json({"packages": listed})
        return
    for each in packages:
        plugin = each.manifest["files"][0]
        rows = {
            "archive": each.archive,
            "deb": each.deb or "none: dpkg-deb is missing",
            "for": f"{each.target.boards}; JetPack {each.target.jetpack}, {each.target.system}",
            "plugin": f"sm_{each.target.architecture}, CUDA {plugin['plugin']['cuda_version']}",
            "needs": _newest(each.manifest["files"]),
            "loads": ", ".join(
                sorted({name for file in each.manifest["files"] for name in file.get("libraries", ())})
            ),
        }
        print_table(each.target.name, rows)


def _newest(files: list[dict[str, Any]]) -> str:
    """The newest symbol versions that any file of a package asks for."""
    newest: dict[str, tuple[int, ...]] = {}
    for file in files:
        for family, version in file.get("needs", {}).items():
            number = tuple(map(int, version.split(".")))
            newest[family] = max(newest.get(family, ()), number)
    return ", ".join(f"{family} {'.'.join(map(str, number))}" for family, number in sorted(newest.items()))
