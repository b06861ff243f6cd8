"""The KServe v2 inference protocol: one reading of a request, which came as JSON with binary tensors or as a message.

Sizes are exact integers, compared with the data that came before anything is allocated. Sources: KServe's "Open
Inference Protocol", and Triton's "Binary Tensor Data Extension" and "Parameters Extension" of it.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trt_hspan.errors import UsageError
from trt_hspan.runtime.runner import CHANNELS
from trt_hspan.serving.admission import RefusedError
from trt_hspan.version import __version__

#: Length of the JSON before binary tensors.
JSON_LENGTH_HEADER: Final = "inference-header-content-length"
MOST_JSON_BYTES: Final = 8 << 20
MOST_JSON_ELEMENTS: Final = 1 << 19
_MOST_JSON_OPENINGS: Final = 1 << 16
_MOST_JSON_DEPTH: Final = 16
_LONGEST_ID: Final = 256
_DTYPES: Final[dict[str, np.dtype[Any]]] = {"FP32": np.dtype("<f4"), "UINT8": np.dtype("u1")}
# Strings, so that what looks like a bracket in them is none, and brackets; an open string ends with the text.
_BRACKETS: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{}]', re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Interface:
    """What one of the two models takes and gives: names, datatype and shape of its tensors, -1 where free."""

    input: str
    output: str
    datatype: str
    shape: tuple[int, ...]

    def metadata(self, name: str, version: int) -> dict[str, Any]:
        """The answer to GET /v2/models/NAME."""
        tensors = {
            side: [{"name": tensor, "datatype": self.datatype, "shape": list(self.shape)}]
            for side, tensor in (("inputs", self.input), ("outputs", self.output))
        }
        return {"name": name, "versions": [str(version)], "platform": "trt_hspan", **tensors}


TENSORS: Final = Interface(input="input", output="output", datatype="FP32", shape=(-1, CHANNELS, -1, -1))
PICTURES: Final = Interface(input="image", output="upscaled", datatype="UINT8", shape=(1, -1))
SERVER_METADATA: Final = {
    "name": "trt-hspan",
    "version": __version__,
    "extensions": ["binary_tensor_data", "parameters", "statistics", "model_repository"],
}


@dataclass(kw_only=True)
class InferCall:
    """A request, checked.

    Attributes:
        values: the input: float32 (N, 3, H, W) of `TENSORS`, uint8 (1, bytes) of `PICTURES`; None once it was taken.
        format: of the resulting picture.
        is_binary: whether the output goes as bytes behind the JSON.
        seconds: that the client waits; None is the server's limit.
    """

    identifier: str
    values: npt.NDArray[Any] | None
    format: str = "png"
    is_binary: bool = False
    seconds: float | None = None

    def taken(self) -> npt.NDArray[Any]:
        """The input, which is the caller's alone from now on: its memory can be given back."""
        assert self.values is not None
        values, self.values = self.values, None
        return values


