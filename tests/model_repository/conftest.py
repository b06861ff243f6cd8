"""An engine that Triton's own TensorRT backend runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.model_repository import engine_as
from support.small_engine import SmallEngine


@pytest.fixture
def classic(small_engine: SmallEngine, tmp_path: Path) -> Path:
    """An engine of classic TensorRT, as far as its manifest tells."""
    return engine_as(
        small_engine, tmp_path / "engines", "net", flavor="tensorrt", tensorrt_version="10.7.0.23"
    )
