"""`trt-hspan validate` as a user types it."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from support.command_line import CommandLine, CommandResult
from support.export_cache import ExportCache
from support.golden import GOLDEN, GoldenNetwork
from support.small_engine import SmallEngine, build_small_engine
from support.small_networks import write_attention_network

import trt_hspan
from trt_hspan import HspanError
from trt_hspan.cli.validate import _next_step
from trt_hspan.engine.spec import ProfileRequest
from trt_hspan.evaluation import compare, datasets, validation
from trt_hspan.evaluation.resize import downscale
from trt_hspan.graph import load_onnx, save_onnx
from trt_hspan.machine.gpu import gpu_architectures
from trt_hspan.media.pictures import read_image
from trt_hspan.media.writing import write_picture
from trt_hspan.runtime import torch_runner
from trt_hspan.sizes import ImageSize

needs_no_gpu = pytest.mark.skipif(bool(gpu_architectures()), reason="a GPU would run the engine itself")


@pytest.fixture
def benchmark_set(tmp_path: Path) -> Path:
    """Two crops of the shipped photograph in the benchmark sets' layout."""
    photograph = read_image(next(Path(datasets.__file__).parent.parent.glob("data/*.png")))
    folder = tmp_path / "set"
    for name, top in (("eyes", 60), ("fur", 160)):
        high = photograph[top : top + 65, 100:182]
        write_picture(folder / "HR" / f"{name}.png", high)
        write_picture(folder / "LR_bicubic" / "X4" / f"{name}x4.png", downscale(high, 4))
    return folder


def report_of(result: CommandResult) -> dict:
    assert result.out, result.err
    report = json.loads(result.out)
    assert isinstance(report, dict)
    return report


@pytest.mark.parametrize(
    ("precision", "floor_db", "ceiling_db"), [("fp32", 100, 200), ("fp16", 70, 100), ("bf16", 50, 80)]
)
def test_each_precision_is_as_accurate_as_its_digits(
    run: CommandLine,
    exported: ExportCache,
    small_x4: GoldenNetwork,
    benchmark_set: Path,
    precision: str,
    floor_db: float,
    ceiling_db: float,
) -> None:
    # FP32, FP16 and BF16 keep 24, 11 and 8 bits: about 144, 66 and 48 dB for one rounding of a value near 1.
    # Errors of the features are scaled down by the residual path, so the output is better than that. A
    # ceiling below FP32's figure shows that roundings are really computed.
    path = exported("small_x4", precision=precision)
    result = run("validate", path, "--checkpoint", small_x4.checkpoint, "--images", benchmark_set, "--json")
    assert result.code == 0, result.err
    report = report_of(result)
    assert floor_db < report["total"]["worst_psnr_db"] < ceiling_db
    assert report["passed"] is True
    emulated = precision != "fp32"
    assert report["candidate"].endswith(f", {precision.upper()}" + (", emulated on CPU" if emulated else ""))
    assert report["emulated"] is emulated
    assert report["same_source"] is True
    assert [picture["name"] for picture in report["pictures"]] == ["eyes", "fur"]
    for picture in report["pictures"]:
        ours, theirs = picture["candidate_quality"], picture["reference_quality"]
        assert ours["psnr_y_db"] == pytest.approx(theirs["psnr_y_db"], abs=0.05)
        assert ours["ssim_y"] == pytest.approx(theirs["ssim_y"], abs=0.005)


def test_table_says_who_ran_how_and_that_it_passed(
    run: CommandLine, exported: ExportCache, small_x4: GoldenNetwork, benchmark_set: Path
) -> None:
    result = run(
        "validate",
        exported("small_x4", precision="fp16"),
        "--checkpoint",
        small_x4.checkpoint,
        "--images",
        benchmark_set,
    )
    assert result.code == 0, result.err
    for words in (
        "FP16, emulated on CPU, against PyTorch",
        "eyes",
        "16x20",
        "PSNR-Y PyTorch",
        "total: worst PSNR",
        "passed: worst",
        "the same",
    ):
        assert words in result.out, words


