"""The one error type of the package, with its wording and exit codes."""

from __future__ import annotations


class HspanError(Exception):
    """A failure that a user can act on, in one line: where, what, next step.

    Args:
        where: the file, option or component that the failure is about.
        what: what is wrong with it: got, and expected.
        next_step: what to do about it; None when `what` already says so.

    Example:
        >>> from trt_hspan import HspanError
        >>> print(HspanError("photo.png", "no such file", "check the path"))
        photo.png: no such file; check the path
    """

    exit_code = 1

    def __init__(self, where: object, what: str, next_step: str | None = None) -> None:
        self.where = str(where)
        self.what = " ".join(what.split())
        self.next_step = None if next_step is None else " ".join(next_step.split())
        super().__init__(self.where, self.what, self.next_step)

    def __str__(self) -> str:
        line = f"{self.where}: {self.what}"
        return line if self.next_step is None else f"{line}; {self.next_step}"


class UsageError(HspanError):
    """A request that makes no sense whatever the files contain: exit code 2.

    Example:
        >>> from trt_hspan import UsageError
        >>> UsageError("--scale", "must be 2, 3 or 4, got 5").exit_code
        2
    """

    exit_code = 2


class OutOfMemoryError(HspanError):
    """A run needs more memory than there is, on the device or on the host; a smaller input may fit."""