def model_name_from_text(text: str) -> str:
    """A name that Triton, Kubernetes labels and URLs take: letters, digits, dash and underscore."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", text).strip("_-")
    if not name:
        raise UsageError("--name", f"got {text!r}, expected letters, digits, dashes or underscores")
    return name[:100]


def call_from_body(body: bytes | bytearray, json_length: str | None, interface: Interface) -> InferCall:
    """Reads the body of POST /v2/models/NAME/infer.

    Args:
        body: with any Content-Encoding undone.
        json_length: the header `JSON_LENGTH_HEADER`; None when all of the body is JSON.
        interface: of the model.

    Raises:
        RefusedError: 400 with what is wrong with it.
    """
    length = len(body)
    if json_length is not None:
        if re.fullmatch("[0-9]{1,15}", json_length) is None:
            raise _wrong(f"{JSON_LENGTH_HEADER} is {json_length[:40]!r}, expected a length")
        length = int(json_length)
    if length > len(body):
        raise _wrong(f"{JSON_LENGTH_HEADER} is {length}, and the body has {len(body)} bytes")
    data = memoryview(body)
    if length == 0 and json_length is not None:
        if interface is not PICTURES:
            raise _wrong("without JSON only a picture can be sent")
        return InferCall(identifier="", values=np.frombuffer(data, np.uint8)[None], is_binary=True)
    return _call(object_from_json(bytes(data[:length])), data[length:], interface)


def call_from_message(message: Any, interface: Interface) -> InferCall:
    """Reads a ModelInferRequest. Raises: RefusedError as `call_from_body`."""
    raw = list(message.raw_input_contents)
    if len(raw) > 1 or (raw and any(tensor.HasField("contents") for tensor in message.inputs)):
        raise _wrong("expected one of raw_input_contents, or contents")
    inputs = []
    for tensor in message.inputs:
        parameters = _plain(tensor.parameters)
        entry = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if raw:
            parameters["binary_data_size"] = len(raw[0])
        else:
            contents = tensor.contents
            numbers = contents.fp32_contents if interface is TENSORS else contents.uint_contents
            if len(numbers) > MOST_JSON_ELEMENTS:
                raise _wrong("too many elements in contents; send raw_input_contents")
            entry["data"] = list(numbers)
        inputs.append({**entry, "parameters": parameters})
    outputs = [{"name": each.name, "parameters": _plain(each.parameters)} for each in message.outputs]
    request: dict[str, Any] = {"id": message.id, "parameters": _plain(message.parameters)}
    request["inputs"] = inputs
    if outputs:
        request["outputs"] = outputs
    return _call(request, memoryview(raw[0] if raw else b""), interface)


def body_from_output(
    call: InferCall, name: str, version: int, interface: Interface, output: npt.NDArray[Any]
) -> tuple[bytes, memoryview | None]:
    """The JSON of an answer, and the bytes that follow it. Raises: RefusedError, 400, for JSON that would be huge."""
    tensor: dict[str, Any] = {
        "name": interface.output,
        "datatype": interface.datatype,
        "shape": list(output.shape),
    }
    data = None
    if call.is_binary:
        data = memoryview(np.ascontiguousarray(output).reshape(-1).view(np.uint8).data)
        tensor["parameters"] = {"binary_data_size": data.nbytes}
    elif output.size > MOST_JSON_ELEMENTS:
        raise _wrong(f"the output has {output.size} elements; ask for it as binary data")
    else:
        tensor["data"] = output.reshape(-1).tolist()
    answer: dict[str, Any] = {"model_name": name, "model_version": str(version), "outputs": [tensor]}
    return json.dumps(answer | ({"id": call.identifier} if call.identifier else {})).encode(), data


def object_from_json(data: bytes) -> dict[str, Any]:
    """A JSON object, read within limits of bytes, elements and depth; no name may come twice in one object.

    Raises:
        RefusedError: 400, or 413 for too many bytes.
    """
    if len(data) > MOST_JSON_BYTES:
        raise RefusedError(413, f"JSON of {len(data)} bytes, at most {MOST_JSON_BYTES}; send binary tensors")
    openings = data.count(b"[") + data.count(b"{")
    if openings > _MOST_JSON_OPENINGS or data.count(b",") > MOST_JSON_ELEMENTS:
        raise _wrong("JSON of too many elements; send binary tensors")
    depth = 0
    for match in _BRACKETS.finditer(data) if openings > _MOST_JSON_DEPTH else ():
        depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(match[0], 0)
        if depth > _MOST_JSON_DEPTH:
            raise _wrong(f"JSON of more than {_MOST_JSON_DEPTH} levels")
    try:
        value = json.loads(data, object_pairs_hook=_object_of_pairs)
    except (ValueError, RecursionError) as error:
        raise _wrong(f"cannot read the JSON: {error}") from None
    return _object(value, "the request")


def _object_of_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise _wrong("JSON in which one name comes twice in an object")
    return result


def _plain(parameters: Any) -> dict[str, Any]:
    """A message's parameters as JSON has them."""
    return {
        name: getattr(value, value.WhichOneof("parameter_choice") or "string_param")
        for name, value in parameters.items()
    }


