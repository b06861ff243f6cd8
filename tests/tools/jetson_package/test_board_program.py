"""hspan-upscale for Jetson Orin under emulation, with doubles of TensorRT and CUDA, and without."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from support.arm64 import emulated, needs_cross_compiler, needs_qemu
from support.upscale_program import ProgramContract, UpscaleProgram, only_line

from tools.jetson_package.cross_toolkit import CROSS_COMPILER
from trt_hspan.native.plugin import PLUGIN_ABI_VERSION
from trt_hspan.native.toolchain import find_tensorrt_headers

from .conftest import OrinBuild

DOUBLES = Path(__file__).parents[2] / "cpp" / "gpu_double"

pytestmark = [needs_cross_compiler, needs_qemu]


@pytest.fixture(scope="module")
def doubles(orin: OrinBuild, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with libnvinfer.so.10 and libcudart.so.12 for aarch64 that work on main memory."""
    folder = tmp_path_factory.mktemp("doubles")
    headers = find_tensorrt_headers()
    generate = [sys.executable, DOUBLES / "stubs.py", headers / "NvInferImpl.h", folder / "stubs.h"]
    subprocess.run(generate, check=True)
    common: list[str | Path] = [CROSS_COMPILER, "-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC"]
    common += ["-isystem", headers, "-isystem", orin.build.toolkit / "include", "-isystem", folder]
    versions = (
        f"-Wl,--version-script={DOUBLES / 'cudart.map'}"  # the program asks for symbols of that version
    )
    cuda = ["-Wl,-soname,libcudart.so.12", versions, "-o", folder / "libcudart.so.12"]
    tensorrt = ["-Wl,-soname,libnvinfer.so.10", "-o", folder / "libnvinfer.so.10"]
    subprocess.run([*common, DOUBLES / "cuda_double.cpp", *cuda], check=True)
    subprocess.run([*common, DOUBLES / "tensorrt_double.cpp", *tensorrt], check=True)
    return folder


class TestOnArm(ProgramContract):
    """The contract on 64-bit Arm."""

    @pytest.fixture
    def program(self, orin: OrinBuild, doubles: Path) -> UpscaleProgram:
        libraries = [doubles, *orin.board_libraries]
        return UpscaleProgram(emulated(orin.build.program, libraries=libraries))


def test_the_program_starts_and_reads_an_engine_without_tensorrt(orin: OrinBuild, engine_copy: Path) -> None:
    assert b"--engine" in orin.upscale("--help").stdout
    completed = orin.upscale("--engine", engine_copy, "--info", "--json")
    assert completed.returncode == 0, completed.stderr
    info = json.loads(completed.stdout)
    assert info["program"] == "tensorrt (not installed), CUDA 12.4"
    assert info["scale"] == 4


def test_a_missing_tensorrt_is_one_line(
    orin: OrinBuild, engine_copy: Path, gray_picture: Path, tmp_path: Path
) -> None:
    line = only_line(orin.upscale("-e", engine_copy, gray_picture, "-o", tmp_path / "out.png"), 1)
    assert "libnvinfer.so.10: cannot be loaded" in line
    assert "apt install libnvinfer10" in line
    assert not (tmp_path / "out.png").exists()


def tensorrt_double(folder: Path, *, major: int = 10, minor: int = 3, symbols: bool = True) -> Path:
    """A folder with a libnvinfer.so.10 for aarch64 that knows its version and no more."""
    folder.mkdir()
    functions = {"Major": major, "Minor": minor, "Patch": 0, "": major * 10000 + minor * 100}
    lines = [
        f"int getInferLib{name}Version(void) {{ return {number}; }}" for name, number in functions.items()
    ]
    lines.append("void* createInferRuntime_INTERNAL(void* logger, int version) { return 0; }")
    (folder / "double.c").write_text("\n".join(lines) if symbols else "int nothing;")
    options = ["-shared", "-fPIC", "-Wl,-soname,libnvinfer.so.10", "-o", folder / "libnvinfer.so.10"]
    subprocess.run([CROSS_COMPILER, "-xc", folder / "double.c", *options], check=True)
    return folder


