"""`trt-hspan client`: pictures to a server, and upscaled ones back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trt_hspan.errors import HspanError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

_SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "bmp": ".bmp", "tiff": ".tif"}
_FORMATS = {suffix: name for name, suffix in _SUFFIXES.items()} | {".jpeg": "jpeg", ".tiff": "tiff"}


def client(
    pictures: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Picture files.")],
    url: Annotated[
        str, typer.Option(help="http://HOST:PORT or grpc://HOST:PORT of the server.")
    ] = "http://127.0.0.1:8000",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="A picture's name for one picture, a folder for several.",
            show_default="NAME_upscaled beside each",
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option("--format", help="png, jpeg, webp, bmp or tiff.", show_default="png, or --output's"),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The picture model.", show_default="the server's only one")
    ] = None,
    concurrency: Annotated[int, typer.Option(help="Requests at a time.", min=1, max=256)] = 4,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="For one attempt.", min=0.1)] = 300.0,
    attempts: Annotated[int, typer.Option(help="At a server that is busy.", min=1)] = 6,
    shared_memory: Annotated[
        bool,
        typer.Option(
            "--shared-memory", help="Send through /dev/shm, one at a time; for a server on this machine."
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Upscale pictures on a server."""
    targets = _targets(pictures, output, format)
    try:
        from trt_hspan.serving.client_protocol import RetryPolicy, server_url_from_text

        server_url_from_text(url)
        import tritonclient.utils  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise HspanError(
            "client", f"{error.name} is not installed", "pip install 'trt-hspan[serve]'"
        ) from error
    from trt_hspan.cli.output import print_json, print_rows
    from trt_hspan.cli.progress import progress

    options = {"model": model, "timeout_seconds": timeout, "retry": RetryPolicy(attempts=attempts)}
    with progress(f"upscaling on {url}", total=len(pictures)) as bar:
        send = _one_by_one if shared_memory else _side_by_side
        results = send(url, targets, options, concurrency, lambda: bar.advance(bar.task_ids[0]))
    failed = [result for result in results if "error" in result]
    if json:
        shown = [{key: value for key, value in r.items() if key != "raised"} for r in results]
        print_json({"url": url, "pictures": shown})
    elif len(failed) < len(results):
        rows = [[r["input"], r["output"], f"{r['milliseconds']:.0f} ms"] for r in results if "error" not in r]
        print_rows(f"Upscaled on {url}", ["picture", "result", "latency"], rows, ["", "", ""])
    if len(failed) == 1:
        raise failed[0]["raised"]
    if failed:
        for result in failed[:-1]:
            typer.echo(f"trt-hspan: error: {result['error']}", err=True)
        raise HspanError(
            f"{len(failed)} of {len(results)} pictures", f"failed, the last: {failed[-1]['error']}"
        )


def _targets(pictures: list[Path], output: Path | None, wanted: str | None) -> list[tuple[Path, Path, str]]:
    """(picture, result, format) of each, checked before anything is sent."""
    if wanted is not None and wanted not in _SUFFIXES:
        raise UsageError("--format", f"got {wanted!r}, expected one of {', '.join(_SUFFIXES)}")
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
        if wanted is not None and _FORMATS[suffix] != wanted:
            raise UsageError("--format", f"{wanted} does not go with {output.name}", "leave it out")
        result = [(pictures[0], output, _FORMATS[suffix])]
    else:
        if output is not None and output.exists() and not output.is_dir():
            raise UsageError("--output", f"{output} is a file, expected a folder for several pictures")
        kind = wanted or "png"
        result = [
            (picture, (output or picture.parent) / f"{picture.stem}_upscaled{_SUFFIXES[kind]}", kind)
            for picture in pictures
        ]
    names = [target for _, target, _ in result]
    twice = sorted({str(name) for name in names if names.count(name) > 1})
    if twice:
        raise UsageError("--output", f"two pictures would become {twice[0]}", "rename one of them")
    from trt_hspan.files import check_writable

    for folder in {target.parent for target in names}:
        check_writable(folder / "probe.png")
    return result


def _side_by_side(
    url: str,
    targets: list[tuple[Path, Path, str]],
    options: dict[str, Any],
    concurrency: int,
    advance: Callable[[], None],
) -> list[dict[str, Any]]:
    import asyncio

    from trt_hspan.serving.async_client import AsyncUpscaleClient

    async def work() -> list[dict[str, Any]]:
        places = asyncio.Semaphore(concurrency)
        async with AsyncUpscaleClient(url, **options) as remote:

            async def one(picture: Path, target: Path, kind: str) -> dict[str, Any]:
                async with places:
                    report = _Report(picture, target)
                    try:
                        report.done(await remote.upscale_picture(picture.read_bytes(), format=kind))
                    except (HspanError, OSError) as error:
                        report.failed(error)
                    advance()
                    return report.fields

            return list(await asyncio.gather(*(one(*target) for target in targets)))

    return asyncio.run(work())


def _one_by_one(
    url: str,
    targets: list[tuple[Path, Path, str]],
    options: dict[str, Any],
    _: int,
    advance: Callable[[], None],
) -> list[dict[str, Any]]:
    from trt_hspan.serving.client import UpscaleClient

    reports = []
    with UpscaleClient(url, shared_memory=True, **options) as remote:
        for picture, target, kind in targets:
            report = _Report(picture, target)
            try:
                report.done(remote.upscale_picture(picture.read_bytes(), format=kind))
            except (HspanError, OSError) as error:
                report.failed(error)
            advance()
            reports.append(report.fields)
    return reports


class _Report:
    """What became of one picture."""

    def __init__(self, picture: Path, target: Path) -> None:
        import time

        self._clock = time.perf_counter
        self._started = self._clock()
        self._target = target
        self.fields: dict[str, Any] = {"input": str(picture), "output": str(target)}

    def done(self, data: bytes) -> None:
        from trt_hspan.files import write_bytes

        self.fields["milliseconds"] = 1000 * (self._clock() - self._started)
        self.fields["bytes"] = len(data)
        write_bytes(self._target, data)

    def failed(self, error: HspanError | OSError) -> None:
        from trt_hspan.files import error_from_os_error

        picture = Path(self.fields["input"])
        told = error if isinstance(error, HspanError) else error_from_os_error(picture, error, action="read")
        if picture.name not in str(told) and not told.where.startswith(str(self._target)):
            told = type(told)(told.where, f"{picture.name}: {told.what}", told.next_step)
        del self.fields["output"]
        self.fields |= {"error": str(told), "raised": told}
