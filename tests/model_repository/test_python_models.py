"""What runs inside Triton, without it: both models on a double of its Python module."""

from __future__ import annotations

import ctypes
import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.runner_doubles import NearestRunner
from support.served_pictures import pixels_of, png

from trt_hspan.errors import HspanError
from trt_hspan.model_repository import python_models
from trt_hspan.model_repository.python_models import ImageModel, RunnerModel
from trt_hspan.runtime.runner import Float32Array
from trt_hspan.upscaling.scheduler import DeviceError

CAPSULE_NAME = ctypes.pythonapi.PyCapsule_GetName
CAPSULE_NAME.argtypes, CAPSULE_NAME.restype = (ctypes.py_object,), ctypes.c_char_p


class TritonError(Exception):
    """With the codes that Triton has, each as its own name."""

    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, CANCELLED = (
        *("UNKNOWN", "INTERNAL", "NOT_FOUND", "INVALID_ARG", "UNAVAILABLE", "CANCELLED"),
    )

    def __init__(self, message: str, code: str = "INTERNAL") -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> str:
        return self._code


class Response:
    """What a model gives: tensors, or why not."""

    def __init__(self, output_tensors: Any = (), error: TritonError | None = None) -> None:
        self.output_tensors, self._error = output_tensors, error

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError:
        assert self._error is not None
        return self._error

    @property
    def refusal(self) -> tuple[str, str]:
        return self.error().code(), self.error().message()


@dataclass
class Request:
    """Of a client; `sent` are its tensors."""

    sent: dict[str, np.ndarray]
    text: str = ""
    cancelled: list[bool] = field(default_factory=lambda: [False])

    def is_cancelled(self) -> bool:
        return self.cancelled[0] if len(self.cancelled) == 1 else self.cancelled.pop(0)

    def parameters(self) -> str:
        return self.text


class Triton:
    """triton_python_backend_utils: what models say is kept, and `answers` the requests that they make themselves."""

    TritonError = TritonError
    TritonModelException = type("TritonModelException", (Exception,), {})
    InferenceResponse = Response

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.notes: list[str] = []
        self.asked: list[tuple[str, tuple[int, ...]]] = []
        self.answers: Callable[[str, np.ndarray], Response] = nearest
        self.Logger = SimpleNamespace(log_info=self.notes.append, log_error=self.errors.append)
        self.Tensor = SimpleNamespace(from_dlpack=self.tensor)
        self.capsules: list[Any] = []

    def tensor(self, name: str, exported: Any) -> Any:
        """As Triton's own stub, which leaves another name to a capsule that was used than NumPy expects."""
        array = np.from_dlpack(exported).copy()
        ctypes.pythonapi.PyCapsule_SetName(ctypes.py_object(exported.capsule), b"used_dlpack")
        self.capsules.append(exported.capsule)
        return SimpleNamespace(name=name, array=array)

    def get_input_tensor_by_name(self, request: Request, name: str) -> np.ndarray:
        return request.sent[name]

    def get_output_tensor_by_name(self, response: Response, name: str) -> np.ndarray:
        (tensor,) = response.output_tensors
        assert tensor.name == name
        return np.asarray(tensor.array)

    def InferenceRequest(self, model_name: str, requested_output_names: list[str], inputs: list[Any]) -> Any:  # noqa: N802  # its name
        (tensor,) = inputs
        assert (tensor.name, requested_output_names) == ("input", ["output"])
        self.asked.append((model_name, tensor.array.shape))
        return SimpleNamespace(exec=lambda: self.answers(model_name, tensor.array))


def nearest(_: str, batch: np.ndarray) -> Response:
    return Response([SimpleNamespace(name="output", array=batch.repeat(2, 2).repeat(2, 3))])


def busy(_: str, __: np.ndarray) -> Response:
    return Response(error=TritonError("full", "UNAVAILABLE"))


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> Triton:
    double = Triton()
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", double)
    monkeypatch.setattr(python_models, "keep_freed_memory", lambda: None)
    return double


