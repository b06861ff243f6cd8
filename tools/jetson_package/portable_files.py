"""The parts of a package that are the same for every board: the Python wheel, the demo networks, scripts, notices."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tools.jetson_package.archive import PackageFile
from trt_hspan.errors import HspanError
from trt_hspan.native.sources import sources_folder

#: Exported in FP16, which is what Jetson's GPUs are fast in; their input and output stay FP32.
MODELS: Final = ("hspan-tiny-x2", "hspan-tiny-x4")
#: Commands that the wheel installs and that `board/launcher.sh` starts.
COMMANDS: Final = ("trt-hspan", "hspan-jetson")
#: Files for systemd, by place in the package, and where the .deb installs them.
SYSTEM_FILES: Final = {
    "share/hspan/hspan-upscale@.service": "usr/lib/systemd/system/hspan-upscale@.service",
    "share/hspan/sysusers.conf": "usr/lib/sysusers.d/hspan.conf",
}

_BOARD_FILES: Final = Path(__file__).parent / "board"
_WHEEL_SECONDS: Final = 300


def portable_files(folder: Path, *, on_step: Callable[[str], None] = lambda _: None) -> list[PackageFile]:
    """Makes the wheel and the ONNX files in `folder`, and lists them with what else no board changes.

    Args:
        folder: an empty one; must last until the package is written.
        on_step: called with what is being created.

    Raises:
        HspanError: pip cannot build the wheel, or torch is missing, which exports the networks.
    """
    on_step("building the wheel")
    wheel = build_wheel(folder / "wheels")
    files = [*board_files(), PackageFile(wheel, f"wheels/{wheel.name}")]
    for name in MODELS:
        on_step(f"exporting {name}")
        files.append(PackageFile(_exported(name, folder / "models"), f"models/{name}-fp16.onnx"))
    return [*files, PackageFile(sources_folder() / "LICENSE", "share/doc/hspan/LICENSE")]


def board_files() -> list[PackageFile]:
    """Scripts and systemd's files, which are packed as they are."""
    return [
        PackageFile(_BOARD_FILES / "install.sh", "install.sh"),
        *(PackageFile(_BOARD_FILES / "launcher.sh", f"bin/{name}") for name in COMMANDS),
        *(PackageFile(_BOARD_FILES / Path(place).name, place) for place in SYSTEM_FILES),
    ]


def build_wheel(folder: Path) -> Path:
    """The wheel of this project, without those of its dependencies.

    Raises:
        HspanError: this is no checkout, or pip cannot build.
    """
    root = sources_folder()
    if not (root / "pyproject.toml").is_file():
        raise HspanError(root, "contains no pyproject.toml", "build packages in a checkout of this project")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    try:
        completed = subprocess.run(
            [*command, "--wheel-dir", str(folder), str(root)],
            capture_output=True,
            text=True,
            timeout=_WHEEL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise HspanError("wheel", f"no answer in {_WHEEL_SECONDS} s", "look at the network") from error
    wheels = list(folder.glob("trt_hspan-*.whl"))
    if completed.returncode != 0 or len(wheels) != 1:
        reason = (completed.stderr.strip().splitlines() or ["no message"])[-1]
        raise HspanError("wheel", f"cannot be built: {reason}", "look at the network and pip's configuration")
    return wheels[0]


def _exported(name: str, folder: Path) -> Path:
    try:
        from trt_hspan.export import export_onnx

        return export_onnx(name, folder / f"{name}-fp16.onnx", precision="fp16")
    except ImportError as error:
        raise HspanError(
            name, f"cannot be exported: {error}", "install torch: pip install 'trt-hspan[jetson-build]'"
        ) from error