def test_a_missing_driver_is_one_line(
    orin: OrinBuild, engine_copy: Path, gray_picture: Path, tmp_path: Path
) -> None:
    double = tensorrt_double(tmp_path / "double")
    line = only_line(
        orin.upscale("-e", engine_copy, gray_picture, "-o", tmp_path / "out.png", extra=(double,)), 1
    )
    assert "GPU: cannot be used" in line
    assert "driver" in line
    info = orin.upscale("-e", engine_copy, "--info", "--json", extra=(double,))
    assert json.loads(info.stdout)["program"] == "tensorrt 10.3.0, CUDA 12.4"


@pytest.mark.parametrize(
    ("major", "symbols", "part"), [(11, True, "is TensorRT 11.3.0"), (10, False, "has no function create")]
)
def test_a_library_that_is_not_that_tensorrt_is_one_line(
    orin: OrinBuild,
    engine_copy: Path,
    gray_picture: Path,
    tmp_path: Path,
    major: int,
    symbols: bool,
    part: str,
) -> None:
    double = tensorrt_double(tmp_path / "double", major=major, symbols=symbols)
    assert part in only_line(
        orin.upscale("-e", engine_copy, gray_picture, "-o", tmp_path / "o.png", extra=(double,)), 1
    )


def test_a_plan_cut_or_changed_is_one_line(orin: OrinBuild, engine_copy: Path) -> None:
    content = engine_copy.read_bytes()
    for length in (0, 1, len(content) // 2, len(content) - 1):
        engine_copy.write_bytes(content[:length])
        line = only_line(orin.upscale("-e", engine_copy, "--info"), 1)
        assert " says " in line or "is empty" in line
    engine_copy.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "SHA-256" in only_line(orin.upscale("-e", engine_copy, "--info"), 1)


def test_foreign_and_spoilt_plugins_are_refused_on_the_board(orin: OrinBuild, engine_copy: Path) -> None:
    manifest = json.loads(engine_copy.with_suffix(".json").read_text())

    def named(library: bytes, abi: int = PLUGIN_ABI_VERSION) -> None:
        path = engine_copy.parent / "libhspan_plugin.so"
        path.write_bytes(library)
        record = {
            "file": path.name,
            "sha256": sha256(library).hexdigest(),
            "abi_version": abi,
            "architectures": ["sm_87"],
        }
        engine_copy.with_suffix(".json").write_text(json.dumps({**manifest, "plugin": record}))

    ours = orin.build.plugin.read_bytes()
    named(ours)
    assert orin.upscale("-e", engine_copy, "--info").returncode == 0
    named(ours, abi=PLUGIN_ABI_VERSION + 1)
    expected = f"ABI version {PLUGIN_ABI_VERSION}, the engine needs {PLUGIN_ABI_VERSION + 1}"
    assert expected in only_line(orin.upscale("-e", engine_copy, "--info"), 1)
    foreign = bytearray(ours)
    foreign[18] = 62  # EM_X86_64
    named(bytes(foreign))
    assert "is for x86-64, this program is not" in only_line(orin.upscale("-e", engine_copy, "--info"), 1)
    named(ours)
    (engine_copy.parent / "libhspan_plugin.so").write_bytes(ours[: len(ours) // 3])
    assert only_line(orin.upscale("-e", engine_copy, "--info"), 1)


HOSTILE = [
    None,
    True,
    -1,
    0,
    2**63,
    1e308,
    "",
    "../x",
    "\0",
    "é" * 5000,
    [],
    [[]],
    {},
    [1, 3, -5, 2**40],
    ["a"] * 4,
]


def test_hostile_manifests_are_one_line_each(orin: OrinBuild, engine_copy: Path) -> None:
    """Each value at every depth is replaced once; whole files of nonsense too."""
    path = engine_copy.with_suffix(".json")
    manifest = json.loads(path.read_text())
    draw = random.Random(3)
    texts = [b"", b"{", b"[" * 100_000, b"\xff\xfe\0", b" " * (1 << 21), b'{"format_version": 1e999}']
    for key, value in manifest.items():
        texts.append(json.dumps({**manifest, key: draw.choice(HOSTILE)}).encode())
        if isinstance(value, dict):
            for inner in value:
                texts.append(json.dumps({**manifest, key: {**value, inner: draw.choice(HOSTILE)}}).encode())
    whole = json.dumps(manifest).encode()
    texts += [whole[: draw.randrange(1, len(whole))] for _ in range(10)]
    refused = 0
    for text in texts:
        path.write_bytes(text)
        completed = orin.upscale("-e", engine_copy, "--info")
        if completed.returncode != 0:  # some fields are none of the program's business
            only_line(completed, 1)
            refused += 1
    assert refused > 15
