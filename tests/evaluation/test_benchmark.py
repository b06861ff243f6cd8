"""Benchmark sets against the official code's evaluation, and results that are gone on with."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from support.export_cache import ExportCache
from support.golden import GoldenNetwork
from support.official_evaluation import official_psnrs
from support.runner_doubles import NearestRunner
from support.small_engine import SmallEngine
from support.synthetic_pictures import picture

from trt_hspan import load_model
from trt_hspan.errors import HspanError
from trt_hspan.evaluation import benchmark
from trt_hspan.evaluation.benchmark import OFFICIAL, BenchmarkPicture, BenchmarkReport, evaluate
from trt_hspan.evaluation.metrics import EXACT_DB, psnr_y, ssim_y
from trt_hspan.evaluation.resize import bicubic_pixels, downscale
from trt_hspan.files import sha256_from_file
from trt_hspan.runtime.opening import open_runner
from trt_hspan.upscaling.options import Protocol, UpscaleOptions

WHOLE = UpscaleOptions(tile="none")


def write_pair(folder: Path, name: str, high: np.ndarray, *, extra: tuple[int, int] = (0, 0)) -> None:
    """A pair in the benchmark layout, with rows and columns of the ground truth that the input does not have."""
    height, width = (side - more for side, more in zip(high.shape[:2], extra, strict=True))
    low = downscale(high[:height, :width], 4)
    for place, pixels in ((f"HR/{name}.png", high), (f"LR_bicubic/X4/{name}x4.png", low)):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / place)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Toy sets: even and odd sizes, a gray picture, ground truth that is much larger than its input."""
    gray = picture(128, 172, seed=4)
    write_pair(tmp_path / "data/Set5", "baby", picture(136, 160, seed=0))
    write_pair(tmp_path / "data/Set5", "bird", picture(131, 147, seed=1), extra=(0, 1))
    write_pair(tmp_path / "data/Set14", "comic", picture(150, 171, seed=2), extra=(21, 13))
    gray[:] = gray[..., :1]
    write_pair(tmp_path / "data/Set14", "barbara", gray)
    Image.fromarray(gray[..., 0]).save(tmp_path / "data/Set14/HR/barbara.png")
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("protocol", "self_ensemble", "sets"),
    [("official", False, ["Set5", "Set14"]), ("tiles", False, ["Set5"]), ("official", True, ["Set14"])],
)
def test_figures_are_those_of_the_official_code(
    small_x4: GoldenNetwork, data: Path, protocol: Protocol, self_ensemble: bool, sets: list[str]
) -> None:
    if self_ensemble:  # eight times the work
        (data / "Set14/HR/barbara.png").unlink()
        (data / "Set14/LR_bicubic/X4/barbarax4.png").unlink()
    options = UpscaleOptions(
        protocol=protocol, tile="auto" if protocol == "official" else "none", self_ensemble=self_ensemble
    )
    runner = open_runner(small_x4.checkpoint, res_scale=small_x4.res_scale)
    report = evaluate(runner, data, sets, options=options)
    network = load_model(small_x4.checkpoint, res_scale=small_x4.res_scale)
    assert [measured.name for measured in report.sets] == sets
    for measured in report.sets:
        expected = official_psnrs(
            network, data / measured.name, 4, chop=protocol == "official", self_ensemble=self_ensemble
        )
        ours = {p.name: p.quality.psnr_y_db for p in report.pictures if p.set == measured.name}
        # Float32 sums in another order move a value across a rounding to 8 bits once in thousands of pixels.
        assert ours == pytest.approx(expected, abs=1e-3)
        assert measured.quality.psnr_y_db == pytest.approx(np.mean(list(expected.values())), abs=1e-3)
        assert measured.pictures == len(expected)


def test_an_onnx_file_has_the_figures_of_its_checkpoint(
    small_x4: GoldenNetwork, exported: ExportCache, data: Path
) -> None:
    runners = (
        open_runner(small_x4.checkpoint, res_scale=small_x4.res_scale),
        open_runner(exported("small_x4")),
    )
    ours, onnx = (evaluate(runner, data, ["Set5"], options=WHOLE) for runner in runners)
    assert onnx.backend.startswith("ONNX Runtime")
    for first, second in zip(ours.pictures, onnx.pictures, strict=True):
        assert second.quality.psnr_y_db == pytest.approx(first.quality.psnr_y_db, abs=1e-3)