def test_a_loss_that_rounds_to_nothing_is_not_shown_as_a_gain(
    run: CommandLine,
    exported: ExportCache,
    small_x4: GoldenNetwork,
    benchmark_set: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    validate_all = validation.validate_all

    def slightly_better(*arguments: Any, **options: Any) -> list[compare.ValidationReport]:
        reports = validate_all(*arguments, **options)
        return [replace(report, total=replace(report.total, psnr_y_loss_db=-1e-5)) for report in reports]

    monkeypatch.setattr(validation, "validate_all", slightly_better)
    words = ("--checkpoint", small_x4.checkpoint, "--images", benchmark_set, "--limit", 1)
    result = run("validate", exported("small_x4"), *words)
    assert result.code == 0, result.err
    assert "+0.0000 dB" in result.out


@needs_no_gpu
def test_engine_without_a_gpu_is_emulated_and_says_why(
    run: CommandLine, small_engine: SmallEngine, small_x4: GoldenNetwork, benchmark_set: Path
) -> None:
    result = run(
        "validate",
        small_engine.plan,
        "--checkpoint",
        small_x4.checkpoint,
        "--images",
        benchmark_set,
        "--json",
    )
    assert result.code == 0, result.err
    report = report_of(result)
    assert report["emulated"] is True
    assert report["why_emulated"] == "no NVIDIA GPU with a driver here"
    assert report["precision"] == "fp16"


@pytest.fixture(scope="module")
def engine_of_two_profiles(exported: ExportCache, tmp_path_factory: pytest.TempPathFactory) -> SmallEngine:
    """The largest input, three pictures of 24x32, is that of the second profile."""
    profiles = [
        ProfileRequest(max=ImageSize(height=32, width=32)),
        ProfileRequest(max=ImageSize(height=24, width=32), max_batch=3),
    ]
    folder = tmp_path_factory.mktemp("two_profiles")
    return build_small_engine(folder, exported("small_x4", precision="fp16"), profiles)


@needs_no_gpu
@pytest.mark.parametrize(
    ("fixture", "largest"), [("small_engine", (1, 3, 32, 32)), ("engine_of_two_profiles", (3, 3, 24, 32))]
)
def test_report_of_an_engine_shows_its_cost_at_the_largest_profile(
    run: CommandLine,
    request: pytest.FixtureRequest,
    small_x4: GoldenNetwork,
    benchmark_set: Path,
    tmp_path: Path,
    fixture: str,
    largest: tuple[int, ...],
) -> None:
    engine: SmallEngine = request.getfixturevalue(fixture)
    shape = "\N{MULTIPLICATION SIGN}".join(str(size) for size in largest)
    result = run(
        *("validate", engine.plan, "--checkpoint", small_x4.checkpoint, "--images", benchmark_set),
        *("--report", tmp_path / "out"),
    )
    assert result.code == 0, result.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["index.html", "report.json"]
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert f"engine's largest input (FP16: {shape})" in page
    assert f"{engine.manifest.build_time_seconds:.2f} s" in page
    (network,) = json.loads((tmp_path / "out" / "report.json").read_text())["networks"]
    assert network["file"] == engine.plan.name
    assert network["size_bytes"] == engine.plan.stat().st_size
    assert network["activation_memory_bytes"] == engine.manifest.activation_memory_bytes
    assert [layer["module"] for layer in network["layers"]][-1] == "add_mean"


def test_without_pictures_the_shipped_photograph_is_used(
    run: CommandLine, exported: ExportCache, small_x4: GoldenNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "SHIPPED_SIDE", 20)
    result = run("validate", exported("small_x4"), "--checkpoint", small_x4.checkpoint, "--json")
    assert result.code == 0, result.err
    (picture,) = report_of(result)["pictures"]
    assert picture["name"] == "chelsea.png"
    assert (picture["height"], picture["width"]) == (20, 20)
    assert picture["candidate_quality"]["psnr_y_db"] > 0


def test_missed_bar_is_exit_code_1_and_names_the_worst_picture(
    run: CommandLine, exported: ExportCache, small_x4: GoldenNetwork, benchmark_set: Path
) -> None:
    path = exported("small_x4", precision="bf16")
    result = run(
        *("validate", path, "--checkpoint", small_x4.checkpoint, "--images", benchmark_set),
        *("--min-psnr", 120, "--json"),
    )
    assert result.code == 1
    report = report_of(result)
    assert report["passed"] is False
    worst = min(report["pictures"], key=lambda picture: picture["agreement"]["psnr_db"])
    expected = (
        f"agrees with PyTorch to {worst['agreement']['psnr_db']:.2f} dB on {worst['name']}, the bar is 120 dB"
    )
    assert expected in result.error_line


def test_nan_misses_every_bar(
    run: CommandLine, exported: ExportCache, small_x4: GoldenNetwork, benchmark_set: Path, tmp_path: Path
) -> None:
    model = load_onnx(exported("small_x4", precision="fp16"))
    weight = next(
        t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT16 and len(t.dims) == 4
    )
    values = np.full(tuple(weight.dims), 60000, np.float16)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    save_onnx(model, tmp_path / "overflowing.onnx")
    result = run(
        *("validate", tmp_path / "overflowing.onnx", "--checkpoint", small_x4.checkpoint),
        *("--images", benchmark_set, "--min-psnr", "-1000", "--json"),
    )
    assert result.code == 1
    report = report_of(result)
    assert report["total"]["worst_psnr_db"] is None
    assert f"{report['total']['nan_count']} values are NaN or infinite" in result.error_line
    assert report["total"]["nan_count"] > 0


def test_other_weights_of_the_same_sizes_are_compared_and_reported(
    run: CommandLine, exported: ExportCache, benchmark_set: Path, tmp_path: Path, small_x4: GoldenNetwork
) -> None:
    from trt_hspan import load_model, save_checkpoint

    model = load_model(small_x4.checkpoint)
    model.tail[1].bias.data += 0.001  # 60 dB
    save_checkpoint(model, tmp_path / "tuned.pt")
    result = run(
        *("validate", exported("small_x4"), "--checkpoint", tmp_path / "tuned.pt"),
        *("--images", benchmark_set, "--limit", 1, "--json"),
    )
    assert result.code == 0, result.err
    report = report_of(result)
    assert report["same_source"] is False
    assert report["total"]["worst_psnr_db"] == pytest.approx(60, abs=0.05)
    assert len(report["pictures"]) == 1


def test_residual_scale_of_the_onnx_file_is_taken_unless_another_is_given(
    run: CommandLine, exported: ExportCache, small_x4: GoldenNetwork, benchmark_set: Path
) -> None:
    path = exported("small_x4", res_scale=0.3)
    words = (
        "validate",
        path,
        "--checkpoint",
        small_x4.checkpoint,
        "--images",
        benchmark_set,
        "--limit",
        1,
        "--json",
    )
    assert report_of(run(*words))["total"]["worst_psnr_db"] > 100
    assert report_of(run(*words, "--res-scale", 0.1))["total"]["worst_psnr_db"] < 100


def test_the_checkpoint_on_the_gpu_is_compared_with_the_cpu(
    run: CommandLine, small_x4: GoldenNetwork, benchmark_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_runner, "gpu_device", lambda index, where: torch.device("cpu"))
    words = ["validate", "--checkpoint", small_x4.checkpoint, "--res-scale", small_x4.res_scale]
    words += ["--images", benchmark_set, "--limit", 1, "--device", "gpu", "--json"]
    alone = report_of(run(*words))
    assert alone["candidate"].endswith(" on the GPU, FP32")
    assert "GPU" not in alone["reference"]
    half = report_of(run(*words, "--precision", "fp16"))
    assert half["candidate"].endswith(" on the GPU, FP16")
    assert alone["not_finite"]["total.worst_psnr_db"] == "inf"  # this CPU, twice
    assert 50 < half["total"]["worst_psnr_db"] < float("inf")


def test_bf16_of_the_checkpoint_is_compared_beside_files(
    run: CommandLine,
    small_x4: GoldenNetwork,
    exported: ExportCache,
    benchmark_set: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch_runner, "has_bf16_instructions", lambda device: True)
    words = ["validate", "--checkpoint", small_x4.checkpoint, "--res-scale", small_x4.res_scale]
    words += ["--images", benchmark_set, "--limit", 1, "--json"]
    alone = report_of(run(*words, "--precision", "bf16", "--min-psnr", 30))
    assert alone["candidate"].endswith(", BF16")
    assert 30 < alone["total"]["worst_psnr_db"] < 90
    both = report_of(run(*words, exported("small_x4"), "--precision", "bf16", "--min-psnr", 30))
    assert [report["precision"] for report in both["reports"]] == ["fp32", "bf16"]
    names = [str(exported("small_x4")), f"{small_x4.checkpoint} in bf16"]
    assert [report["network"] for report in both["reports"]] == names
    words.remove("--json")
    shown = run(*words, names[0], "--precision", "bf16", "--min-psnr", 30)
    for name, backend in zip(names, ("ONNX Runtime", "PyTorch"), strict=True):
        assert f"{name}: {backend}" in " ".join(shown.out.split())
    assert both["reports"][1]["total"]["worst_psnr_db"] == alone["total"]["worst_psnr_db"]
    failed = run(*words, "--precision", "bf16", "--min-psnr", 90)
    assert failed.code == 1
    assert f"{small_x4.checkpoint} in bf16: agrees with PyTorch to" in failed.err
    monkeypatch.setattr(torch_runner, "has_bf16_instructions", lambda device: False)
    refused = run(*words, "--precision", "bf16")
    assert refused.code == 1
    assert "no BF16 instructions" in refused.error_line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.onnx", "--checkpoint", "hspan-x4", "--min-psnr", "nan"], "--min-psnr: got nan"),
        (["a.pt", "--checkpoint", "hspan-x4"], "a.pt: is neither an engine nor an ONNX file"),
        (["a.onnx", "--checkpoint", "hspan-x4", "--limit", "0"], "--limit"),
        (["a.onnx"], "--checkpoint"),
        (["--checkpoint", "hspan-x4"], "ENGINE_OR_ONNX: nothing to compare"),
        (["--checkpoint", "hspan-x4", "--precision", "fp16"], "--precision: got 'fp16'"),
        (["--checkpoint", "hspan-x4", "--precision", "bf16", "--report", "r"], "--report: compares layers"),
        (["a.onnx", "--checkpoint", "hspan-x4", "--plugin", "p.so"], "--plugin: is for engines"),
        (["a.onnx", "--checkpoint", "hspan-x4", "--budget-db", "-1"], "--budget-db: got -1"),
        (["a.onnx", "--checkpoint", "hspan-x4", "--tile", "12y"], "--tile: got '12y'"),
        (["a.onnx", "--checkpoint", "hspan-x4", "--device", "tpu"], "--device: got 'tpu'"),
        (["a.onnx", "a.onnx", "--checkpoint", "hspan-x4"], "a.onnx: was named twice"),
    ],
)
def test_wrong_usage_is_exit_code_2(run: CommandLine, words: list[str], message: str) -> None:
    result = run("validate", *words)
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err


