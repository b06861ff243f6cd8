"""Records as JSON. Reading is strict: every key present, none unknown, every value of its annotated type.

Covers what the records of this package use: str, int, float, bool, X | None, Literal, tuple[X, ...],
Mapping[str, X] and nested dataclasses.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

_T = TypeVar("_T")
_EXPECTED = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}


class MistypedError(Exception):
    """A document does not fit the dataclass; the message names the key."""


def dataclass_from_json(document: object, kind: type[_T]) -> _T:
    """Builds a `kind` from parsed JSON. Lists become tuples, integers may stand for floats.

    Raises:
        MistypedError: a key is missing, unknown or mistyped.
    """
    return cast("_T", _dataclass(document, kind, ""))


def _dataclass(value: object, kind: Any, key: str) -> object:
    if not isinstance(value, dict):
        raise _mistyped(key or "the document", value, "an object")
    hints = get_type_hints(kind)
    prefix = f"{key}." if key else ""
    for name in hints:
        if name not in value:
            raise MistypedError(f"the key {prefix}{name} is missing")
    for name in value:
        if name not in hints:
            raise MistypedError(f"the key {prefix}{name} is unknown")
    return kind(**{name: _convert(value[name], hint, f"{prefix}{name}") for name, hint in hints.items()})


def _convert(value: object, kind: Any, key: str) -> object:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        (kind,) = (argument for argument in get_args(kind) if argument is not type(None))
        return None if value is None else _convert(value, kind, key)
    if dataclasses.is_dataclass(kind):
        return _dataclass(value, kind, key)
    if origin is not None:
        return _generic(value, origin, get_args(kind), key)
    if type(value) is kind:
        return value
    if kind is float and type(value) is int:
        return float(value)
    raise _mistyped(key, value, _EXPECTED[kind])


def _generic(value: object, origin: Any, arguments: tuple[Any, ...], key: str) -> object:
    if origin is Literal:
        if type(value) is str and value in arguments:
            return value
        raise _mistyped(key, value, f"one of {', '.join(arguments)}")
    if origin is tuple:
        if not isinstance(value, list):
            raise _mistyped(key, value, "a list")
        return tuple(_convert(item, arguments[0], f"{key}[{index}]") for index, item in enumerate(value))
    if not issubclass(origin, Mapping):
        raise TypeError(f"{key}: no rule to read {origin} from JSON")
    if not isinstance(value, dict):
        raise _mistyped(key, value, "an object")
    return {name: _convert(item, arguments[1], f"{key}.{name}") for name, item in value.items()}


def _mistyped(key: str, value: object, expected: str) -> MistypedError:
    text = repr(value)
    return MistypedError(f"{key} is {text if len(text) <= 40 else text[:37] + '...'}, expected {expected}")


def json_text(report: Mapping[str, Any]) -> str:
    """A report as JSON. Numbers that are not finite are null, and the key "not_finite" says which is what.

    Example:
        >>> print(json_text({"psnr_db": [40.5, float("inf")]}))
        {
          "psnr_db": [
            40.5,
            null
          ],
          "not_finite": {
            "psnr_db[1]": "inf"
          }
        }
    """
    odd = _not_finite(report)
    return json.dumps(_plain({**report, "not_finite": odd} if odd else report), indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
    """What `json` can write of a report: mappings with string keys, lists, None for what is no finite number."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _not_finite(value: Any, place: str = "") -> dict[str, str]:
    """The numbers that `_plain` writes as None: place, as in "total.worst_psnr_db", -> "inf", "-inf" or "nan"."""
    if isinstance(value, float):
        return {} if math.isfinite(value) else {place: str(value)}
    items: Iterable[tuple[str, Any]] = ()
    if isinstance(value, Mapping):
        items = ((f"{place}.{name}" if place else str(name), item) for name, item in value.items())
    elif isinstance(value, (list, tuple)):
        items = ((f"{place}[{index}]", item) for index, item in enumerate(value))
    return {where: text for name, item in items for where, text in _not_finite(item, name).items()}
