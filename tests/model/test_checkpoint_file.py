"""A checkpoint file by its contents: what is read, with which warning, and what damaged files are called."""

from __future__ import annotations

import errno
import logging
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.model import checkpoint_file
from trt_hspan.model.checkpoint_file import (
    HEADER,
    SUFFIXES,
    InertObject,
    objects_error,
    read_checkpoint_file,
    require_suffix,
)

TENSORS = {"a": torch.ones(2)}


class Settings:
    """A class of a training, with fields."""

    def __init__(self) -> None:
        self.rate = 0.5


def refusal(path: Path) -> str:
    with pytest.raises(HspanError) as refused:
        read_checkpoint_file(path)
    assert refused.value.where == str(path)
    assert refused.value.next_step
    return str(refused.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_each_name_of_a_checkpoint_is_taken(suffix: str) -> None:
    require_suffix(Path(f"net{suffix}"))
    require_suffix(Path(f"net{suffix.upper()}"))
    with pytest.raises(UsageError, match=r"not a checkpoint's name, expected \.pt, \.pth, \.safetensors"):
        require_suffix(Path(f"net{suffix}x"))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("net.pt", "PyTorch"),
        ("net.safetensors", "PyTorch"),
        ("net.SafeTensors", "safetensors"),
        ("net.bin", "safetensors"),
    ],
)
def test_a_warning_comes_only_where_name_and_contents_differ(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, kind: str
) -> None:
    caplog.set_level(logging.WARNING)
    (torch.save if kind == "PyTorch" else save_file)(TENSORS, tmp_path / "other")
    path = (tmp_path / "other").rename(tmp_path / name)
    loaded, objects = read_checkpoint_file(path)
    assert isinstance(loaded, dict)
    assert torch.equal(loaded["a"], TENSORS["a"])
    assert objects == []
    assert (HEADER in loaded) == (kind == "safetensors")
    is_named_so = (path.suffix.lower() == ".safetensors") == (kind == "safetensors")
    said = f"{path}: a {kind} file by its contents, read as one"
    assert caplog.messages == ([] if is_named_so else [said])


@pytest.mark.parametrize("texts", [None, {"res_scale": "0.3", "epoch": "7"}])
def test_the_texts_of_a_safetensors_header_are_an_entry(tmp_path: Path, texts: dict[str, str] | None) -> None:
    save_file(TENSORS, tmp_path / "net.safetensors", metadata=texts)
    loaded, _ = read_checkpoint_file(tmp_path / "net.safetensors")
    assert isinstance(loaded, dict)
    assert loaded[HEADER] == (texts or {})


def test_objects_stand_as_their_fields(tmp_path: Path) -> None:
    torch.save({"settings": Settings(), "classes": [Settings], **TENSORS}, tmp_path / "net.pt")
    loaded, objects = read_checkpoint_file(tmp_path / "net.pt")
    assert isinstance(loaded, dict)
    assert loaded["settings"] == {"rate": 0.5}
    assert isinstance(loaded["settings"], InertObject)
    assert objects == [f"{__name__}.Settings"]


def test_what_stands_for_an_object_takes_any_state_and_is_a_key() -> None:
    inert = InertObject(1, 2)
    inert.__setstate__("no fields")
    assert inert == {}
    assert {inert: 1}[inert] == 1


@pytest.mark.parametrize(
    ("objects", "named"),
    [
        ([], "Python objects besides"),
        (["a.B", "c.D", "e.F", "g.H"], "Python objects (a.B, c.D, e.F) besides"),
    ],
)
def test_objects_are_named_as_far_as_a_line_takes_them(objects: list[str], named: str) -> None:
    assert f"contains {named} tensors, which are not loaded" in str(objects_error(Path("a.pt"), objects))


@pytest.mark.parametrize(
    ("names", "listed"),
    [
        ([], "a ZIP archive of nothing"),
        (["a.png", "b.png", "c.png"], "a ZIP archive of a.png, b.png, c.png"),
        (["a.png", "b.png", "c.png", "d.png"], "a ZIP archive of a.png, b.png, c.png"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_an_archive_of_other_files_is_called_what_it_is(
    tmp_path: Path, names: list[str], listed: str, suffix: str
) -> None:
    with zipfile.ZipFile(tmp_path / f"net{suffix}", "w") as archive:
        for name in names:
            archive.writestr(name, "")
    assert f"{listed}; unpack it" in refusal(tmp_path / f"net{suffix}")


def test_a_file_that_cannot_be_opened_is_called_by_the_systems_reason(tmp_path: Path) -> None:
    (tmp_path / "net.pt").mkdir()
    assert "is a folder" in refusal(tmp_path / "net.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (OSError(errno.EINVAL, "Invalid argument"), "not a PyTorch checkpoint, or truncated ([Errno 22]"),
        (OSError("short"), "not a PyTorch checkpoint, or truncated (short)"),
    ],
)
def test_the_systems_errors_are_told_from_damaged_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, error: OSError, line: str
) -> None:
    def raising(*_: object, **__: object) -> None:
        raise error

    (save_file if suffix == ".safetensors" else torch.save)(TENSORS, tmp_path / f"net{suffix}")
    monkeypatch.setattr("safetensors.safe_open", raising)
    monkeypatch.setattr(torch, "load", raising)
    said = refusal(tmp_path / f"net{suffix}")
    assert (line if suffix == ".pt" else str(error.strerror or error)) in said


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("first line\nsecond line"), "(first line)"),
        (KeyError(), "(KeyError)"),
        (ValueError("x" * 161), f"({'x' * 160})"),
        (ValueError("give weights_only=False"), "(ValueError)"),
        (zipfile.BadZipFile("bad"), "(bad)"),
        (checkpoint_file.pickle.UnpicklingError("whatever it advises"), "(UnpicklingError)"),
    ],
)
def test_whatever_torch_says_of_a_damaged_file_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def raising(*_: object, **__: object) -> None:
        raise error

    (tmp_path / "net.pt").write_bytes(b"\x80\x02")
    monkeypatch.setattr(torch, "load", raising)
    assert f"not a PyTorch checkpoint, or truncated {reason}; copy or download it again" in refusal(
        tmp_path / "net.pt"
    )


def test_an_object_of_the_old_format_that_is_not_loaded_is_named_so(tmp_path: Path) -> None:
    torch.save(Settings(), tmp_path / "net.pt", _use_new_zipfile_serialization=False)
    assert "contains Python objects besides tensors" in refusal(tmp_path / "net.pt")


def test_the_old_format_of_tensors_is_read(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "net.pt", _use_new_zipfile_serialization=False)
    loaded, objects = read_checkpoint_file(tmp_path / "net.pt")
    assert isinstance(loaded, dict)
    tensor: Tensor = loaded["a"]
    assert torch.equal(tensor, TENSORS["a"])
    assert objects == []
