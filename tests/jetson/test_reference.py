"""Stored reference outputs: the shipped ones are what PyTorch computes; the file; wrong ones."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.command_line import CommandLine
from support.export_cache import ExportCache
from support.runner_doubles import NearestRunner

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.evaluation.metrics import agreement
from trt_hspan.jetson import reference as reference_module
from trt_hspan.jetson.reference import (
    SHIPPED_FOLDER,
    ReferencePicture,
    StoredReference,
    compared_with_reference,
    default_pictures,
    made_reference,
    pictures_from_files,
    read_reference,
    reference_for,
    shipped_reference,
    write_reference,
)
from trt_hspan.media.pixels import tensor_from_image
from trt_hspan.media.writing import write_picture

SOURCE = "a" * 64
# Other processors and releases of PyTorch sum in another order: float32's rounding, not another result.
SAME_DB = 110.0


def nearest_reference(scale: int = 2, **changes: Any) -> StoredReference:
    """What `NearestRunner` computes."""
    picture = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
    output = tensor_from_image(picture)[0].repeat(scale, axis=1).repeat(scale, axis=2)
    about = {
        "network": "nearest",
        "source_sha256": SOURCE,
        "scale": scale,
        "res_scale": 0.1,
        "made_by": "numpy",
    }
    pictures = (ReferencePicture(name="ramp", picture=picture, output=output),)
    return StoredReference(**({**about, "pictures": pictures} | changes))


def runner(**changes: Any) -> NearestRunner:
    return NearestRunner(**({"scale": 2, "source_sha256": SOURCE} | changes))


@pytest.mark.parametrize("network", ["hspan-tiny-x2", "hspan-tiny-x4"])
def test_the_shipped_outputs_are_what_pytorch_computes_from_the_shipped_weights(network: str) -> None:
    stored = read_reference(SHIPPED_FOLDER / f"{network}.npz")
    again = made_reference(network, default_pictures())
    assert (stored.network, stored.source_sha256) == (network, again.source_sha256)
    assert (stored.scale, stored.res_scale) == (again.scale, again.res_scale)
    assert [picture.name for picture in stored.pictures] == ["photograph", "flat"]
    for old, new in zip(stored.pictures, again.pictures, strict=True):
        assert np.array_equal(old.picture, new.picture)
        assert agreement(old.output, new.output).psnr_db > SAME_DB
    found = shipped_reference(again.source_sha256)
    assert found is not None
    assert found.network == network


def test_a_file_holds_what_was_written(tmp_path: Path) -> None:
    reference = nearest_reference()
    write_reference(tmp_path / "r.npz", reference)
    again = read_reference(tmp_path / "r.npz")
    assert again.pictures[0].name == "ramp"
    assert np.array_equal(again.pictures[0].output, reference.pictures[0].output)
    assert np.array_equal(again.pictures[0].picture, reference.pictures[0].picture)
    assert again.source_sha256 == SOURCE


def test_an_engine_that_computes_the_same_passes_and_another_does_not() -> None:
    report = compared_with_reference(runner(), nearest_reference())
    assert report.passed
    assert report.worst[1].psnr_db == float("inf")
    off = compared_with_reference(runner(offset=0.01), nearest_reference())
    assert not off.passed
    assert off.worst[1].psnr_db == pytest.approx(40.0, abs=0.01)
    spoilt = compared_with_reference(runner(spoil=float("nan")), nearest_reference())
    assert not spoilt.passed
    assert spoilt.worst[1].nan_count == 1


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"source_sha256": "b" * 64}, "is of nearest .* is of another checkpoint"),
        (
            {"scale": 3},
            "the reference is of res_scale 0.1 and scale 3, nearest of res_scale None and scale 2",
        ),
    ],
)
def test_a_reference_of_another_network_is_one_line(
    tmp_path: Path, changes: dict[str, Any], part: str
) -> None:
    reference = nearest_reference(**({"scale": 2} | changes))
    write_reference(tmp_path / "r.npz", reference)
    with pytest.raises(HspanError, match=part):
        reference_for(runner(), tmp_path / "r.npz")


def test_a_res_scale_that_the_hash_does_not_hold_is_compared() -> None:
    other = runner()
    other.res_scale = 0.2
    with pytest.raises(
        HspanError, match=r"res_scale 0.1 and scale 2, nearest of res_scale 0.2 .*--res-scale 0.2"
    ):
        reference_module._require_same_network(other, nearest_reference(), None)


def test_a_network_without_a_shipped_reference_says_how_to_make_one() -> None:
    with pytest.raises(HspanError, match=r"no reference is shipped .* trt-hspan jetson reference CHECKPOINT"):
        reference_for(runner(), None)
    with pytest.raises(HspanError, match="does not say which checkpoint it comes from"):
        reference_for(runner(source_sha256=None), None)


def spoilt(path: Path, change: dict[str, Any]) -> Path:
    """A reference whose arrays are replaced, or left out where None."""
    write_reference(path, nearest_reference())
    with np.load(path) as old:
        arrays = {name: old[name] for name in old.files} | change
    about = arrays["about"]
    if isinstance(about, dict):
        with np.load(path) as old:
            arrays["about"] = np.array(json.dumps(json.loads(str(old["about"])) | about))
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


@pytest.mark.parametrize(
    "change",
    [
        {"about": None},
        {"about": np.array("{")},
        {"about": np.array("[1]")},
        {"about": np.array(7)},
        {"about": {"format": 2}},
        {"about": {"scale": "2"}},
        {"about": {"scale": True}},
        {"about": {"source_sha256": None}},
        {"about": {"pictures": []}},
        {"about": {"pictures": ["other"]}},
        {"about": {"pictures": [["ramp"]]}},
        {"about": {"pictures": "ramp"}},
        {"about": {"scale": -2}},
        {"input/ramp": np.zeros((5, 4), np.uint8)},
        {"input/ramp": np.zeros((5, 4, 3), np.float32)},
        {"input/ramp": np.zeros((0, 4, 3), np.uint8)},
        {"output/ramp": np.zeros((3, 10, 9), np.float32)},
        {"output/ramp": np.zeros((3, 10, 8), np.float64)},
        {"output/ramp": np.array([{"a": 1}], dtype=object)},
    ],
    ids=str,
)
def test_a_damaged_reference_is_one_line(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(
        HspanError, match=r"r.npz: is not a reference, or damaged: .*; make it where PyTorch is"
    ):
        read_reference(spoilt(tmp_path / "r.npz", change))


def test_what_is_no_archive_or_too_large_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.npz"
    with pytest.raises(HspanError, match="no such file"):
        read_reference(path)
    write_reference(path, nearest_reference())
    whole = path.read_bytes()
    for data in (b"", b"junk", whole[:-30], whole[: len(whole) // 2]):
        path.write_bytes(data)
        with pytest.raises(HspanError, match="is not a reference, or damaged"):
            read_reference(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("about.npy", b"no array")
    with pytest.raises(HspanError, match="is not a reference, or damaged"):
        read_reference(path)
    path.write_bytes(whole)
    monkeypatch.setattr(reference_module, "_LARGEST_BYTES", 100)
    with pytest.raises(HspanError, match="unpacks to more than"):
        read_reference(path)


def test_names_and_pictures_are_checked_first(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ends in .npz"):
        write_reference(tmp_path / "r.safetensors", nearest_reference())
    for folder in ("a", "b"):
        write_picture(tmp_path / folder / "x.png", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(UsageError, match="has the name of another picture"):
        pictures_from_files([tmp_path / "a" / "x.png", tmp_path / "b" / "x.png"])


def test_the_commands_make_a_reference_and_hold_an_engine_against_it(
    tmp_path: Path, run: CommandLine, exported: ExportCache
) -> None:
    model = exported("small_x4", precision="fp16")
    checkpoint = Path(__file__).parents[1] / "golden" / "small_x4.pt"
    done = run("jetson", "validate", model)
    assert done.code == 1
    assert "no reference is shipped for its network" in done.error_line
    made = run("jetson", "reference", checkpoint, "-o", tmp_path / "r.npz", "--json")
    assert made.code == 0, made.err
    assert json.loads(made.out)["pictures"] == {"photograph": [32, 40], "flat": [40, 48]}
    report = json.loads(run("jetson", "validate", model, "--reference", tmp_path / "r.npz", "--json").out)
    assert report["passed"] is True
    assert report["agreements"].keys() == {"photograph", "flat"}
    failed = run("jetson", "validate", model, "--reference", tmp_path / "r.npz", "--min-psnr", "500")
    assert failed.code == 1
    assert "FAILED" in failed.out
    assert "the bar is 500 dB" in failed.error_line
    wrong = run("jetson", "validate", model, "--reference", SHIPPED_FOLDER / "hspan-tiny-x4.npz")
    assert wrong.code == 1
    assert "is of another checkpoint" in wrong.error_line


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("validate", "net.txt"), "is neither an engine nor an ONNX file"),
        (("validate", "net.onnx", "--min-psnr", "nan"), "expected a number of decibels"),
        (("validate", "net.onnx", "--plugin", "x.so"), "is for engines"),
        (("reference", "hspan-tiny-x2", "-o", "r.safetensors"), "ends in .npz"),
    ],
)
def test_wrong_usage_is_one_line(run: CommandLine, words: tuple[str, ...], part: str) -> None:
    done = run("jetson", *words)
    assert done.code == 2
    assert part in done.error_line
