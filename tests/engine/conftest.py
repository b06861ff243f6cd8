"""Fixtures of the engine tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.permissions import read_only


@pytest.fixture
def unwritable_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in which this process may not write, even when the tests run as root."""
    folder = tmp_path / "unwritable"
    folder.mkdir()
    with read_only(folder):
        yield folder
