"""The package for Jetson Orin as its user has it: what it contains, and its programs under emulation."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import zipfile
from email import message_from_bytes
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import pytest
from packaging.requirements import Requirement
from PIL import Image
from support.arm64 import needs_cross_compiler, needs_qemu, run_emulated
from support.tile_networks import BoundedRunner

from tools.jetson_package.cross_toolkit import CROSS_COMPILER
from tools.jetson_package.elf import check_runs_on, elf_needs_from_file
from tools.jetson_package.targets import target_from_name
from trt_hspan.errors import UsageError
from trt_hspan.graph import metadata_from_model, precision_from_model
from trt_hspan.sizes import ImageSize
from trt_hspan.upscaling.tile_size import plan_for_picture

from .conftest import BoardPackage, OrinBuild

ORIN = target_from_name("jetson-orin")
HERE = Path(__file__).parent
TESTS = HERE.parents[1]

pytestmark = needs_cross_compiler


# --- what it contains


def test_the_program_is_the_one_that_is_tested_under_emulation(board: BoardPackage, orin: OrinBuild) -> None:
    assert (board.root / "bin" / "hspan-upscale").read_bytes() == orin.build.program.read_bytes()
    assert not list(board.root.rglob("test_runtime*"))


def test_every_program_and_library_runs_on_the_board(board: BoardPackage) -> None:
    needs_by_file = {
        str(path.relative_to(board.root)): elf_needs_from_file(path)
        for path in board.root.rglob("*")
        if path.is_file() and not path.is_symlink() and path.read_bytes()[:4] == b"\x7fELF"
    }
    assert set(needs_by_file) == {
        "bin/hspan-upscale",
        "lib/libhspan_cpu.so",
        "lib/libhspan_plugin.so",
        "lib/libhspan_runtime.so.1",
    }
    for needs in needs_by_file.values():
        check_runs_on(needs, ORIN)
        assert needs.machine == "aarch64"
        # One binary serves TensorRT 10.3 and later: it links against none, and finds the board's when it runs.
        assert not [name for name in needs.libraries if "nvinfer" in name or "tensorrt" in name]
        assert not [
            name for name in needs.undefined if "nfer" in name or name in {"getPluginRegistry", "getLogger"}
        ]
        assert not [name for name in needs.libraries if name.startswith(("libpng", "libjpeg", "libz."))]
    exported = set(needs_by_file["lib/libhspan_runtime.so.1"].exported)
    assert exported
    assert all(name.startswith("hspan_") for name in exported)
    assert needs_by_file["lib/libhspan_plugin.so"].exported == (
        "getCreators",
        "hspanPluginInfo",
        "setLoggerFinder",
    )
    assert (board.root / "lib" / "libhspan_runtime.so").resolve().name == "libhspan_runtime.so.1"


def test_the_manifest_vouches_for_every_file(board: BoardPackage) -> None:
    listed = {each["path"]: each for each in board.package.manifest["files"]}
    files = {
        str(path.relative_to(board.root)): path
        for path in board.root.rglob("*")
        if path.is_file() and not path.is_symlink()
    }
    assert set(files) == {*listed, "share/hspan/package.json"}
    for name, entry in listed.items():
        assert sha256(files[name].read_bytes()).hexdigest() == entry["sha256"]
    plugin = listed["lib/libhspan_plugin.so"]["plugin"]
    assert plugin["cubin_architectures"] == [87]
    assert plugin["cuda_version"].startswith("12.")
    assert {"libpng-dev", "zlib1g-dev"} <= set(board.package.manifest["linked_in"])
    assert (board.root / "share/doc/hspan/third-party/libjpeg62-turbo-dev").stat().st_size > 1000


def test_the_debian_package_contains_the_same_tree(board: BoardPackage, tmp_path: Path) -> None:
    assert board.package.deb is not None
    subprocess.run(["dpkg-deb", "-x", board.package.deb, tmp_path], check=True)
    tree = tmp_path / "opt" / "hspan"
    for path in board.root.rglob("*"):
        twin = tree / path.relative_to(board.root)
        assert twin.is_symlink() == path.is_symlink()
        if path.is_file():
            assert twin.read_bytes() == path.read_bytes()
            assert twin.stat().st_mode == path.stat().st_mode
    for name in ("hspan-upscale", "hspan-jetson", "trt-hspan"):
        assert (tmp_path / "usr/bin" / name).readlink() == Path("/opt/hspan/bin") / name
        assert (tree / "bin" / name).stat().st_mode & 0o111
    text = subprocess.run(["dpkg-deb", "-f", board.package.deb], capture_output=True, text=True, check=True)
    fields = dict(line.split(": ", 1) for line in text.stdout.splitlines() if ": " in line)
    depends = fields["Depends"].split(", ")
    assert depends[0].startswith("libc6 (>= 2.")
    assert {"libgcc-s1", "libssl3", "libstdc++6"} <= set(depends)
    assert {"libnvinfer10", "cuda-cudart-12-6"} <= set(fields["Recommends"].split(", "))
    assert fields["Conflicts"] == "hspan-jetson-orin-jp7, hspan-jetson-thor"


def test_the_models_are_the_demo_networks_in_fp16(board: BoardPackage) -> None:
    for scale in (2, 4):
        model = onnx.load(board.root / "models" / f"hspan-tiny-x{scale}-fp16.onnx")
        assert metadata_from_model(model).scale == scale
        assert precision_from_model(model) == "fp16"


# Imports every module that a board can run, where torch and what needs it cannot be imported.
IMPORT_ALL = """
import importlib, pkgutil, sys
sys.path.insert(0, sys.argv[1])

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "onnxscript", "onnxruntime", "polygraphy", "tensorrt", "tensorrt_rtx"}:
            raise ImportError(f"{name} is not on this board")

