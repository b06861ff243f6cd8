"""What a server accepts, as figures."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.serving.limits import ServerLimits, ServingLimits, limits_from_parameters

UNITS = {"MiB": 1024**2, "GiB": 1024**3}


def test_limits_are_whole_numbers_from_1() -> None:
    assert ServingLimits(queue_length=1).queue_length == 1
    for bad in (0, -1, True, 1.5):
        with pytest.raises(UsageError, match=r"--queue-length: got .*, expected at least 1"):
            ServingLimits(queue_length=bad)  # type: ignore[arg-type]
    assert ServerLimits(max_bytes=9, held_bytes=9).held_bytes == 9
    with pytest.raises(UsageError, match="--held-bytes: 8 is less than --max-bytes 9"):
        ServerLimits(max_bytes=9, held_bytes=8)
    with pytest.raises(UsageError, match="--work-time-ms"):
        ServerLimits(work_time_ms=0)


def test_limits_from_texts_leave_the_rest_as_it_is() -> None:
    limits = limits_from_parameters({"max_pixels": "7", "other": "x"}, where="config.pbtxt")
    assert limits == ServingLimits(max_pixels=7)
    with pytest.raises(HspanError, match=r"config\.pbtxt: a limit is no number"):
        limits_from_parameters({"max_pixels": "many"}, where="config.pbtxt")


def test_limits_that_nobody_gives_are_the_documented_ones() -> None:
    documented = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    for field in dataclasses.fields(ServerLimits):
        figures = re.findall(rf"`--{field.name.replace('_', '-')}`, (\d+)(?: (MiB|GiB))?", documented)
        assert [int(number) * UNITS.get(unit, 1) for number, unit in figures] == [field.default], field.name
        if figures[0][1]:
            assert field.metadata["shown"] == " ".join(figures[0])