def test_scales_that_differ_are_one_line(run: CommandLine, exported: ExportCache, tmp_path: Path) -> None:
    result = run(
        "validate", exported("small_x4"), "--checkpoint", GOLDEN / "small_x2.pt", "--images", tmp_path
    )
    assert result.code == 1
    assert "has scale 4, but" in result.error_line
    assert "has scale 2" in result.error_line


def test_bad_files_are_one_line(
    run: CommandLine, exported: ExportCache, tmp_path: Path, small_x4: GoldenNetwork
) -> None:
    network = exported("small_x4")
    (tmp_path / "broken.onnx").write_bytes(network.read_bytes()[:1000])
    (tmp_path / "broken.pt").write_bytes(small_x4.checkpoint.read_bytes()[:1000])
    empty = tmp_path / "empty"
    empty.mkdir()
    broken_pictures = tmp_path / "pictures"
    broken_pictures.mkdir()
    (broken_pictures / "a.png").write_text("words")
    half = tmp_path / "half"
    write_picture(half / "HR" / "a.png", np.zeros((64, 64, 3), np.uint8))
    (half / "LR_bicubic" / "X4").mkdir(parents=True)
    for words, message in [
        ([tmp_path / "none.onnx", "--checkpoint", small_x4.checkpoint], "none.onnx: no such file"),
        ([tmp_path / "broken.onnx", "--checkpoint", small_x4.checkpoint], "broken.onnx: not an ONNX"),
        ([tmp_path / "none.plan", "--checkpoint", small_x4.checkpoint], "none.plan: no such file"),
        ([network, "--checkpoint", tmp_path / "broken.pt"], "broken.pt: not a PyTorch checkpoint"),
        ([network, "--checkpoint", tmp_path / "none.pt"], "none.pt: no such file"),
        (
            [network, "--checkpoint", small_x4.checkpoint, "--images", tmp_path / "none"],
            "none: no such folder",
        ),
        ([network, "--checkpoint", small_x4.checkpoint, "--images", empty], "empty: contains no pictures"),
        ([network, "--checkpoint", small_x4.checkpoint, "--images", broken_pictures], "a.png: not a picture"),
        ([network, "--checkpoint", small_x4.checkpoint, "--images", half], "X4/ax4.png: is missing"),
    ]:
        result = run("validate", *words)
        assert result.code == 1, words
        assert message in result.error_line


