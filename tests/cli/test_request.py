"""From a frozen request to a command's options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from trt_hspan.cli.request import argument, flag, given_options, option, refuse_options, takes_request
from trt_hspan.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Paint:
    color: str = option("Of the wall.", default="white")
    two_coats: bool = flag("Paint it twice.")


@dataclass(frozen=True, kw_only=True)
class Wall:
    name: str = argument("Of the wall.")
    paint: Annotated[Paint, "Paint"]
    nails: tuple[int, ...] = option("In the wall, repeatable.", default=())
    photo: Path | None = option("Of the wall.")


def request_from(*words: str) -> Wall:
    requests: list[Wall] = []

    @takes_request
    def build(request: Wall) -> None:
        """Build a wall."""
        requests.append(request)

    app = typer.Typer()
    app.command()(build)
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return requests[0]


def test_the_command_gets_one_request_with_its_groups() -> None:
    request = request_from("north", "--color", "red", "--nails", "3", "--nails", "5", "--photo", "wall.png")
    assert request == Wall(name="north", paint=Paint(color="red"), nails=(3, 5), photo=Path("wall.png"))


def test_what_is_not_given_has_its_default() -> None:
    assert request_from("north") == Wall(name="north", paint=Paint())


def test_help_shows_the_options_of_a_group_under_its_title() -> None:
    @takes_request
    def build(request: Wall) -> None:
        """Build a wall."""

    app = typer.Typer()
    app.command()(build)
    text = CliRunner().invoke(app, ["--help"]).output
    assert "Build a wall." in text
    assert text.index("--nails") < text.index(" Paint ") < text.index("--color")


def test_options_that_differ_from_their_defaults_are_named_as_typed() -> None:
    assert given_options(Paint()) == []
    assert given_options(Paint(color="red", two_coats=True)) == ["--color", "--two-coats"]


def test_the_first_option_with_a_value_is_refused() -> None:
    refuse_options({"--color": None, "--two-coats": False, "--nails": ()}, "is for walls")
    with pytest.raises(UsageError, match="--crf: is for walls; leave it out"):
        refuse_options({"--color": None, "--crf": 0}, "is for walls")
