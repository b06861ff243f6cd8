"""One frozen request for each command: typer reads its fields as options, the command gets it whole."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from trt_hspan.errors import UsageError

RequestT = TypeVar("RequestT")


def takes_request(command: Callable[[RequestT], None]) -> Callable[..., None]:
    """Turns a function of one request into one that typer reads a command line for.

    The request is a frozen dataclass. Its fields are `Annotated` with `typer.Option` or `typer.Argument`, or are such
    dataclasses themselves: groups, whose options stand in their place, in a panel of the help if the group is
    `Annotated` with its title. A field of the type `tuple[X, ...]` is a repeatable option, a `bool` is a flag.
    """
    hints = get_type_hints(command)
    (kind,) = (hint for name, hint in hints.items() if name != "return")
    parameters = list(_parameters(kind))

    def run(**values: Any) -> None:
        command(_request(kind, values))

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads it
    return run


def option_name(field: str) -> str:
    """The option of a field: "keep_fp32" is --keep-fp32."""
    return f"--{field.replace('_', '-')}"


def given_options(options: Any) -> list[str]:
    """The options of a request, or of a group of options, whose values are not their defaults."""
    return [
        option_name(field.name)
        for field in dataclasses.fields(options)
        if getattr(options, field.name) != field.default
    ]


def refuse_options(values: Mapping[str, object], what: str, next_step: str = "leave it out") -> None:
    """Raises: UsageError for the first of the options that has a value; None, False and () are none."""
    for option, value in values.items():
        if value is not None and value is not False and value != ():
            raise UsageError(option, what, next_step)


def _parameters(kind: Any, panel: str | None = None) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        value_type, extra = _annotation(hints[field.name])
        if dataclasses.is_dataclass(value_type):
            yield from _parameters(value_type, extra)
            continue
        default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
        if get_origin(value_type) is tuple:  # typer repeats options that are lists
            value_type = list[get_args(value_type)[0]]  # type: ignore[misc]  # known at run time
            default = default or None
        extra = copy.copy(extra)
        if value_type is bool and extra.default is ...:
            extra.default = option_name(field.name)  # a name keeps typer from adding --no-...
        extra.rich_help_panel = extra.rich_help_panel or panel
        yield inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=default,
            annotation=Annotated[value_type, extra],
        )


def _annotation(hint: Any) -> tuple[Any, Any]:
    """The type and what it is annotated with: an option, an argument, a group's panel, or None."""
    return get_args(hint) if get_origin(hint) is Annotated else (hint, None)


def _request(kind: Any, values: Mapping[str, Any]) -> Any:
    hints = get_type_hints(kind)
    fields = {}
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            fields[field.name] = _request(hint, values)
        elif get_origin(hint) is tuple:
            fields[field.name] = tuple(values[field.name] or ())
        else:
            fields[field.name] = values[field.name]
    return kind(**fields)