def _call(request: dict[str, Any], rest: memoryview, interface: Interface) -> InferCall:
    """Checks a request and the bytes that came with it, whichever protocol brought them."""
    tensor = _only(request.get("inputs"), "inputs", interface.input)
    shape = _checked_shape(tensor, interface)
    own = _parameters(tensor)
    if "binary_data_size" in own:
        size = own["binary_data_size"]
        if type(size) is not int or size != len(rest):
            raise _wrong(f"binary_data_size is {str(size)[:40]}, and {len(rest)} bytes follow the JSON")
        if "data" in tensor:
            raise _wrong("the input has both data and binary_data_size")
        values = _values(rest, shape, interface)
    elif len(rest):
        raise _wrong(f"{len(rest)} bytes follow the JSON, and no input says that they are its own")
    else:
        values = _values_from_json(tensor.get("data"), shape, interface)
    parameters = _parameters(request)
    is_binary = parameters.get("binary_data_output") is True
    if request.get("outputs") is not None:
        output = _only(request["outputs"], "outputs", interface.output)
        is_binary = _parameters(output).get("binary_data", is_binary) is True
    identifier = request.get("id", "")
    if not isinstance(identifier, str) or len(identifier) > _LONGEST_ID:
        raise _wrong(f"id: expected a text of at most {_LONGEST_ID} characters")
    kind, timeout = parameters.get("format", "png"), parameters.get("timeout")
    if not isinstance(kind, str):
        raise _wrong(f"format: expected a text, got {str(kind)[:40]}")
    if timeout is not None and (type(timeout) is not int or timeout < 0):
        raise _wrong(f"timeout: expected microseconds, got {str(timeout)[:40]}")
    seconds = min(timeout, 1 << 50) / 1e6 if timeout else None
    return InferCall(
        identifier=identifier, values=values, format=kind.lower(), is_binary=is_binary, seconds=seconds
    )


def _checked_shape(tensor: dict[str, Any], interface: Interface) -> tuple[int, ...]:
    shape, kind, expected = tensor.get("shape"), tensor.get("datatype"), interface.shape
    what = f"of input {interface.input!r}, expected"
    if kind != interface.datatype:
        raise _wrong(f"unexpected data-type {str(kind)[:20]!r} {what} {interface.datatype}")
    if (
        not isinstance(shape, list)
        or len(shape) != len(expected)
        or any(type(side) is not int or side < 1 for side in shape)
        or any(free not in (-1, side) for side, free in zip(shape, expected, strict=True))
    ):
        raise _wrong(
            f"unexpected shape {str(shape)[:80]} {what} {list(expected)}, each of what is free at least 1"
        )
    return tuple(shape)


def _values(data: memoryview, shape: tuple[int, ...], interface: Interface) -> npt.NDArray[Any]:
    dtype = _DTYPES[interface.datatype]
    size = math.prod(shape) * dtype.itemsize
    if size != data.nbytes:
        raise _wrong(f"input {interface.input!r} of shape {list(shape)} has {size} bytes, got {data.nbytes}")
    return np.frombuffer(data, dtype).reshape(shape)


def _values_from_json(data: object, shape: tuple[int, ...], interface: Interface) -> npt.NDArray[Any]:
    """Numbers in a flat list, or nested as the shape says."""
    numbers, length = data, math.prod(shape)
    if length > MOST_JSON_ELEMENTS:
        raise _wrong(f"{length} elements are too many for JSON; send binary tensors")
    if isinstance(data, list) and data and isinstance(data[0], list):
        numbers = _flat(data, shape)
    if not isinstance(numbers, list) or len(numbers) != length:
        raise _wrong(f"input {interface.input!r} needs data: {length} numbers")
    if interface.datatype == "UINT8":
        if not all(type(number) is int and 0 <= number <= 255 for number in numbers):
            raise _wrong("expected whole numbers from 0 to 255")
    elif not all(type(number) in (int, float) for number in numbers):
        raise _wrong("expected numbers")
    try:
        return np.array(numbers, _DTYPES[interface.datatype]).reshape(shape)
    except OverflowError:
        raise _wrong("a number that is too large") from None


def _flat(data: list[Any], shape: tuple[int, ...]) -> list[Any]:
    for side in shape[1:]:
        if any(not isinstance(item, list) or len(item) != side for item in data):
            raise _wrong("data that is not nested as the shape says")
        data = [number for item in data for number in item]
    return data


def _only(items: object, what: str, name: str) -> dict[str, Any]:
    if not isinstance(items, list) or len(items) != 1:
        raise _wrong(f"{what}: expected a list of one tensor, {name}")
    tensor = _object(items[0], what)
    if tensor.get("name") != name:
        raise _wrong(f"unexpected {what[:-1]} {str(tensor.get('name'))[:100]!r}, expected {name!r}")
    return tensor


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(f"{what}: expected an object")
    return value


def _parameters(owner: dict[str, Any]) -> dict[str, Any]:
    given = owner.get("parameters")
    parameters = {} if given is None else _object(given, "parameters")
    if any(name.startswith("shared_memory") for name in parameters):
        raise _wrong("this server has no shared memory; send the tensor itself")
    return parameters


def _wrong(message: str) -> RefusedError:
    return RefusedError(400, message)
