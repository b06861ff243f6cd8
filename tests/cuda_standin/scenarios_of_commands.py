"""Commands that execute engines on the stand-in driver: bench, upscale, and those of a board.

Not collected by name: `tests/runtime/test_tensorrt_on_standin.py` runs it in processes of its own, once with work done
at once and once with work done only when something waits for it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuda_standin import engine_double
from cuda_standin.conftest import CLASSIC, RTX
from cuda_standin.expectations import MakeEngine, batch
from trt_hspan.cli import main
from trt_hspan.evaluation.speed.bench import BenchSpec, run_bench
from trt_hspan.files import sha256_from_file
from trt_hspan.jetson.reference import ReferencePicture, StoredReference, write_reference
from trt_hspan.media.pictures import size_from_image_file
from trt_hspan.media.pixels import tensor_from_image
from trt_hspan.media.writing import write_picture
from trt_hspan.native.plugin import default_plugin_path, plugin_info_from_library
from trt_hspan.runtime.onnxruntime_runner import OnnxRuntimeRunner
from trt_hspan.sizes import ImageSize


def test_an_engine_is_benchmarked_with_and_without_graphs_and_by_stages(make_engine: MakeEngine) -> None:
    sizes = (ImageSize(height=8, width=8), ImageSize(height=12, width=10))
    spec = BenchSpec(sources=(str(make_engine(RTX)),), sizes=sizes, batches=(1, 2), seconds=0.02)
    report = run_bench(spec)
    assert [measurement.cuda_graph for measurement in report.measurements] == [True] * 4 + [False] * 4
    for measurement in report.measurements:
        assert measurement.gpu_stages_ms is not None
        assert set(measurement.gpu_stages_ms) == {"upload", "compute", "download"}
        assert measurement.gpu_stages_ms["compute"] > 0
        assert measurement.gpu_bytes is not None
        assert (
            measurement.gpu_bytes["activation_bytes"]
            >= 64 * measurement.batch * measurement.height * measurement.width
        )
        assert measurement.images_per_second > 0
        assert measurement.note is None


def test_a_benchmark_says_why_there_was_no_graph(make_engine: MakeEngine) -> None:
    plan = make_engine(RTX)
    engine_double.UNCAPTURABLE.add((1, 3, 8, 8))
    sizes = (ImageSize(height=8, width=8),)
    (measurement,) = run_bench(
        BenchSpec(sources=(str(plan),), sizes=sizes, graphs="on", seconds=0.02)
    ).measurements
    assert "operation not permitted" in (measurement.note or "")


def test_a_benchmark_of_several_profiles_measures_within_each_and_says_which(
    make_engine: MakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ((1, 3, 4, 4), (1, 3, 6, 6), (1, 3, 8, 8))
    large = ((1, 3, 12, 10), (1, 3, 16, 16), (2, 3, 24, 24))
    plan = make_engine(CLASSIC, profiles=(large, small))
    words = ["bench", str(plan), "--cuda-graph", "off", "--seconds", "0.02"]

    def output_of(*more: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            main([*words, *more])
        captured = capsys.readouterr()
        assert stopped.value.code == 0, captured.err
        return captured.out

    # 48x48 and 96x96, brought into what each of the two takes.
    measurements = json.loads(output_of("--json"))["measurements"]
    assert [(one["profile"], one["height"]) for one in measurements] == [(0, 24), (1, 8)]
    sizes = ["--size", "8x8", "--size", "12x10", "--size", "4x6"]
    measurements = json.loads(output_of(*sizes, "--json"))["measurements"]
    assert [(one["profile"], one["height"]) for one in measurements] == [(1, 8), (0, 12), (1, 4)]
    table = output_of(*sizes)
    assert "profile 0" in table
    assert "profile 1" in table
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--size", "9x9"])
    assert stopped.value.code == 1
    refusal = "net.plan takes 1x3x12x10 to 2x3x24x24 or 1x3x4x4 to 1x3x8x8"
    assert refusal in capsys.readouterr().err


def test_upscale_loads_the_plugin_library_that_is_named(
    make_engine: MakeEngine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    library = default_plugin_path()
    info = plugin_info_from_library(library)
    plan = make_engine(CLASSIC)
    record = {
        "file": library.name,
        "sha256": sha256_from_file(library),
        "abi_version": info.abi_version,
        "architectures": [f"sm_{number}" for number in info.cubin_architectures],
    }
    manifest = json.loads(plan.with_suffix(".json").read_text())
    manifest |= {"plugin": record, "attention": "plugin"}
    plan.with_suffix(".json").write_text(json.dumps(manifest))
    write_picture(tmp_path / "in.png", (batch(0, 8, 6, 3) * 255).astype(np.uint8))
    monkeypatch.setenv("TRT_HSPAN_PLUGIN", str(tmp_path / "none.so"))
    words = ["upscale", str(tmp_path / "in.png"), "-o", str(tmp_path / "out.png"), "--engine", str(plan)]
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 1
    assert "none.so: there is no plugin library here" in capsys.readouterr().err
    assert engine_double.LIBRARIES == []
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--plugin", str(library)])
    assert stopped.value.code == 0, capsys.readouterr().err
    assert [str(library.resolve())] == engine_double.LIBRARIES
    assert size_from_image_file(tmp_path / "out.png") == (16, 12)


def test_a_board_validates_and_times_its_engine(
    make_engine: MakeEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`jetson validate` and `jetson bench` with classic TensorRT, as a board runs them."""
    plan = make_engine(CLASSIC)
    manifest = json.loads(plan.with_suffix(".json").read_text())
    plan.with_suffix(".json").write_text(json.dumps(manifest | {"source_sha256": "c" * 64}))
    picture = (batch(0, 8, 6, 3) * 255).astype(np.uint8)
    with OnnxRuntimeRunner(plan.with_suffix(".onnx"), threads=1) as runner:
        output = runner.run(tensor_from_image(picture))[0]
    stored = StoredReference(
        network="small",
        source_sha256="c" * 64,
        scale=2,
        res_scale=0.1,
        made_by="ONNX Runtime",
        pictures=(ReferencePicture(name="noise", picture=picture, output=output),),
    )
    write_reference(tmp_path / "r.npz", stored)

    def output_of(*words: object) -> Any:
        with pytest.raises(SystemExit) as stopped:
            main(["jetson", *map(str, words), "--json"])
        assert stopped.value.code == 0
        return json.loads(capsys.readouterr().out)

    report = output_of("validate", plan, "--reference", tmp_path / "r.npz", "--min-psnr", 100)
    assert (report["passed"], report["emulated"]) == (True, False)
    assert report["candidate"].startswith("TensorRT 10.3.0")
    where = ("--board", "orin-nano-8g", "--device", "gpu")
    timed = output_of("bench", plan, *where, "--size", "6x8", "--seconds", "0.05")
    assert {row["cuda_graph"] for row in timed["measurements"]} == {True, False}
    assert all(not row["emulated"] for row in timed["measurements"])
    assert timed["floors_ms"].keys() == {"6x8"}
