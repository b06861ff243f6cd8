"""What the client asks tritonclient for, and makes of the answers: with a double of it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.serving import async_client as module
from trt_hspan.serving.async_client import AsyncUpscaleClient
from trt_hspan.serving.client_protocol import TOKEN_VARIABLE, RetryPolicy, ServerBusyError

BATCH = np.zeros((1, 3, 4, 5), np.float32)
BUSY = InferenceServerException("full", status="503")


class Triton:
    """tritonclient's module and client in one: notes what it is given, and answers what it is told to."""

    def __init__(self) -> None:
        self.opened: list[tuple[str, dict[str, Any]]] = []
        self.asked: list[tuple[Any, ...]] = []
        self.models = ["net", "net_image"]
        self.failures: list[BaseException] = []
        self.result: Any = BATCH
        self.closed = 0

    def InferenceServerClient(self, address: str, **options: Any) -> Triton:  # noqa: N802  # its name
        self.opened.append((address, options))
        return self

    def InferInput(self, name: str, shape: list[int], kind: str) -> Any:  # noqa: N802  # its name
        given: list[Any] = [name, shape, kind]
        return type("Tensor", (), {"given": given, "set_data_from_numpy": given.append})

    async def infer(self, model: str, tensors: list[Any], **options: Any) -> Any:
        self.asked.append((model, tensors[0].given, options))
        if self.failures:
            raise self.failures.pop(0)
        if isinstance(self.result, BaseException):
            error = self.result

            class Broken:
                def as_numpy(self, name: str) -> Any:
                    raise error

            return Broken()
        return type(
            "Answer",
            (),
            {"as_numpy": staticmethod(lambda name: {"output": self.result}.get(name, self.result))},
        )

    async def get_inference_statistics(self, **options: Any) -> Any:
        self.asked.append(("statistics", options))
        if self.failures:
            raise self.failures.pop(0)
        return {"model_stats": [{"name": name} for name in self.models]} if self.models is not None else ["?"]

    async def is_server_ready(self, **options: Any) -> bool:
        self.asked.append(("ready", options))
        if self.failures:
            raise self.failures.pop(0)
        return True

    async def close(self) -> None:
        self.closed += 1


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> Triton:
    double = Triton()
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    monkeypatch.setattr(module, "import_module", lambda _: double)
    return double


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


@pytest.mark.parametrize(
    ("url", "opening", "asking"),
    [
        ("http://a:1", {"ssl": False, "conn_limit": 64, "conn_timeout": 300.0}, {}),
        ("https://a:1", {"ssl": True, "conn_limit": 64, "conn_timeout": 300.0}, {}),
        ("grpc://a:1", {"ssl": False}, {"client_timeout": 300.0}),
        ("grpcs://a:1", {"ssl": True}, {"client_timeout": 300.0}),
    ],
)
def test_a_client_has_five_minutes_and_64_connections(
    triton: Triton, url: str, opening: dict[str, Any], asking: dict[str, Any]
) -> None:
    client = AsyncUpscaleClient(url, model="net")
    run(client.upscale_tensor(BATCH))
    run(client.is_ready())
    assert triton.opened == [("a:1", opening)]
    options = {"headers": None, **asking}
    assert triton.asked[0][2] == {"parameters": None, **options}
    assert triton.asked[1] == ("ready", options)
    run(client.model_names())
    assert triton.asked[2] == ("statistics", options | ({"as_json": True} if url.startswith("grpc") else {}))


def test_without_a_url_it_is_this_machines_server(triton: Triton) -> None:
    run(AsyncUpscaleClient(model="net", timeout_seconds=3, connections=5, token="x").upscale_tensor(BATCH))
    assert triton.opened == [("127.0.0.1:8000", {"ssl": False, "conn_limit": 5, "conn_timeout": 3})]
    assert triton.asked[0][2]["headers"] == {"authorization": "Bearer x"}


def test_a_client_that_is_closed_opens_again(triton: Triton) -> None:
    async def work() -> None:
        async with AsyncUpscaleClient(model="net") as client:
            await client.close()  # it was never opened
            assert triton.closed == 0
            for _ in range(2):
                await client.is_ready()
            assert len(triton.opened) == 1
            await client.close()
            await client.is_ready()
        assert (len(triton.opened), triton.closed) == (2, 2)

    run(work())


def test_it_is_not_ready_where_asking_fails(triton: Triton) -> None:
    client = AsyncUpscaleClient()
    assert run(client.is_ready()) is True
    triton.failures = [OSError("gone"), InferenceServerException("no")]
    assert [run(client.is_ready()) for _ in range(3)] == [False, False, True]


