"""`trt-hspan jetson`: plans for boards, and the commands for the board itself."""

from __future__ import annotations

import typer

from trt_hspan.cli.jetson.board import bench, build, watch
from trt_hspan.cli.jetson.plan import boards, plan
from trt_hspan.cli.jetson.reference import reference, validate

app = typer.Typer(
    help="Jetson boards: plan anywhere; build, validate, bench and serve on the board, without PyTorch.",
    no_args_is_help=True,
)
for _command in (build, validate, bench, reference, watch, boards, plan):
    app.command()(_command)
