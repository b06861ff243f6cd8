"""`trt-hspan doctor`: what this machine has, and whether an engine can run on it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import typer

from trt_hspan.cli import options
from trt_hspan.cli.output import print_json, print_table
from trt_hspan.cli.request import argument, takes_request
from trt_hspan.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class DoctorRequest:
    engine: Path | None = argument("A .plan: can it run here?", "ENGINE", default=None, shown="none")
    plugin: Path | None = options.plugin()
    json: bool = options.json()


@takes_request
def doctor(request: DoctorRequest) -> None:
    """Print what this machine has and can do, or whether ENGINE can run here and what to do if not.

    The exit code is 1 when something that is installed does not work, or when ENGINE cannot run on a GPU here.
    """
    if request.engine is not None:
        raise typer.Exit(0 if _examine_engine(request.engine, request) else 1)
    if request.plugin is not None:
        raise UsageError("--plugin", "is for an ENGINE", "name the engine too")
    raise typer.Exit(0 if _examine_machine(request) else 1)


def _examine_engine(engine: Path, request: DoctorRequest) -> bool:
    from trt_hspan.inspection.doctor import examine_engine

    verdict = examine_engine(engine, plugin=request.plugin)
    if request.json:
        print_json(asdict(verdict))
    else:
        rows: dict[str, object] = {"runs on the GPU here": _yes(verdict.runs_on_gpu)}
        rows |= {f"why not, {number}": text for number, text in enumerate(verdict.reasons, start=1)}
        rows["can be emulated on the CPU"] = _yes(verdict.can_be_emulated)
        rows |= {f"note {number}": text for number, text in enumerate(verdict.notes, start=1)}
        print_table(str(engine), rows)
    return verdict.runs_on_gpu


def _examine_machine(request: DoctorRequest) -> bool:
    from trt_hspan.inspection.doctor import abilities, examine_machine

    findings = examine_machine()
    able = abilities(findings)
    if request.json:
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
    return not any(finding.state == "broken" for finding in findings)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
