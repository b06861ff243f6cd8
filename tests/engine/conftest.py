"""Fixtures of the engine tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.permissions import read_only
from support.small_networks import write_attention_network


@pytest.fixture
def unwritable_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in which this process may not write, even when the tests run as root."""
    folder = tmp_path / "unwritable"
    folder.mkdir()
    with read_only(folder):
        yield folder


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """A small float16 model with two attention blocks and free sizes."""
    return write_attention_network(tmp_path / "net.onnx", precision="fp16", blocks=2)
