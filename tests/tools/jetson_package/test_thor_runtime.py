"""The C++ runtime of the preset for Jetson Thor, under emulation. The plugin takes minutes and is tested for Orin."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.arm64 import emulated, needs_cross_compiler, needs_qemu, run_emulated
from support.hostile_pictures import HOSTILE
from support.upscale_program import UpscaleProgram, only_line

from tools.jetson_package.cross_build import prepare_cross_folders
from tools.jetson_package.elf import check_runs_on, elf_needs_from_file
from tools.jetson_package.targets import target_from_name
from trt_hspan.files import locked_folder
from trt_hspan.native.sources import sources_folder
from trt_hspan.native.toolchain import find_cmake

THOR = target_from_name("jetson-thor")
ROOT = sources_folder()

pytestmark = [needs_cross_compiler, needs_qemu]


@dataclass(frozen=True)
class ThorRuntime:
    """CMake's build folder, and the libraries that stand in for the board's."""

    folder: Path
    libraries: list[Path]

    @property
    def program(self) -> UpscaleProgram:
        path = self.folder / "plugins" / "runtime" / "hspan-upscale"
        return UpscaleProgram(emulated(path, libraries=self.libraries))


@pytest.fixture(scope="module")
def thor() -> ThorRuntime:
    folder = ROOT / "build" / "cmake" / f"{THOR.name}-runtime"
    _, sysroot = prepare_cross_folders(THOR.toolkit)
    with locked_folder(folder):
        configure = [
            "--preset",
            THOR.name,
            "-S",
            ROOT,
            "-B",
            folder,
            "-G",
            "Ninja",
            "-DHSPAN_BUILD_PLUGIN=OFF",
        ]
        for words in (configure, ["--build", folder, "--parallel", "2"]):
            completed = subprocess.run([find_cmake(), *words], capture_output=True, text=True, check=False)
            assert completed.returncode == 0, completed.stdout + completed.stderr
    return ThorRuntime(folder, [sysroot / "usr" / "lib" / "aarch64-linux-gnu"])


@pytest.fixture
def engine(thor: ThorRuntime, tmp_path: Path) -> Path:
    return thor.program.engine(tmp_path, targets=["sm_110"])


def test_program_and_library_run_on_the_board_with_cuda_inside(thor: ThorRuntime) -> None:
    for name in ("hspan-upscale", "libhspan_runtime.so"):
        needs = elf_needs_from_file(thor.folder / "plugins" / "runtime" / name)
        check_runs_on(needs, THOR)
        assert not [library for library in needs.libraries if "cudart" in library or "nvinfer" in library]


def test_the_unit_tests_pass(thor: ThorRuntime) -> None:
    golden = [
        ROOT / "tests" / name
        for name in ("upscaling/golden/tile_plans.json", "plugins/runtime/golden/tiles.json")
    ]
    completed = run_emulated(
        thor.folder / "tests/cpp/runtime/test_runtime", *golden, libraries=thor.libraries
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert b"tests, 0 failed" in completed.stdout


def test_bad_input_is_one_line_each(thor: ThorRuntime, engine: Path, tmp_path: Path) -> None:
    info = thor.program.run("-e", engine, "--info", "--json")
    assert json.loads(info.stdout)["program"] == "tensorrt (not installed), CUDA 13.0"
    bad, output = tmp_path / "bad", tmp_path / "out.png"
    for name, (content, part) in HOSTILE.items():
        bad.write_bytes(content)
        assert part in only_line(thor.program.run("-e", engine, bad, "-o", output), 1), name
    bad.write_bytes(b"P6\n9 9\n255\n" + bytes(243))
    assert "libnvinfer.so.10: cannot be loaded" in only_line(
        thor.program.run("-e", engine, bad, "-o", output), 1
    )
    content = engine.read_bytes()
    for length in (0, 1, len(content) - 1):
        engine.write_bytes(content[:length])
        assert only_line(thor.program.run("-e", engine, bad, "-o", output), 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "double.json", "double.plan"]
