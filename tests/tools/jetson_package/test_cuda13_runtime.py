"""The C++ runtime of the presets with CUDA 13 inside, under emulation: Jetson Thor, and Orin with JetPack 7.2.

The plugin takes minutes, and is tested for Orin with JetPack 6.
"""

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
from tools.jetson_package.targets import Target, target_from_name
from trt_hspan.files import locked_folder
from trt_hspan.native.sources import sources_folder
from trt_hspan.native.toolchain import find_cmake

from .test_board_program import tensorrt_double

CUDA_13 = [target_from_name(name) for name in ("jetson-thor", "jetson-orin-jp7")]
ROOT = sources_folder()

pytestmark = [needs_cross_compiler, needs_qemu]


@dataclass(frozen=True)
class BoardRuntime:
    """What it is for, CMake's build folder, and the libraries that stand in for the board's."""

    target: Target
    folder: Path
    libraries: list[Path]

    def program(self, *extra: Path) -> UpscaleProgram:
        path = self.folder / "plugins" / "runtime" / "hspan-upscale"
        return UpscaleProgram(emulated(path, libraries=[*extra, *self.libraries]))


@pytest.fixture(scope="module", params=CUDA_13, ids=lambda target: target.name)
def board(request: pytest.FixtureRequest) -> BoardRuntime:
    target: Target = request.param
    # One folder for all: without the plugin their presets compile the same, and what differs is compiled again.
    folder = ROOT / "build" / "cmake" / "cuda-13-runtime"
    _, sysroot = prepare_cross_folders(target.toolkit)
    with locked_folder(folder):
        configure = [
            "--preset",
            target.name,
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
    return BoardRuntime(target, folder, [sysroot / "usr" / "lib" / "aarch64-linux-gnu"])


@pytest.fixture
def engine(board: BoardRuntime, tmp_path: Path) -> Path:
    return board.program().engine(tmp_path, targets=[f"sm_{board.target.architecture}"])


def test_program_and_library_run_on_the_board_with_cuda_inside(board: BoardRuntime) -> None:
    for name in ("hspan-upscale", "libhspan_runtime.so"):
        needs = elf_needs_from_file(board.folder / "plugins" / "runtime" / name)
        check_runs_on(needs, board.target)
        assert not [library for library in needs.libraries if "cudart" in library or "nvinfer" in library]


def test_the_unit_tests_pass(board: BoardRuntime) -> None:
    golden = [
        ROOT / "tests" / name
        for name in (
            "upscaling/golden/tile_plans.json",
            "plugins/runtime/golden/tiles.json",
            "native/compatibility.json",
        )
    ]
    program = board.folder / "tests/cpp/runtime/test_runtime"
    counting = program.with_name("libcounting_library.so")
    completed = run_emulated(program, *golden, counting, libraries=board.libraries)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert b"tests, 0 failed" in completed.stdout


def test_bad_input_is_one_line_each(board: BoardRuntime, engine: Path, tmp_path: Path) -> None:
    program = board.program()
    info = program.run("-e", engine, "--info", "--json")
    assert json.loads(info.stdout)["program"] == "tensorrt (not installed), CUDA 13.0"
    bad, output = tmp_path / "bad", tmp_path / "out.png"
    for name, (content, part) in HOSTILE.items():
        bad.write_bytes(content)
        assert part in only_line(program.run("-e", engine, bad, "-o", output), 1), name
    bad.write_bytes(b"P6\n9 9\n255\n" + bytes(243))
    assert "libnvinfer.so.10: cannot be loaded" in only_line(program.run("-e", engine, bad, "-o", output), 1)
    content = engine.read_bytes()
    for length in (0, 1, len(content) - 1):
        engine.write_bytes(content[:length])
        assert only_line(program.run("-e", engine, bad, "-o", output), 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "double.json", "double.plan"]


@pytest.mark.parametrize(("minor", "accepted"), [(12, False), (13, True), (16, True)])
def test_tensorrt_is_accepted_by_its_version(
    board: BoardRuntime, engine: Path, tmp_path: Path, minor: int, accepted: bool
) -> None:
    double = tensorrt_double(tmp_path / "double", minor=minor)
    info = json.loads(board.program(double).run("-e", engine, "--info", "--json").stdout)
    known = f"tensorrt 10.{minor}.0" if accepted else "tensorrt (not installed)"
    assert info["program"] == f"{known}, CUDA 13.0"
    picture = tmp_path / "in.ppm"
    picture.write_bytes(b"P6\n9 9\n255\n" + bytes(243))
    line = only_line(board.program(double).run("-e", engine, picture, "-o", tmp_path / "out.png"), 1)
    wrong = f"is TensorRT 10.{minor}.0, this program is for 10.13 and later 10.x"
    assert (wrong in line) == (not accepted)
    assert ("driver" in line) == accepted