def test_models_are_chosen_by_their_kind_and_asked_for_once(triton: Triton) -> None:
    client = AsyncUpscaleClient()
    triton.result = np.frombuffer(b"file", np.uint8)[None]
    for _ in range(2):
        assert run(client.upscale_picture(b"x", format="webp")) == b"file"
    run(client.upscale_tensor(BATCH))
    assert [each[0] for each in triton.asked] == ["statistics", "net_image", "net_image", "statistics", "net"]
    assert triton.asked[1][1][:3] == ["image", [1, 1], "UINT8"]
    assert triton.asked[1][2]["parameters"] == {"format": "webp"}
    assert triton.asked[4][1][:3] == ["input", [1, 3, 4, 5], "FP32"]


@pytest.mark.parametrize(
    ("models", "line"),
    [
        ([], "serves no raw model; name one with --model"),
        (["a_image"], "serves no raw model; name one with --model"),
        (["b", "a", "a"], "serves several raw models: a, b; name one with --model"),
        (None, "serves no raw model; name one with --model"),
    ],
)
def test_several_models_or_none_are_a_question_to_the_user(triton: Triton, models: Any, line: str) -> None:
    triton.models = models
    with pytest.raises(HspanError) as refused:
        run(AsyncUpscaleClient("http://a:1").upscale_tensor(BATCH))
    assert str(refused.value) == f"http://a:1: {line}"


@pytest.mark.parametrize(
    "answer", [None, KeyError("a"), TypeError("a"), ValueError("a"), AttributeError("a")]
)
def test_an_answer_without_the_tensor_is_one_line(triton: Triton, answer: Any) -> None:
    triton.result = answer
    with pytest.raises(HspanError, match="net answered without the tensor output; name another with --model"):
        run(AsyncUpscaleClient(model="net").upscale_tensor(BATCH))


@pytest.mark.parametrize(
    "batch", [BATCH[0], BATCH[:, :2], BATCH.astype(np.float64), np.zeros((3, 3, 3), np.float32)], ids=str
)
def test_only_batches_of_pixels_are_sent(triton: Triton, batch: Any) -> None:
    with pytest.raises(HspanError, match=r"input: is .*, expected \(N, 3, H, W\) float32"):
        run(AsyncUpscaleClient(model="net").upscale_tensor(batch))
    assert triton.asked == []


def test_only_pictures_and_formats_that_there_are_are_sent(triton: Triton) -> None:
    client = AsyncUpscaleClient(model="net_image")
    with pytest.raises(HspanError, match=r"picture: is empty \(0 bytes\)"):
        run(client.upscale_picture(b""))
    with pytest.raises(UsageError, match="--format: got 'gif', expected one of png, jpeg, webp, bmp, tiff"):
        run(client.upscale_picture(b"x", format="gif"))
    assert triton.asked == []
    triton.result = np.zeros((1, 2), np.uint8)
    assert run(client.upscale_picture(b"x")) == bytes(2)
    assert triton.asked[0][2]["parameters"] == {"format": "png"}


@pytest.mark.parametrize("refusals", [0, 2, 3])
def test_a_busy_server_is_asked_as_often_as_the_policy_says(
    triton: Triton, monkeypatch: pytest.MonkeyPatch, refusals: int
) -> None:
    delays: list[int] = []
    monkeypatch.setattr(RetryPolicy, "delay_seconds", lambda _, attempt: delays.append(attempt) or 0.0)
    triton.failures = [BUSY] * refusals
    asking = AsyncUpscaleClient(model="net", retry=RetryPolicy(attempts=3)).upscale_tensor(BATCH)
    if refusals < 3:
        run(asking)
    else:
        with pytest.raises(ServerBusyError):
            run(asking)
    assert delays == [1, 2][:refusals]
    assert len(triton.asked) == min(refusals + 1, 3)


def test_what_is_not_for_lack_of_room_is_not_asked_again(triton: Triton) -> None:
    triton.failures = [InferenceServerException("no", status="400")]
    with pytest.raises(HspanError, match="no"):
        run(AsyncUpscaleClient(model="net").upscale_tensor(BATCH))
    assert len(triton.asked) == 1


def test_by_default_six_attempts_are_made_in_half_a_minute(
    triton: Triton, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest: list[float] = []
    monkeypatch.setattr("random.uniform", lambda low, high: (longest.append((low, high)), 0.0)[1])
    triton.failures = [BUSY] * 9
    with pytest.raises(ServerBusyError):
        run(AsyncUpscaleClient(model="net").upscale_tensor(BATCH))
    assert len(triton.asked) == 6
    assert longest == [(0.5, 1.0)] * 5
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    assert [RetryPolicy().delay_seconds(attempt) for attempt in range(1, 8)] == [
        0.2,
        0.4,
        0.8,
        1.6,
        3.2,
        5.0,
        5.0,
    ]