def initialize(
    model: Any, parameters: dict[str, str], *, kind: str = "CPU", folder: str = "models", **config: Any
) -> None:
    texts = {name: {"string_value": value} for name, value in parameters.items()}
    model.initialize(
        {
            "model_name": "net",
            "model_repository": folder,
            "model_version": "3",
            "model_config": json.dumps({"parameters": texts, **config}),
            "model_instance_kind": kind,
            "model_instance_device_id": "1",
        }
    )


def output_of(response: Response) -> np.ndarray:
    assert not response.has_error(), response.refusal
    (tensor,) = response.output_tensors
    return np.asarray(tensor.array)


# The raw model.


@pytest.fixture
def raw(triton: Triton, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[RunnerModel, Any]]:
    """Opens a raw model on a runner; the model, and how the runner was opened."""

    def opened(runner: NearestRunner, parameters: dict[str, str] | None = None, **words: str) -> Any:
        openings: list[Any] = []

        def opening(source: Path, **options: object) -> NearestRunner:
            openings.append((source, options))
            return runner

        monkeypatch.setattr(python_models, "open_runner", opening)
        model = RunnerModel()
        initialize(model, {"source": "net.plan", **(parameters or {})}, **words)
        return model, openings[0]

    return opened


@pytest.mark.parametrize(("kind", "device"), [("GPU", "gpu:1"), ("CPU", "cpu")])
def test_an_instance_runs_its_file_on_the_gpu_that_triton_gave_it(
    raw: Any, triton: Triton, kind: str, device: str
) -> None:
    runner = NearestRunner(scale=2)
    runner.picked = "it is there"
    model, (source, options) = raw(runner, kind=kind, folder="/models/net")
    assert (source, options) == (Path("/models/net/3/net.plan"), {"device": device, "plugin": None})
    assert triton.notes == ["net: net.plan on numpy, FP32; it is there"]
    model.finalize()
    assert not runner.active
    model, (_, options) = raw(NearestRunner(), {"plugin": "p.so"}, kind=kind, folder="/models/net")
    assert options["plugin"] == Path("/models/net/3/p.so")
    model.finalize()


def test_a_model_that_cannot_be_opened_says_why_to_triton(raw: Any, triton: Triton) -> None:
    with pytest.raises(triton.TritonModelException, match="net: a limit is no number"):
        raw(NearestRunner(), {"max_pixels": "many"})

    class Broken(NearestRunner):
        def activate(self) -> None:
            raise HspanError("net.plan", "damaged", "export it again")

    with pytest.raises(triton.TritonModelException, match=r"net\.plan: damaged; export it again"):
        raw(Broken())


def test_requests_of_one_shape_run_together_and_each_has_its_own_answer(raw: Any) -> None:
    """Fewer items than the engine takes are filled up; a request that fails does so alone."""
    runner = NearestRunner(scale=2)
    runner.on_gpu = True  # type: ignore[misc]
    runner.profiles = (((3, 3, 4, 4), (4, 3, 8, 8)),)
    model, _ = raw(runner)
    draw = np.random.default_rng(1)
    shapes = ((1, 5), (2, 7), (1, 2), (1, 5), (2, 5))
    batches = [draw.random((n, 3, side, 6), np.float32) for n, side in shapes]
    one, two, refused, same, more = model.execute([Request({"input": batch}) for batch in batches])
    for batch, response in zip(
        (batches[0], batches[1], batches[3], batches[4]), (one, two, same, more), strict=True
    ):
        np.testing.assert_array_equal(output_of(response), batch.repeat(2, 2).repeat(2, 3))
    code, message = refused.refusal
    assert (code, message[:55]) == ("INVALID_ARG", "input: is 1x3x2x6, but net takes 3x3x4x4 to 4x3x8x8 (N ")
    assert sorted(runner.calls[1:]) == [(3, 3, 7, 6), (4, 3, 5, 6)]  # the first when it was opened
    model.finalize()


def test_as_many_pixels_are_taken_as_the_limit_says(raw: Any) -> None:
    model, _ = raw(NearestRunner(scale=2), {"max_pixels": "20"})
    assert output_of(*model.execute([Request({"input": np.zeros((9, 3, 4, 5), np.float32)})])).shape == (
        9,
        3,
        8,
        10,
    )
    (refused,) = model.execute([Request({"input": np.zeros((1, 3, 3, 7), np.float32)})])
    assert refused.refusal == ("INVALID_ARG", "input: has 21 pixels, this server takes 20; send tiles")
    model.finalize()


