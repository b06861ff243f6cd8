"""The calibration table: a range for each tensor, and how weights are rounded."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import logging
import math
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import onnx

from trt_hspan.errors import HspanError
from trt_hspan.files import cache_folder, error_from_os_error, write_text
from trt_hspan.graph import QuantizedType
from trt_hspan.records import MistypedError, dataclass_from_json, parsed_json

Method = Literal["minmax", "percentile", "entropy", "mse"]

TABLE_FORMAT: Final = "trt-hspan calibration table 1"
_AGAIN: Final = "calibrate again with --calibration"
# Part of a cached table's key: raise it when the same pictures come to give other numbers.
_CACHE_VERSION: Final = 3
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TensorRange:
    """The values of an activation, and how far its quantized range reaches.

    Args:
        min, max: smallest and largest value over all tiles.
        range: the magnitude that the largest quantized value stands for. This is the number to edit.
    """

    min: float
    max: float
    range: float


@dataclass(frozen=True, kw_only=True)
class CalibrationTable:
    """Ranges for one model. `str`-keyed throughout, so that its JSON reads well.

    Args:
        format: `TABLE_FORMAT`.
        model_sha256: of the graph in its base type: `Source.sha256`.
        precision: what the ranges are for.
        method: how `range` was chosen.
        pictures, tiles: how many were measured.
        pictures_sha256: of their contents and of how tiles are cut.
        tensors: activation name -> range.
        rounding: layer name -> weights that are not rounded to nearest; see `text_from_flips`.
    """

    format: str
    model_sha256: str
    precision: QuantizedType
    method: Method
    pictures: int
    tiles: int
    pictures_sha256: str
    tensors: Mapping[str, TensorRange]
    rounding: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> str:
        """The table as a JSON document, the same bytes for the same table."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    def is_dead(self, node: onnx.NodeProto) -> bool:
        """Whether an input of a layer was 0 throughout: then it has no scale."""
        return any(name in self.tensors and self.tensors[name].range == 0.0 for name in node.input)

    @property
    def sha256(self) -> str:
        """Hash of `as_json`."""
        return hashlib.sha256(self.as_json().encode()).hexdigest()


def read_table(path: str | os.PathLike[str]) -> CalibrationTable:
    """Reads a table, edited by hand or not.

    Raises:
        HspanError: missing, not JSON, a key missing, unknown or mistyped, or a range that is not a positive number.
    """
    source = Path(path)
    try:
        document = parsed_json(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise error_from_os_error(source, error, action="read") from error
    except (ValueError, RecursionError) as error:
        raise HspanError(source, f"is not a calibration table: malformed JSON ({error})", _AGAIN) from None
    try:
        table = dataclass_from_json(document, CalibrationTable)
    except MistypedError as error:
        raise HspanError(source, f"is not a calibration table: {error}", _AGAIN) from None
    if table.format != TABLE_FORMAT:
        raise HspanError(source, f"its format is {table.format!r}, expected {TABLE_FORMAT!r}", _AGAIN)
    for name, tensor in table.tensors.items():
        if not (math.isfinite(tensor.range) and tensor.range >= 0):
            raise HspanError(source, f"the range of {name} is {tensor.range}", "give a finite number from 0")
    return table


def calibration_folder() -> Path:
    """Where tables are kept from one run to the next."""
    return cache_folder() / "calibration"


def cached_table(key: list[object], measure: Callable[[], CalibrationTable]) -> tuple[CalibrationTable, bool]:
    """The table that was kept for this key, and whether there was one; else it is measured, and kept for later runs.

    A cache that cannot be read or written is no reason to fail.
    """
    text = json.dumps([*key, _CACHE_VERSION])
    path = calibration_folder() / f"{hashlib.sha256(text.encode()).hexdigest()}.json"
    if path.is_file():
        try:
            return read_table(path), True
        except HspanError as error:
            _LOG.info("calibrating anew: %s", error)
    table = measure()
    try:
        write_text(path, table.as_json())
    except HspanError as error:
        _LOG.info("the calibration is not kept: %s", error)
    return table, False


def text_from_flips(flips: npt.NDArray[np.bool_]) -> str:
    """Which weights are rounded to the other neighbor, as text: one bit a weight, compressed, base64."""
    return base64.b64encode(zlib.compress(np.packbits(flips.ravel()).tobytes(), 9)).decode()


def flips_from_text(text: str, shape: tuple[int, ...], where: object) -> npt.NDArray[np.bool_]:
    """The inverse of `text_from_flips`. Raises: HspanError when the text is damaged or for another shape."""
    count = math.prod(shape)
    try:
        packed = np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), dtype=np.uint8)
        if packed.size != -(-count // 8):
            raise ValueError("another number of weights")
    except (ValueError, zlib.error) as error:
        raise HspanError(where, f"its rounding is damaged ({error})", "quantize the model anew") from None
    return np.unpackbits(packed, count=count).astype(bool).reshape(shape)
