"""`trt-hspan client`: pictures to a server, and upscaled ones back."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from trt_hspan.cli import options
from trt_hspan.cli.output import print_json, print_rows, say
from trt_hspan.cli.progress import progress
from trt_hspan.cli.request import argument, flag, option, takes_request
from trt_hspan.errors import HspanError, UsageError
from trt_hspan.files import check_writable, error_from_os_error, require_free, write_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

_SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "bmp": ".bmp", "tiff": ".tif"}
_FORMATS = {suffix: name for name, suffix in _SUFFIXES.items()} | {".jpeg": "jpeg", ".tiff": "tiff"}


@dataclass(frozen=True, kw_only=True)
class ClientRequest:
    pictures: tuple[Path, ...] = argument("Picture files.", "IMAGE...")
    url: str = option("http://HOST:PORT or grpc://HOST:PORT of the server.", default="http://127.0.0.1:8000")
    output: Path | None = options.output(
        "PATH",
        "A picture's name for one picture, a folder for several.",
        default=None,
        shown="NAME_upscaled beside each",
    )
    format: str | None = option("png, jpeg, webp, bmp or tiff.", shown="png, or --output's")
    overwrite: bool = flag("Replace files that exist.")
    model: str | None = option("The picture model.", shown="the server's only one")
    concurrency: int = option("Requests at a time.", default=4, min=1, max=256)
    timeout: float = option("For one attempt.", "SECONDS", default=300.0, min=0.1)
    attempts: int = option("At a server that is busy.", default=6, min=1)
    json: bool = options.json()


class _Target(NamedTuple):
    picture: Path
    result: Path
    format: str


@takes_request
def client(request: ClientRequest) -> None:
    """Upscale pictures on a server."""
    targets = _targets(request)
    from trt_hspan.serving.client_protocol import server_url_from_text

    server_url_from_text(request.url)
    with progress(f"upscaling on {request.url}", total=len(targets)) as bar:
        results = asyncio.run(_results(request, targets, bar.advance))
    _print(request, results)


def _print(request: ClientRequest, results: list[dict[str, Any]]) -> None:
    """Raises: HspanError when pictures failed; all others are printed before."""
    failed = [result for result in results if "error" in result]
    if request.json:
        pictures = [{key: value for key, value in r.items() if key != "raised"} for r in results]
        print_json({"url": request.url, "pictures": pictures})
    elif len(failed) < len(results):
        rows = [[r["input"], r["output"], f"{r['milliseconds']:.0f} ms"] for r in results if "error" not in r]
        print_rows(f"Upscaled on {request.url}", ["picture", "result", "latency"], rows)
    if len(failed) == 1:
        raise failed[0]["raised"]
    if failed:
        for result in failed[:-1]:
            say(f"error: {result['error']}")
        raise HspanError(
            f"{len(failed)} of {len(results)} pictures", f"failed, the last: {failed[-1]['error']}"
        )


def _targets(request: ClientRequest) -> list[_Target]:
    """Checks everything before anything is sent."""
    pictures, output, requested = request.pictures, request.output, request.format
    if requested is not None and requested not in _SUFFIXES:
        raise UsageError("--format", f"got {requested!r}, expected one of {', '.join(_SUFFIXES)}")
    for picture in pictures:
        if not picture.is_file():
            raise HspanError(
                picture, "is a folder" if picture.is_dir() else "no such file", "name picture files"
            )
    if output is not None and len(pictures) == 1 and not output.is_dir() and output.suffix:
        suffix = output.suffix.lower()
        if suffix not in _FORMATS:
            raise UsageError(
                output, f"cannot tell the format from {suffix!r}", f"end it in {', '.join(_FORMATS)}"
            )
        if requested is not None and _FORMATS[suffix] != requested:
            raise UsageError("--format", f"{requested} does not go with {output.name}", "leave it out")
        targets = [_Target(pictures[0], output, _FORMATS[suffix])]
    else:
        if output is not None and output.exists() and not output.is_dir():
            raise UsageError("--output", f"{output} is a file, expected a folder for several pictures")
        kind = requested or "png"
        targets = [
            _Target(picture, (output or picture.parent) / f"{picture.stem}_upscaled{_SUFFIXES[kind]}", kind)
            for picture in pictures
        ]
    names = [target.result for target in targets]
    repeated = sorted({str(name) for name in names if names.count(name) > 1})
    if repeated:
        raise UsageError("--output", f"two pictures would become {repeated[0]}", "rename one of them")
    for folder in {name.parent for name in names}:
        check_writable(folder / "probe.png")
    require_free(names, overwrite=request.overwrite)
    return targets


async def _results(
    request: ClientRequest, targets: list[_Target], advance: Callable[[], None]
) -> list[dict[str, Any]]:
    from trt_hspan.serving.async_client import AsyncUpscaleClient
    from trt_hspan.serving.client_protocol import RetryPolicy

    places = asyncio.Semaphore(request.concurrency)
    retry = RetryPolicy(attempts=request.attempts)
    async with AsyncUpscaleClient(
        request.url, model=request.model, timeout_seconds=request.timeout, retry=retry
    ) as remote:

        async def send(target: _Target) -> dict[str, Any]:
            async with places:
                started = time.perf_counter()
                fields: dict[str, Any] = {"input": str(target.picture)}
                try:
                    picture = target.picture.read_bytes()
                    result = await remote.upscale_picture(picture, format=target.format)
                    milliseconds = 1000 * (time.perf_counter() - started)
                    write_bytes(target.result, result)
                    fields |= {
                        "output": str(target.result),
                        "milliseconds": milliseconds,
                        "bytes": len(result),
                    }
                except (HspanError, OSError) as error:
                    raised = _error_about(target, error)
                    fields |= {"error": str(raised), "raised": raised}
                advance()
                return fields

        return list(await asyncio.gather(*map(send, targets)))


def _error_about(target: _Target, error: HspanError | OSError) -> HspanError:
    if isinstance(error, OSError):
        error = error_from_os_error(target.picture, error, action="read")
    if target.picture.name in str(error) or error.where.startswith(str(target.result)):
        return error
    return type(error)(error.where, f"{target.picture.name}: {error.what}", error.next_step)
