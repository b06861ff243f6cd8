"""`trt-hspan jetson`: plans for boards, and the commands for the board itself."""

from __future__ import annotations

import typer

from trt_hspan.cli.jetson.bench import bench
from trt_hspan.cli.jetson.build import build
from trt_hspan.cli.jetson.plan import boards, plan
from trt_hspan.cli.jetson.reference import reference, validate
from trt_hspan.cli.jetson.watch import watch

app = typer.Typer(
    help="Jetson boards: plan anywhere; build, validate, bench and serve on the board, without PyTorch.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (build, validate, bench, reference, watch, boards, plan):
    app.command()(_command)