def test_a_request_whose_client_has_left_is_not_computed(raw: Any) -> None:
    runner = NearestRunner(scale=2)
    model, _ = raw(runner)
    request = Request({"input": np.zeros((1, 3, 8, 8), np.float32)}, cancelled=[True])
    assert model.execute([request])[0].refusal == ("CANCELLED", "the client has left")
    assert len(runner.calls) == 1
    model.finalize()


def test_a_run_that_fails_is_an_internal_error_whose_cause_the_log_has(raw: Any, triton: Triton) -> None:
    runner = NearestRunner(scale=2)
    model, _ = raw(runner)
    runner.factor = 3
    (refused,) = model.execute([Request({"input": np.zeros((1, 3, 8, 8), np.float32)})])
    assert refused.refusal == ("INTERNAL", "the network failed on this input; the server's log says why")
    (line,) = triton.errors
    assert line.startswith("net: RunError: ")
    model.finalize()


def test_a_gpu_that_fails_ends_the_process_which_triton_starts_anew(
    raw: Any, triton: Triton, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(NearestRunner):
        on_gpu = True

        def infer(self, batch: Float32Array) -> Float32Array:
            if self.calls:
                raise OSError("the wire broke")
            return super().infer(batch)

    ended = threading.Event()
    codes: list[int] = []
    monkeypatch.setattr(python_models.os, "_exit", lambda code: (codes.append(code), ended.set()))
    model, _ = raw(Failing(scale=2))
    (refused,) = model.execute([Request({"input": np.zeros((1, 3, 8, 8), np.float32)})])
    assert refused.refusal == ("UNAVAILABLE", "the GPU failed; the server ends")
    assert ended.wait(20)
    assert codes == [1]
    assert "net: nearest: the GPU failed: the wire broke" in triton.errors
    model.finalize()


def test_tensors_go_to_triton_under_a_name_that_numpy_expects(raw: Any, triton: Triton) -> None:
    model, _ = raw(NearestRunner(scale=2))
    batch = np.random.default_rng(2).random((3, 8, 9), np.float32).transpose(0, 2, 1)
    tensor = model._tensor("x", batch)
    np.testing.assert_array_equal(tensor.array, batch)
    assert [CAPSULE_NAME(capsule) for capsule in triton.capsules] == [b"used_dltensor"]
    triton.Tensor.from_dlpack = lambda name, exported: exported  # which looks at nothing
    assert model._tensor("x", batch).capsule is None
    model.finalize()


# The picture model.

SMALL = {"name": "small", "min": [1, 3, 4, 4], "max": [1, 3, 8, 8]}
LARGE = {"name": "large", "min": [1, 3, 8, 8], "max": [1, 3, 16, 16]}


@pytest.fixture
def image(triton: Triton, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ImageModel]:
    """Opens a picture model in front of raw models that enlarge by 2; it never sleeps."""
    monkeypatch.setattr(python_models.time, "sleep", triton.notes.append)

    def opened(*buckets: dict[str, Any], most: int | None = None, **parameters: str) -> ImageModel:
        model = ImageModel()
        config = {} if most is None else {"max_batch_size": most}
        models = json.dumps(buckets or (LARGE, SMALL))
        initialize(model, {"scale": "2", "raw_models": models, **parameters}, **config)
        return model

    return opened


def request_of(data: bytes, text: str = "", **options: Any) -> Request:
    return Request({"image": np.frombuffer(data, np.uint8)[None]}, text, **options)


def picture_of(model: ImageModel, data: bytes, text: str = "") -> np.ndarray:
    (response,) = model.execute([request_of(data, text)])
    values = output_of(response)
    assert (values.dtype, values.ndim, values.shape[0]) == (np.uint8, 2, 1)
    return pixels_of(values.tobytes())


@pytest.mark.parametrize(
    ("width", "height", "names"),
    [(8, 8, {"small"}), (9, 8, {"large"}), (16, 16, {"large"}), (40, 30, {"large"})],
)
def test_a_picture_goes_in_tiles_through_the_smallest_raw_model_that_takes_them(
    image: Any, triton: Triton, width: int, height: int, names: set[str]
) -> None:
    data = png(width, height)
    actual = picture_of(image(), data)
    np.testing.assert_array_equal(actual, pixels_of(data).repeat(2, 0).repeat(2, 1))
    assert {name for name, _ in triton.asked} == names
    assert (len(triton.asked) > 1) is (width > 16)


@pytest.mark.parametrize(("small", "large"), [((8, 9), (32, 8)), ((9, 8), (8, 32))])
def test_the_smallest_raw_model_is_the_one_of_the_fewest_pixels(
    image: Any, triton: Triton, small: tuple[int, int], large: tuple[int, int]
) -> None:
    models = [
        {"name": name, "min": [1, 3, 4, 4], "max": [1, 3, *sides]}
        for name, sides in (("large", large), ("small", small))
    ]
    assert picture_of(image(*models), png(8, 8)).shape == (16, 16, 3)
    assert triton.asked == [("small", (1, 3, 8, 8))]


def test_sides_of_tiles_are_multiples_of_what_the_network_takes(image: Any, triton: Triton) -> None:
    assert picture_of(image(SMALL, size_multiple="4"), png(7, 5)).shape == (10, 14, 3)
    assert [shape for _, shape in triton.asked] == [(1, 3, 8, 8)]
    triton.asked.clear()
    assert picture_of(image(SMALL), png(7, 5)).shape == (10, 14, 3)
    assert [shape for _, shape in triton.asked] == [(1, 3, 5, 7)]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "PNG"),
        ("{}", "PNG"),
        ("[]", "PNG"),
        ("no json", "PNG"),
        ('{"format": "JPEG"}', "JPEG"),
        ('{"format": "webp", "other": 1}', "WEBP"),
    ],
)
def test_the_format_is_a_parameter_of_the_request(image: Any, text: str, kind: str) -> None:
    (response,) = image().execute([request_of(png(8, 8), text)])
    starts = {"PNG": b"\x89PNG", "JPEG": b"\xff\xd8\xff", "WEBP": b"RIFF"}
    assert output_of(response).tobytes().startswith(starts[kind])


