"""The command that sends pictures to a server and prints latencies, errors and memory as JSON."""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

from tools.load_test.traffic import load_server
from tools.running import exit_code
from trt_hspan.files import error_from_os_error


def main() -> int:
    """Prints the report. Returns: the exit code."""
    parser = argparse.ArgumentParser(prog="load_test", description=__doc__)
    parser.add_argument("pictures", nargs="+", type=Path, metavar="IMAGE")
    parser.add_argument(
        "--url", default="http://127.0.0.1:8000", help="http:// or grpc:// (default %(default)s)"
    )
    parser.add_argument("--model", help="the picture model")
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--attempts", type=int, default=1, help="at a busy server (default %(default)s)")
    parser.add_argument("--server-pid", type=int, help="trt-hspan serve's process, to note its memory")
    options = vars(parser.parse_args())
    return exit_code("load_test", lambda: _run(**options))


def _run(pictures: list[Path], url: str, **options: Any) -> int:
    try:
        data = [path.read_bytes() for path in pictures]
    except OSError as error:
        raise error_from_os_error(Path(error.filename or ""), error, action="read") from error
    report = asyncio.run(load_server(url, data, **options))
    print(json.dumps(report.as_dict(), indent=2))
    return 1 if report.outcomes["lost"] else 0
