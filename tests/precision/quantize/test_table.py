"""The calibration table as a file, in the cache, and its rounding as text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from support.permissions import read_only

from trt_hspan.errors import HspanError
from trt_hspan.precision.quantize.table import (
    TABLE_FORMAT,
    CalibrationTable,
    TensorRange,
    cached_table,
    calibration_folder,
    flips_from_text,
    read_table,
    text_from_flips,
)


def table(reach: float = 2.0) -> CalibrationTable:
    return CalibrationTable(
        format=TABLE_FORMAT,
        model_sha256="a" * 64,
        precision="int8",
        method="mse",
        pictures=1,
        tiles=2,
        pictures_sha256="b" * 64,
        tensors={"x": TensorRange(min=-1.0, max=reach, range=reach)},
    )


def test_a_table_reads_back_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(table().as_json())
    assert read_table(path) == table()
    assert table().as_json().startswith('{\n  "format": "')
    assert table().as_json().endswith("}\n")
    assert table().sha256 == table().sha256 != table(3.0).sha256
    assert table().rounding == {}


@pytest.mark.parametrize(("reach", "is_fine"), [("0.0", True), ("-1e-300", False), ("1e999", False)])
def test_a_range_is_a_finite_number_from_0(tmp_path: Path, reach: str, is_fine: bool) -> None:
    path = tmp_path / "t.json"
    path.write_text(table().as_json().replace('"range": 2.0', f'"range": {reach}'))
    if is_fine:
        assert read_table(path).tensors["x"].range == 0.0
    else:
        with pytest.raises(HspanError, match=r"t\.json: "):
            read_table(path)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b'{"format": 1}'])
def test_what_is_no_table_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(content)
    with pytest.raises(HspanError, match=r"t\.json: is not a calibration table: .*; calibrate again"):
        read_table(path)
    with pytest.raises(HspanError, match=r"gone\.json: no such file"):
        read_table(tmp_path / "gone.json")


def test_a_layer_is_dead_when_one_of_its_inputs_has_no_range() -> None:
    for inputs, reach, is_dead in ((["x", "w"], 0.0, True), (["w", "x"], 2.0, False), (["w"], 0.0, False)):
        assert table(reach).is_dead(helper.make_node("Conv", inputs, ["y"])) is is_dead


def test_a_table_is_kept_for_its_key() -> None:
    measured: list[float] = []

    def measure() -> CalibrationTable:
        measured.append(len(measured) + 1.0)
        return table(measured[-1])

    assert cached_table(["a", 1, True], measure) == (table(1.0), False)
    assert cached_table(["a", 1, True], measure) == (table(1.0), True)
    assert cached_table(["a", 1, False], measure) == (table(2.0), False)
    for path in calibration_folder().iterdir():
        path.write_text("{")
    assert cached_table(["a", 1, True], measure) == (table(3.0), False)


def test_a_cache_that_cannot_be_written_is_no_reason_to_fail(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "closed").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "closed"))
    with read_only(tmp_path / "closed"):
        assert cached_table(["a"], table) == (table(), False)
        assert cached_table(["a"], table) == (table(), False)


@pytest.mark.parametrize("shape", [(1,), (7,), (2, 2, 1, 2), (3, 3), (0, 3)])
def test_rounding_is_a_bit_a_weight(shape: tuple[int, ...]) -> None:
    flips = np.random.default_rng(0).random(shape) < 0.5
    text = text_from_flips(flips)
    np.testing.assert_array_equal(flips_from_text(text, shape, "layer"), flips)
    larger = (int(np.prod(shape)) + 8,)
    for damaged, other in ((text, larger), ("!" + text, shape), (text[4:], shape), ("AAAA", shape)):
        with pytest.raises(
            HspanError, match=r"layer: its rounding is damaged \(.*\); quantize the model anew"
        ):
            flips_from_text(damaged, other, "layer")
