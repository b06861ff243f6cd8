"""An exported repository in the real tritonserver, on machines that there is one for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.load_test.tritonserver import NoTritonServerError, StartedRepository

__all__ = ["StartedRepository", "started_repository"]


def started_repository(folder: Path, **environment: str) -> StartedRepository:
    """As `StartedRepository`; skips the test where the packaged tritonserver does not run."""
    try:
        return StartedRepository(folder, **environment)
    except NoTritonServerError as error:
        pytest.skip(str(error))
