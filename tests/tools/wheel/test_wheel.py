"""The platform wheel in an environment of its own: no compiler, no torch, no checkout, nothing on PATH but itself."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.serve_process import ServeProcess
from support.synthetic_pictures import picture

from tools.wheel import build
from trt_hspan import HspanError, UsageError
from trt_hspan.media.pictures import read_image
from trt_hspan.native.build import build_cpu_library
from trt_hspan.native.cpu_attention import LIBRARY_NAME as CPU_LIBRARY
from trt_hspan.native.cuda_attention import LIBRARY_NAME as CUDA_LIBRARY
from trt_hspan.native.plugin import LIBRARY_NAME as PLUGIN
from trt_hspan.native.sources import cpu_sources_sha256, plugin_sources_sha256, sources_folder
from trt_hspan.runtime.onnxruntime_runner import OnnxRuntimeRunner
from trt_hspan.upscaling.pictures import upscale_file

HERE = platform.machine()
MOST_MEGABYTES = 500


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    return build.build_wheel(folder, build.libraries_for(HERE), build.platform_tag(HERE))


@dataclass(frozen=True)
class Environment:
    """A virtual environment into which only the wheel and what it requires are installed."""

    root: Path

    def run(self, program: str, *words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        """PATH is the environment's own programs. What pip needs to know of its index stays."""
        kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_"))}
        completed = subprocess.run(
            [self.root / "bin" / program, *map(str, words)],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.root,
            env={**kept, "PATH": str(self.root / "bin"), "HOME": str(self.root / "home"), "COLUMNS": "200"},
        )
        assert completed.returncode == code, completed.stdout + completed.stderr
        return completed

    def install(self, requirement: str) -> None:
        self.run("pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile", requirement)

    def megabytes(self) -> float:
        files = (path for path in self.root.rglob("*") if path.is_file() and not path.is_symlink())
        return sum(path.stat().st_size for path in files) / 1e6


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    root = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", root], check=True)
    environment = Environment(root)
    environment.install(f"{wheel}[cpu,serve]")
    return environment


@pytest.fixture
def cat(environment: Environment) -> Path:
    path = environment.root / "cat.png"
    Image.fromarray(picture(48, 56, seed=5)).save(path)
    return path


def test_the_wheel_upscales_with_its_own_library_and_network(environment: Environment, cat: Path) -> None:
    completed = environment.run("trt-hspan", "upscale", "cat.png", "-o", "cat_x4.png")
    assert "slower" not in completed.stderr  # what a run without the library says
    network = sources_folder() / "trt_hspan" / "model" / "weights" / "hspan-tiny-x4.onnx"
    expected = environment.root / "expected.png"
    upscale_file(OnnxRuntimeRunner(network), cat, expected)
    np.testing.assert_array_equal(read_image(environment.root / "cat_x4.png"), read_image(expected))


def test_the_environment_is_small_and_consistent(environment: Environment) -> None:
    assert environment.megabytes() <= MOST_MEGABYTES  # [cpu] alone is less
    environment.run("pip", "check")
    assert not (environment.root / "bin" / "c++").exists()
    assert "torch" not in environment.run("pip", "list").stdout


def test_what_the_wheel_ships_needs_no_compiling(environment: Environment) -> None:
    for words, name in (((), PLUGIN), (("--cpu",), CPU_LIBRARY), (("--cuda",), CUDA_LIBRARY)):
        printed = environment.run("trt-hspan", "plugin", "build", *words).stdout
        assert "not needed, it was up to date" in printed
        assert f"_libraries/{name}" in printed
    error = environment.run("trt-hspan", "plugin", "build", "--cpu", "--force", code=1).stderr
    assert "cmake: not found" in error


def test_a_missing_extra_is_installed_by_the_line_that_asks_for_it(
    environment: Environment, wheel: Path
) -> None:
    error = environment.run(
        "trt-hspan", "upscale", "cat.png", "-o", "out.png", "--checkpoint", "hspan-x4", code=1
    )
    assert error.stderr.strip().endswith(f"pip install '{wheel}[export]'")


def test_a_server_of_the_serve_extra_answers_with_the_same_pixels(
    environment: Environment, cat: Path
) -> None:
    environment.run("trt-hspan", "upscale", cat, "-o", "direct.png", "--overwrite")
    server = ServeProcess(
        "hspan-tiny-x4",
        *("--instances", 1),
        command=[environment.root / "bin" / "trt-hspan"],
        environment={"PATH": str(environment.root / "bin"), "PYTHONPATH": "", "HOME": str(environment.root)},
    )
    try:
        environment.run("trt-hspan", "client", cat, "-o", "served.png", "--url", server.http)
    finally:
        assert server.stop() == 0, server.stderr
    pictures = [read_image(environment.root / name) for name in ("direct.png", "served.png")]
    np.testing.assert_array_equal(*pictures)


def test_the_wheel_contains_the_libraries_and_says_what_they_need(wheel: Path) -> None:
    build.check_wheel(wheel)
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        tags = archive.read(f"{wheel.name.rsplit('-', 3)[0]}.dist-info/WHEEL").decode()
    assert {f"trt_hspan/_libraries/{name}" for name in (PLUGIN, CPU_LIBRARY, CUDA_LIBRARY)} <= names
    weights = {f"trt_hspan/model/weights/hspan-tiny-x{scale}" for scale in (2, 4)}
    assert {f"{name}{suffix}" for name in weights for suffix in (".onnx", ".safetensors")} <= names
    assert "Root-Is-Purelib: false" in tags
    assert f"Tag: py3-none-manylinux_2_28_{HERE}" in tags


def test_a_wheel_that_promises_too_much_is_refused(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "OLDEST_GLIBC", (2, 5))
    with pytest.raises(HspanError, match=r"needs manylinux_2_\d+_\w+, manylinux_2_5_\w+ was expected"):
        build.check_wheel(wheel)
    monkeypatch.undo()
    other = tmp_path / wheel.name.replace(HERE, next(name for name in build.MACHINES if name != HERE))
    other.write_bytes(wheel.read_bytes())
    with pytest.raises(HspanError, match=r"auditwheel: .*hspan"):
        build.check_wheel(other)
    with pytest.raises(UsageError, match="got riscv64, here wheels are built for"):
        build.libraries_for("riscv64")


def test_a_library_of_other_sources_is_not_packed(tmp_path: Path) -> None:
    stale = tmp_path / CPU_LIBRARY
    digest = cpu_sources_sha256(sources_folder()).encode()
    stale.write_bytes(build_cpu_library().path.read_bytes().replace(digest, b"0" * 64))
    with pytest.raises(HspanError, match="was compiled from other sources; compile it again"):
        build.build_wheel(tmp_path, [stale], build.platform_tag(HERE))


def test_the_source_distribution_compiles_the_same_sources(tmp_path: Path) -> None:
    archive = build._hatchling("sdist", tmp_path)
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    unpacked = tmp_path / archive.name.removesuffix(".tar.gz")
    for digest in (plugin_sources_sha256, cpu_sources_sha256):
        assert digest(unpacked) == digest(sources_folder())
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=unpacked, check=True
    )
    (pure,) = tmp_path.glob("*-py3-none-any.whl")
    with zipfile.ZipFile(pure) as wheel:
        wheel.extractall(tmp_path / "installed")
    assert plugin_sources_sha256(tmp_path / "installed" / "trt_hspan" / "_sources") == plugin_sources_sha256(
        sources_folder()
    )
