"""Pinned wheels: what pip delivers is checked, and only chosen files are unpacked."""

from __future__ import annotations

import hashlib
import io
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from trt_hspan import downloads
from trt_hspan.downloads import unpack_pinned_wheel
from trt_hspan.errors import HspanError


def wheel() -> bytes:
    """A wheel with two files, always the same bytes."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in ("small/data.bin", "small/code.py"):
            archive.writestr(zipfile.ZipInfo(name), name)
    return content.getvalue()


class Pip:
    """Stands in for pip: delivers the wheel, or fails with a message."""

    def __init__(self, message: str = "") -> None:
        self.message = message
        self.command: list[str] = []

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.command = command
        if not self.message:
            (Path(command[command.index("--dest") + 1]) / "small-1.0-py3-none-any.whl").write_bytes(wheel())
        return subprocess.CompletedProcess(command, 1 if self.message else 0, "", self.message)


def unpack(folder: Path, *, sha256: str = hashlib.sha256(wheel()).hexdigest(), data: str = "data") -> None:
    unpack_pinned_wheel(
        "small==1.0",
        sha256,
        folder,
        place=lambda name: data if name.endswith("data.bin") else None,
        platforms=["linux_a", "linux_b"],
        advice="look around",
    )


def test_chosen_files_are_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = Pip()
    monkeypatch.setattr(downloads.subprocess, "run", pip)
    unpack(tmp_path / "new" / "folder")
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["data"]
    assert (tmp_path / "new" / "folder" / "data").read_text() == "small/data.bin"
    assert {"small==1.0", "--no-deps", "--only-binary=:all:"} <= set(pip.command)
    assert pip.command[-4:] == ["--platform", "linux_a", "--platform", "linux_b"]


@pytest.mark.parametrize(
    ("pip", "options", "line"),
    [
        (
            Pip(),
            {"sha256": "0" * 64},
            "the package index sent a file with SHA-256 .*, expected 0{64}; look around",
        ),
        (Pip(), {"data": "../outside"}, "small/data.bin would leave .*; look around"),
        (
            Pip("note\nERROR: nothing there"),
            {},
            "cannot be fetched from the package index: nothing there; look",
        ),
        (Pip("No module named pip"), {}, "pip is missing in this environment; python -m ensurepip"),
    ],
)
def test_a_wheel_that_is_not_the_pinned_one_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pip: Pip, options: dict[str, str], line: str
) -> None:
    monkeypatch.setattr(downloads.subprocess, "run", pip)
    with pytest.raises(HspanError, match=f"small==1.0: {line}"):
        unpack(tmp_path / "folder", **options)
    assert list(tmp_path.iterdir()) == []
