"""The `trt-hspan` application: registers the commands and turns errors into one line and an exit code.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Final, NoReturn

import typer

from trt_hspan.cli import plugin, serve
from trt_hspan.cli.audit import audit
from trt_hspan.cli.bench import bench
from trt_hspan.cli.build import build
from trt_hspan.cli.client import client
from trt_hspan.cli.demo import demo
from trt_hspan.cli.doctor import doctor
from trt_hspan.cli.evaluate import SeveralSets, evaluate
from trt_hspan.cli.export import export
from trt_hspan.cli.inspect import inspect
from trt_hspan.cli.jetson import command as jetson
from trt_hspan.cli.output import say
from trt_hspan.cli.quantize import quantize
from trt_hspan.cli.refit import refit
from trt_hspan.cli.sensitivity import sensitivity
from trt_hspan.cli.upscale.command import upscale
from trt_hspan.cli.validate import validate
from trt_hspan.errors import HspanError
from trt_hspan.machine.install_advice import install_command
from trt_hspan.version import __version__

app = typer.Typer(
    name="trt-hspan",
    help="HSPAN super-resolution on NVIDIA TensorRT: export, build, validate, run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (export, quantize, sensitivity, build, refit, audit, validate):
    app.command()(_command)
app.command(cls=SeveralSets)(evaluate)
for _command in (upscale, demo, bench, doctor, inspect):
    app.command()(_command)
app.add_typer(plugin.app, name="plugin")
app.add_typer(jetson.app, name="jetson")
app.add_typer(serve.app, name="serve")
app.command()(client)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"trt-hspan {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks; allowed anywhere in the line.")
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", help="Log what the libraries say; allowed anywhere as --verbose."),
    ] = False,
) -> None:
    """`--debug` and `--verbose` are read by `main`, so that they may stand after the command too."""


class _OneLineHandler(logging.Handler):
    """Prints each record as one line, which no width of a terminal breaks."""

    def emit(self, record: logging.LogRecord) -> None:
        own = record.name.startswith("trt_hspan.")
        message = " ".join(record.getMessage().split())
        say(f"note: {message if own else f'{record.name}: {message}'}")


def _configure_logging(*, verbose: bool) -> None:
    # What libraries warn of is for who writes programs, not for who runs this one; errors that matter are raised.
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").setLevel(logging.DEBUG if verbose else logging.ERROR)
    if not verbose:
        logging.basicConfig(level=logging.WARNING, handlers=[_OneLineHandler()], force=True)
        return
    from rich.console import Console
    from rich.logging import RichHandler

    handler = RichHandler(console=Console(stderr=True), show_path=False, rich_tracebacks=False)
    logging.basicConfig(level=logging.DEBUG, format="%(name)s: %(message)s", handlers=[handler], force=True)


# Package -> the extra that installs it, for commands that import a package without looking for it first.
_EXTRAS: Final = {
    **dict.fromkeys(("torch", "onnxscript", "polygraphy", "jinja2", "safetensors"), "export"),
    **dict.fromkeys(
        ("aiohttp", "geventhttpclient", "grpc", "prometheus_client", "starlette", "tritonclient", "uvicorn"),
        "serve",
    ),
    "onnxruntime": "cpu",
    "openvino": "openvino",
    "matplotlib": "plot",
}


def _not_installed(module: str) -> HspanError:
    package = module.partition(".")[0]
    extras = [_EXTRAS[package]] if package in _EXTRAS else []
    return HspanError(package, "is not installed, and this command needs it", install_command(*extras))


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs one command line and exits the process.

    Args:
        arguments: the words after the program's name; None reads them from `sys.argv`.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = words[: words.index("--")] if "--" in words else words
    debug, verbose = "--debug" in options, "--verbose" in options or "-v" in options
    rest = [word for word in options if word not in ("--debug", "--verbose", "-v")] + words[len(options) :]
    _configure_logging(verbose=verbose)
    try:
        code = app(args=rest, prog_name="trt-hspan", standalone_mode=False)
    except HspanError as error:
        if debug:
            raise
        say(f"error: {error}")
        sys.exit(error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(_interrupted())
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except Exception as error:
        if callable(getattr(error, "format_message", None)):
            sys.exit(_usage_error(error))
        if debug:
            raise
        if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("trt_hspan"):
            say(f"error: {_not_installed(str(error.name))}")
            sys.exit(1)
        message = " ".join(f"{type(error).__name__}: {error}".split())
        say(f"error: unexpected {message}; run again with --debug and report it")
        sys.exit(1)
    if code == 130:  # click answers Ctrl-C with this code and says nothing
        _interrupted()
    sys.exit(code if isinstance(code, int) else 0)


def jetson_main() -> NoReturn:
    """`hspan-jetson ...` is `trt-hspan jetson ...`."""
    words = sys.argv[1:]
    main(words if words[:1] == ["--version"] else ["jetson", *words])


def _usage_error(error: Any) -> int:
    """Prints one of click's own errors in one line; a bare command has printed its help, which is enough."""
    where = "trt-hspan" if error.ctx is None else error.ctx.command_path
    what = " ".join(str(error.format_message()).split()).rstrip(".")
    if what:
        say(f"error: {where}: {what}; see {where} --help")
    return int(error.exit_code)


def _interrupted() -> int:
    say("interrupted; nothing half-written was left")
    return 130
