"""The server's log: one line for each event, as text or as JSON."""

from __future__ import annotations

import json
import logging
import time
from typing import IO, Any

from trt_hspan.errors import printable
from trt_hspan.serving.events import LOGGER


def log_to(stream: IO[str], *, as_json: bool, verbose: bool) -> logging.Handler:
    """Sends the events to a stream, one a line; the caller removes the handler from `LOGGER`."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_JsonLines() if as_json else _TextLines())
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.DEBUG if verbose else logging.INFO)
    LOGGER.propagate = False
    return handler


def _time(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


class _TextLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "event_fields", {})
        words = [_time(record), record.levelname, printable(record.getMessage())]
        words += [f"{name}={_quoted(value)}" for name, value in fields.items() if value is not None]
        return " ".join(words)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        head = {"time": _time(record), "level": record.levelname.lower(), "event": record.getMessage()}
        return json.dumps(head | getattr(record, "event_fields", {}), default=str)


def _quoted(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1f}"
    text = printable(str(value))  # a client's words must not look like events
    return json.dumps(text, ensure_ascii=False) if not text or any(c in text for c in ' "=') else text
