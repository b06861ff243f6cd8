"""The library of tests/native that is interpreted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.interpreted_cuda import InterpretedLibrary


@pytest.fixture(scope="session")
def _interpreted() -> InterpretedLibrary:
    return InterpretedLibrary()


@pytest.fixture
def cuda_library(_interpreted: InterpretedLibrary) -> Iterator[InterpretedLibrary]:
    """On a GPU of compute capability 8.0 that launches what it is told to, whatever the test before it set."""
    yield _interpreted
    _interpreted.set_compute_capability(80)
    _interpreted.fail_launches(0)
