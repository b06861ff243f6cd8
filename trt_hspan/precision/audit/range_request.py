"""What to audit about a network's ranges, and what to keep in float32 for it. Never imports torch."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Final

from trt_hspan.errors import UsageError
from trt_hspan.evaluation.datasets import Sample, samples_from_folder, shipped_samples
from trt_hspan.precision.crops import BUILTIN, check_place

AT_RISK: Final = "at-risk"
BUDGET: Final = "budget:"


@dataclass(frozen=True, kw_only=True)
class RangeRequest:
    """What to audit, and what to keep in float32.

    Args:
        pictures: a folder for `samples_from_folder`, the word "builtin" for the shipped photographs, or None for
            no audit.
        keep_fp32: names or patterns of nodes that stay in float32; the word "at-risk" stands for all nodes that
            the audit finds, "budget:0.01" for as many of them as it takes to lose at most 0.01 dB of PSNR-Y.
        limit: audit the first so many pictures only; None takes all.

    Raises:
        UsageError: "at-risk" or a budget without pictures, both of them, or a budget that is no number of dB.
    """

    pictures: str | os.PathLike[str] | None = None
    keep_fp32: tuple[str, ...] = ()
    limit: int | None = None

    def __post_init__(self) -> None:
        words = [word for word in self.keep_fp32 if word == AT_RISK or word.startswith(BUDGET)]
        if words and self.pictures is None:
            raise UsageError("--keep-fp32", f"{words[0]} needs an audit", "add --audit DIR")
        if len(set(words)) > 1:
            raise UsageError(
                "--keep-fp32", f"{' and '.join(words)} contradict each other", "give one of them"
            )
        for word in words:
            if word != AT_RISK:
                _budget_from_text(word)

    @property
    def names(self) -> tuple[str, ...]:
        """The names and patterns."""
        return tuple(n for n in self.keep_fp32 if n != AT_RISK and not n.startswith(BUDGET))

    @property
    def budget_db(self) -> float | None:
        """The most PSNR-Y that may be lost; None without a budget."""
        texts = [word for word in self.keep_fp32 if word.startswith(BUDGET)]
        return _budget_from_text(texts[0]) if texts else None

    def require_low(self, precision: str | None) -> None:
        """Raises: UsageError for a request that a float32 network has no use for; None is read from the file later."""
        if precision == "fp32" and (self.pictures is not None or self.keep_fp32):
            option = "--audit" if self.pictures is not None else "--keep-fp32"
            raise UsageError(
                option, "a float32 network has no range to audit", "add --precision fp16 or bf16"
            )

    def check_pictures(self) -> None:
        """Checks what needs no network. Raises: HspanError as `samples`."""
        if self.pictures == BUILTIN:
            shipped_samples(1)
        elif self.pictures is not None:
            check_place(os.fspath(self.pictures))

    def samples(self, scale: int) -> list[Sample]:
        """The pictures; none without an audit. Raises: HspanError as `samples_from_folder`."""
        if self.pictures is None:
            return []
        samples = (
            shipped_samples(scale) if self.pictures == BUILTIN else samples_from_folder(self.pictures, scale)
        )
        return samples[: self.limit]


def _budget_from_text(text: str) -> float:
    try:
        budget_db = float(text.removeprefix(BUDGET))
    except ValueError:
        budget_db = math.nan
    if not (math.isfinite(budget_db) and budget_db > 0):
        raise UsageError(
            "--keep-fp32", f"got {text!r}, expected a positive number of dB", "write it like budget:0.01"
        )
    return budget_db
