"""The sources of the libraries by their hash, and where the libraries are looked for and go."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from trt_hspan.errors import HspanError
from trt_hspan.native import sources
from trt_hspan.native.sources import (
    LibraryPlaces,
    cpu_sources_sha256,
    cuda_sources_sha256,
    is_checkout,
    plugin_sources_sha256,
    sources_folder,
)
from trt_hspan.version import __version__

ROOT = Path(sources.__file__).parents[2]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "plugins", tmp_path / "plugins", ignore=shutil.ignore_patterns("runtime"))
    shutil.copy(ROOT / "CMakeLists.txt", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("changed", "plugin", "cuda", "cpu"),
    [
        ("plugins/kernels/launchers.h", True, True, False),
        ("plugins/device/new/file.cuh", True, True, False),
        ("plugins/tensorrt/report.cpp", True, False, False),
        ("plugins/cuda/hspan_cuda.cpp", False, True, False),
        ("plugins/cuda/nvcc.options", True, True, False),
        ("plugins/CMakeLists.txt", True, True, False),
        ("CMakeLists.txt", True, True, False),
        ("plugins/cpu/attention.cpp", False, False, True),
        ("plugins/cpu/new.h", False, False, True),
        ("plugins/cpu/CMakeLists.txt", False, False, True),
        ("plugins/cpu/README.md", False, False, False),
        ("plugins/kernels/README.md", False, False, False),
        ("plugins/runtime/x.cpp", False, False, False),
    ],
)
def test_a_changed_source_is_another_library(
    copy: Path, changed: str, plugin: bool, cuda: bool, cpu: bool
) -> None:
    hashes = (plugin_sources_sha256, cuda_sources_sha256, cpu_sources_sha256)
    before = [digest(copy) for digest in hashes]
    assert before == [digest(ROOT) for digest in hashes]
    path = copy / changed
    path.parent.mkdir(exist_ok=True)
    path.write_text((path.read_text() if path.exists() else "") + "// changed\n")
    after = [digest(copy) for digest in hashes]
    assert [a != b for a, b in zip(before, after, strict=True)] == [plugin, cuda, cpu]


def test_a_source_of_another_name_is_another_library(copy: Path) -> None:
    before = plugin_sources_sha256(copy)
    header = copy / "plugins" / "kernels" / "launchers.h"
    header.rename(header.with_name("other.h"))
    assert plugin_sources_sha256(copy) != before


def test_a_checkout_has_both_files_of_cmake(tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    files = tmp_path / "CMakeLists.txt", tmp_path / "plugins" / "CMakeLists.txt"
    for there in ((), files[:1], files[1:], files):
        for file in files:
            file.unlink(missing_ok=True)
        for file in there:
            file.touch()
        assert is_checkout(tmp_path) is (there == files)


def test_sources_are_those_of_the_wheel_or_of_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sources_folder() == ROOT
    monkeypatch.setattr(sources, "is_checkout", lambda root: root.name == "_sources")
    assert sources_folder() == ROOT / "trt_hspan" / "_sources"
    monkeypatch.setattr(sources, "is_checkout", lambda root: False)
    with pytest.raises(
        HspanError, match="this installation contains no sources of the libraries; install trt-hspan"
    ):
        sources_folder()


PLACES = LibraryPlaces(
    file_name="own.so", variable="OWN_LIBRARY", folder="own", sources_sha256=lambda _: "0123456789abcdef" * 4
)


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The library of a wheel, which is not there yet."""
    monkeypatch.delenv("OWN_LIBRARY", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "_SHIPPED", tmp_path)
    return tmp_path / "own.so"


def test_a_checkout_keeps_its_libraries_in_its_build_folder(shipped: Path) -> None:
    assert PLACES.own_path() == PLACES.path() == ROOT / "build" / "own" / "own.so"


def test_an_installation_uses_what_its_wheel_ships_until_another_is_compiled(
    shipped: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sources, "is_checkout", lambda root: root.name == "_sources")
    own = tmp_path / "cache" / "trt-hspan" / f"{__version__}-0123456789abcdef" / "own.so"
    assert PLACES.path() == own
    shipped.touch()
    assert PLACES.path() == shipped
    assert PLACES.own_path() == own
    own.parent.mkdir(parents=True)
    own.touch()
    assert PLACES.path() == own
    monkeypatch.setenv("OWN_LIBRARY", str(tmp_path / "absent.so"))
    assert PLACES.path() == PLACES.own_path() == tmp_path / "absent.so"
    own.unlink()
    assert PLACES.path() == tmp_path / "absent.so"


def test_an_installation_without_sources_keeps_libraries_by_its_version(
    shipped: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sources, "is_checkout", lambda root: False)
    assert PLACES.own_path() == tmp_path / "cache" / "trt-hspan" / __version__ / "own.so"
