"""The parts of a package that are the same for every board: the Python wheel, the demo networks, scripts, notices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from tools.jetson_package.archive import PackageFile
from tools.wheel.build import build_wheel
from trt_hspan.errors import HspanError
from trt_hspan.machine.install_advice import install_command
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


def portable_files(folder: Path, *, on_step: Callable[[str], None] = lambda _: None) -> list[PackageFile]:
    """Makes the wheel and the ONNX files in `folder`, and lists them with what else no board changes.

    Args:
        folder: an empty one; must last until the package is written.
        on_step: called with what is being created.

    Raises:
        HspanError: the wheel cannot be built, or torch is missing, which exports the networks.
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


def _exported(name: str, folder: Path) -> Path:
    try:
        from trt_hspan.export import export_onnx

        return export_onnx(name, folder / f"{name}-fp16.onnx", precision="fp16")
    except ImportError as error:
        raise HspanError(
            name, f"cannot be exported: {error}", f"install torch: {install_command('jetson-build')}"
        ) from error
