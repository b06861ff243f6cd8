"""What a server accepts. Owns the figures and their text form; the front door and the models enforce them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from trt_hspan.errors import HspanError, UsageError


@dataclass(frozen=True, kw_only=True)
class ServingLimits:
    """Limits of one server. Each is enforced before the work that it would cost.

    Attributes:
        max_bytes: of one request's body, after any Content-Encoding is undone.
        max_pixels: of one picture before upscaling, from its header, before it is decoded.
        queue_length: requests of one model that may wait; the next is refused.
        queue_time_ms: milliseconds that a request may wait; then it is refused.
        work_time_ms: milliseconds of work on one picture; then it is given up.
        body_time_ms: milliseconds that a client may take to send its request.

    Raises:
        UsageError: a figure below 1.
    """

    max_bytes: int = 64 << 20
    max_pixels: int = 1 << 23
    queue_length: int = 64
    queue_time_ms: int = 30_000
    work_time_ms: int = 300_000
    body_time_ms: int = 30_000

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if type(value) is not int or value < 1:
                raise UsageError(f"--{name.replace('_', '-')}", f"got {value!r}, expected at least 1")

    def as_parameters(self) -> dict[str, str]:
        """The limits as Triton's model parameters, which are texts."""
        return {name: str(value) for name, value in asdict(self).items()}


def limits_from_parameters(parameters: Mapping[str, str], *, where: object) -> ServingLimits:
    """Reads what `as_parameters` wrote; what is missing takes its default."""
    given = {}
    for field in fields(ServingLimits):
        if field.name in parameters:
            try:
                given[field.name] = int(parameters[field.name])
            except ValueError:
                raise HspanError(
                    where,
                    f"parameter {field.name} is {parameters[field.name]!r}, expected a whole number",
                    "correct config.pbtxt",
                ) from None
    return ServingLimits(**given)
