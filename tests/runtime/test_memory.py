"""Main memory is checked before the work: as much as there is will do, a byte more is one line."""

from __future__ import annotations

import pytest
from support.runner_doubles import NearestRunner

from trt_hspan.errors import HspanError
from trt_hspan.runtime import memory
from trt_hspan.runtime.memory import require_memory


@pytest.mark.parametrize("available", [2_340_000_000, None])
def test_what_fits_exactly_and_what_nobody_knows_pass(
    monkeypatch: pytest.MonkeyPatch, available: int | None
) -> None:
    monkeypatch.setattr(memory, "available_memory_bytes", lambda: available)
    require_memory(NearestRunner(memory=2_340_000_000), (1, 3, 50, 70), "a.png")


def test_a_byte_more_than_there_is_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory_bytes", lambda: 1_450_000_000)
    runner = NearestRunner(memory=1_450_000_001)
    line = (
        "a.png: 50x70 pixels as a whole need about 1.5 GB of memory under numpy, 1.4 GB are available; "
        "give a smaller picture"
    )
    monkeypatch.setattr(memory, "available_memory_bytes", lambda: 1_449_000_000)
    with pytest.raises(HspanError) as refused:
        require_memory(runner, (1, 3, 50, 70), "a.png")
    assert str(refused.value) == line
    monkeypatch.setattr(memory, "available_memory_bytes", lambda: 1_450_000_000)
    with pytest.raises(HspanError, match=r"; take tiles$"):
        require_memory(runner, (1, 3, 50, 70), "a.png", "take tiles")
