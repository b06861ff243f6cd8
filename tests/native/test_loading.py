"""Libraries by their C interface, and which of them is taken."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trt_hspan.errors import HspanError
from trt_hspan.native import loading
from trt_hspan.native.loading import TYPE_NUMBERS, checked_library, open_library
from trt_hspan.native.sources import sources_folder


def library(folder: Path, source: str) -> Path:
    path = folder / f"{len(source)}.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-xc", "-", "-o", path], input=source, text=True, check=True)
    return path


def opened(path: Path) -> Any:
    return open_library(path, version_function="version", version=7, command="make it")


def test_a_library_has_the_version_that_fits(tmp_path: Path) -> None:
    good = library(tmp_path, "int version(void) { return 7; } int one(void) { return 1; }")
    assert opened(good).one() == 1
    (tmp_path / "text.so").write_text("no library")
    for path, line in (
        (library(tmp_path, "int version(void) { return 8; }"), "has ABI version 8, this package needs 7"),
        (library(tmp_path, "int other;"), "is another library: it has no version"),
        (tmp_path / "text.so", "cannot be loaded: "),
        (tmp_path / "none.so", "cannot be loaded: "),
    ):
        with pytest.raises(HspanError) as caught:
            opened(path)
        assert str(caught.value).startswith(f"{path}: {line}")
        assert caught.value.next_step == "compile it again with make it"


def test_a_library_is_of_the_sources_at_hand_unless_it_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OWN", raising=False)
    monkeypatch.setattr(loading, "sources_folder", lambda: tmp_path)
    path = tmp_path / "own.so"
    places: Any = SimpleNamespace(path=lambda: path, variable="OWN", sources_sha256=lambda _: "a")

    def checked(digest: str) -> Any:
        return checked_library(
            lambda place: SimpleNamespace(source_sha256=digest, place=place), places, "make it"
        )

    with pytest.raises(HspanError, match="there is no such library; compile it with make it"):
        checked("a")
    path.touch()
    assert checked("a").place == path
    with pytest.raises(HspanError, match="was compiled from other sources; compile it again with make it"):
        checked("b")
    monkeypatch.setenv("OWN", "")
    with pytest.raises(HspanError, match="was compiled from other sources"):
        checked("b")
    monkeypatch.setenv("OWN", str(path))
    assert checked("b").place == path


def test_numbers_of_the_types_are_those_of_both_headers() -> None:
    plugins = sources_folder() / "plugins"
    for header, prefix in (("cpu/hspan_cpu.h", "HSPAN_CPU"), ("cuda/hspan_cuda.h", "HSPAN_CUDA")):
        text = (plugins / header).read_text()
        for name, number in TYPE_NUMBERS.items():
            named = {"float32": "FLOAT", "float16": "HALF"}.get(name, name.upper())
            assert f"{prefix}_{named} = {number}" in text