@pytest.mark.parametrize(
    ("values", "text", "words"),
    [
        (np.zeros(5, np.uint8), "", "image: has shape (5,), expected (1, bytes): one picture a request"),
        (np.zeros((2, 5), np.uint8), "", "image: has shape (2, 5), expected (1, bytes)"),
        (np.zeros((1, 0), np.uint8), "", "image: has 0 bytes, this server takes 1 to 400"),
        (np.zeros((1, 401), np.uint8), "", "image: has 401 bytes, this server takes 1 to 400"),
        (np.zeros((1, 400), np.uint8), "", "not a picture"),
        (np.zeros((1, 1), np.uint8), "", "not a picture"),
        (np.zeros((1, 5), np.uint8), '{"format": "exe"}', "format is 'exe', expected one of png"),
    ],
)
def test_what_is_no_picture_of_the_size_that_is_taken_is_refused(
    image: Any, values: np.ndarray, text: str, words: str
) -> None:
    (response,) = image(max_bytes="400").execute([Request({"image": values}, text)])
    code, message = response.refusal
    assert code == "INVALID_ARG"
    assert words in message


def test_as_many_pixels_of_a_picture_are_taken_as_the_limit_says(image: Any) -> None:
    model = image(max_pixels="64")
    assert picture_of(model, png(8, 8)).shape == (16, 16, 3)
    (response,) = model.execute([request_of(png(13, 5))])
    line = "picture: has 5x13 pixels, this server takes 64 in all; send smaller parts"
    assert response.refusal == ("INVALID_ARG", line)


