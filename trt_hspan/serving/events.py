"""The server's log: one record for each event. `cli.serve_log` gives them their form."""

from __future__ import annotations

import logging
from typing import Any, Final

LOGGER: Final = logging.getLogger("trt_hspan.serving")


def log_event(event: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Logs one event with its fields: names and plain values."""
    LOGGER.log(level, event, extra={"event_fields": fields})