def test_an_engine_that_a_cpu_emulates_has_the_figures_of_its_onnx_file(
    small_engine: SmallEngine, data: Path
) -> None:
    engine = evaluate(open_runner(small_engine.plan, device="cpu"), data, ["Set5"])
    assert engine.network == str(small_engine.plan)
    assert engine.sha256 == sha256_from_file(small_engine.plan)
    assert "FP16, emulated on CPU" in engine.backend
    onnx = evaluate(open_runner(small_engine.onnx), data, ["Set5"])
    assert [p.quality for p in engine.pictures] == [p.quality for p in onnx.pictures]


@pytest.fixture
def runner() -> NearestRunner:
    return NearestRunner(source_sha256="a")


def without_seconds(report: BenchmarkReport) -> list[BenchmarkPicture]:
    return [replace(picture, seconds=0.0) for picture in report.pictures]


def test_bicubic_and_ssim_stand_beside_and_time_is_taken(runner: NearestRunner, data: Path) -> None:
    report = evaluate(runner, data, options=WHOLE)
    baby = report.pictures[0]
    high = np.asarray(Image.open(data / "Set5/HR/baby.png"))
    low = np.asarray(Image.open(data / "Set5/LR_bicubic/X4/babyx4.png"))
    assert baby.bicubic.psnr_y_db == psnr_y(bicubic_pixels(low, 4), high, 4)
    assert baby.quality.ssim_y == ssim_y(low.repeat(4, 0).repeat(4, 1), high, 4)
    assert (baby.height, baby.width) == (34, 40)
    assert all(picture.seconds > 0 for picture in report.pictures)
    first = report.sets[0]
    assert first.seconds == sum(picture.seconds for picture in report.pictures[:2])
    assert first.bicubic.ssim_y == np.mean([picture.bicubic.ssim_y for picture in report.pictures[:2]])


def test_inputs_that_a_set_does_not_have_are_made_as_benchmark_sets_make_theirs(
    runner: NearestRunner, data: Path, tmp_path: Path
) -> None:
    with_inputs = evaluate(runner, data, ["Set5"])
    (tmp_path / "alone" / "Set5").mkdir(parents=True)
    (data / "Set5" / "HR").rename(tmp_path / "alone" / "Set5" / "HR")
    alone = evaluate(runner, tmp_path / "alone")
    assert [p.quality for p in alone.pictures] == [p.quality for p in with_inputs.pictures]


@pytest.mark.parametrize(
    ("options", "shapes"),
    [
        (OFFICIAL, {(28, 32)}),
        (WHOLE, {(34, 40), (32, 36)}),
        (UpscaleOptions(tile=(24, 24)), {(24, 24)}),
    ],
)
def test_each_protocol_cuts_as_it_says(
    runner: NearestRunner, data: Path, options: UpscaleOptions, shapes: set[tuple[int, int]]
) -> None:
    evaluate(runner, data, ["Set5"], options=options)
    assert {shape[2:] for shape in runner.calls} == shapes


def test_quarters_of_the_official_protocol_are_multiples_of_what_the_network_takes(
    runner: NearestRunner, tmp_path: Path
) -> None:
    write_pair(tmp_path / "Set5", "baby", picture(244, 268, seed=0))
    runner.size_multiple = 6
    evaluate(runner, tmp_path)
    # From 30 + 10 and 33 + 10 pixels, multiples of 12 and of 24.
    assert {shape[2:] for shape in runner.calls} == {(48, 48)}


def test_what_takes_neither_quarters_nor_whole_pictures_is_evaluated_in_the_tiles_that_the_error_names(
    runner: NearestRunner, data: Path
) -> None:
    runner.fixed_shape = (1, 3, 24, 24)
    for options, what in ((OFFICIAL, "Set5/baby, a tile of"), (WHOLE, "Set5/baby: ")):
        with pytest.raises(HspanError, match=rf"{what}.* takes 1x3x24x24.*; take --protocol tiles"):
            evaluate(runner, data, options=options)
    assert evaluate(runner, data, options=UpscaleOptions()).complete
    assert {shape[2:] for shape in runner.calls} == {(24, 24)}


