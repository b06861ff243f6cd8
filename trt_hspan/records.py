"""Records as JSON. Reading is strict: every key present once, none unknown, every value of its annotated type.

Dataclasses may contain str, int, float, bool, X | None, Literal, tuple[X, ...], Mapping[str, X] and dataclasses.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, NoReturn, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from trt_hspan.errors import STEERING

_T = TypeVar("_T")
_hints: Final[Callable[[Any], dict[str, Any]]] = functools.cache(get_type_hints)


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

    Stricter than the standard where that file says so: an integer has no point; texts and keys whose length or number
    is limited are printable.

    Raises:
        MistypedError: it does not fit; the message names the first key at fault.
    """
    kinds = schema["type"]
    kind, nullable = (kinds, False) if isinstance(kinds, str) else (kinds[0], "null" in kinds)
    if value is None and nullable:
        return
    accepted, rule, _ = _KINDS[kind]
    if not (type(value) in accepted and rule(value, schema)):
        expected, got = _expected(kind, schema), _short(repr(value))
        raise MistypedError(f"{key or 'the document'} is {got}, expected {expected}")
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
            shown = f"{prefix}{_short(ascii(name).strip(chr(39)))}"
            is_text = type(name) is str and not ("maxProperties" in schema and STEERING.search(name))
            if inner is False or not is_text:
                raise MistypedError(f"the key {shown} is unknown")
            require_schema(item, inner, shown)


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
        and not ("maxLength" in schema and STEERING.search(text))
        and (pattern is None or pattern.fullmatch(text) is not None)
    )


def _is_list(value: Any, schema: Mapping[str, Any]) -> bool:
    return bool(schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", math.inf))


# Type in a schema -> Python's, the rule beyond them, and what it is called.
_KINDS: Final[Mapping[str, tuple[tuple[type, ...], Callable[[Any, Mapping[str, Any]], bool], str]]] = {
    "string": ((str,), _is_text, "a string"),
    "integer": ((int,), _is_number, "an integer"),
    "number": ((float, int), _is_number, "a number"),
    "boolean": ((bool,), lambda *_: True, "true or false"),
    "array": ((list,), _is_list, "a list"),
    "object": (
        (dict,),
        lambda value, schema: len(value) <= schema.get("maxProperties", math.inf),
        "an object",
    ),
}
_TYPE_NAMES: Final = {types[0]: name for name, (types, _, _) in _KINDS.items()}


def _expected(kind: str, schema: Mapping[str, Any]) -> str:
    """What a schema asks for, in words."""
    if "enum" in schema:
        return f"one of {', '.join(filter(None, schema['enum']))}"
    if "format" in schema:
        return str(_FORMATS[schema["format"]][1])
    words = _KINDS[kind][2]
    if kind in ("integer", "number") and "minimum" in schema:
        return f"{words} from {schema['minimum']} to {schema['maximum']}"
    if kind == "array" and "minItems" in schema:
        return f"a list of {schema['minItems']} to {schema['maxItems']}"
    if kind == "string" and "maxLength" in schema:
        return f"a text of at most {schema['maxLength']} printable characters"
    return words


def dataclass_from_json(document: object, kind: type[_T], schema: Mapping[str, Any] | None = None) -> _T:
    """Builds a `kind` from parsed JSON. Lists become tuples, integers may stand for floats.

    Args:
        schema: what the document must fit; None is every key of the dataclass, each of its annotated type.

    Raises:
        MistypedError: a key is missing, unknown or mistyped.
    """
    require_schema(document, _schema_of(kind) if schema is None else schema)
    return cast("_T", _built(document, kind))


def _schema_of(kind: Any) -> Mapping[str, Any]:
    """The JSON Schema of an annotated type."""
    if (inner := _not_none(kind)) is not None:
        schema = _schema_of(inner)
        return {**schema, "type": (schema["type"], "null")}
    if dataclasses.is_dataclass(kind):
        properties = {name: _schema_of(hint) for name, hint in _hints(kind).items()}
        return {
            "type": "object",
            "additionalProperties": False,
            "required": tuple(properties),
            "properties": properties,
        }
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return {"type": "string", "enum": arguments}
    if origin is tuple:
        return {"type": "array", "items": _schema_of(arguments[0])}
    if origin is not None:
        return {"type": "object", "additionalProperties": _schema_of(arguments[1])}
    return {"type": _TYPE_NAMES[kind]}


def _built(value: Any, kind: Any) -> object:
    """A value that fits the type's schema, as that type."""
    if value is None:
        return None
    kind = _not_none(kind) or kind
    if dataclasses.is_dataclass(kind):
        hints = _hints(kind)
        return kind(**{name: _built(item, hints[name]) for name, item in value.items()})  # type: ignore[operator]
    if isinstance(value, list):
        return tuple(_built(item, get_args(kind)[0]) for item in value)
    if isinstance(value, dict):
        return {name: _built(item, get_args(kind)[1]) for name, item in value.items()}
    return float(value) if kind is float else value


def _not_none(kind: Any) -> Any:
    """X of X | None; None of every other type."""
    if get_origin(kind) not in (Union, types.UnionType):
        return None
    (inner,) = (argument for argument in get_args(kind) if argument is not type(None))
    return inner


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
    odd: dict[str, str] = {}
    plain = _plain(report, "", odd)
    return json.dumps({**plain, "not_finite": odd} if odd else plain, indent=2, allow_nan=False)


def _plain(value: Any, place: str, odd: dict[str, str]) -> Any:
    """What `json` can write of a report: mappings with string keys, lists, None for what is no finite number.

    Such a number goes to `odd`: its place, as in "total.worst_psnr_db", -> "inf", "-inf" or "nan".
    """
    if isinstance(value, Mapping):
        prefix = f"{place}." if place else ""
        return {str(name): _plain(item, f"{prefix}{name}", odd) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{place}[{index}]", odd) for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        odd[place] = str(value)
        return None
    return value