def test_pictures_that_triton_batched_are_worked_on_side_by_side(image: Any, triton: Triton) -> None:
    def together(name: str, batch: np.ndarray) -> Response:
        barrier.wait(20)
        return nearest(name, batch)

    triton.answers = together
    for most in (2, 3):
        barrier = threading.Barrier(most)
        model = image(most=most)
        assert all(not response.has_error() for response in model.execute([request_of(png(8, 8))] * most))
        model.finalize()
    for words in ({}, {"most": 0}):
        assert image(**words)._workers._max_workers == 1


def test_a_client_that_leaves_gets_no_further_tiles(image: Any, triton: Triton) -> None:
    (response,) = image().execute([request_of(png(40, 30), cancelled=[False, False, True])])
    assert response.refusal == ("CANCELLED", "the client has left")
    asked = len(triton.asked)
    assert 1 <= asked < 5
    assert image().execute([request_of(png(8, 8), cancelled=[True])])[0].refusal[0] == "CANCELLED"
    assert len(triton.asked) == asked


def test_a_picture_that_takes_too_long_is_given_up_unless_it_is_complete(image: Any, triton: Triton) -> None:
    def slow(name: str, batch: np.ndarray) -> Response:
        time.monotonic()  # the clock is looked at, and goes on
        clock[0] += 0.6
        return nearest(name, batch)

    clock = [0.0]
    triton.answers = slow
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(python_models.time, "monotonic", lambda: clock[0])
        model = image(work_time_ms="1000", queue_time_ms="9000")
        (response,) = model.execute([request_of(png(40, 30))])
        line = "picture: took longer than 1000 ms; send a smaller picture"
        assert response.refusal == ("UNAVAILABLE", line)
        assert len(triton.asked) == 2
        clock[0] = 0.0
        assert picture_of(image(work_time_ms="500"), png(8, 8)).shape == (16, 16, 3)


@pytest.mark.parametrize(
    "error",
    [TritonError("full", "UNAVAILABLE"), TritonError("Stub process 'net' is not healthy.", "INTERNAL")],
)
def test_a_tile_is_sent_again_while_its_model_is_busy_or_restarts(
    image: Any, triton: Triton, error: TritonError
) -> None:
    answers = [Response(error=error), Response(error=error)]
    triton.answers = lambda name, batch: answers.pop() if answers else nearest(name, batch)
    assert picture_of(image(), png(8, 8)).shape == (16, 16, 3)
    assert [name for name, _ in triton.asked] == ["small"] * 3
    assert triton.notes == [0.02, 0.02]


def test_a_model_that_stays_busy_is_asked_no_longer_than_a_request_may_wait(
    image: Any, triton: Triton
) -> None:
    clock = [0.0]

    def slept(seconds: float) -> None:
        clock[0] += 50 * seconds

    triton.answers = busy
    with pytest.MonkeyPatch.context() as patch:
        model = image(queue_time_ms="2000")
        patch.setattr(python_models.time, "monotonic", lambda: clock[0])
        patch.setattr(python_models.time, "sleep", slept)
        (response,) = model.execute([request_of(png(8, 8))])
    line = "small stayed too busy for this picture's tiles; send it again later"
    assert response.refusal == ("UNAVAILABLE", line)
    assert len(triton.asked) == 4  # at 0, 1, 2 and 3 seconds


def test_another_error_of_a_raw_model_is_passed_on_with_its_name(image: Any, triton: Triton) -> None:
    triton.answers = lambda *_: Response(error=TritonError("unexpected shape", "INVALID_ARG"))
    (response,) = image().execute([request_of(png(8, 8))])
    assert response.refusal == ("INVALID_ARG", "small: unexpected shape")
    assert triton.errors == []
    assert len(triton.asked) == 1


def test_what_is_unforeseen_is_an_internal_error_and_in_the_log(image: Any, triton: Triton) -> None:
    def broken(*_: object) -> Response:
        raise DeviceError if triton.errors else KeyError("secret")

    triton.answers = broken
    model = image()
    assert model.execute([request_of(png(8, 8))])[0].refusal == ("INTERNAL", "unexpected KeyError")
    assert triton.errors == ["net: KeyError: 'secret'"]
    assert model.execute([request_of(png(8, 8))])[0].refusal[0] == "UNAVAILABLE"
    assert len(triton.errors) == 1
