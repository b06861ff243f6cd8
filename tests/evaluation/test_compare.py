"""Comparing two runners whose difference is known."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.runner_doubles import NearestRunner

from trt_hspan.cli.output import print_json
from trt_hspan.errors import HspanError
from trt_hspan.evaluation.compare import (
    FAR_BELOW_BICUBIC_DB,
    Outputs,
    PictureReport,
    ValidationReport,
    validate_all,
)
from trt_hspan.evaluation.datasets import Sample, samples_from_folder
from trt_hspan.evaluation.metrics import EXACT_DB, psnr_y, ssim_y
from trt_hspan.evaluation.resize import downscale
from trt_hspan.media.writing import write_picture
from trt_hspan.runtime import memory
from trt_hspan.runtime.runner import Runner, RunnerPrecision
from trt_hspan.sizes import TileChoice
from trt_hspan.upscaling.options import UpscaleOptions


def validate(
    candidate: Runner,
    reference: Runner,
    samples: Sequence[Sample],
    on_picture: Callable[[PictureReport], None] = lambda _: None,
    **choices: Any,
) -> ValidationReport:
    """One candidate."""
    (report,) = validate_all(
        [candidate], reference, samples, on_outputs=lambda out: on_picture(out.reports[0]), **choices
    )
    return report


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """A benchmark set of two pictures for scale 4."""
    for index, (height, width) in enumerate([(40, 48), (80, 32)]):
        rng = np.random.default_rng(index)
        high = rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        write_picture(tmp_path / "HR" / f"{index}.png", high)
        write_picture(tmp_path / "LR_bicubic" / "X4" / f"{index}x4.png", downscale(high, 4))
    return samples_from_folder(tmp_path, 4)


def test_equal_runners_agree_without_limit(samples: list[Sample]) -> None:
    report = validate(NearestRunner(), NearestRunner(), samples)
    assert report.passed
    assert report.total.worst_psnr_db == report.total.mean_psnr_db == math.inf
    assert report.total.max_abs_error == report.total.mean_abs_error == 0.0
    assert report.total.nan_count == 0
    assert report.total.reference_quality == report.total.candidate_quality


def test_known_offset_gives_its_known_figures(samples: list[Sample]) -> None:
    report = validate(NearestRunner(offset=2**-10), NearestRunner(), samples)
    # Values below 1 rounded after adding 2^-10 are off by at most 2^-25.
    assert report.total.worst_psnr_db == pytest.approx(-20 * math.log10(2**-10), abs=1e-3)
    assert report.total.max_abs_error == pytest.approx(2**-10, abs=2**-24)
    assert report.total.mean_abs_error == pytest.approx(2**-10, abs=2**-24)
    assert report.passed
    assert not validate(NearestRunner(offset=2**-10), NearestRunner(), samples, min_psnr_db=60.3).passed


@pytest.mark.parametrize(
    ("precision", "bar"), [("fp32", 50), ("fp16", 50), ("bf16", 50), ("int8", 40), ("fp8", 40)]
)
def test_eight_bit_networks_are_held_to_40_db_and_others_to_50(
    samples: list[Sample], precision: RunnerPrecision, bar: int
) -> None:
    offset = 10 ** (-bar / 20)
    above = NearestRunner(offset=offset * 0.99, precision=precision)
    below = NearestRunner(offset=offset * 1.01, precision=precision)
    first, second = validate_all([above, below], NearestRunner(), samples)
    assert (first.passed, second.passed) == (True, False)
    assert first.min_psnr_db == second.min_psnr_db == bar
    assert validate(below, NearestRunner(), samples, min_psnr_db=bar - 1).passed


def test_quality_follows_the_official_protocol_for_each_side(samples: list[Sample]) -> None:
    report = validate(NearestRunner(offset=0.1), NearestRunner(), samples)
    for picture, sample in zip(report.pictures, samples, strict=True):
        low, truth = sample.load()
        assert truth is not None
        ours = np.clip(np.rint(low.repeat(4, 0).repeat(4, 1) + 25.5), 0, 255).astype(np.uint8)
        theirs = low.repeat(4, 0).repeat(4, 1)
        assert picture.reference_quality is not None
        assert picture.candidate_quality is not None
        assert picture.reference_quality.psnr_y_db == psnr_y(theirs, truth, 4)
        assert picture.reference_quality.ssim_y == ssim_y(theirs, truth, 4)
        # 25.5 gray levels lie half-way: float32 may round either way, by one level in some pixels.
        assert picture.candidate_quality.psnr_y_db == pytest.approx(psnr_y(ours, truth, 4), abs=0.2)
    assert report.total.reference_quality is not None
    assert report.total.reference_quality.psnr_y_db == pytest.approx(
        np.mean([picture.reference_quality.psnr_y_db for picture in report.pictures])  # type: ignore[union-attr]
    )


class OffsetBySize(NearestRunner):
    """Wrong on portraits only."""

    def infer(self, batch: np.ndarray) -> np.ndarray:
        self.offset = 0.01 if batch.shape[2] > batch.shape[3] else 0.001
        return super().infer(batch)


def test_bar_applies_to_the_worst_picture_and_means_weigh_as_stated(samples: list[Sample]) -> None:
    report = validate(OffsetBySize(), NearestRunner(), samples, min_psnr_db=45)
    good, bad = (picture.agreement for picture in report.pictures)
    assert good.psnr_db == pytest.approx(60, abs=0.01)
    assert bad.psnr_db == pytest.approx(40, abs=0.01)
    assert report.total.worst_psnr_db == bad.psnr_db
    assert report.total.mean_psnr_db == pytest.approx(50, abs=0.01)
    # 120 and 160 input pixels.
    assert report.total.mean_abs_error == pytest.approx((120 * 0.001 + 160 * 0.01) / 280, rel=1e-4)
    assert not report.passed


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("side", ["candidate", "reference"])
def test_nan_on_either_side_fails_whatever_the_bar(
    samples: list[Sample], bad: float, side: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoiled, sound = NearestRunner(spoil=bad), NearestRunner()
    pair = (spoiled, sound) if side == "candidate" else (sound, spoiled)
    report = validate(*pair, samples, min_psnr_db=-1000)
    assert not report.passed
    assert report.total.nan_count == 2
    assert math.isnan(report.total.worst_psnr_db)
    quality = report.total.candidate_quality if side == "candidate" else report.total.reference_quality
    assert quality is not None
    assert math.isnan(quality.psnr_y_db)
    assert capsys.readouterr() == ("", "")


def test_nothing_is_printed_and_each_picture_is_reported(
    samples: list[Sample], capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[PictureReport] = []
    report = validate(NearestRunner(offset=0.5), NearestRunner(), samples, on_picture=seen.append)
    assert tuple(seen) == report.pictures
    assert [(p.name, p.height, p.width) for p in seen] == [("0", 10, 12), ("1", 20, 8)]
    assert capfd.readouterr() == ("", "")


def test_pictures_without_ground_truth_have_no_quality(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", np.zeros((4, 5, 3), np.uint8))
    report = validate(NearestRunner(), NearestRunner(), samples_from_folder(tmp_path, 4))
    assert report.pictures[0].candidate_quality is None
    assert report.total.reference_quality is None


def test_runners_are_active_while_comparing_and_freed_after(samples: list[Sample]) -> None:
    pair = NearestRunner(), NearestRunner()
    during: list[bool] = []
    validate(*pair, samples, on_picture=lambda _: during.extend(runner.active for runner in pair))
    assert during == [True] * 4
    assert [runner.active for runner in pair] == [False, False]
    assert [runner.calls for runner in pair] == [[(1, 3, 10, 12), (1, 3, 20, 8)]] * 2


def test_source_is_compared_by_hash(samples: list[Sample]) -> None:
    reference = NearestRunner(source_sha256="a")
    same = [
        validate(NearestRunner(source_sha256=sha), reference, samples).same_source for sha in ("a", "b", None)
    ]
    assert same == [True, False, None]


def test_a_network_far_below_bicubic_passes_with_a_warning(samples: list[Sample]) -> None:
    report = validate(NearestRunner(offset=0.2), NearestRunner(offset=0.2), samples)
    ours, bicubic = report.total.candidate_quality, report.total.bicubic_quality
    assert ours is not None
    assert bicubic is not None
    assert report.passed
    assert ours.psnr_y_db < bicubic.psnr_y_db - FAR_BELOW_BICUBIC_DB
    assert report.warning is not None
    assert (
        f"its PSNR-Y is {ours.psnr_y_db:.2f} dB, that of bicubic interpolation {bicubic.psnr_y_db:.2f}"
        in report.warning
    )
    assert validate(NearestRunner(), NearestRunner(), samples).warning is None
    assert (
        validate(NearestRunner(offset=0.2), NearestRunner(), samples).warning is None
    )  # its error says enough


def test_pictures_that_are_their_own_ground_truth_say_nothing_about_a_networks_weights(
    samples: list[Sample],
) -> None:
    own = [replace(sample, low_resolution=None, scale=1) for sample in samples]
    runner = NearestRunner(scale=1, offset=0.2)
    assert validate(runner, runner, own).warning is None


def test_report_survives_json_with_its_infinities_and_nans(
    samples: list[Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    def as_json(report: ValidationReport) -> dict:
        print_json(asdict(report))
        return json.loads(capsys.readouterr().out)

    equal = as_json(validate(NearestRunner(), NearestRunner(), samples))
    assert equal["total"]["worst_psnr_db"] is None
    assert equal["not_finite"]["total.worst_psnr_db"] == "inf"
    assert equal["not_finite"]["pictures[1].agreement.psnr_db"] == "inf"
    assert equal["pictures"][0]["agreement"]["nan_count"] == 0
    broken = as_json(validate(NearestRunner(spoil=math.nan), NearestRunner(), samples))
    assert broken["total"]["worst_psnr_db"] is None
    assert broken["not_finite"]["total.worst_psnr_db"] == "nan"
    assert broken["passed"] is False
    finite = as_json(validate(NearestRunner(offset=2**-10), NearestRunner(), samples))
    assert "not_finite" not in finite


def add_flat_picture(folder: Path, name: str, level: int = 99, low_level: int = 99) -> None:
    write_picture(folder / "HR" / f"{name}.png", np.full((40, 40, 3), level, np.uint8))
    write_picture(folder / "LR_bicubic" / "X4" / f"{name}x4.png", np.full((10, 10, 3), low_level, np.uint8))


def test_a_picture_that_both_restore_exactly_loses_nothing(samples: list[Sample], tmp_path: Path) -> None:
    without = validate(NearestRunner(offset=2**-10), NearestRunner(), samples)
    add_flat_picture(tmp_path, "flat")
    report = validate(
        NearestRunner(offset=2**-10), NearestRunner(), samples_from_folder(tmp_path, 4), budget_db=0.1
    )
    assert report.passed
    assert report.pictures[-1].reference_quality is not None
    assert report.pictures[-1].reference_quality.psnr_y_db == math.inf
    assert report.total.psnr_y_loss_db == without.total.psnr_y_loss_db
    assert report.remarks == ("flat: the reference restores it exactly, so it is not in the mean PSNR-Y",)


def test_totals_of_flat_pictures_alone_are_finite(tmp_path: Path) -> None:
    add_flat_picture(tmp_path, "flat")
    report = validate(NearestRunner(), NearestRunner(), samples_from_folder(tmp_path, 4), budget_db=0.0)
    assert report.passed
    assert report.total.psnr_y_loss_db == 0.0
    assert report.total.reference_quality is not None
    assert report.total.reference_quality.psnr_y_db == EXACT_DB


def test_pictures_that_are_equal_do_not_hide_the_mean_of_the_others(samples: list[Sample]) -> None:
    class OddRunner(NearestRunner):
        """Is off on the picture of 10x12 pixels alone."""

        def infer(self, batch: np.ndarray) -> np.ndarray:
            return super().infer(batch) + np.float32(2**-10 if batch.shape[2] == 10 else 0)

    total = validate(OddRunner(), NearestRunner(), samples).total
    assert total.mean_psnr_db == total.worst_psnr_db == pytest.approx(60.2, abs=0.1)


def test_a_pair_of_two_pictures_is_remarked_on(samples: list[Sample], tmp_path: Path) -> None:
    add_flat_picture(tmp_path, "dark", level=20)
    report = validate(NearestRunner(), NearestRunner(), samples_from_folder(tmp_path, 4))
    (remark,) = report.remarks
    assert remark == "dark: its ground truth, made smaller, is 10.2 dB from it: are they of one picture?"


def test_pictures_without_ground_truth_do_not_count_against_a_budget(samples: list[Sample]) -> None:
    mixed = [replace(samples[0], ground_truth=None), *samples[1:]]
    worse = NearestRunner(offset=0.02)
    loss = validate(worse, NearestRunner(), samples[1:], min_psnr_db=20).total.psnr_y_loss_db
    assert loss is not None
    for budget_db, passed in ((loss, True), (loss - 0.001, False)):
        report = validate(worse, NearestRunner(), mixed, min_psnr_db=20, budget_db=budget_db)
        assert report.total.psnr_y_loss_db == loss
        assert report.passed == passed
        assert report.pictures[0].reference_quality is None


# A budget, several networks, tiles -----------------------------------------------------------------------------


def test_loss_against_ground_truth_is_held_against_the_budget(samples: list[Sample]) -> None:
    report = validate(NearestRunner(offset=0.02), NearestRunner(), samples, min_psnr_db=20)
    loss = report.total.psnr_y_loss_db
    assert report.total.reference_quality is not None
    assert report.total.candidate_quality is not None
    assert loss == report.total.reference_quality.psnr_y_db - report.total.candidate_quality.psnr_y_db
    assert loss > 0.01
    kept = validate(
        NearestRunner(offset=0.02), NearestRunner(), samples, min_psnr_db=20, budget_db=loss + 0.01
    )
    missed = validate(
        NearestRunner(offset=0.02), NearestRunner(), samples, min_psnr_db=20, budget_db=loss - 0.01
    )
    assert report.passed
    assert kept.passed
    assert not missed.passed


def test_several_networks_are_compared_with_one_run_of_the_reference(samples: list[Sample]) -> None:
    reference = NearestRunner()
    candidates = [NearestRunner(offset=2**-10), NearestRunner(offset=2**-6), NearestRunner()]
    seen: list[Outputs] = []
    reports = validate_all(candidates, reference, samples, on_outputs=seen.append)
    assert len(reference.calls) == len(samples)
    assert [r.total.max_abs_error for r in reports] == pytest.approx([2**-10, 2**-6, 0], abs=1e-6)
    assert [r.passed for r in reports] == [True, False, True]
    for outputs, sample in zip(seen, samples, strict=True):
        assert outputs.sample is sample
        assert len(outputs.candidates) == len(outputs.reports) == 3
        np.testing.assert_allclose(outputs.candidates[1] - outputs.reference, 2**-6, atol=1e-6)
    assert all(picture.candidate_seconds > 0 for report in reports for picture in report.pictures)


def test_all_networks_see_the_smallest_tiles_that_one_of_them_needs(samples: list[Sample]) -> None:
    reference, small, free = NearestRunner(), NearestRunner(), NearestRunner()
    small.fixed_shape = (1, 3, 10, 8)
    reports = validate_all([free, small], reference, samples)
    assert set(reference.calls) == set(small.calls) == set(free.calls) == {(1, 3, 10, 8)}
    assert [picture.tile for picture in reports[0].pictures] == [(10, 8), (10, 8)]
    assert reports[0].total.worst_psnr_db > 120  # nearest neighbor does not see the seams
    whole = validate(NearestRunner(), NearestRunner(), samples)
    assert [picture.tile for picture in whole.pictures] == [None, None]
    larger = validate(NearestRunner(), NearestRunner(), samples, options=UpscaleOptions(tile=(999, 999)))
    assert [picture.tile for picture in larger.pictures] == [None, None]


def test_a_picture_that_is_too_small_for_one_network_grows_for_all(samples: list[Sample]) -> None:
    engine, gaps, reference = NearestRunner(), NearestRunner(), NearestRunner()
    engine.profiles = (((2, 3, 16, 16), (2, 3, 32, 32)),)
    gaps.profiles = (((1, 3, 4, 4), (1, 3, 8, 8)), ((1, 3, 24, 24), (1, 3, 40, 40)))
    validate_all([engine, gaps], reference, samples)  # of 10x12 and 20x8 pixels
    assert reference.calls == gaps.calls == [(1, 3, 24, 24)] * 2
    assert engine.calls == [(2, 3, 24, 24)] * 2


def test_a_tile_that_one_network_wants_and_another_does_not_take_is_no_error(samples: list[Sample]) -> None:
    wide, reference = NearestRunner(), NearestRunner()
    wide.profiles = (((1, 3, 4, 16), (1, 3, 8, 32)),)
    validate(wide, reference, samples[:1])  # of 10x12 pixels: as high as 8, as wide as 16
    assert reference.calls == wide.calls == [(1, 3, 8, 16)] * 2


# Told before anything runs --------------------------------------------------------------------------------------


def refused(
    candidate: NearestRunner,
    samples: list[Sample],
    message: str,
    *,
    tile: TileChoice = "auto",
    budget_db: float | None = None,
) -> None:
    reference = NearestRunner()
    with pytest.raises(HspanError, match=message) as caught:
        validate(candidate, reference, samples, options=UpscaleOptions(tile=tile), budget_db=budget_db)
    assert "\n" not in str(caught.value)
    assert candidate.calls == reference.calls == []


def test_scales_must_be_the_same(samples: list[Sample]) -> None:
    refused(NearestRunner(scale=2), samples, "has scale 2, but nearest has scale 4")


def test_there_must_be_pictures() -> None:
    refused(NearestRunner(), [], "no pictures to compare on")


def test_every_picture_must_fit_the_network(samples: list[Sample]) -> None:
    candidate = NearestRunner()
    candidate.fixed_shape = (1, 3, 10, 12)
    refused(candidate, samples, "1: is 1x3x20x8, but nearest takes 1x3x10x12", tile="none")


def test_networks_must_take_one_size_in_common(samples: list[Sample]) -> None:
    small, large = NearestRunner(), NearestRunner()
    small.profiles, large.profiles = (((1, 3, 4, 4), (1, 3, 8, 8)),), (((1, 3, 16, 16), (1, 3, 32, 32)),)
    with pytest.raises(HspanError, match=r"take no tile of one size.*; validate them one by one"):
        validate_all([small, large], NearestRunner(), samples)


def test_every_picture_must_fit_the_memory(samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory_bytes", lambda: 1000)
    refused(NearestRunner(memory=1001), samples, "0: 10x12 pixels as a whole need", tile="none")


def test_budget_needs_a_ground_truth(samples: list[Sample]) -> None:
    without = [replace(sample, ground_truth=None) for sample in samples]
    refused(NearestRunner(), without, "--budget-db: none of the pictures has a ground truth", budget_db=0.1)


def test_ground_truth_must_be_large_enough_for_ssim(tmp_path: Path) -> None:
    write_picture(tmp_path / "HR" / "a.png", np.zeros((16, 40, 3), np.uint8))
    write_picture(tmp_path / "LR_bicubic" / "X4" / "ax4.png", np.zeros((4, 10, 3), np.uint8))
    refused(
        NearestRunner(), samples_from_folder(tmp_path, 4), "a: 16x40 pixels leave 8x32 .* SSIM needs 11x11"
    )


def test_unreadable_picture_is_reported(samples: list[Sample]) -> None:
    assert samples[1].low_resolution is not None
    samples[1].low_resolution.write_bytes(b"not a picture")
    refused(NearestRunner(), samples, r"1x4\.png: not a picture")
