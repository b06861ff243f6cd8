"""The one reading of a KServe v2 request: what it takes, what it refuses, and that it refuses quickly."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from trt_hspan.serving.admission import RefusedError
from trt_hspan.serving.v2 import (
    MOST_JSON_BYTES,
    MOST_JSON_ELEMENTS,
    PICTURES,
    TENSORS,
    InferCall,
    body_from_output,
    call_from_body,
    call_from_message,
    object_from_json,
)

BATCH = np.random.default_rng(0).random((2, 3, 4, 5), np.float32)


def request_of(batch: np.ndarray, **changes: Any) -> dict[str, Any]:
    tensor = {"name": "input", "datatype": "FP32", "shape": list(batch.shape), "data": batch.ravel().tolist()}
    return {"inputs": [tensor | changes]}


def read(request: object, rest: bytes = b"", interface: Any = TENSORS) -> InferCall:
    head = json.dumps(request).encode()
    return call_from_body(head + rest, str(len(head)) if rest else None, interface)


def test_numbers_may_be_flat_or_nested_or_bytes() -> None:
    binary = request_of(BATCH, parameters={"binary_data_size": BATCH.nbytes})
    del binary["inputs"][0]["data"]
    for call in (
        read(request_of(BATCH)),
        read(request_of(BATCH, data=BATCH.tolist())),
        read(binary, BATCH.tobytes()),
    ):
        np.testing.assert_array_equal(call.values, BATCH)


def test_what_is_no_finite_number_is_passed_on() -> None:
    batch = BATCH.copy()
    batch[0, 0, 0, :3] = np.nan, np.inf, -np.inf
    np.testing.assert_array_equal(read(request_of(batch)).values, batch)


@pytest.mark.parametrize(
    "shape",
    [
        [1, 3, 4611686018427387904, 4],
        [1, 3, -4, -5],
        [2, 3, 4],
        [2, 3, 4, 6],
        [2, 4, 4, 5],
        [0, 3, 4, 5],
        [2, 3, 4, 5.0],
        [2, 3, 4, True],
        [2, 3, 4, "5"],
        [1 << 62, 3, 1 << 62, 1 << 62],
        [2, 3, 4, 5, 1],
        "2345",
        None,
        {},
    ],
)
def test_shape_that_is_not_the_data_is_refused_before_anything_is_made_of_it(shape: object) -> None:
    for request, rest in (
        (request_of(BATCH, shape=shape), b""),
        (request_of(BATCH, shape=shape, data=[]), b""),
        ({"inputs": [{"name": "input", "datatype": "FP32", "shape": shape, "parameters": {"binary_data_size": 480}}]},
         BATCH.tobytes()),
    ):  # fmt: skip
        with pytest.raises(RefusedError) as refused:
            read(request, rest)
        assert refused.value.status == 400
        assert len(refused.value.message) < 400


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "image"}, "unexpected input 'image'"),
        ({"datatype": "FP16"}, "unexpected data-type 'FP16'"),
        ({"datatype": None}, "unexpected data-type"),
        ({"data": ["a"] * 120}, "expected numbers"),
        ({"data": [None] * 120}, "expected numbers"),
        ({"data": [10**400] * 120}, "too large"),
        ({"data": [[1], 2]}, "nested as the shape"),
        ({"data": "AAAA"}, "needs data"),
        ({"parameters": {"binary_data_size": 10**30}}, "bytes follow the JSON"),
        ({"parameters": {"binary_data_size": -1}}, "bytes follow the JSON"),
        ({"parameters": {"shared_memory_region": "x", "shared_memory_byte_size": 480}}, "no shared memory"),
        ({"parameters": []}, "expected an object"),
        ({"data": BATCH.ravel().tolist()[:-1]}, "needs data: 120 numbers"),
        ({"data": [True] * 120}, "expected numbers"),
        ({"data": []}, "needs data"),
    ],
)
def test_wrong_input_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RefusedError, match=words):
        read(request_of(BATCH, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": []},
        {"inputs": None},
        {"inputs": [1]},
        {"inputs": {"name": "input"}},
        {"outputs": [{"name": "other"}]},
        {"outputs": [{"name": "output"}, {"name": "output"}]},
        {"outputs": [{"name": "output", "parameters": {"shared_memory_region": "x"}}]},
        {"parameters": {"format": 3}},
        {"parameters": {"timeout": -1}},
        {"parameters": {"timeout": "soon"}},
        {"parameters": {"timeout": True}},
        {"id": 7},
        {"id": "x" * 257},
    ],
)
def test_wrong_request_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RefusedError) as refused:
        read(request_of(BATCH) | changes)
    assert refused.value.status == 400


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b"[" * 17 + b"]" * 17,
        b"[[],[]," * 100_000,
        b"0," * (MOST_JSON_ELEMENTS + 2),
        b'"' + b'\\"' * 2_000_000,
        b'{"a": [' + b'"\\"[",' * 30_000 + b"[[[[[[[[[[[[[[[[[[[[",
        b'{"inputs": 1, "inputs": 2}',
        b'{"a": {"key": "mine", "key": "yours"}}',
        b"{'a': 1}",
        b"\xff\xfe",
        b"{broken",
        b"[]",
        b"7" * 100_000,
        b'{"a": 1e}',
        b"",
    ],
    ids=range(16),
)
def test_hostile_json_is_refused_quickly(data: bytes) -> None:
    started = time.process_time()
    with pytest.raises(RefusedError) as refused:
        object_from_json(data)
    assert refused.value.status == 400
    assert time.process_time() - started < 5


def test_json_of_too_many_bytes_is_not_even_looked_at() -> None:
    with pytest.raises(RefusedError, match="send binary tensors") as refused:
        object_from_json(b" " * (9 << 20))
    assert refused.value.status == 413


def test_limits_are_the_largest_that_is_taken() -> None:
    assert object_from_json(b'{"a":' + b"[" * 15 + b"]" * 15 + b"}")["a"]
    assert object_from_json(b'{"b":[],"a":' + b"[" * 15 + b"]" * 15 + b"}")["b"] == []
    assert object_from_json(b'{"a": [' + b"0," * (MOST_JSON_ELEMENTS - 1) + b"0,0]}")["a"]
    assert len(object_from_json(b'{"a": [' + b"[]," * ((1 << 16) - 3) + b"[]]}")["a"]) == (1 << 16) - 2
    for data in (
        b'{"a": [' + b"0," * MOST_JSON_ELEMENTS + b"0,0]}",
        b'{"a": [' + b"[]," * ((1 << 16) - 2) + b"[]]}",
        b'{"a":' + b"[" * 16 + b"]" * 16 + b"}",
    ):
        with pytest.raises(RefusedError, match=r"too many elements|more than 16 levels"):
            object_from_json(data)
    assert object_from_json(b" " * (MOST_JSON_BYTES - 2) + b"{}") == {}
    with pytest.raises(RefusedError):
        object_from_json(b" " * (MOST_JSON_BYTES - 1) + b"{}")
    assert MOST_JSON_BYTES == 8 << 20
    assert read(request_of(BATCH) | {"id": "x" * 256}).identifier == "x" * 256
    large = np.zeros((1, 3, 1, MOST_JSON_ELEMENTS // 3), np.float32)
    assert body_from_output(InferCall(identifier="", values=None), "net", 1, TENSORS, large)[1] is None
    with pytest.raises(RefusedError, match="too many for JSON"):
        read(request_of(BATCH, shape=[1, 3, 1, MOST_JSON_ELEMENTS // 3 + 1]))


@pytest.mark.parametrize(
    ("tensor", "request_", "rest", "words"),
    [
        (
            {"parameters": {"binary_data_size": True}},
            {},
            b"1",
            "binary_data_size is True, and 1 bytes follow",
        ),
        ({"parameters": {"binary_data_size": 479}}, {}, b"1", "binary_data_size is 479, and 1 bytes follow"),
        ({"parameters": {"binary_data_size": 480}}, {}, BATCH.tobytes(), "both data and binary_data_size"),
        ({}, {}, b"1", "no input says that they are its own"),
    ],
)
def test_bytes_behind_the_json_belong_to_one_input(
    tensor: dict[str, Any], request_: dict[str, Any], rest: bytes, words: str
) -> None:
    with pytest.raises(RefusedError, match=words):
        read(request_of(BATCH, **tensor) | request_, rest)


def test_an_output_is_binary_where_it_says_so_or_else_the_request() -> None:
    for of_request, of_output, is_binary in (
        (None, None, False),
        (True, None, True),
        (1, None, False),
        (True, False, False),
        (False, True, True),
        (None, "yes", False),
    ):
        request = request_of(BATCH) | {"parameters": {"binary_data_output": of_request}}
        if of_output is not None:
            request["outputs"] = [{"name": "output", "parameters": {"binary_data": of_output}}]
        assert read(request).is_binary is is_binary


def test_format_and_time_are_parameters() -> None:
    for timeout, seconds in ((None, None), (0, None), (1, 1e-6), (1500, 0.0015), (1 << 60, (1 << 50) / 1e6)):
        call = read(request_of(BATCH) | {"parameters": {"timeout": timeout, "format": "WebP"}})
        assert (call.seconds, call.format) == (seconds, "webp")
    assert read(request_of(BATCH)).format == "png"


@pytest.mark.parametrize("length", ["-1", "1e3", "9" * 40, "99999", "٣", "", "0x1"])
def test_wrong_length_of_the_json_is_refused(length: str) -> None:
    with pytest.raises(RefusedError):
        call_from_body(b"{}", length, TENSORS)


def test_picture_needs_no_json() -> None:
    for body, length in ((b"", None), (b"", "1"), (b"{}", "3")):
        with pytest.raises(RefusedError, match=r"cannot read the JSON|and the body has"):
            call_from_body(body, length, PICTURES)
    call = call_from_body(b"\x89PNG", "0", PICTURES)
    assert call.is_binary
    assert call.values.tobytes() == b"\x89PNG"
    with pytest.raises(RefusedError, match="only a picture"):
        call_from_body(BATCH.tobytes(), "0", TENSORS)


def test_bytes_in_json_are_from_0_to_255() -> None:
    picture = {"name": "image", "datatype": "UINT8", "shape": [1, 2]}
    assert read({"inputs": [picture | {"data": [1, 255]}]}, interface=PICTURES).values.tolist() == [[1, 255]]
    assert read({"inputs": [picture | {"data": [0, 1]}]}, interface=PICTURES).values.dtype == np.uint8
    for data in ([1, 256], [1, -1], [1, 1.5], [1, True]):
        with pytest.raises(RefusedError, match="from 0 to 255"):
            read({"inputs": [picture | {"data": data}]}, interface=PICTURES)


def message_of(batch: np.ndarray, shape: list[int] | None = None, raw: bytes | None = None) -> Any:
    message = service_pb2.ModelInferRequest(model_name="net", id="7")
    message.inputs.add(name="input", datatype="FP32", shape=shape or list(batch.shape))
    message.raw_input_contents.append(batch.tobytes() if raw is None else raw)
    return message


def test_message_is_read_as_the_body_is() -> None:
    message = message_of(BATCH)
    message.parameters["timeout"].int64_param = 2_000_000
    call = call_from_message(message, TENSORS)
    np.testing.assert_array_equal(call.values, BATCH)
    assert (call.identifier, call.seconds) == ("7", 2.0)
    message = service_pb2.ModelInferRequest()
    message.inputs.add(name="input", datatype="FP32", shape=BATCH.shape).contents.fp32_contents.extend(
        BATCH.ravel()
    )
    np.testing.assert_array_equal(call_from_message(message, TENSORS).values, BATCH)


def test_a_picture_may_be_numbers_of_a_message_and_have_parameters() -> None:
    message = service_pb2.ModelInferRequest()
    tensor = message.inputs.add(name="image", datatype="UINT8", shape=[1, 2])
    tensor.contents.uint_contents.extend([7, 255])
    message.parameters["format"].string_param = "jpg"
    message.outputs.add(name="upscaled").parameters["binary_data"].bool_param = True
    call = call_from_message(message, PICTURES)
    assert (call.values.tolist(), call.format, call.is_binary) == ([[7, 255]], "jpg", True)
    message.raw_input_contents.append(b"ab")
    with pytest.raises(RefusedError, match="one of raw_input_contents, or contents"):
        call_from_message(message, PICTURES)
    twice = message_of(BATCH)
    twice.raw_input_contents.append(b"")
    with pytest.raises(RefusedError, match="one of raw_input_contents, or contents"):
        call_from_message(twice, TENSORS)


@pytest.mark.parametrize(
    "message",
    [
        service_pb2.ModelInferRequest(),
        message_of(BATCH, shape=[1, 3, 4611686018427387904, 4], raw=b""),
        message_of(BATCH, shape=[-1, 3, -4, -10]),
        message_of(BATCH, raw=b"abc"),
        message_of(BATCH, shape=[2, 3, 20]),
    ],
)
def test_wrong_message_is_refused(message: Any) -> None:
    with pytest.raises(RefusedError) as refused:
        call_from_message(message, TENSORS)
    assert refused.value.status == 400


def test_region_of_shared_memory_in_a_message_is_refused() -> None:
    message = message_of(BATCH)
    message.inputs[0].parameters["shared_memory_region"].string_param = "x"
    with pytest.raises(RefusedError, match="no shared memory"):
        call_from_message(message, TENSORS)


def test_answer_is_json_or_json_and_bytes() -> None:
    call = InferCall(identifier="a", values=BATCH)
    head, rest = body_from_output(call, "net", 2, TENSORS, BATCH)
    answer = json.loads(head)
    assert (answer["model_name"], answer["model_version"], answer["id"], rest) == ("net", "2", "a", None)
    np.testing.assert_array_equal(
        np.array(answer["outputs"][0]["data"], np.float32).reshape(BATCH.shape), BATCH
    )
    binary = InferCall(identifier="", values=BATCH, is_binary=True)
    head, rest = body_from_output(binary, "net", 2, TENSORS, BATCH)
    assert json.loads(head)["outputs"][0]["parameters"] == {"binary_data_size": BATCH.nbytes}
    assert rest is not None
    assert bytes(rest) == BATCH.tobytes()
    with pytest.raises(RefusedError, match="ask for it as binary data"):
        body_from_output(call, "net", 2, TENSORS, np.zeros(MOST_JSON_ELEMENTS + 1, np.float32))