sys.meta_path.insert(0, Blocked())
import trt_hspan
assert trt_hspan.__file__.startswith(sys.argv[1]), trt_hspan.__file__
names = ["trt_hspan.__main__", "trt_hspan.errors", "trt_hspan.files"]
for part in (
    "cli", "engine", "graph", "inspection", "jetson", "machine", "media", "native", "ops", "runtime", "upscaling",
):
    package = importlib.import_module(f"trt_hspan.{part}")
    names += [each.name for each in pkgutil.walk_packages(package.__path__, f"trt_hspan.{part}.")]
for name in names:
    try:
        importlib.import_module(name)
    except ImportError as error:
        print(name, error)
print(len(names))
"""


def test_the_python_part_is_imported_without_torch(board: BoardPackage, tmp_path: Path) -> None:
    (wheel,) = (board.root / "wheels").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    command = [sys.executable, "-I", "-c", IMPORT_ALL, str(tmp_path)]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    *failed, count = completed.stdout.splitlines()
    # The definition of the attention in torch itself, and the plugin made of it, which exports use.
    assert {line.split()[0] for line in failed} <= {
        "trt_hspan.ops.attention",
        "trt_hspan.ops.cuda",
        "trt_hspan.runtime.torch_runner",
    }
    assert int(count) > 60


def test_the_extra_for_boards_names_what_engines_need_there(board: BoardPackage) -> None:
    """JetPack has TensorRT; PyPI's is for other machines, and torch has no place on a board."""
    (wheel,) = (board.root / "wheels").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = message_from_bytes(archive.read(name))
    assert {"jetson", "jetson-build"} <= set(metadata.get_all("Provides-Extra", []))
    requirements = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]

    def names(extra: str) -> set[str]:
        return {
            each.name
            for each in requirements
            if each.marker is None or each.marker.evaluate({"extra": extra})
        }

    assert names("jetson") - names("") == {"pycuda"}
    assert not names("jetson") & {"torch", "tensorrt", "tensorrt-rtx", "onnxruntime"}
    assert {"torch", "pyelftools", "cmake"} <= names("jetson-build") | names("export") | names("plugin")


