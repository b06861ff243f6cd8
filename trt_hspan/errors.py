"""The one error type of the package, with its wording and exit codes."""

from __future__ import annotations

import re
from typing import Final

#: Characters that steer a terminal or break a line: control characters, separators of lines and paragraphs, what turns
#: the direction of writing; and halves of characters, which no encoding has.
STEERING: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_LONGEST_NAME: Final = 400


def printable(text: str) -> str:
    """The text with every character that steers a terminal as its escape.

    Example:
        >>> from trt_hspan.errors import printable
        >>> print(printable("red\\x1b[31m.png"))
        red\\x1b[31m.png
    """
    return STEERING.sub(lambda match: ascii(match[0])[1:-1], text)


def reason_from(error: BaseException) -> str:
    """What another library says of its error, in at most 300 characters; its type's name if it says nothing.

    Example:
        >>> from trt_hspan.errors import reason_from
        >>> reason_from(OSError("no\\nanswer")), reason_from(TimeoutError())
        ('no answer', 'TimeoutError')
    """
    return " ".join(str(error).split())[:300] or type(error).__name__


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
        name = printable(str(where))
        half = _LONGEST_NAME // 2
        self.where = name if len(name) <= _LONGEST_NAME else f"{name[:half]}...{name[-half:]}"
        self.what = printable(" ".join(what.split()))
        self.next_step = None if next_step is None else printable(" ".join(next_step.split()))
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