def test_network_for_fixed_pictures_gets_others_in_tiles_unless_tiles_are_off(
    run: CommandLine, small_x4: GoldenNetwork, benchmark_set: Path, exported: ExportCache
) -> None:
    path = exported("small_x4", static=(16, 16))
    words = ("validate", path, "--checkpoint", small_x4.checkpoint, "--images", benchmark_set)
    result = run(*words, "--json")
    assert result.code == 0, result.err
    assert [picture["tile"] for picture in report_of(result)["pictures"]] == [[16, 16], [16, 16]]
    assert report_of(result)["total"]["worst_psnr_db"] > 100
    refused = run(*words, "--tile", "none")
    assert refused.code == 1
    assert "eyes: is 1x3x16x20, but" in refused.error_line


def test_network_of_another_kind_is_refused_by_the_scale_it_names(
    run: CommandLine, tmp_path: Path, small_x4: GoldenNetwork
) -> None:
    network = write_attention_network(tmp_path / "a.onnx")
    result = run("validate", network, "--checkpoint", small_x4.checkpoint)
    assert result.code == 1
    assert "a.onnx: has scale 1, but" in result.error_line


@pytest.mark.parametrize("package", ["onnxruntime", "polygraphy"])
def test_package_that_is_not_installed_is_named_with_its_extra(
    run: CommandLine,
    exported: ExportCache,
    small_x4: GoldenNetwork,
    benchmark_set: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
) -> None:
    path = exported("small_x4")
    monkeypatch.setitem(sys.modules, package, None)
    result = run("validate", path, "--checkpoint", small_x4.checkpoint, "--images", benchmark_set)
    assert result.code == 1
    assert "is not installed; pip install -e '.[" in result.error_line