def test_install_sets_up_the_commands(board: BoardPackage, tmp_path: Path) -> None:
    """On this machine, with the dependencies that are here instead of pip's."""
    root = tmp_path / "hspan"
    for name in ("bin/trt-hspan", "bin/hspan-jetson", "install.sh", "lib/libhspan_plugin.so"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes((board.root / name).read_bytes())
        (root / name).chmod(0o755)
    (tmp_path / "usr").mkdir()
    command = tmp_path / "usr" / "trt-hspan"
    command.symlink_to(root / "bin" / "trt-hspan")
    early = subprocess.run([command, "--version"], capture_output=True, text=True, check=False)
    assert (early.returncode, early.stdout) == (1, "")
    assert early.stderr == f"trt-hspan: error: {root}/venv: not set up yet; run: {root}/install.sh\n"

    def install(**more: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "PYTHON": sys.executable,
            "PIP_NO_DEPS": "1",
            "PIP_NO_INDEX": "1",
            **more,
        }
        return subprocess.run(
            [root / "install.sh"], capture_output=True, text=True, check=False, env=environment
        )

    without_wheel = install()
    assert without_wheel.returncode == 1
    assert "contains no trt_hspan wheel" in without_wheel.stderr
    (wheel,) = (board.root / "wheels").glob("*.whl")
    (root / "wheels").mkdir()
    (root / "wheels" / wheel.name).write_bytes(wheel.read_bytes())
    without_packages = install(PIP_NO_DEPS="0")
    assert without_packages.returncode == 1
    assert f"pip cannot install {wheel.name}" in without_packages.stderr
    assert not (root / "venv").exists()  # nothing half set up

    completed = install()
    assert completed.returncode == 0, completed.stderr
    assert "TensorRT's Python module is missing" in completed.stderr
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    environment = {**os.environ, "PYTHONPATH": packages}
    for name, words in (("trt-hspan", ["--version"]), ("hspan-jetson", ["boards", "--json"])):
        started = subprocess.run(
            [root / "bin" / name, *words], capture_output=True, text=True, check=False, env=environment
        )
        assert started.returncode == 0, started.stderr
        assert started.stdout
    assert subprocess.run([command, "--version"], env=environment, check=False).returncode == 0
    # An upgrade that fails leaves what was there.
    assert install(PIP_NO_DEPS="0").returncode == 1
    assert subprocess.run([command, "--version"], env=environment, check=False).returncode == 0
    assert sorted(path.name for path in root.iterdir()) == ["bin", "install.sh", "lib", "venv", "wheels"]


# --- the C++ side under emulation


@needs_qemu
def test_the_unit_tests_of_the_runtime_pass_on_64_bit_arm(orin: OrinBuild) -> None:
    names = (
        "upscaling/golden/tile_plans.json",
        "plugins/runtime/golden/tiles.json",
        "native/compatibility.json",
    )
    golden = [TESTS / name for name in names]
    program = orin.build.test_program
    assert program is not None
    counting = program.with_name("libcounting_library.so")
    completed = run_emulated(program, *golden, counting, libraries=orin.board_libraries)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert b"tests, 0 failed" in completed.stdout


@pytest.fixture(scope="module")
def probe(board: BoardPackage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A C program against the package's header and library."""
    path = tmp_path_factory.mktemp("probe") / "probe"
    c_compiler = CROSS_COMPILER.replace("g++", "gcc")
    search = [f"-I{board.root / 'include'}", f"-L{board.root / 'lib'}", "-Wl,--allow-shlib-undefined"]
    command = [c_compiler, "-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", *search]
    subprocess.run([*command, HERE / "probe.c", "-lhspan_runtime", "-o", path], check=True)
    return path


@needs_qemu
def test_a_thousand_random_plans_on_64_bit_arm_are_those_of_the_python_runtime(
    board: BoardPackage, orin: OrinBuild, probe: Path
) -> None:
    draw = random.Random(2)
    questions, expected = [], []
    for _ in range(1000):
        least = (draw.randint(1, 40), draw.randint(1, 40))
        largest = (draw.randint(least[0], 400), draw.randint(least[1], 400))
        tile = (draw.randint(least[0], largest[0]), draw.randint(least[1], largest[1]))
        picture = (draw.randint(1, 3000), draw.randint(1, 3000))
        overlap = draw.choice([None, draw.randint(0, 64)])
        sized = draw.random() < 0.5
        if not sized and overlap == 0:  # the C API's zeroed struct asks for the default overlap
            overlap = None
        questions.append(
            (*least, *largest, *(tile if sized else (0, 0)), -1 if overlap is None else overlap, *picture)
        )
        try:
            plan = plan_for_picture(
                BoundedRunner(least, largest),
                ImageSize(*picture),
                tile=tile if sized else "auto",
                overlap=overlap,
            )
        except UsageError:
            expected.append("status 2")
            continue
        numbers = [len(plan.rows), len(plan.columns)]
        for span in (*plan.rows, *plan.columns):
            numbers += [span.start, span.length, span.rise_start, span.rise_length]
            numbers += [span.fall_start, span.fall_length]
        expected.append(" ".join(map(str, numbers)))
    stdin = "\n".join(" ".join(map(str, numbers)) for numbers in questions).encode()
    libraries = [board.root / "lib", *orin.board_libraries]
    completed = run_emulated(probe, "plan", libraries=libraries, stdin=stdin)
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.decode().splitlines() == expected
    assert 10 < expected.count("status 2") < 200


@needs_qemu
def test_pictures_are_read_and_hostile_ones_are_one_line_each(
    board: BoardPackage, orin: OrinBuild, probe: Path, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (23, 31, 3), np.uint8)
    libraries = [board.root / "lib", *orin.board_libraries]
    output = tmp_path / "out.png"
    draw = random.Random(4)
    for suffix in (".png", ".jpg", ".ppm"):
        picture = tmp_path / f"picture{suffix}"
        Image.fromarray(pixels).save(picture)
        completed = run_emulated(probe, "upscale", picture, output, libraries=libraries)
        assert completed.returncode == 0, completed.stderr
        expected = np.asarray(Image.open(picture)).repeat(2, axis=0).repeat(2, axis=1)
        difference = np.abs(np.asarray(Image.open(output)).astype(int) - expected)
        assert difference.max() <= (2 if suffix == ".jpg" else 0)  # decoders differ in rounding
        output.unlink()
        content = picture.read_bytes()
        bad = tmp_path / f"bad{suffix}"
        for _ in range(12):
            spoilt = bytearray(content[: draw.randrange(len(content))])
            for _ in range(3):
                if spoilt:
                    spoilt[draw.randrange(len(spoilt))] = draw.randrange(256)
            bad.write_bytes(spoilt)
            completed = run_emulated(probe, "upscale", bad, output, libraries=libraries)
            assert completed.returncode == 1, (suffix, completed)
            assert len(completed.stderr.decode(errors="replace").splitlines()) == 1
            assert not output.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"{kind}{suffix}" for kind in ("picture", "bad") for suffix in (".png", ".jpg", ".ppm")
    )


@needs_qemu
def test_the_plugin_loads_on_an_emulated_64_bit_arm(
    board: BoardPackage, orin: OrinBuild, tmp_path: Path
) -> None:
    source = tmp_path / "load.c"
    source.write_text(
        "#include <dlfcn.h>\n#include <stdio.h>\n"
        "int main(int argc, char** argv)\n{\n"
        "    void* library = dlopen(argv[argc - 1], RTLD_NOW);\n"
        "    if (!library) { puts(dlerror()); return 1; }\n"
        '    puts(((char const* (*)(void))dlsym(library, "hspanPluginInfo"))());\n'
        "    int count = 0;\n"
        '    ((void* (*)(int*))dlsym(library, "getCreators"))(&count);\n'
        '    printf("%d\\n", count);\n    return 0;\n}\n'
    )
    program = tmp_path / "load"
    subprocess.run([CROSS_COMPILER, "-xc", source, "-o", program], check=True)
    plugin = board.root / "lib" / "libhspan_plugin.so"
    completed = run_emulated(program, plugin, libraries=orin.board_libraries)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    info, count = completed.stdout.decode().splitlines()
    assert json.loads(info)["cubin_architectures"] == [87]
    assert count == "1"
