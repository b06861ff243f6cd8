"""Prepares the photographs for `train_demo.py`: downloads Debian packages, unpacks, resizes, makes LR/HR pairs."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--packages", type=Path, default=Path("training-output/packages"), help="unpacked here"
    )
    parser.add_argument("--output", type=Path, default=Path("training-output/data"), help="the two sets")
    arguments = parser.parse_args()
    try:
        _unpack_debian_packages(arguments.packages)
        prepare(arguments.packages, arguments.output, report=print)
    except HspanError as error:
        print(f"prepare_training_data: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
