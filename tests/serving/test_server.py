"""A real server, asked by independent clients: what it answers."""

from __future__ import annotations

import asyncio
import gzip
import re
from pathlib import Path

import numpy as np
import pytest
from support.serve_process import ServeProcess
from support.served_pictures import pixels_of, png
from support.served_requests import (
    CLIENTS,
    IMAGE,
    RAW,
    ask,
    infer_over_http,
    scraped,
    statistics,
    triton_client,
    until,
)

from trt_hspan.media.pictures import decode_image
from trt_hspan.runtime.runner import Runner, ShapeLimit
from trt_hspan.upscaling.upscaler import upscale_array


class _UpTo48(Runner):
    """The network as the server's picture model sees it: tiles of at most 48x48."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.where, self.name, self.precision = runner.where, runner.name, runner.precision
        self.emulated, self.scale = runner.emulated, runner.scale

    @property
    def shape_ranges(self) -> tuple[tuple[ShapeLimit, ShapeLimit], ...]:
        return (((1, 3, 8, 8), (4, 3, 48, 48)),)

    def activate(self) -> None: ...

    def deactivate(self) -> None: ...

    def memory_bytes(self, shape: tuple[int, int, int, int]) -> int:
        return 0

    def infer(self, batch: np.ndarray) -> np.ndarray:
        return self._runner.run(batch)


def upscaled_reference(runner: Runner, data: bytes) -> np.ndarray:
    return upscale_array(_UpTo48(runner), decode_image(data).pixels)


@pytest.mark.parametrize("protocol", CLIENTS)
def test_tensor_is_what_the_bare_runner_gives(server: ServeProcess, runner: Runner, protocol: str) -> None:
    batch = np.random.default_rng(1).random((2, 3, 12, 20), np.float32)
    with triton_client(server, protocol) as (module, client):
        tensor = module.InferInput("input", list(batch.shape), "FP32")
        tensor.set_data_from_numpy(batch)
        output = client.infer(RAW, [tensor]).as_numpy("output")
    # The same code on the same processor, in another process: not one bit differs.
    np.testing.assert_array_equal(output, runner.run(batch))


@pytest.mark.parametrize("protocol", CLIENTS)
def test_picture_is_what_the_library_makes_of_it(
    server: ServeProcess, runner: Runner, picture: bytes, protocol: str
) -> None:
    values = np.frombuffer(picture, np.uint8)[None]
    with triton_client(server, protocol) as (module, client):
        tensor = module.InferInput("image", list(values.shape), "UINT8")
        tensor.set_data_from_numpy(values)
        result = client.infer(IMAGE, [tensor]).as_numpy("upscaled")
    np.testing.assert_array_equal(pixels_of(result.tobytes()), upscaled_reference(runner, picture))


def test_client_written_from_the_protocol_alone_is_understood(server: ServeProcess, runner: Runner) -> None:
    batch = np.random.default_rng(2).random((1, 3, 9, 11), np.float32)
    status, output = infer_over_http(server, RAW, batch, "input", "FP32")
    assert status == 200
    np.testing.assert_array_equal(output, runner.run(batch))


def test_picture_larger_than_the_tile_comes_in_tiles(server: ServeProcess, runner: Runner) -> None:
    large = png(90, 40)
    before = statistics(server, RAW)
    status, body, headers = ask(server, "POST", "/upscale", large)
    assert (status, headers["Content-Type"]) == (200, "image/png")
    np.testing.assert_array_equal(pixels_of(body), upscaled_reference(runner, large))
    until(
        lambda: statistics(server, RAW), lambda now: now["inference_count"] - before["inference_count"] >= 2
    )


@pytest.mark.parametrize(("kind", "start"), [("jpeg", b"\xff\xd8\xff"), ("webp", b"RIFF"), ("tiff", b"II*")])
def test_result_has_the_requested_format(
    server: ServeProcess, picture: bytes, kind: str, start: bytes
) -> None:
    status, body, headers = ask(server, "POST", f"/upscale?format={kind}", picture)
    assert (status, headers["Content-Type"]) == (200, f"image/{kind}")
    assert body.startswith(start)
    assert pixels_of(body).shape == (80, 120, 3)


def test_raw_binary_request_needs_no_json(server: ServeProcess, picture: bytes) -> None:
    """What docs/serving.md shows for curl on a server without our front door."""
    headers = {"Inference-Header-Content-Length": "0", "Content-Type": "application/octet-stream"}
    status, body, back = ask(server, "POST", f"/v2/models/{IMAGE}/infer", picture, headers)
    assert status == 200
    assert pixels_of(body[int(back["Inference-Header-Content-Length"]) :]).shape == (80, 120, 3)


def test_compressed_request_and_response_are_understood(server: ServeProcess, picture: bytes) -> None:
    status, body, _ = ask(server, "POST", "/upscale", gzip.compress(picture), {"Content-Encoding": "gzip"})
    assert status == 200
    assert pixels_of(body).shape == (80, 120, 3)
    values = np.frombuffer(picture, np.uint8)[None]
    with triton_client(server, "http") as (module, client):
        tensor = module.InferInput("image", list(values.shape), "UINT8")
        tensor.set_data_from_numpy(values)
        result = client.infer(
            IMAGE, [tensor], request_compression_algorithm="gzip", response_compression_algorithm="gzip"
        )
    assert pixels_of(result.as_numpy("upscaled").tobytes()).shape == (80, 120, 3)


def executions_in_metrics(server: ServeProcess) -> int:
    match = re.search(r"^trt_hspan_runs (\d+)", scraped(server), re.MULTILINE)
    assert match
    return int(match[1])


def test_requests_at_the_same_time_are_batched(server: ServeProcess) -> None:
    batch = np.random.default_rng(3).random((1, 3, 40, 40), np.float32)  # long enough for a queue to form
    before, metrics_before = statistics(server, RAW), executions_in_metrics(server)

    async def flood() -> None:
        import tritonclient.grpc.aio as module

        async with module.InferenceServerClient(server.grpc_address) as client:
            tensor = module.InferInput("input", list(batch.shape), "FP32")
            tensor.set_data_from_numpy(batch)
            await asyncio.gather(*(client.infer(RAW, [tensor]) for _ in range(12)))

    asyncio.run(flood())
    # Triton answers first and counts a moment later.
    after = until(
        lambda: statistics(server, RAW), lambda now: now["inference_count"] >= before["inference_count"] + 12
    )
    metrics_after = until(lambda: executions_in_metrics(server), lambda now: now > metrics_before)
    requests = after["inference_count"] - before["inference_count"]
    executions = after["execution_count"] - before["execution_count"]
    assert requests == 12
    assert executions < requests, "no two requests ran together"
    assert metrics_after > metrics_before


def test_metrics_tell_of_queue_and_refusals(server: ServeProcess) -> None:
    ask(server, "GET", "/nowhere")
    text = scraped(server)
    assert f'trt_hspan_request_seconds_count{{model="{IMAGE}"' in text
    assert re.search(r'^trt_hspan_requests_total\{status="404",via="http"\} [1-9]', text, re.MULTILINE)
    assert re.search(r"^trt_hspan_in_flight 0(\.0)?$", text, re.MULTILINE)


def test_not_a_number_comes_back_as_such_and_harms_nobody(server: ServeProcess) -> None:
    batch = np.full((1, 3, 8, 8), 0.5, np.float32)
    batch[0, 0, 0, 0] = np.nan
    status, output = infer_over_http(server, RAW, batch, "input", "FP32")
    assert status == 200
    assert np.isnan(output).any()
    status, output = infer_over_http(server, RAW, np.nan_to_num(batch), "input", "FP32")
    assert status == 200
    assert np.isfinite(output).all()


def test_large_tensors_are_kept_and_not_cleared_anew_for_each_request(server: ServeProcess) -> None:
    """Buffers above 32 MiB, where glibc asks the kernel for new pages each time unless told otherwise."""
    batch = np.random.default_rng(7).random((1, 3, 136, 140), np.float32)  # 39 MB with 32 channels at x4
    faults = []
    for _ in range(5):
        before = page_faults(server.process.pid)
        assert infer_over_http(server, RAW, batch, "input", "FP32")[0] == 200
        faults.append(page_faults(server.process.pid) - before)
    # A buffer has 9,500 pages, and there are three or four; the answer and its copies have 2,000.
    assert np.median(faults) < 5000, faults


def page_faults(pid: int) -> int:
    """So far, those without input and output (proc(5), field 10 of stat)."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[7])
