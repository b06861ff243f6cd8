"""Fixtures of the engine tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.small_networks import write_attention_network


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """A small float16 model with two attention blocks and free sizes."""
    return write_attention_network(tmp_path / "net.onnx", precision="fp16", blocks=2)
