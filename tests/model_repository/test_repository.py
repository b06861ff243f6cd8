"""Model repositories from engines: layouts, Triton's own reading of config.pbtxt, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.command_line import CommandLine
from support.model_repository import config_of, described_engine, engine_as, files_below, network_of
from support.permissions import read_only
from support.small_engine import SmallEngine

from trt_hspan.engine.manifest import PluginRecord
from trt_hspan.errors import HspanError
from trt_hspan.model_repository.deployment import DEFAULT_IMAGE
from trt_hspan.model_repository.repository import _sums, write_repository
from trt_hspan.native.plugin import PLUGIN_ABI_VERSION, default_plugin_path


@pytest.fixture(scope="module")
def small_engine(tmp_path_factory: pytest.TempPathFactory) -> SmallEngine:
    """An export reads an engine's manifest, and never opens its plan."""
    return described_engine(tmp_path_factory.mktemp("described"))


def test_one_engine_becomes_two_models_and_everything_around_them(
    run: CommandLine, classic: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "model_repository"
    result = run("serve", "export", classic, "-o", repository, "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert report["models"] == {"net": "tensorrt", "net_image": "python"}
    assert report["image"] == DEFAULT_IMAGE
    assert files_below(repository) == {
        "net/config.pbtxt",
        "net/1/model.plan",
        "net_image/config.pbtxt",
        "net_image/1/model.py",
        "net_image/1/trt-hspan.zip",
        "start.sh",
        "Dockerfile",
        ".dockerignore",
        "docker-compose.yaml",
        "kubernetes.yaml",
        "kserve.yaml",
        "prometheus.yaml",
        "grafana-dashboard.json",
        "grafana-provisioning.yaml",
        "grafana-datasource.yaml",
        "SHA256SUMS",
        "TENSORRT_VERSION",
        "requirements.txt",
    }
    folders = {path.name for path in repository.iterdir() if path.is_dir()}
    assert folders == {"net", "net_image"}, "Triton takes every folder for a model"
    dockerfile = (repository / "Dockerfile").read_text()
    assert f"ARG IMAGE={DEFAULT_IMAGE}\nFROM ${{IMAGE}}\n" in dockerfile
    assert (repository / "TENSORRT_VERSION").read_text() == "10.7.0.23\n"
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=repository, check=True)


def test_config_of_the_raw_model_says_what_the_manifest_says(
    run: CommandLine, classic: Path, tmp_path: Path, small_engine: SmallEngine
) -> None:
    repository = tmp_path / "models"
    assert run("serve", "export", classic, "-o", repository, "--queue-length", 7, "--instances", 2).code == 0
    config = config_of(repository, "net")
    profile = small_engine.manifest.profiles[0]
    assert (config.name, config.backend, config.platform) == ("net", "tensorrt", "tensorrt_plan")
    assert config.max_batch_size == profile.max[0]
    assert [(t.name, list(t.dims)) for t in config.input] == [("input", [3, -1, -1])]
    assert [(t.name, list(t.dims)) for t in config.output] == [("output", [3, -1, -1])]
    assert [group.count for group in config.instance_group] == [2]
    assert list(config.instance_group[0].profile) == ["0"]
    assert config.version_policy.latest.num_versions == 1
    policy = config.dynamic_batching.default_queue_policy
    assert (policy.max_queue_size, policy.default_timeout_microseconds) == (7, 30_000_000)
    assert policy.timeout_action == type(policy).REJECT
    assert dict(config.cc_model_filenames) == {"8.6": "model.plan"}
    warm = {tuple(w.inputs["input"].dims) for w in config.model_warmup}
    assert warm == {tuple(shape[1:]) for shape in (profile.min, profile.opt, profile.max)}


def test_three_engines_of_one_network_share_a_picture_model(
    run: CommandLine, small_engine: SmallEngine, tmp_path: Path
) -> None:
    """Two GPUs for one profile are one raw model; another profile is a second one: a bucket."""
    common = {"flavor": "tensorrt", "tensorrt_version": "10.5.0.18"}
    folder = tmp_path / "engines"
    engines = [
        engine_as(small_engine, folder, "a", targets=("sm_86",), **common),
        engine_as(small_engine, folder, "b", targets=("sm_89",), **common),
        engine_as(small_engine, folder, "c", targets=("sm_86",), profile_max=(1, 3, 64, 64), **common),
    ]
    repository = tmp_path / "models"
    result = run("serve", "export", *engines, "-o", repository, "--name", "net", "--json")
    assert result.code == 0, result.err
    assert list(json.loads(result.out)["models"]) == ["net_32x32", "net_64x64", "net_image"]
    config = config_of(repository, "net_32x32")
    assert dict(config.cc_model_filenames) == {"8.6": "model_sm_86.plan", "8.9": "model_sm_89.plan"}
    assert config.default_model_filename == ""
    assert files_below(repository / "net_32x32") == {
        "config.pbtxt",
        "1/model_sm_86.plan",
        "1/model_sm_89.plan",
    }
    buckets = json.loads(config_of(repository, "net_image").parameters["raw_models"].string_value)
    assert [(b["name"], b["max"]) for b in buckets] == [
        ("net_32x32", [1, 3, 32, 32]),
        ("net_64x64", [1, 3, 64, 64]),
    ]


def test_rtx_engine_goes_to_the_python_backend(
    run: CommandLine, small_engine: SmallEngine, tmp_path: Path
) -> None:
    repository = tmp_path / "models"
    result = run("serve", "export", small_engine.plan, "-o", repository, "--json")
    assert json.loads(result.out)["models"] == {"small": "python", "small_image": "python"}
    assert {"1/model.py", "1/small.plan", "1/small.json", "1/small.onnx"} <= files_below(repository / "small")
    version = small_engine.manifest.tensorrt_version
    requirements = (repository / "requirements.txt").read_text().splitlines()
    assert {f"tensorrt-rtx=={version}", "pycuda>=2024.1"} <= set(requirements)
    assert not (repository / "TENSORRT_VERSION").exists(), "pip brings it, not the image"
    # Triton's "auto": KIND_GPU with each of its GPUs, KIND_CPU where it has none.
    (group,) = config_of(repository, "small").instance_group
    assert (group.kind, group.count, list(group.gpus)) == (type(group).KIND_AUTO, 1, [])
    assert "device" not in config_of(repository, "small").parameters


def test_second_version_is_added_and_sums_follow(run: CommandLine, classic: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    assert run("serve", "export", classic, "-o", repository).code == 0
    result = run("serve", "export", classic, "-o", repository, "--add-version", "--json")
    assert json.loads(result.out)["version"] == 2
    assert {path.name for path in (repository / "net").iterdir()} == {"1", "2", "config.pbtxt"}
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=repository, check=True)
    assert not list(tmp_path.glob(".models.*"))


def test_programs_of_a_version_are_in_its_folder_and_import_without_an_installation(
    run: CommandLine, classic: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "models"
    assert run("serve", "export", classic, "-o", repository).code == 0
    folder = repository / "net_image" / "1"
    with zipfile.ZipFile(folder / "trt-hspan.zip") as archive:
        names = archive.namelist()
    assert "trt_hspan/model_repository/python_models.py" in names
    data = {name for name in names if not name.endswith(".py")}
    assert all(name.endswith(".json") for name in data)
    assert {"trt_hspan/engine/manifest.schema.json", "trt_hspan/machine/cuda_errors.json"} <= data
    code = "import model, trt_hspan; print(trt_hspan.__file__, model.TritonPythonModel.__module__)"
    completed = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env={}, capture_output=True, text=True, check=True
    )
    place, module = completed.stdout.split()
    assert place.startswith(str(folder / "trt-hspan.zip"))
    assert module.split(".") == ["trt_hspan", "model_repository", "python_models"]


def test_export_needs_none_of_the_packages_that_serve(
    run: CommandLine, small_engine: SmallEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("aiohttp", "geventhttpclient", "psutil", "starlette", "uvicorn"):
        for module in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setitem(sys.modules, name, None)
    result = run("serve", "export", small_engine.plan, "-o", tmp_path / "models")
    assert result.code == 0, result.err


# What is refused.


def test_rtx_engine_for_the_tensorrt_backend(
    run: CommandLine, small_engine: SmallEngine, tmp_path: Path
) -> None:
    result = run("serve", "export", small_engine.plan, "-o", tmp_path / "m", "--backend", "tensorrt")
    assert result.code == 1
    assert "built by tensorrt-rtx" in result.error_line
    assert not (tmp_path / "m").exists()


def test_engines_of_two_versions_of_tensorrt(
    run: CommandLine, small_engine: SmallEngine, tmp_path: Path
) -> None:
    a, b = (
        engine_as(small_engine, tmp_path / "e", name, flavor="tensorrt", tensorrt_version=version)
        for name, version in (("a", "10.7.0.23"), ("b", "11.4.0.1"))
    )
    result = run("serve", "export", a, b, "-o", tmp_path / "m")
    assert (result.code, "10.7.0.23 and 11.4.0.1" in result.error_line) == (1, True)
    assert not (tmp_path / "m").exists()
    assert run("serve", "export", a, "-o", tmp_path / "m", "--image", "mine:1").code == 0
    assert "ARG IMAGE=mine:1\n" in (tmp_path / "m" / "Dockerfile").read_text()
    # Later versions may need another, unless a model stays that does not.
    refused = run("serve", "export", b, "-o", tmp_path / "m", "--add-version")
    assert (refused.code, "a needs TensorRT 10.7.0.23" in refused.error_line) == (1, True)
    assert run("serve", "export", b, "-o", tmp_path / "m", "--add-version", "--name", "a").code == 0
    assert (tmp_path / "m" / "TENSORRT_VERSION").read_text() == "11.4.0.1\n"


def test_missing_and_wrong_plugin(run: CommandLine, small_engine: SmallEngine, tmp_path: Path) -> None:
    record = PluginRecord(file="x.so", sha256="0" * 64, abi_version=PLUGIN_ABI_VERSION, architectures=())
    engine = engine_as(
        small_engine,
        tmp_path / "e",
        "net",
        flavor="tensorrt",
        tensorrt_version="10.7.0.23",
        plugin=record,
    )
    missing = run("serve", "export", engine, "-o", tmp_path / "m", "--plugin", tmp_path / "none.so")
    assert "there is no plugin library here" in missing.error_line
    wrong = run("serve", "export", engine, "-o", tmp_path / "m", "--plugin", default_plugin_path())
    assert "net.plan was built with 000000000000" in wrong.error_line


def test_engine_that_its_manifest_does_not_vouch_for(run: CommandLine, classic: Path, tmp_path: Path) -> None:
    with classic.open("ab") as plan:
        plan.write(b"x")
    result = run("serve", "export", classic, "-o", tmp_path / "m")
    assert (result.code, "net.json says" in result.error_line) == (1, True)
    assert "no such file" in run("serve", "export", tmp_path / "no.plan", "-o", tmp_path / "m").error_line


def test_folder_that_is_not_empty_or_not_writable(run: CommandLine, classic: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("x")
    assert "is not empty" in run("serve", "export", classic, "-o", full).error_line
    assert files_below(full) == {"mine.txt"}
    closed = tmp_path / "closed"
    closed.mkdir()
    with read_only(closed):
        result = run("serve", "export", classic, "-o", closed / "m")
    assert (result.code, "no permission" in result.error_line) == (1, True)


def test_failure_half_way_leaves_nothing(
    run: CommandLine, classic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trt_hspan.model_repository.repository.deployment_files", full_disk)
    result = run("serve", "export", classic, "-o", tmp_path / "m")
    assert "the disk is full" in result.error_line
    assert [path.name for path in tmp_path.iterdir()] == ["engines"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--add-version"], "no such folder"),
        (["--backend", "onnx"], "--backend"),
        (["--queue-length", 0], "--queue-length"),
        (["--name", "///"], "--name"),
    ],
)
def test_options_that_make_no_sense(
    run: CommandLine, classic: Path, tmp_path: Path, words: list[object], message: str
) -> None:
    result = run("serve", "export", classic, "-o", tmp_path / "m", *words)
    assert result.code in (1, 2)
    assert message in result.error_line
    assert not (tmp_path / "m").exists()


def test_same_engine_gives_the_same_bytes(run: CommandLine, classic: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert run("serve", "export", classic, "-o", tmp_path / name).code == 0
    digests = [hashlib.sha256((tmp_path / name / "SHA256SUMS").read_bytes()).digest() for name in "ab"]
    assert digests[0] == digests[1]


# Versions of a repository, on engines that nobody opens.


def versions(repository: Path) -> dict[str, list[str]]:
    return {
        model.name: sorted(child.name for child in model.iterdir() if child.is_dir())
        for model in sorted(repository.iterdir())
        if model.is_dir()
    }


def test_a_version_is_one_more_than_any_of_its_models_has(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    a, b = network_of("a", tmp_path), network_of("b", tmp_path)
    first = write_repository(folder, [a])
    assert (first.version, first.models, first.folder, first.image) == (
        1,
        ("a", "a_image"),
        folder,
        DEFAULT_IMAGE,
    )
    assert write_repository(folder, [a], add_version=True).version == 2
    added = write_repository(folder, [b], add_version=True)
    assert (added.version, added.models) == (1, ("b", "b_image"))
    assert write_repository(folder, [a, b], add_version=True).version == 3
    assert versions(folder) == {
        "a": ["1", "2", "3"],
        "a_image": ["1", "2", "3"],
        "b": ["1", "3"],
        "b_image": ["1", "3"],
    }
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
    sums = {line.split()[1] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    loaded = {name for name in files_below(folder) if "/" in name}
    assert sums == loaded
    assert [path.name for path in tmp_path.glob(".models*")] == []


def test_sums_are_of_what_a_server_loads_alone(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    write_repository(folder, [network_of("a", tmp_path)])
    (folder / "a" / "1" / "__pycache__").mkdir()
    (folder / "a" / "1" / "__pycache__" / "x.pyc").touch()
    (folder / "own.so").touch()
    (folder / "note.txt").touch()
    lines = {line.split()[1] for line in _sums(folder).splitlines()}
    assert lines == {
        "own.so",
        "a/config.pbtxt",
        "a/1/model.plan",
        "a_image/config.pbtxt",
        "a_image/1/model.py",
        "a_image/1/trt-hspan.zip",
    }


def test_a_version_takes_what_the_one_before_took(tmp_path: Path) -> None:
    """Other sizes are the same interface; another backend, or other tensors, are not."""
    folder = tmp_path / "models"
    write_repository(folder, [network_of("a", tmp_path)])
    assert write_repository(folder, [network_of("a", tmp_path, side=24)], add_version=True).version == 2
    assert "dims: 24" in (folder / "a" / "config.pbtxt").read_text()
    with pytest.raises(HspanError, match=r"a: runs on the backend tensorrt, the new version on python; use"):
        write_repository(folder, [network_of("a", tmp_path, backend="python")], add_version=True)
    good = (folder / "a" / "config.pbtxt").read_text()
    for side, old, new in (
        ("input", 'name: "input"', 'name: "image"'),
        ("output", 'name: "output"', 'name: "result"'),
        ("input", "TYPE_FP32", "TYPE_FP16"),
        ("input", "dims: 24", "dims: 24\n  dims: 24"),
    ):
        (folder / "a" / "config.pbtxt").write_text(good.replace(old, new, 1))
        with pytest.raises(
            HspanError, match=f"its {side} differs from the new version's; export under another"
        ):
            write_repository(folder, [network_of("a", tmp_path)], add_version=True)
    assert versions(folder) == {"a": ["1", "2"], "a_image": ["1", "2"]}


def test_models_that_stay_need_the_same_tensorrt(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    write_repository(folder, [network_of("a", tmp_path)])
    newer = [network_of("b", tmp_path, version="11.0.0")]
    with pytest.raises(
        HspanError, match=r"a needs TensorRT 10\.7\.0\.23, the new version 11\.0\.0, and an image"
    ):
        write_repository(folder, newer, add_version=True)
    # Where none is stated, models in Python need none; and what needs none itself goes with any.
    (folder / "TENSORRT_VERSION").unlink()
    write_repository(folder, newer, add_version=True)
    assert not (folder / "TENSORRT_VERSION").exists()
    (folder / "TENSORRT_VERSION").write_text("10.7.0.23\n")
    write_repository(folder, [network_of("c", tmp_path, version="1.7", backend="python")], add_version=True)
    assert (folder / "TENSORRT_VERSION").read_text() == "10.7.0.23\n"
    (folder / "SHA256SUMS").unlink()
    write_repository(folder, [network_of("c", tmp_path, version="1.7", backend="python")], add_version=True)
    assert not (folder / "SHA256SUMS").exists()


def test_what_is_no_repository_gets_no_version(tmp_path: Path) -> None:
    network = network_of("a", tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare" / "a").mkdir(parents=True)
    (tmp_path / "bare" / "a" / "config.pbtxt").touch()
    for name, line in (
        ("none", "none: no such folder; check the path"),
        ("file", "file: is not a folder; check the path"),
        ("empty", "empty: contains no model; write one with trt-hspan serve export"),
        ("bare", "a: has no version: a folder named 1 is missing; export it again"),
    ):
        with pytest.raises(HspanError, match=line):
            write_repository(tmp_path / name, [network], add_version=True)


def test_a_repository_goes_into_an_empty_folder_or_a_new_one(tmp_path: Path) -> None:
    network = network_of("a", tmp_path)
    (tmp_path / "empty").mkdir()
    write_repository(tmp_path / "empty", [network])
    write_repository(tmp_path / "new" / "deep", [network])
    assert files_below(tmp_path / "empty") == files_below(tmp_path / "new" / "deep")
    umask = os.umask(0o022)
    os.umask(umask)
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o777 & ~umask
    assert (tmp_path / "empty" / "start.sh").stat().st_mode & 0o777 == 0o755
    for name in ("empty", "a.plan"):
        line = "exists and is not empty; choose another folder, or add a version with --add-version"
        with pytest.raises(HspanError, match=line):
            write_repository(tmp_path / name, [network])


def test_the_package_goes_along_with_a_version_without_sources_and_dates(tmp_path: Path) -> None:
    folder = write_repository(tmp_path / "models", [network_of("a", tmp_path)]).folder
    with zipfile.ZipFile(folder / "a_image" / "1" / "trt-hspan.zip") as archive:
        entries = archive.infolist()
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert {entry.compress_type for entry in entries} == {zipfile.ZIP_DEFLATED}
    assert not any("_sources" in entry.filename for entry in entries)
    assert [entry.filename for entry in entries] == sorted(entry.filename for entry in entries)
    text = (folder / "a_image" / "1" / "model.py").read_text()
    assert text.startswith('"""Picture files in and out, through the raw models')
    assert "import ImageModel as TritonPythonModel" in text
    assert not (folder / "a" / "1" / "model.py").exists()
