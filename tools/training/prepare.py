"""The command that prepares the photographs: downloads Debian packages, unpacks them, resizes, writes LR/HR pairs."""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

from tools.running import exit_code
from tools.training.photographs import DEBIAN_PACKAGES, prepare
from trt_hspan.errors import HspanError


def _unpack_debian_packages(folder: Path) -> None:
    for package in DEBIAN_PACKAGES:
        if (folder / package).is_dir():
            continue
        archives = folder / "archives"
        archives.mkdir(parents=True, exist_ok=True)
        command = ["apt-get", "download", package]
        if subprocess.run(command, cwd=archives, check=False).returncode:
            raise HspanError(
                package, "apt-get could not download it", "run apt-get update, or check the network"
            )
        archive = next(archives.glob(f"{package}_*.deb"))
        subprocess.run(["dpkg", "-x", archive, folder / package], check=True)


def main() -> int:
    """Downloads and prepares. Returns: the exit code."""
    parser = argparse.ArgumentParser(prog="prepare_training_data", description=__doc__)
    parser.add_argument(
        "--packages", type=Path, default=Path("training-output/packages"), help="unpacked here"
    )
    parser.add_argument("--output", type=Path, default=Path("training-output/data"), help="the two sets")
    arguments = parser.parse_args()

    def run() -> None:
        _unpack_debian_packages(arguments.packages)
        prepare(arguments.packages, arguments.output, report=print)

    return exit_code("prepare_training_data", run)
