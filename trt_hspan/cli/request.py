"""One frozen request for each command: typer reads its fields as options, the command gets it whole."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer

from trt_hspan.errors import UsageError

RequestT = TypeVar("RequestT")


def takes_request(command: Callable[[RequestT], None]) -> Callable[..., None]:
    """Turns a function of one request into one that typer reads a command line for.

    The request is a frozen dataclass whose fields are each an `option`, a `flag` or an `argument`, or have the metadata
    "help" and "shown" of an option, or are such dataclasses themselves: groups, whose options stand in their place, in
    a panel of the help if the group is `Annotated` with its title. A field of the type `tuple[X, ...]` is a repeatable
    option.
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


def option(
    help: str,
    metavar: str | None = None,
    *,
    default: Any = None,
    shown: str | bool = True,
    names: tuple[str, ...] = (),
    min: float | None = None,
    max: float | None = None,
) -> Any:
    """The field of a request that is read from an option.

    Args:
        default: of the field; ... for an option that must be given.
        shown: the default in words, for the help; False shows none.
        names: of the option; () is the field's, "keep_fp32" being --keep-fp32.
        min, max: of a number.
    """
    return _field(
        default, typer.Option(*names, metavar=metavar, help=help, show_default=shown, min=min, max=max)
    )


def flag(help: str, *, names: tuple[str, ...] = ()) -> Any:
    """The field of a request that is True where an option without a value is given."""
    return option(help, default=False, names=names)


def argument(help: str, metavar: str | None = None, *, default: Any = ..., shown: str | bool = True) -> Any:
    """The field of a request that is read from a word without an option; as `option`."""
    return _field(default, typer.Argument(metavar=metavar, help=help, show_default=shown))


def _field(default: Any, info: Any) -> Any:
    return dataclasses.field(
        default=dataclasses.MISSING if default is ... else default, metadata={_INFO: info}
    )


_INFO = "typer"


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


def _info(field: dataclasses.Field[Any]) -> Any:
    """What typer reads of a field: its own, or of a dataclass that does not know typer."""
    words = field.metadata
    return words.get(_INFO) or typer.Option(help=words["help"], show_default=words["shown"])


def _parameters(kind: Any, panel: str | None = None) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        value_type = hints[field.name]
        if not field.metadata:
            group, title = get_args(value_type) if get_origin(value_type) is Annotated else (value_type, None)
            yield from _parameters(group, title)
            continue
        info, default = copy.copy(_info(field)), field.default
        if get_origin(value_type) is tuple:  # typer repeats options that are lists
            value_type = list[get_args(value_type)[0]]  # type: ignore[misc]  # known at run time
            default = default or None
        if value_type is bool and info.default is ...:
            info.default = option_name(field.name)  # a name keeps typer from adding --no-...
        info.rich_help_panel = panel
        yield inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if default is dataclasses.MISSING else default,
            annotation=Annotated[value_type, info],
        )


def _request(kind: Any, values: Mapping[str, Any]) -> Any:
    hints = get_type_hints(kind)
    fields = {}
    for field in dataclasses.fields(kind):
        if not field.metadata:
            fields[field.name] = _request(hints[field.name], values)
        elif get_origin(hints[field.name]) is tuple:
            fields[field.name] = tuple(values[field.name] or ())
        else:
            fields[field.name] = values[field.name]
    return kind(**fields)
