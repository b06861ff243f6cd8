"""Records as JSON. Reading is strict: every key present once, none unknown, every value of its annotated type.

Dataclasses may contain str, int, float, bool, X | None, Literal, tuple[X, ...], Mapping[str, X] and dataclasses.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal, NoReturn, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from trt_hspan.errors import STEERING

_T = TypeVar("_T")
_EXPECTED = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}


class MistypedError(Exception):
    """A document does not fit the dataclass; the message names the key."""


def parsed_json(text: str | bytes) -> Any:
    """Parses JSON as its standard has it: no NaN, no infinities, no key twice in one object.

    Raises:
        ValueError: it is not that. RecursionError: it is nested too deeply.
    """
    return json.loads(
        text, object_pairs_hook=_object_of_pairs, parse_constant=_no_number, parse_float=_finite_number
    )


def _object_of_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("one name comes twice in an object")
    return result


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text[:40]} is no number of JSON")


def _finite_number(text: str) -> float:
    return value if math.isfinite(value := float(text)) else _no_number(text)


def require_schema(value: object, schema: Mapping[str, Any], key: str = "") -> None:
    """Checks parsed JSON against a JSON Schema, of the keywords that engine/manifest.schema.json uses.

    Stricter than the standard where that file says so: an integer has no point, and every text and key is printable.

    Raises:
        MistypedError: it does not fit; the message names the first key at fault.
    """
    kinds = schema["type"]
    kind, nullable = (kinds, False) if isinstance(kinds, str) else (kinds[0], "null" in kinds)
    if value is None and nullable:
        return
    if not (type(value) in _JSON_TYPES[kind] and _SCHEMA_RULES[kind](value, schema)):
        raise _mistyped(key or "the document", value, _expected(kind, schema))
    if isinstance(value, list):
        for index, item in enumerate(value):
            require_schema(item, schema["items"], f"{key}[{index}]")
    elif isinstance(value, dict):
        prefix = f"{key}." if key else ""
        for name in schema.get("required", ()):
            if name not in value:
                raise MistypedError(f"the key {prefix}{name} is missing")
        for name, item in value.items():
            inner = schema.get("properties", {}).get(name, schema["additionalProperties"])
            if inner is False or STEERING.search(name):
                raise MistypedError(f"the key {prefix}{_short(ascii(name)[1:-1])} is unknown")
            require_schema(item, inner, f"{prefix}{_short(name)}")


_JSON_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}
# "format" -> what matches, and what it is called.
_FORMATS: Final = {
    "sha256": (re.compile("[0-9a-f]{64}"), "64 hexadecimal digits"),
    "file-name": (re.compile(r"(?!\.{1,2}\Z)[^/\\]+"), "a file name without a folder"),
    "version": (re.compile(r"[0-9]{1,6}(\.[0-9]{1,6}){1,3}(\.?[^0-9.].*)?"), "a version such as 10.3.0"),
    "target": (re.compile("sm_[0-9]{2,3}"), "a compute capability such as sm_86"),
}


def _is_number(value: Any, schema: Mapping[str, Any]) -> bool:
    largest = sys.float_info.max
    return bool(schema.get("minimum", -largest) <= value <= schema.get("maximum", largest))


def _is_text(text: Any, schema: Mapping[str, Any]) -> bool:
    pattern = _FORMATS[schema["format"]][0] if "format" in schema else None
    return (
        len(text) <= schema.get("maxLength", math.inf)
        and text in schema.get("enum", (text,))
        and not STEERING.search(text)
        and (pattern is None or pattern.fullmatch(text) is not None)
    )


_SCHEMA_RULES: Final[Mapping[str, Callable[[Any, Mapping[str, Any]], bool]]] = {
    "string": _is_text,
    "integer": _is_number,
    "number": _is_number,
    "boolean": lambda *_: True,
    "array": lambda value, schema: schema["minItems"] <= len(value) <= schema["maxItems"],
    "object": lambda value, schema: len(value) <= schema.get("maxProperties", math.inf),
}


def _expected(kind: str, schema: Mapping[str, Any]) -> str:
    """What a schema asks for, in words."""
    if "enum" in schema:
        return f"one of {', '.join(filter(None, schema['enum']))}"
    if "format" in schema:
        return str(_FORMATS[schema["format"]][1])
    if kind in ("integer", "number"):
        limits = f" from {schema['minimum']} to {schema['maximum']}" if "minimum" in schema else ""
        return f"{'an integer' if kind == 'integer' else 'a number'}{limits}"
    if kind == "array":
        return f"a list of {schema['minItems']} to {schema['maxItems']}"
    if kind == "string":
        return f"a text of at most {schema['maxLength']} printable characters"
    return "true or false" if kind == "boolean" else "an object"


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
    return MistypedError(f"{key} is {_short(repr(value))}, expected {expected}")


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."


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
