"""Each mismatch of an engine and a machine is one line with the command that mends it."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from support.manifest_corpus import BASE as CORPUS_BASE

from trt_hspan.engine import passport
from trt_hspan.engine.manifest import EngineManifest, PluginRecord, ProfileRecord, manifest_from_json
from trt_hspan.engine.passport import Machine, build_command, built_for, engine_mismatches
from trt_hspan.errors import HspanError
from trt_hspan.files import sha256_from_file
from trt_hspan.machine.gpu import GpuDriver, cuda_error
from trt_hspan.native.plugin import PLUGIN_ABI_VERSION, default_plugin_path, plugin_info_from_library

PLAN = Path("engines/net.plan")


@pytest.fixture(scope="module")
def plugin_library() -> Path:
    """The compiled plugin, as `make test` makes it."""
    path = default_plugin_path()
    assert path.is_file(), f"{path} is missing: run trt-hspan plugin build"
    return path


@pytest.fixture
def manifest() -> EngineManifest:
    """Of an engine of TensorRT-RTX with the function body."""
    return dataclasses.replace(
        manifest_from_json(json.dumps(CORPUS_BASE).encode(), where="base"),
        onnx_file="net.onnx",
        flavor="tensorrt-rtx",
        tensorrt_version="1.7.1.116",
        targets=("sm_86",),
        attention="function",
        plugin=None,
        traits=(),
    )


def machine(**changes: Any) -> Machine:
    fields = {
        "architecture": "sm_86",
        "driver": GpuDriver(state="ready", cuda_version=(13, 0), architectures=("sm_86",)),
        "flavors": ("tensorrt-rtx",),
        "version_of": lambda _: "1.7.1.116",
    }
    return Machine(**(fields | changes))


def lines(manifest: EngineManifest, here: Machine, plugin: Path | None = None) -> list[str]:
    messages = [str(error) for error in engine_mismatches(PLAN, manifest, here, plugin=plugin)]
    assert not any("\n" in message for message in messages)
    return messages


def with_plugin(manifest: EngineManifest, library: Path, **changes: Any) -> EngineManifest:
    record = PluginRecord(
        file=library.name,
        sha256=sha256_from_file(library),
        abi_version=PLUGIN_ABI_VERSION,
        architectures=("sm_86",),
    )
    return dataclasses.replace(manifest, plugin=dataclasses.replace(record, **changes), attention="plugin")


def test_an_engine_that_fits_has_nothing_against_it(manifest: EngineManifest) -> None:
    assert lines(manifest, machine()) == []


@pytest.mark.parametrize(
    ("driver", "reason"),
    [
        (
            GpuDriver(state="no driver", error=HspanError("GPU", "no driver", "install it")),
            "no driver; install it",
        ),
        (
            GpuDriver(state="failed", cuda_version=(13, 0), error=cuda_error("GPU", 999)),
            "cannot be used: the driver fails .* restart the machine",
        ),
    ],
)
def test_no_gpu(manifest: EngineManifest, driver: GpuDriver, reason: str) -> None:
    (line,) = lines(manifest, machine(architecture=None, driver=driver))
    assert re.search(rf"net\.plan: needs a GPU: {reason}.*--device cpu$", line)


def test_a_gpu_that_is_not_there(manifest: EngineManifest) -> None:
    (line,) = lines(manifest, machine(architecture=None))
    assert line.endswith("needs a GPU that is not there: this machine has 1; take --device gpu:0")


def test_a_driver_too_old_for_the_plugin(manifest: EngineManifest, plugin_library: Path) -> None:
    old = GpuDriver(state="ready", cuda_version=(12, 8), architectures=("sm_86",))
    (line,) = lines(with_plugin(manifest, plugin_library), machine(driver=old))
    assert "was compiled with CUDA 13.0, this driver runs CUDA up to 12.8; install NVIDIA driver 580" in line


def test_another_flavor(manifest: EngineManifest) -> None:
    (line,) = lines(manifest, machine(flavors=("tensorrt",)))
    expected = "not installed here; pip install -e '.[rtx]' 'tensorrt-rtx==1.7.1.116'"
    assert line.endswith(expected)
    classic = dataclasses.replace(manifest, flavor="tensorrt", tensorrt_version="10.3.0")
    (line,) = lines(classic, machine())
    assert line.endswith("pip install -e '.[gpu]' 'tensorrt==10.3.0'")


def test_another_version(manifest: EngineManifest) -> None:
    (line,) = lines(manifest, machine(version_of=lambda _: "1.8.0.1"))
    assert "was built by tensorrt-rtx version 1.7.1.116, installed is 1.8.0.1; trt-hspan build --onnx" in line
    assert "--flavor tensorrt-rtx --target sm_86" in line
    assert f"--attention {manifest.attention} --profile {manifest.profiles[0]} -o engines/net.plan" in line
    assert line.endswith("or pip install 'tensorrt-rtx==1.7.1.116'")


def test_a_tensorrt_that_does_not_load(manifest: EngineManifest) -> None:
    def broken(_: object) -> str:
        raise HspanError("tensorrt_rtx", "is installed but does not load: x", "install the package again")

    (line,) = lines(manifest, machine(version_of=broken))
    assert line.startswith("tensorrt_rtx: is installed but does not load")


def test_another_compute_capability(manifest: EngineManifest) -> None:
    (line,) = lines(manifest, machine(architecture="sm_89"))
    assert "was built for sm_86, this GPU is sm_89; trt-hspan build --onnx engines/net.onnx" in line
    assert "--flavor tensorrt-rtx --target sm_89" in line


@pytest.mark.parametrize(
    ("architecture", "served"),
    [
        ("sm_75", False),
        ("sm_80", True),
        ("sm_86", True),
        ("sm_87", False),
        ("sm_89", True),
        ("sm_90", False),
        ("sm_120", True),
        ("sm_121", True),
    ],
)
def test_the_default_set_of_targets(manifest: EngineManifest, architecture: str, served: bool) -> None:
    default = dataclasses.replace(manifest, targets=())
    assert built_for(default, architecture) == served
    mismatches = lines(default, machine(architecture=architecture))
    assert bool(mismatches) != served
    if mismatches:
        assert "default set (sm_80, sm_86, sm_89, sm_120 and later)" in mismatches[0]


@pytest.mark.parametrize(
    ("installed", "runs"), [("10.9.0.34", True), ("10.9.1.2", True), ("11.0.0.1", True), ("10.3.0.26", False)]
)
def test_a_version_compatible_engine_runs_with_later_releases(
    manifest: EngineManifest, installed: str, runs: bool
) -> None:
    travels = dataclasses.replace(
        manifest, flavor="tensorrt", tensorrt_version="10.9.0.33", traits=("version-compatible",)
    )
    here = machine(flavors=("tensorrt",), version_of=lambda _: installed)
    assert (lines(travels, here) == []) == runs
    bound = lines(dataclasses.replace(travels, traits=()), here)
    assert len(bound) == 1  # without the trait every other version is one too many
    if not runs:
        (line,) = lines(travels, here)
        assert "version 10.9.0.33 for it and later ones, installed is 10.3.0.26; trt-hspan build" in line
        assert "--version-compatible" in line


@pytest.mark.parametrize(
    ("built", "installed", "runs"),
    [("10.9.1.2", "10.9.0.34", False), ("10.9.1.34", "10.9.1.2", True), ("10.10.0", "10.9.1", False)],
)
def test_a_release_has_three_numbers(
    manifest: EngineManifest, built: str, installed: str, runs: bool
) -> None:
    travels = dataclasses.replace(
        manifest, flavor="tensorrt", tensorrt_version=built, traits=("version-compatible",)
    )
    here = machine(flavors=("tensorrt",), version_of=lambda _: installed)
    assert (lines(travels, here) == []) == runs


def test_the_command_that_builds_again_names_all_profiles_and_targets(manifest: EngineManifest) -> None:
    one, two = (
        ProfileRecord(min=(n, 3, 8, 16), opt=(n, 3, 24, 32), max=(n, 3, 40, 48), activation_memory_bytes=None)
        for n in (1, 2)
    )
    targets = dataclasses.replace(manifest, targets=("sm_86", "sm_89"))
    start = "trt-hspan build --onnx engines/net.onnx --flavor"
    for profiles, shapes in (
        ((one,), "--profile min=1x8x16,opt=1x24x32,max=1x40x48"),
        ((two,), "--profile min=2x8x16,opt=2x24x32,max=2x40x48"),
        (
            (one, two),
            "--profile min=1x8x16,opt=1x24x32,max=1x40x48 --profile min=2x8x16,opt=2x24x32,max=2x40x48",
        ),
    ):
        engine = dataclasses.replace(targets, profiles=profiles)
        words = f"--attention {manifest.attention} {shapes}"
        assert build_command(PLAN, engine) == (
            f"{start} tensorrt-rtx --target sm_86 --target sm_89 {words} -o engines/net.plan"
        )
        assert build_command(PLAN, engine, target="sm_120") == (
            f"{start} tensorrt-rtx --target sm_120 {words} -o engines/net.plan"
        )
        classic = dataclasses.replace(engine, flavor="tensorrt")
        assert build_command(PLAN, classic) == f"{start} tensorrt {words} -o engines/net.plan"


def test_the_command_that_builds_again_names_the_library_where_it_has_a_use(manifest: EngineManifest) -> None:
    library = Path("my libraries/plugin.so")
    with_library = dataclasses.replace(manifest, attention="plugin")
    assert " --attention plugin --plugin 'my libraries/plugin.so' --" in build_command(
        PLAN, with_library, library
    )
    assert "--plugin" not in build_command(PLAN, with_library)
    assert "--plugin" not in build_command(PLAN, dataclasses.replace(manifest, attention="function"), library)


@pytest.mark.parametrize(
    ("architecture", "runs"),
    [("sm_75", False), ("sm_80", True), ("sm_87", False), ("sm_89", True), ("sm_90", True), ("sm_120", True)],
)
def test_an_engine_for_ampere_and_later_runs_on_all_of_them_but_jetson(
    manifest: EngineManifest, architecture: str, runs: bool
) -> None:
    travels = dataclasses.replace(manifest, traits=("ampere+",))
    assert built_for(travels, architecture) == runs
    mismatches = lines(travels, machine(architecture=architecture))
    assert bool(mismatches) != runs
    if mismatches:
        assert f"was built for sm_86, for Ampere and later, this GPU is {architecture}" in mismatches[0]
        assert "--hardware-compatible ampere+" in mismatches[0]
    on_board = dataclasses.replace(travels, targets=("sm_87",))
    assert built_for(on_board, "sm_87")
    assert not built_for(on_board, "sm_90")


def test_an_engine_of_one_compute_capability_runs_on_no_other(manifest: EngineManifest) -> None:
    bound = dataclasses.replace(manifest, traits=("same-cc",))
    assert built_for(bound, "sm_86")
    assert not built_for(bound, "sm_89")


def test_a_plugin_inside_the_plan_needs_no_library_but_code_for_the_gpu(
    manifest: EngineManifest, plugin_library: Path, tmp_path: Path
) -> None:
    plan = tmp_path / "net.plan"
    plan.write_bytes(b"layers" + plugin_library.read_bytes() + b"weights")
    embedded = dataclasses.replace(
        with_plugin(manifest, plugin_library), traits=("embedded-plugin",), targets=("sm_53", "sm_86")
    )

    def only(here: Machine) -> str:
        (line,) = map(str, engine_mismatches(plan, embedded, here, plugin=tmp_path / "none.so"))
        return line

    assert engine_mismatches(plan, embedded, machine(), plugin=tmp_path / "none.so") == []
    line = only(machine(architecture="sm_53"))
    assert (
        "net.plan: the plugin inside: built without sm_53; rebuild with trt-hspan plugin build --arch 53"
        in line
    )
    assert ", then trt-hspan build --onnx" in line
    assert "--embed-plugin" in line
    old = GpuDriver(state="ready", cuda_version=(12, 4), architectures=("sm_86",))
    assert "the plugin inside: was compiled with CUDA 13.0, this driver runs" in only(machine(driver=old))
    plan.write_bytes(b"layers and weights")
    assert "is not the library of this plugin" in only(machine()) or "description" in only(machine())


def test_all_mismatches_are_reported_at_once(manifest: EngineManifest) -> None:
    here = machine(architecture="sm_89", version_of=lambda _: "1.8.0.1")
    assert len(lines(manifest, here)) == 2
    assert len(lines(manifest, machine(architecture=None, flavors=()))) == 2


def test_the_right_plugin(manifest: EngineManifest, plugin_library: Path) -> None:
    assert lines(with_plugin(manifest, plugin_library), machine(), plugin_library) == []


def test_a_missing_plugin(manifest: EngineManifest, plugin_library: Path, tmp_path: Path) -> None:
    (line,) = lines(with_plugin(manifest, plugin_library), machine(), tmp_path / "none.so")
    assert (
        line == f"{tmp_path}/none.so: there is no plugin library here; build one with trt-hspan plugin build"
    )


def test_a_file_that_is_no_plugin(manifest: EngineManifest, plugin_library: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.so"
    other.write_bytes(b"text")
    (line,) = lines(with_plugin(manifest, plugin_library), machine(), other)
    assert "other.so: is no shared library; name a file that trt-hspan plugin build wrote" in line


def test_a_plugin_of_another_build(manifest: EngineManifest, plugin_library: Path) -> None:
    changed = with_plugin(manifest, plugin_library, sha256="0" * 64)
    (line,) = lines(changed, machine(), plugin_library)
    assert "but net.plan was built with 000000000000...; name the library that it was built with" in line
    assert f"--attention plugin --plugin {plugin_library} --profile" in line


def test_a_plugin_of_another_abi(manifest: EngineManifest, plugin_library: Path) -> None:
    changed = with_plugin(manifest, plugin_library, sha256="0" * 64, abi_version=PLUGIN_ABI_VERSION + 1)
    (line,) = lines(changed, machine(), plugin_library)
    expected = (
        f"has plugin ABI version {PLUGIN_ABI_VERSION}, net.plan was built with {PLUGIN_ABI_VERSION + 1}"
    )
    assert f"{expected}; trt-hspan build --onnx" in line


@pytest.mark.parametrize("change", [{"name": "Other"}, {"version": "9"}])
def test_a_plugin_of_another_name_or_version(
    manifest: EngineManifest, plugin_library: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, str]
) -> None:
    info = dataclasses.replace(plugin_info_from_library(plugin_library), **change)
    from trt_hspan.native import plugin as module

    monkeypatch.setattr(module, "plugin_info_from_library", lambda _: info)
    changed = with_plugin(manifest, plugin_library, sha256="0" * 64)
    (line,) = lines(changed, machine(), plugin_library)
    assert f"is plugin {info.name} version {info.version}, net.plan needs {passport.OP_TYPE} version" in line


def test_a_plugin_without_code_for_the_gpu(manifest: EngineManifest, plugin_library: Path) -> None:
    old = dataclasses.replace(with_plugin(manifest, plugin_library), targets=("sm_53",))
    (line,) = lines(old, machine(architecture="sm_53"), plugin_library)
    assert "built without sm_53; rebuild with trt-hspan plugin build --arch 53" in line


@pytest.mark.parametrize(("index", "architecture"), [(0, "sm_86"), (1, "sm_90"), (2, None), (7, None)])
def test_this_machine_has_the_gpu_of_an_index(
    monkeypatch: pytest.MonkeyPatch, index: int, architecture: str | None
) -> None:
    driver = GpuDriver(state="ready", cuda_version=(13, 0), architectures=("sm_86", "sm_90"))
    monkeypatch.setattr(passport, "gpu_driver", lambda: driver)
    here = passport.this_machine(index)
    assert (here.architecture, here.driver) == (architecture, driver)
    assert passport.this_machine().architecture == "sm_86"
    assert "tensorrt-rtx" in here.flavors
    assert here.version_of("tensorrt-rtx").startswith("1.")


def test_only_the_first_mismatch_is_raised(manifest: EngineManifest) -> None:
    passport.require_match(PLAN, manifest, machine())
    here = machine(architecture="sm_89", version_of=lambda _: "1.8.0.1")
    with pytest.raises(HspanError, match=r"installed is 1\.8\.0\.1"):
        passport.require_match(PLAN, manifest, here)


def test_hashes_are_shown_by_their_first_twelve_digits(
    manifest: EngineManifest, plugin_library: Path
) -> None:
    changed = with_plugin(manifest, plugin_library, sha256="1234567890abcdef" * 4)
    (line,) = lines(changed, machine(), plugin_library)
    own = sha256_from_file(plugin_library)[:12]
    assert f"SHA-256 is {own}..., but net.plan was built with 1234567890ab...; name" in line
    assert " by --plugin, or trt-hspan build --onnx" in line


def test_without_a_gpu_nothing_is_said_of_code_and_targets(
    manifest: EngineManifest, plugin_library: Path
) -> None:
    driver = GpuDriver(state="no driver", error=HspanError("GPU", "no driver", "install it"))
    nowhere = machine(architecture=None, driver=driver)
    foreign = dataclasses.replace(with_plugin(manifest, plugin_library), targets=("sm_53",))
    assert len(lines(foreign, nowhere, plugin_library)) == 1
    embedded = dataclasses.replace(foreign, traits=("embedded-plugin",))
    assert len(lines(embedded, nowhere)) == 1


def test_on_a_jetson_no_wheel_is_proposed(manifest: EngineManifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passport, "is_jetson", lambda: True)
    (line,) = lines(manifest, machine(flavors=()))
    assert "1.7.1.116" not in line
    (line,) = lines(manifest, machine(version_of=lambda _: "1.8.0.1"))
    assert "pip install" not in line


@pytest.mark.parametrize(
    ("built", "runs"), [("10.9", True), ("10.9.0.1.2", True), ("10.9.0", True), ("11", False)]
)
def test_releases_of_fewer_or_more_numbers_are_compared(
    manifest: EngineManifest, built: str, runs: bool
) -> None:
    travels = dataclasses.replace(
        manifest, flavor="tensorrt", tensorrt_version=built, traits=("version-compatible",)
    )
    here = machine(flavors=("tensorrt",), version_of=lambda _: "10.9.0.rc1")
    assert (lines(travels, here) == []) == runs
