"""The command line: one thin module per command. Arguments become one library call and an exit code."""

from trt_hspan.cli.app import main

__all__ = ["main"]
