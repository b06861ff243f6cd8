"""`trt-hspan doctor`: what this machine has, and whether an engine can run on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def doctor(
    engine: Annotated[
        Path | None, typer.Argument(metavar="ENGINE", help="A .plan: can it run here?", show_default="none")
    ] = None,
    plugin: Annotated[
        Path | None,
        typer.Option(
            metavar="LIBRARY",
            help="The plugin library of ENGINE.",
            show_default="that of trt-hspan plugin build",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell what this machine has and can do, or whether ENGINE can run here and what to do if not.

    The exit code is 1 when something that is installed does not work, or when ENGINE cannot run on a GPU here.
    """
    from dataclasses import asdict

    from trt_hspan.cli.output import print_json, print_table
    from trt_hspan.errors import UsageError
    from trt_hspan.inspection.doctor import abilities, examine_engine, examine_machine

    if engine is not None:
        verdict = examine_engine(engine, plugin=plugin)
        if json:
            print_json(asdict(verdict))
        else:
            rows: dict[str, object] = {"runs on the GPU here": _yes(verdict.runs_on_gpu)}
            rows |= {f"why not, {number}": text for number, text in enumerate(verdict.reasons, start=1)}
            rows["can be emulated on the CPU"] = _yes(verdict.can_be_emulated)
            rows |= {f"note {number}": text for number, text in enumerate(verdict.notes, start=1)}
            print_table(str(engine), rows)
        raise typer.Exit(0 if verdict.runs_on_gpu else 1)
    if plugin is not None:
        raise UsageError("--plugin", "is for an ENGINE", "name the engine too")
    findings = examine_machine()
    able = abilities(findings)
    if json:
        print_json({"findings": [asdict(finding) for finding in findings], "abilities": able})
    else:
        print_table(
            "This machine",
            {
                finding.name: f"{finding.state}: {finding.detail}"
                + (f"; {finding.next_step}" if finding.next_step else "")
                for finding in findings
            },
        )
        print_table("It can", {what: _yes(possible) for what, possible in able.items()})
    raise typer.Exit(1 if any(finding.state == "broken" for finding in findings) else 0)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