def test_at_scale_1_the_input_stands_beside_and_is_never_the_ground_truth(tmp_path: Path) -> None:
    truth = picture(60, 72, seed=0)
    for place, pixels in (("HR/cat.png", truth), ("LR_bicubic/X1/catx1.png", truth // 2)):
        (tmp_path / "Set5" / place).parent.mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "Set5" / place)
    report = evaluate(NearestRunner(scale=1), tmp_path, options=WHOLE)
    assert report.sets[0].bicubic.psnr_y_db == psnr_y(truth // 2, truth, 1)
    (tmp_path / "Set5/LR_bicubic").rename(tmp_path / "inputs")
    with pytest.raises(
        HspanError, match=r"Set5/cat: is ground truth without an input.*; put inputs .*/catx1\.png"
    ):
        evaluate(NearestRunner(scale=1), tmp_path)


# Results in a file ---------------------------------------------------------------------------------------------


class Stopping:
    """Progress that raises as Ctrl-C would."""

    def __init__(self, at: float) -> None:
        self.at = at

    def __call__(self, what: str, done: float, total: float) -> None:
        if done >= self.at:
            raise KeyboardInterrupt


def test_a_run_that_was_stopped_goes_on_and_ends_as_an_uninterrupted_one(
    runner: NearestRunner, data: Path, tmp_path: Path
) -> None:
    whole = evaluate(runner, data)
    calls_of_all = len(runner.calls)
    results = tmp_path / "r.json"
    with pytest.raises(KeyboardInterrupt):
        evaluate(runner, data, results=results, on_progress=Stopping(at=3.1))
    stopped = json.loads((tmp_path / "r.json").read_text())
    assert stopped["complete"] is False
    assert [p["name"] for p in stopped["pictures"]] == ["baby", "bird", "barbara"]
    assert [s["pictures"] for s in stopped["sets"]] == [2, 1]
    runner.calls.clear()
    resumed = evaluate(runner, data, results=results)
    assert len(runner.calls) == calls_of_all // 4  # four quarters of the one picture that was missing
    assert without_seconds(resumed) == without_seconds(whole)
    assert json.loads((tmp_path / "r.json").read_text())["complete"] is True
    runner.calls.clear()
    assert evaluate(runner, data, results=results) == resumed
    assert runner.calls == []
    assert list(tmp_path.glob(".*")) == []


def test_a_picture_that_changed_is_run_again(runner: NearestRunner, data: Path, tmp_path: Path) -> None:
    results = tmp_path / "r.json"
    before = evaluate(runner, data, options=WHOLE, results=results)
    write_pair(data / "Set5", "bird", picture(131, 147, seed=9), extra=(0, 1))
    runner.calls.clear()
    after = evaluate(runner, data, options=WHOLE, results=results)
    assert len(runner.calls) == 1
    assert [a == b for a, b in zip(before.pictures, after.pictures, strict=True)] == [True, False, True, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (WHOLE, "with protocol official, not tiles; name another file, or remove this one"),
        (replace(OFFICIAL, self_ensemble=True), "with self ensemble False, not True"),
        (OFFICIAL, "with sha256 a, not b"),
    ],
)
def test_results_of_another_run_are_neither_mixed_nor_replaced(
    runner: NearestRunner, data: Path, tmp_path: Path, options: UpscaleOptions, message: str
) -> None:
    evaluate(runner, data, ["Set5"], results=tmp_path / "r.json")
    before = (tmp_path / "r.json").read_bytes()
    runner.source_sha256 = "b" if options is OFFICIAL else "a"
    with pytest.raises(HspanError, match=message):
        evaluate(runner, data, ["Set5"], options=options, results=tmp_path / "r.json")
    assert (tmp_path / "r.json").read_bytes() == before


@pytest.mark.parametrize("content", ["", "words", "[]", "{}", '{"pictures": []}'])
def test_a_file_of_something_else_is_not_replaced(
    runner: NearestRunner, data: Path, tmp_path: Path, content: str
) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(HspanError, match=r"r\.json: exists and is no file of results; name another file"):
        evaluate(runner, data, results=tmp_path / "r.json")
    assert (tmp_path / "r.json").read_text() == content


def test_a_picture_that_is_restored_exactly_is_remarked_on_and_not_in_the_mean(
    runner: NearestRunner, data: Path, tmp_path: Path
) -> None:
    write_pair(data / "Set5", "flat", np.full((136, 160, 3), 99, np.uint8))
    results = tmp_path / "r.json"
    report = evaluate(runner, data, ["Set5"], results=results)
    flat = report.pictures[-1]
    assert flat.quality.psnr_y_db == math.inf
    assert flat.remark == "flat: restored exactly, so it is not in the mean PSNR-Y"
    others = [picture.quality.psnr_y_db for picture in report.pictures[:2]]
    assert report.sets[0].quality.psnr_y_db == pytest.approx(np.mean(others))
    assert json.loads((tmp_path / "r.json").read_text())["not_finite"] == {
        "pictures[2].quality.psnr_y_db": "inf",
        "pictures[2].bicubic.psnr_y_db": "inf",
    }
    assert without_seconds(evaluate(runner, data, ["Set5"], results=results)) == without_seconds(report)
    for name in ("baby", "bird"):
        (data / "Set5/HR" / f"{name}.png").unlink()
        (data / "Set5/LR_bicubic/X4" / f"{name}x4.png").unlink()
    assert evaluate(runner, data, ["Set5"]).sets[0].quality.psnr_y_db == EXACT_DB


def shrink_one(data: Path) -> None:
    write_pair(data / "Set5", "baby", picture(64, 80, seed=0))


def spoil_last(data: Path) -> None:
    (data / "Set14/HR/comic.png").write_text("words")


def narrow_last(data: Path) -> None:
    """Large enough as it is, and too narrow where a self-ensemble turns it."""
    write_pair(data / "Set14", "comic", picture(126, 160, seed=0))


def swap_inputs(data: Path) -> None:
    write_pair(data / "Set5", "baby", 255 - picture(136, 160, seed=0))
    Image.fromarray(downscale(picture(136, 160, seed=0), 4)).save(data / "Set5/LR_bicubic/X4/babyx4.png")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shrink_one, r"Set5/baby: 16x20 pixels are too small to be quartered .*; take --protocol tiles"),
        (spoil_last, r"comic\.png: not a picture"),
        (narrow_last, r"Set14/comic: 40x31 pixels are too small to be quartered"),
    ],
)
def test_pictures_that_cannot_be_evaluated_are_refused_before_the_first_run(
    runner: NearestRunner, data: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(data)
    with pytest.raises(HspanError, match=message):
        evaluate(runner, data, options=replace(OFFICIAL, self_ensemble=True), results=tmp_path / "r.json")
    assert not (tmp_path / "r.json").exists()
    assert runner.calls == []


def test_a_pair_of_two_pictures_is_remarked_on(runner: NearestRunner, data: Path) -> None:
    swap_inputs(data)
    report = evaluate(runner, data, ["Set5"])
    assert report.pictures[0].remark is not None
    assert report.pictures[0].remark.endswith("are they of one picture?")
    assert report.pictures[1].remark is None


def test_nan_in_a_result_is_an_error_that_names_the_picture(runner: NearestRunner, data: Path) -> None:
    runner.spoil = math.nan
    with pytest.raises(HspanError, match=r"nearest on Set5/baby: 1 of .* values are NaN"):
        evaluate(runner, data, options=WHOLE)


def test_progress_counts_tiles_as_parts_of_a_picture(runner: NearestRunner, data: Path) -> None:
    steps: list[tuple[str, float, float]] = []
    evaluate(runner, data, ["Set5"], on_progress=lambda *step: steps.append(step))
    expected = [0.0, 0.25, 0.5, 0.75, 1.0]
    assert steps == [
        *(("Set5/baby", done, 2) for done in expected),
        *(("Set5/bird", 1 + done, 2) for done in expected),
    ]


def test_results_that_cannot_be_read_are_one_line(
    runner: NearestRunner, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "r.json").touch()
    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(HspanError, match=r"r\.json: no permission to read"):
        evaluate(runner, data, results=tmp_path / "r.json")


def test_a_picture_has_the_time_that_its_network_took(
    runner: NearestRunner, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([10.0, 12.5, 20.0, 21.0])
    monkeypatch.setattr(benchmark, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    report = evaluate(runner, data, ["Set5"])
    assert [picture.seconds for picture in report.pictures] == [2.5, 1.0]
