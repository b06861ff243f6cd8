#!/usr/bin/env python3
"""Sends pictures to a server and tells latencies, errors and memory: scripts/load_test.py IMAGE... --url URL."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path

from trt_hspan.errors import HspanError
from trt_hspan.files import error_from_os_error
from trt_hspan.serving.load import load_server


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
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
    try:
        options["pictures"] = [path.read_bytes() for path in options["pictures"]]
        report = asyncio.run(load_server(options.pop("url"), options.pop("pictures"), **options))
    except OSError as error:
        told = error_from_os_error(Path(error.filename or ""), error, action="read")
        print(f"load_test: error: {told}", file=sys.stderr)
        return 1
    except HspanError as error:
        print(f"load_test: error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(report.as_dict(), indent=2))
    return 0 if not report.outcomes["lost"] else 1


if __name__ == "__main__":
    sys.exit(main())
