"""Whether a library is compiled, for what, and what CMake is asked to do: with a double of it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.native import build as module
from trt_hspan.native.build import build_library, require_current
from trt_hspan.native.progress import BuildProgress
from trt_hspan.native.toolchain import Toolchain

DIGEST = "d" * 64


class CMake:
    """Notes what it is told, and makes a library of it; the state of a library is its text."""

    def __init__(self, folder: Path) -> None:
        self.commands: list[list[str]] = []
        self.environment: dict[str, str] = {}
        self.found = {"nvcc": folder / "nvcc", "headers": folder / "headers"}
        self.asked: dict[str, Any] = {}
        self.library_path: Path | None = None
        self.supported: tuple[int, ...] | None = (75, 80, 86, 89, 90, 100, 120, 121)
        self.checked: list[Path] = []

    def run(self, commands: Any, log: Path, *, where: str, environment: Any, on_progress: Any) -> None:
        self.commands = [[str(word) for word in command] for command in commands]
        self.where, self.log, self.environment = where, log, environment
        on_progress(BuildProgress(fraction=1.0, phase="done"))
        build = Path(self.option("-B"))
        self.was_there = build.exists()
        made = build / "plugins" / "own.so"
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_text(f"{DIGEST} {self.define('HSPAN_ARCHITECTURES').replace(';', ' ')}")

    def option(self, name: str) -> str:
        return self.commands[0][self.commands[0].index(name) + 1]

    def define(self, name: str) -> str:
        (value,) = (word.partition("=")[2] for word in self.commands[0] if word.startswith(f"-D{name}="))
        return value

    def toolchain(self, **asked: Any) -> Toolchain:
        self.asked = asked
        return Toolchain(
            nvcc=self.found["nvcc"],
            cuda_version="13.0",
            library_path=self.library_path,
            host_compiler=Path("/c++"),
            cmake=Path("/cmake"),
            headers=self.found["headers"] if asked["for_tensorrt"] else None,
        )

    def find_nvcc(self) -> Path:
        if self.supported is None:
            raise HspanError("nvcc", "no CUDA compiler found")
        return self.found["nvcc"]


@pytest.fixture
def cmake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CMake:
    double = CMake(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LIBRARY_PATH", raising=False)
    monkeypatch.setattr(module, "run_cmake", double.run)
    monkeypatch.setattr(module, "find_toolchain", double.toolchain)
    monkeypatch.setattr(module, "find_nvcc", double.find_nvcc)
    monkeypatch.setattr(module, "find_cmake", lambda: Path("/cmake"))
    monkeypatch.setattr(module, "find_host_compiler", lambda: Path("/c++"))
    monkeypatch.setattr(module, "generator_options", lambda: ["-G", "Ninja"])
    monkeypatch.setattr(module, "supported_architectures", lambda _: double.supported)
    monkeypatch.setattr(module, "gpu_architectures", lambda: ("sm_121", "sm_86"))
    monkeypatch.setattr(module, "sources_folder", lambda: tmp_path / "sources")
    return double


def state_of(path: Path) -> tuple[str, tuple[int, ...]] | None:
    if not path.is_file():
        return None
    digest, *numbers = path.read_text().split()
    return digest, tuple(map(int, numbers))


@dataclasses.dataclass(frozen=True)
class Places:
    """Where the library is, and where it goes."""

    used: Path
    own: Path
    file_name: str = "own.so"

    def path(self) -> Path:
        return self.used

    def own_path(self) -> Path:
        return self.own

    def sources_sha256(self, folder: Path) -> str:
        assert folder.name == "sources"
        return DIGEST


@pytest.fixture
def product(tmp_path: Path, cmake: CMake) -> Any:
    return dataclasses.replace(
        module._CUDA,
        name="library",
        places=Places(tmp_path / "used.so", tmp_path / "own" / "own.so"),  # type: ignore[arg-type]
        built="plugins/own.so",
        state=state_of,
        check=cmake.checked.append,
    )


def write(path: Path, digest: str, numbers: Sequence[int]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(" ".join([digest, *map(str, numbers)]))
    return path


DEFAULT = (75, 80, 86, 89, 90, 100, 120, 121)


@pytest.mark.parametrize(
    ("digest", "numbers", "options", "compiled"),
    [
        (DIGEST, DEFAULT, {}, False),
        (DIGEST, (*DEFAULT, 130), {}, False),
        (DIGEST, DEFAULT[:-1], {}, True),
        ("e" * 64, DEFAULT, {}, True),
        (DIGEST, DEFAULT, {"force": True}, True),
        (DIGEST, DEFAULT, {"nvcc": "mine"}, True),
        (DIGEST, DEFAULT, {"tensorrt_root": "mine"}, True),
        (DIGEST, (86,), {"architectures": ["sm_86", "8.6", 86]}, False),
        (DIGEST, (86, 89), {"architectures": ["86"]}, True),
        (DIGEST, (86,), {"architectures": ["86", "89"]}, True),
    ],
)
def test_a_library_is_compiled_unless_the_one_in_place_will_do(
    cmake: CMake, product: Any, digest: str, numbers: tuple[int, ...], options: dict[str, Any], compiled: bool
) -> None:
    used = write(product.places.used, digest, numbers)
    result = build_library(product, **options)
    assert result.compiled is compiled
    assert result.path == (product.places.own if compiled else used)
    assert bool(cmake.commands) is compiled
    named = write(product.places.used.with_name("named.so"), digest, numbers)
    assert build_library(product, named, **options) == module.LibraryBuild(named, compiled)


def test_what_is_compiled_is_checked_and_copied_whole(cmake: CMake, product: Any, tmp_path: Path) -> None:
    seen: list[BuildProgress] = []
    result = build_library(
        product, tmp_path / "new" / "mine.so", architectures=[89, 86], on_progress=seen.append
    )
    assert result == module.LibraryBuild(tmp_path / "new" / "mine.so", compiled=True)
    assert result.path.read_text() == f"{DIGEST} 86 89"
    assert [path.name for path in result.path.parent.iterdir()] == ["mine.so"]
    assert cmake.checked == [Path(cmake.option("-B")) / "plugins" / "own.so"]
    assert [(each.fraction, each.phase) for each in seen] == [(0.0, "configuring"), (1.0, "done")]
    assert cmake.where == "library"
    assert cmake.log == Path(cmake.option("-B")).parent / "build.log"


def test_cmake_is_given_the_compilers_the_architectures_and_the_kind_of_library(
    cmake: CMake, product: Any
) -> None:
    build_library(product, architectures=["8.6", "12.0"], jobs=3)
    assert cmake.commands[0][:1] == ["/cmake"]
    assert cmake.option("-G") == "Ninja"
    assert cmake.option("-S").endswith("sources")
    assert cmake.define("HSPAN_ARCHITECTURES") == "86;120"
    assert cmake.define("CMAKE_CUDA_COMPILER") == str(cmake.found["nvcc"])
    assert cmake.define("CMAKE_CUDA_HOST_COMPILER") == cmake.define("CMAKE_CXX_COMPILER") == "/c++"
    assert (cmake.define("HSPAN_BUILD_PLUGIN"), cmake.define("HSPAN_BUILD_CUDA")) == ("OFF", "ON")
    assert cmake.define("HSPAN_SOURCE_SHA256") == DIGEST
    assert cmake.define("CMAKE_BUILD_TYPE") == "Release"
    assert not any("TENSORRT" in word for word in cmake.commands[0])
    assert cmake.commands[1] == ["/cmake", "--build", cmake.option("-B"), "--parallel", "3"]
    assert cmake.asked == {"nvcc": None, "tensorrt_root": None, "for_tensorrt": False}
    plugin = dataclasses.replace(product, compiler="nvcc and TensorRT", choice=module._PLUGIN.choice)
    kernels = cmake.option("-B")
    build_library(plugin, architectures=[86, 120], force=True, nvcc="n", tensorrt_root="t")
    assert cmake.asked == {"nvcc": "n", "tensorrt_root": "t", "for_tensorrt": True}
    assert cmake.define("HSPAN_TENSORRT_INCLUDE") == str(cmake.found["headers"])
    assert cmake.define("HSPAN_BUILD_PLUGIN") == "ON"
    assert cmake.option("-B") == kernels, "the kernels are compiled once for both"
    assert not cmake.was_there, "force begins with nothing"
    build_library(plugin, architectures=[86, 120], nvcc="n")
    assert cmake.was_there
    build_library(plugin, architectures=[86])
    assert cmake.option("-B") != kernels
    assert len(Path(cmake.option("-B")).parent.name) == 16


@pytest.mark.parametrize(("jobs", "processors", "expected"), [(None, 7, "7"), (None, None, "1"), (1, 7, "1")])
def test_as_many_compilations_run_as_there_are_processors(
    cmake: CMake,
    product: Any,
    monkeypatch: pytest.MonkeyPatch,
    jobs: int | None,
    processors: Any,
    expected: str,
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    build_library(product, jobs=jobs)
    assert cmake.commands[1][-1] == expected
    for wrong in (0, -1):
        with pytest.raises(UsageError, match=f"--jobs: got {wrong}, expected at least 1"):
            build_library(product, jobs=wrong)


def test_a_compiler_of_pythons_wheels_is_told_where_its_libraries_are(
    cmake: CMake, product: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_library(product)
    assert "LIBRARY_PATH" not in cmake.environment
    assert cmake.environment["PATH"] == os.environ["PATH"]
    cmake.library_path = Path("/wheel/lib")
    build_library(product, force=True)
    assert cmake.environment["LIBRARY_PATH"] == "/wheel/lib"
    monkeypatch.setenv("LIBRARY_PATH", "/mine")
    build_library(product, force=True)
    assert cmake.environment["LIBRARY_PATH"] == "/wheel/lib:/mine"
    assert os.environ["LIBRARY_PATH"] == "/mine"


def test_a_library_for_cpus_takes_cmake_and_a_compiler_alone(
    cmake: CMake, product: Any, tmp_path: Path
) -> None:
    cpu = dataclasses.replace(product, compiler="C++", folder="plugins/cpu", choice=())
    write(product.places.used, DIGEST, ())
    assert not build_library(cpu).compiled

    def run(*words: Any, **options: Any) -> None:
        cmake.commands = [[str(word) for word in command] for command in words[0]]
        made = Path(cmake.option("-B")) / "plugins" / "own.so"
        made.parent.mkdir(parents=True)
        made.write_text(DIGEST)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "run_cmake", run)
        assert build_library(cpu, force=True).compiled
    assert cmake.asked == {}
    assert cmake.define("CMAKE_CXX_COMPILER") == "/c++"
    assert cmake.option("-S") == str(tmp_path / "sources" / "plugins" / "cpu")
    assert not any("CUDA" in word for word in cmake.commands[0])


def test_default_architectures_are_those_the_compiler_has_and_those_of_the_gpus(
    cmake: CMake, product: Any
) -> None:
    build_library(product, force=True)
    assert cmake.define("HSPAN_ARCHITECTURES") == "75;80;86;89;90;100;120;121"
    cmake.supported = (75, 80, 86, 87)
    build_library(product, force=True)
    assert cmake.define("HSPAN_ARCHITECTURES") == "75;80;86"
    # Without a compiler, the library at hand has to have all that there are, and the GPU's.
    cmake.supported = None
    write(product.places.used, DIGEST, DEFAULT)
    assert not build_library(product).compiled


def test_architectures_are_those_that_the_compiler_has(cmake: CMake, product: Any, tmp_path: Path) -> None:
    cmake.supported = (75, 86)
    with pytest.raises(HspanError) as caught:
        build_library(product, tmp_path / "out.so", architectures=[90, 86, 120])
    assert str(caught.value) == (
        f"{tmp_path / 'nvcc'}: CUDA 13.0 cannot compile for sm_90, sm_120; choose among 75, 86, or another CUDA "
        "toolkit by --nvcc"
    )
    with pytest.raises(UsageError, match="--arch: no architecture given; name at least one"):
        build_library(product, architectures=[])
    with pytest.raises(UsageError, match="architecture"):
        build_library(product, architectures=["ampere"])


def test_only_libraries_of_the_sources_at_hand_are_current(
    tmp_path: Path, product: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CUDA", product)
    library = write(tmp_path / "own.so", DIGEST, (86,))
    require_current(library)
    line = "was compiled from other sources; compile it again: trt-hspan plugin build"
    write(library, "e" * 64, (86,))
    with pytest.raises(HspanError, match=line):
        require_current(library)
    library.unlink()
    with pytest.raises(HspanError, match=line):
        require_current(library)


def test_what_is_none_of_our_libraries_has_no_state(tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("no library")
    for product in (module._PLUGIN, module._CUDA, module._CPU):
        assert product.state(tmp_path / "text.so") is None
        assert product.state(tmp_path / "none.so") is None
    (tmp_path / "cpu.so").write_bytes(b"hspan-cpu-source-sha256=" + DIGEST.encode() + b"\0")
    assert module._CPU.state(tmp_path / "cpu.so") == (DIGEST, ())
