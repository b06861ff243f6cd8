"""Folders of pictures in every layout, whole and incomplete."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trt_hspan.errors import HspanError
from trt_hspan.evaluation import datasets
from trt_hspan.evaluation.datasets import (
    SHIPPED_SIDE,
    Sample,
    benchmark_sets,
    plain_pictures,
    sample_from_picture,
    samples_from_folder,
    shipped_samples,
)
from trt_hspan.evaluation.resize import downscale
from trt_hspan.media.writing import write_picture


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_pair(folder: Path, name: str, *, height: int = 41, width: int = 54, scale: int = 4) -> np.ndarray:
    """A pair in the benchmark layout; the sides need not be multiples of the scale."""
    high = picture(height, width)
    write_picture(folder / "HR" / f"{name}.png", high)
    write_picture(folder / "LR_bicubic" / f"X{scale}" / f"{name}x{scale}.png", downscale(high, scale))
    return high


def test_plain_folder_gives_its_pictures_by_name_without_ground_truth_and_counts_what_it_leaves_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("b.png", "a.JPG", "c.webp"):
        write_picture(tmp_path / name, picture(6, 8))
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / ".hidden.png").write_text("not a picture")
    (tmp_path / "folder.png").mkdir()
    samples = samples_from_folder(tmp_path, 4)
    assert [sample.name for sample in samples] == ["a.JPG", "b.png", "c.webp"]
    assert caplog.messages == [f"{tmp_path}: left out 1, no pictures: notes.txt"]
    low, truth = samples[1].load()
    np.testing.assert_array_equal(low, picture(6, 8))
    assert truth is None
    assert samples[1].size() == (6, 8)


@pytest.mark.parametrize(
    ("count", "names"),
    [(5, "0.txt, 1.txt, 2.txt, 3.txt, 4.txt"), (6, "0.txt, 1.txt, 2.txt, 3.txt, 4.txt, ...")],
)
def test_five_files_that_are_left_out_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, count: int, names: str
) -> None:
    write_picture(tmp_path / "a.png", picture(6, 8))
    for number in range(count):
        (tmp_path / f"{number}.txt").touch()
    samples_from_folder(tmp_path, 4)
    assert caplog.messages == [f"{tmp_path}: left out {count}, no pictures: {names}"]


def test_nothing_is_said_where_nothing_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_picture(tmp_path / "a.png", picture(6, 8))
    samples_from_folder(tmp_path, 4)
    assert caplog.messages == []


def test_a_picture_is_given_by_its_file_or_as_an_array(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", picture(6, 8))
    for place in (tmp_path / "a.png", str(tmp_path / "a.png")):
        sample = sample_from_picture(place, 4, 3)
        assert (sample.name, sample.size(), sample.scale) == ("a.png", (6, 8), 4)
    sample = sample_from_picture(picture(6, 8), 4, 3)
    assert (sample.name, sample.size(), sample.scale) == ("picture 3", (6, 8), 4)
    low, truth = sample.load()
    np.testing.assert_array_equal(low, picture(6, 8))
    assert truth is None


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((6, 8), np.uint8),
        np.zeros((1, 6, 8, 3), np.uint8),
        np.zeros((6, 8, 4), np.uint8),
        np.zeros((6, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros((6, 0, 3), np.uint8),
    ],
)
def test_an_array_of_another_kind_is_no_picture(array: np.ndarray) -> None:
    with pytest.raises(HspanError, match=r"picture 2: expected \(H, W, 3\) uint8, got \("):
        sample_from_picture(array, 4, 2)


@pytest.mark.parametrize(("levels", "is_one"), [(36, True), (37, False)])
def test_a_pair_that_is_17_db_apart_is_of_one_picture(tmp_path: Path, levels: int, is_one: bool) -> None:
    """20 log10(255 / 36) is 17.005 dB, 20 log10(255 / 37) is 16.8 dB."""
    low, truth = np.full((10, 10, 3), 90, np.uint8), np.full((40, 40, 3), 90 + levels, np.uint8)
    sample = Sample(name="a", low_resolution=None, ground_truth=None, scale=4)
    assert (sample.remark(low, truth) is None) == is_one


@pytest.mark.parametrize(
    ("truth", "fits"), [((60, 60), True), ((60, 99), True), ((99, 60), True), ((61, 61), False)]
)
def test_a_ground_truth_of_half_as_much_again_is_cropped_and_a_larger_one_is_of_another_scale(
    tmp_path: Path, truth: tuple[int, int], fits: bool
) -> None:
    write_picture(tmp_path / "HR" / "a.png", picture(*truth))
    write_picture(tmp_path / "LR_bicubic" / "X4" / "ax4.png", picture(10, 10))
    (sample,) = samples_from_folder(tmp_path, 4)
    if fits:
        assert sample.size() == (10, 10)
        return
    with pytest.raises(HspanError, match="not 4 times the 10x10"):
        sample.size()


def test_one_picture_may_be_named_instead_of_a_folder(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", picture(6, 8))
    (sample,) = samples_from_folder(tmp_path / "a.png", 2)
    assert (sample.name, sample.size()) == ("a.png", (6, 8))


def test_benchmark_layout_gives_pairs_with_the_ground_truth_cropped_to_the_scale(tmp_path: Path) -> None:
    high = write_pair(tmp_path, "baby")
    write_pair(tmp_path, "bird", scale=4)
    samples = samples_from_folder(tmp_path, 4)
    assert [sample.name for sample in samples] == ["baby", "bird"]
    low, truth = samples[0].load()
    assert samples[0].size() == low.shape[:2] == (10, 13)
    assert truth is not None
    np.testing.assert_array_equal(truth, high[:40, :52])


def test_folder_of_the_other_scale_is_missing(tmp_path: Path) -> None:
    write_pair(tmp_path, "baby", scale=2)
    with pytest.raises(HspanError, match=r"LR_bicubic/X4: no such folder, and the network's scale is 4"):
        samples_from_folder(tmp_path, 4)
    (tmp_path / "HR" / "baby.png").unlink()
    (tmp_path / "HR").rmdir()
    with pytest.raises(HspanError, match=r"/HR: no such folder"):
        samples_from_folder(tmp_path, 2)


def test_hint_for_an_empty_folder_names_the_scale(tmp_path: Path) -> None:
    with pytest.raises(
        HspanError, match=r"put pictures there, or HR/NAME\.png and LR_bicubic/X2/NAMEx2\.png"
    ):
        samples_from_folder(tmp_path, 2)
    with pytest.raises(HspanError, match=r"no such folder; check the path"):
        samples_from_folder(tmp_path / "none", 2)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("LR_bicubic/X4/bx4.png", r"LR_bicubic/X4/bx4\.png: is missing; complete the pair"),
        ("HR/b.png", r"HR/b\.png: is missing; complete the pair"),
    ],
)
def test_missing_half_of_a_pair_is_named(tmp_path: Path, lost: str, message: str) -> None:
    for name in ("a", "b", "c"):
        write_pair(tmp_path, name)
    (tmp_path / lost).unlink()
    with pytest.raises(HspanError, match=message):
        samples_from_folder(tmp_path, 4)


def test_input_may_have_the_scale_in_its_name_or_not_but_is_one(tmp_path: Path) -> None:
    write_pair(tmp_path, "a")
    low = tmp_path / "LR_bicubic" / "X4"
    (low / "ax4.png").rename(low / "a.png")
    assert samples_from_folder(tmp_path, 4)[0].low_resolution == low / "a.png"
    write_picture(low / "ax4.png", picture(10, 13))
    with pytest.raises(HspanError, match=r"X4/a\.png: is a second input of one picture"):
        samples_from_folder(tmp_path, 4)


def test_two_pictures_of_one_name_are_an_error(tmp_path: Path) -> None:
    write_pair(tmp_path, "a")
    write_picture(tmp_path / "HR" / "a.bmp", picture(41, 54))
    with pytest.raises(HspanError, match=r"a\.png: has the name of a\.bmp; rename one of them"):
        samples_from_folder(tmp_path, 4)


def test_several_missing_halves_are_counted(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_pair(tmp_path, name)
        (tmp_path / "LR_bicubic" / "X4" / f"{name}x4.png").unlink()
    with pytest.raises(HspanError, match=r"ax4\.png: is missing \(and 2 more\)"):
        samples_from_folder(tmp_path, 4)
    write_pair(tmp_path, "a")
    with pytest.raises(HspanError, match=r"bx4\.png: is missing \(and 1 more\)"):
        samples_from_folder(tmp_path, 4)
    write_pair(tmp_path, "b")
    with pytest.raises(HspanError, match=r"cx4\.png: is missing; complete"):
        samples_from_folder(tmp_path, 4)


@pytest.mark.parametrize("size", [(6, 8), (10, 14), (11, 13), (41, 54)])
def test_sizes_that_do_not_belong_together_are_reported_from_the_headers(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    write_pair(tmp_path, "a")
    write_picture(tmp_path / "LR_bicubic" / "X4" / "ax4.png", picture(*size))
    (sample,) = samples_from_folder(tmp_path, 4)
    for call in (sample.size, sample.load):
        with pytest.raises(
            HspanError, match=rf"a\.png: has 41x54 pixels, not 4 times the {size[0]}x{size[1]} of"
        ) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [(10, 13), (9, 13), (7, 12)])
def test_ground_truth_is_cropped_to_its_input_as_the_official_code_does(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    high = write_pair(tmp_path, "a")
    write_picture(tmp_path / "LR_bicubic" / "X4" / "ax4.png", picture(*size))
    (sample,) = samples_from_folder(tmp_path, 4)
    low, truth = sample.load()
    assert sample.size() == low.shape[:2] == size
    assert truth is not None
    np.testing.assert_array_equal(truth, high[: 4 * size[0], : 4 * size[1]])


def test_ground_truth_alone_is_made_smaller_from_its_first_pixel(tmp_path: Path) -> None:
    write_picture(tmp_path / "HR" / "a.png", picture(43, 55))
    (sample,) = samples_from_folder(tmp_path, 4)
    low, truth = sample.load()
    assert truth is not None
    np.testing.assert_array_equal(truth, picture(43, 55)[:40, :52])
    np.testing.assert_array_equal(low, downscale(picture(43, 55), 4))
    for size in ((3, 55), (55, 3)):
        write_picture(tmp_path / "HR" / "a.png", picture(*size))
        with pytest.raises(HspanError, match=rf"a\.png: has {size[0]}x{size[1]} pixels, too few for scale 4"):
            samples_from_folder(tmp_path, 4)[0].size()
    write_picture(tmp_path / "HR" / "a.png", picture(4, 4))
    assert samples_from_folder(tmp_path, 4)[0].size() == (1, 1)


def names_of(sets: dict[str, list[datasets.Sample]]) -> dict[str, list[str]]:
    return {name: [sample.name for sample in samples] for name, samples in sets.items()}


@pytest.mark.parametrize("shelf", [".", "benchmark", "SrBenchmark"])
def test_sets_come_in_the_order_of_the_published_tables_and_by_any_case(tmp_path: Path, shelf: str) -> None:
    for name in ("Urban100", "BSD100", "set5", "Another"):
        write_pair(tmp_path / shelf / name, name.lower())
    write_picture(tmp_path / "results" / "a.png", picture(41, 54))  # no set unless it is named
    write_pair(tmp_path / shelf / ".hidden", "a")
    (tmp_path / shelf / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    found = benchmark_sets(tmp_path, 4)
    assert list(found) == ["set5", "BSD100", "Urban100", "Another"]
    assert names_of(benchmark_sets(tmp_path, 4, ["B100", "SET5"])) == {"BSD100": ["bsd100"], "set5": ["set5"]}
    assert benchmark_sets(tmp_path, 4, ["results"])["results"][0].low_resolution is None
    with pytest.raises(
        HspanError, match="contains no set Set14; there is Another, BSD100, Urban100, results, set5"
    ):
        benchmark_sets(tmp_path, 4, ["Set5", "Set14"])


def test_a_folder_of_data_may_be_the_set(tmp_path: Path) -> None:
    write_pair(tmp_path / "Set5", "baby")
    assert names_of(benchmark_sets(tmp_path / "Set5", 4)) == {"Set5": ["baby"]}
    write_picture(tmp_path / "own" / "a.png", picture(41, 54))
    ((sample,),) = benchmark_sets(tmp_path / "own", 4).values()
    assert (sample.low_resolution, sample.size()) == (None, (10, 13))


@pytest.mark.parametrize(
    ("high", "low", "name"),
    [
        ("Set5/GTmod12/baby", "Set5/LRbicx4/baby", "Set5"),
        ("Set5/HR/baby", "Set5/LR_bicubic/x4/babyx4", "Set5"),
        ("DIV2K_valid_HR/0801", "DIV2K_valid_LR_bicubic/X4/0801x4", "DIV2K_valid"),
        ("DIV2K/DIV2K_valid_HR/0801", "DIV2K/DIV2K_valid_LR_bicubic/X4/0801x4", "DIV2K_valid"),
    ],
)
def test_layouts_that_people_have(tmp_path: Path, high: str, low: str, name: str) -> None:
    write_picture(tmp_path / f"{high}.png", picture(41, 54))
    write_picture(tmp_path / f"{low}.png", picture(10, 13))
    ((sample,),) = benchmark_sets(tmp_path, 4, [name]).values()
    assert (sample.low_resolution, sample.ground_truth) == (tmp_path / f"{low}.png", tmp_path / f"{high}.png")
    with pytest.raises(HspanError, match="no such folder, and the network's scale is 2"):
        benchmark_sets(tmp_path, 2)


def test_a_folder_without_sets_is_an_error_that_says_how_one_looks(tmp_path: Path) -> None:
    with pytest.raises(
        HspanError, match=r"contains no benchmark set; a set is a folder with HR/NAME\.png and LR"
    ):
        benchmark_sets(tmp_path, 4)
    with pytest.raises(HspanError, match="no such folder"):
        benchmark_sets(tmp_path / "none", 4)


def test_empty_and_missing_folders_are_reported(tmp_path: Path) -> None:
    with pytest.raises(HspanError, match="contains no pictures; put pictures there, or HR/NAME"):
        samples_from_folder(tmp_path, 4)
    with pytest.raises(HspanError, match="no such folder"):
        samples_from_folder(tmp_path / "none", 4)
    (tmp_path / "HR").mkdir()
    (tmp_path / "LR_bicubic" / "X4").mkdir(parents=True)
    with pytest.raises(HspanError, match="HR: contains no pictures"):
        samples_from_folder(tmp_path, 4)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_shipped_photograph_is_its_own_ground_truth(scale: int) -> None:
    sample = shipped_samples(scale)[0]
    low, truth = sample.load()
    assert low.shape == (64, 64, 3)
    assert sample.size() == low.shape[:2]
    assert truth is not None
    np.testing.assert_array_equal(low, downscale(truth, scale))
    assert low.std() > 10  # a picture and not a blank


def test_middle_of_the_photograph_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture(SHIPPED_SIDE * 2 + 6, SHIPPED_SIDE * 2 + 10)
    write_picture(tmp_path / "a.png", image)
    monkeypatch.setattr(datasets, "_SHIPPED", tmp_path)
    truth = shipped_samples(2)[0].load()[1]
    np.testing.assert_array_equal(truth, image[3:-3, 5:-5])


def test_photograph_smaller_than_the_square_is_taken_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_picture(tmp_path / "a.png", picture(31, 40))
    monkeypatch.setattr(datasets, "_SHIPPED", tmp_path)
    (sample,) = shipped_samples(2)
    low, truth = sample.load()
    assert (low.shape, sample.size()) == ((15, 20, 3), (15, 20))
    assert truth is not None
    assert truth.shape == (30, 40, 3)


def test_installation_without_its_photograph_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "_SHIPPED", tmp_path / "none")
    with pytest.raises(HspanError, match="contains no photograph; name pictures of your own with --images"):
        shipped_samples(4)
    (tmp_path / "none").mkdir()
    with pytest.raises(HspanError, match="contains no photograph"):
        shipped_samples(4)


def test_a_hint_without_a_scale_has_a_word_for_it(tmp_path: Path) -> None:
    with pytest.raises(HspanError, match=r"LR_bicubic/XSCALE/NAMExSCALE\.png"):
        plain_pictures(tmp_path)
