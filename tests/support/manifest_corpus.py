"""The manifests of tests/engine/manifests.json, which both readers are given."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CORPUS = json.loads((Path(__file__).parents[1] / "engine" / "manifests.json").read_text())
BASE: dict[str, Any] = _CORPUS["base"]


@dataclass(frozen=True)
class Case:
    """A manifest, and what both readers say.

    Attributes:
        says: "accepted", or the parts of the error.
        program: what hspan-upscale, which takes pictures, says of a manifest that is right; None for the same.
    """

    why: str
    content: bytes
    says: tuple[str, ...]
    program: str | None


def cases() -> list[Case]:
    """All of them."""
    return [
        Case(row["why"], _content(row), tuple(row["says"].split("|")), row.get("program"))
        for row in _CORPUS["cases"]
    ]


def fits(answer: str, says: tuple[str, ...]) -> bool:
    """Whether an answer is one line with all of the parts, or "accepted"."""
    is_accepted = says == ("accepted",)
    return (
        (answer == "accepted") == is_accepted and "\n" not in answer and all(part in answer for part in says)
    )


def _content(row: dict[str, Any]) -> bytes:
    if "text" in row:
        return str(row["text"]).encode()
    document = copy.deepcopy(BASE)
    for path, value in row.get("put", {}).items():
        owner, key = _place(document, path)
        owner[key] = _expanded(value)
    if "drop" in row:
        owner, key = _place(document, row["drop"])
        del owner[key]
    text = json.dumps(document)
    if "replace" in row:
        old, new = row["replace"]
        assert old in text, old
        text = text.replace(old, new)
    return (row.get("prepend", "") + text + row.get("append", "")).encode()


def _place(document: Any, path: str) -> tuple[Any, Any]:
    """The object or list that the last name of a path such as "profiles.0.min" stands in, and that name."""
    *names, last = path.split(".")
    for name in names:
        document = document[int(name) if isinstance(document, list) else name]
    return document, int(last) if isinstance(document, list) else last


def _expanded(value: Any) -> Any:
    """Lists and texts that are written as {"repeat": [ITEM, COUNT]}."""
    if isinstance(value, dict):
        if value.keys() == {"repeat"}:
            item, count = value["repeat"]
            return item * count if isinstance(item, str) else [_expanded(item) for _ in range(count)]
        return {name: _expanded(item) for name, item in value.items()}
    return [_expanded(item) for item in value] if isinstance(value, list) else value
