"""The package as a whole: light to import, its files whole or absent, its wheel complete."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

import trt_hspan
from trt_hspan import HspanError
from trt_hspan.files import atomic_path, write_text

HEAVY = ("torch", "tensorrt", "tensorrt_rtx", "onnxruntime", "onnx", "pycuda", "polygraphy")


def loaded_modules(code: str) -> set[str]:
    """The heavy packages that running this code leaves imported."""
    script = f"{code}\nimport sys; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    completed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(completed.stdout.split("\n")[-2].split())


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert loaded_modules("import trt_hspan") == set()


@pytest.mark.parametrize(
    "words", [["--help"], ["export", "--help"], ["build", "--help"], ["upscale", "--help"]]
)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = f"from trt_hspan.cli import main\ntry: main({words!r})\nexcept SystemExit as e: assert not e.code, e.code"
    assert loaded_modules(code) == set()


@pytest.mark.parametrize(
    "package", ["graph", "engine.build", "engine.spec", "engine.manifest", "media", "runtime", "upscaling"]
)
def test_parts_for_machines_without_torch_do_not_import_it(package: str) -> None:
    assert "torch" not in loaded_modules(f"import trt_hspan.{package}")


def test_every_public_name_can_be_had() -> None:
    for name in trt_hspan.__all__:
        assert getattr(trt_hspan, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = trt_hspan.nonsense


def test_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")

    def fail_half_way() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "disk is full"), (errno.EACCES, "no permission"), (errno.EROFS, "no permission")],
)
def test_trouble_with_the_disk_is_one_line(tmp_path: Path, number: int, words: str) -> None:
    with pytest.raises(HspanError, match=words), atomic_path(tmp_path / "file.txt"):
        raise OSError(number, "trouble")
    assert list(tmp_path.iterdir()) == []


def test_written_file_has_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "reference").write_text("x")
    write_text(tmp_path / "file", "x")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "reference").stat().st_mode


def test_errors_are_one_line_that_says_where_what_and_next() -> None:
    assert str(HspanError("net.pt", "is\n  broken", "mend it")) == "net.pt: is broken; mend it"
    assert str(HspanError("net.pt", "is broken")) == "net.pt: is broken"
