"""What a server accepts, as figures; the command line reads its options from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from trt_hspan.errors import HspanError, UsageError


def _limit(default: int, text: str, shown: str | None = None) -> Any:
    """A field that the command line reads as an option, with this help."""
    return field(default=default, metadata={"help": text, "shown": shown or True})


@dataclass(frozen=True, kw_only=True)
class ServingLimits:
    """What one model accepts. Each limit is enforced before the work that it would cost.

    Raises:
        UsageError: a figure below 1.
    """

    max_bytes: int = _limit(64 << 20, "Largest request, unpacked.", "64 MiB")
    max_pixels: int = _limit(1 << 23, "Largest picture or tensor, in pixels before upscaling.")
    queue_length: int = _limit(64, "Requests of a model that may wait.")
    queue_time_ms: int = _limit(30_000, "How long one may wait.")
    work_time_ms: int = _limit(300_000, "How long one picture may take.")

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if type(value) is not int or value < 1:
                raise UsageError(f"--{name.replace('_', '-')}", f"got {value!r}, expected at least 1")


@dataclass(frozen=True, kw_only=True)
class ServerLimits(ServingLimits):
    """What the server in one process accepts beyond `ServingLimits`.

    Raises:
        UsageError: a figure below 1, or less memory for all bodies than one may have.
    """

    body_time_ms: int = _limit(30_000, "How long a client may take to send its request.")
    held_bytes: int = _limit(512 << 20, "Of all requests that are held at a time.", "512 MiB")
    work_bytes: int = _limit(2 << 30, "Of all pictures and results that are worked on.", "2 GiB")
    connections: int = _limit(256, "That may be open, of each protocol.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.held_bytes < self.max_bytes:
            raise UsageError(
                "--held-bytes", f"{self.held_bytes} is less than --max-bytes {self.max_bytes}", "give more"
            )


def limits_from_parameters(parameters: Mapping[str, str], *, where: object) -> ServingLimits:
    """Limits from texts, as Triton gives them; what is missing takes its default. Raises: HspanError for no number."""
    names = [each.name for each in fields(ServingLimits) if each.name in parameters]
    try:
        return ServingLimits(**{name: int(parameters[name]) for name in names})
    except ValueError as error:
        raise HspanError(where, f"a limit is no number: {error}", "correct config.pbtxt") from None