@pytest.mark.parametrize(
    ("precision", "same_source", "worst_db", "step"),
    [
        ("fp32", True, 33.0, "see with --report DIR where it differs, or lower --min-psnr"),
        ("fp16", True, 33.0, "try --precision fp32, or lower --min-psnr"),
        ("bf16", None, 33.0, "try --precision fp32 or fp16, or lower --min-psnr"),
        ("int8", True, 33.0, "try --precision fp32 or fp16, or lower --min-psnr"),
        ("fp16", True, 60.0, "try --precision fp32, or raise --budget-db"),
        ("fp32", False, 33.0, "give the network that it was made from"),
        ("bf16", False, 33.0, "give the network that it was made from"),
    ],
)
def test_the_next_step_is_never_the_precision_that_the_file_has(
    precision: str, same_source: bool | None, worst_db: float, step: str
) -> None:
    report = SimpleNamespace(
        precision=precision,
        same_source=same_source,
        min_psnr_db=50.0,
        total=SimpleNamespace(nan_count=0, worst_psnr_db=worst_db),
    )
    assert _next_step(report) == step  # type: ignore[arg-type]
    report.total.nan_count = 1  # which no bar would let pass
    if same_source is not False:
        cure = _next_step(report)  # type: ignore[arg-type]
        assert cure.startswith("see where with trt-hspan audit")
        assert ("--precision" in cure) == (precision in ("fp16", "bf16"))


def test_reference_may_be_a_float32_onnx_file_and_no_other(
    run: CommandLine, exported: ExportCache, benchmark_set: Path
) -> None:
    reference, low = exported("small_x4"), exported("small_x4", precision="fp16")
    words = ("--images", benchmark_set, "--limit", "1")
    result = run("validate", low, "--reference", reference, *words, "--json")
    assert result.code == 0, result.err
    report = report_of(result)
    assert report["reference"].startswith("ONNX Runtime")
    assert report["same_source"] is True
    assert 70 < report["total"]["worst_psnr_db"] < 100
    assert "PSNR-Y reference" in run("validate", low, "--reference", reference, *words).out
    assert "a reference in float32" in run("validate", reference, "--reference", low, *words).error_line
    line = run("validate", low, "--reference", reference, "--res-scale", "1").error_line
    assert "--res-scale: is for a checkpoint as the reference" in line


def test_python_takes_a_module_and_pictures_in_memory(exported: ExportCache, small_x4: GoldenNetwork) -> None:
    model = trt_hspan.load_model(small_x4.checkpoint, res_scale=small_x4.res_scale)
    pictures = [np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)]
    report = trt_hspan.validate(exported("small_x4", precision="fp16"), model, pictures)
    assert report.passed
    assert (report.same_source, report.scale, report.pictures[0].name) == (None, 4, "picture 0")
    with pytest.raises(HspanError, match=r"picture 0: expected \(H, W, 3\) uint8, got \(12, 16\)"):
        trt_hspan.validate(exported("small_x4"), model, [np.zeros((12, 16), np.uint8)])
