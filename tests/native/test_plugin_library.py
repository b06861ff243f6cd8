"""What a plugin library is, read from the file, and which GPUs it serves; how bad libraries are turned down."""

from __future__ import annotations

import ctypes
import json
import platform
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from support.command_line import CommandLine

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.native import plugin as module
from trt_hspan.native.plugin import (
    PluginInfo,
    architecture_from_target,
    check_plugin_serves,
    default_plugin_path,
    plugin_info_from_library,
)

DESCRIPTION = {
    "name": "HighSimilarityPassAttention",
    "version": "1",
    "namespace": "",
    "abi_version": module.PLUGIN_ABI_VERSION,
    "cubin_architectures": [80, 89],
    "ptx_architectures": [80],
    "cuda_version": "13.0.88",
    "ptx_isa_version": "9.0",
    "tensorrt_header_version": "10.14.1",
    "source_sha256": "",
}


def stub_library(folder: Path, description: str) -> Path:
    """A real shared library that carries a description of our kind."""
    text = json.dumps(f"hspan-plugin-info:{description}")
    source = folder / "stub.c"
    source.write_text(f"const char kInfo[] = {text};\n")
    library = folder / "libstub.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    return library


def info(cubins: tuple[int, ...] = (), ptx: tuple[int, ...] = (), machine: str | None = None) -> PluginInfo:
    return PluginInfo(
        path=Path("libhspan_plugin.so"),
        name="HighSimilarityPassAttention",
        version="1",
        namespace="",
        abi_version=module.PLUGIN_ABI_VERSION,
        machine=machine or platform.machine(),
        cubin_architectures=cubins,
        ptx_architectures=ptx,
        cuda_version="13.0",
        ptx_isa_version="9.0",
        tensorrt_header_version="10.14.1",
        source_sha256="",
    )


def error_of(path: Path) -> str:
    with pytest.raises(HspanError) as caught:
        plugin_info_from_library(path)
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


def test_a_built_library_describes_itself(plugin_library: Path) -> None:
    described = plugin_info_from_library(plugin_library)
    assert (described.name, described.version, described.namespace) == (
        "HighSimilarityPassAttention",
        "1",
        "",
    )
    assert described.machine == platform.machine()
    assert {80, 86, 89, 120} <= set(described.cubin_architectures)
    assert described.ptx_architectures == (min(described.cubin_architectures),)
    check_plugin_serves(described, ["sm_80", "sm_86", "sm_89", "sm_90", "sm_120"])


def test_its_c_function_says_the_same_as_the_file(plugin_library: Path) -> None:
    script = (
        "import ctypes, sys; library = ctypes.CDLL(sys.argv[1]); "
        "library.hspanPluginInfo.restype = ctypes.c_char_p; print(library.hspanPluginInfo().decode())"
    )
    completed = subprocess.run(
        [sys.executable, "-c", script, plugin_library], capture_output=True, text=True, check=True
    )
    said = json.loads(completed.stdout)
    described = plugin_info_from_library(plugin_library)
    assert said == {name: _plain(getattr(described, name)) for name in said}
    assert set(said) == set(DESCRIPTION)


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def test_it_exports_its_three_functions_and_nothing_else(plugin_library: Path) -> None:
    completed = subprocess.run(
        ["nm", "-D", "--defined-only", plugin_library], capture_output=True, text=True, check=True
    )
    names = {line.split()[-1] for line in completed.stdout.splitlines()}
    assert names == {"getCreators", "setLoggerFinder", "hspanPluginInfo"}


def test_it_links_against_neither_tensorrt_nor_the_cuda_runtime(plugin_library: Path) -> None:
    completed = subprocess.run(["readelf", "-d", plugin_library], capture_output=True, text=True, check=True)
    needed = [line for line in completed.stdout.splitlines() if "NEEDED" in line]
    assert needed
    assert not [line for line in needed if "nvinfer" in line or "tensorrt" in line or "cuda" in line]


def test_a_missing_library_is_an_error(tmp_path: Path) -> None:
    assert "there is no plugin library here; build one with trt-hspan plugin build" in error_of(
        tmp_path / "no.so"
    )


def test_a_folder_is_an_error(tmp_path: Path) -> None:
    assert "is a folder" in error_of(tmp_path)


def test_a_text_file_is_no_library(tmp_path: Path) -> None:
    path = tmp_path / "libhspan_plugin.so"
    path.write_text("hspan-plugin-info:{}")
    assert "is no shared library" in error_of(path)


def test_an_object_file_is_no_library(tmp_path: Path) -> None:
    (tmp_path / "empty.c").write_text("int kNumber = 1;\n")
    path = tmp_path / "empty.o"
    subprocess.run(["gcc", "-c", "-o", path, tmp_path / "empty.c"], check=True)
    assert "is an ELF file but no shared library" in error_of(path)


def test_another_library_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "other.c").write_text("int other(void) { return 1; }\n")
    path = tmp_path / "libother.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", path, tmp_path / "other.c"], check=True)
    assert "is not the library of this plugin: it contains no description" in error_of(path)


def test_another_plugins_description_is_not_ours(tmp_path: Path) -> None:
    path = stub_library(tmp_path, json.dumps(DESCRIPTION | {"name": "Other"}))
    assert "it describes another plugin" in error_of(path)


def test_a_damaged_description_is_reported(tmp_path: Path) -> None:
    assert "its description is damaged" in error_of(stub_library(tmp_path, '{"name": '))


@pytest.mark.parametrize("field", sorted(set(DESCRIPTION) - {"name", "abi_version"}))
def test_an_incomplete_description_is_reported(tmp_path: Path, field: str) -> None:
    rest = {name: value for name, value in DESCRIPTION.items() if name != field}
    assert "its description is incomplete" in error_of(stub_library(tmp_path, json.dumps(rest)))


def test_another_abi_version_is_reported(tmp_path: Path) -> None:
    path = stub_library(tmp_path, json.dumps(DESCRIPTION | {"abi_version": 7}))
    expected = "has plugin ABI version 7, this package needs 4; rebuild it with trt-hspan plugin build"
    assert expected in error_of(path)


def test_a_stub_with_the_right_description_is_read(tmp_path: Path) -> None:
    described = plugin_info_from_library(stub_library(tmp_path, json.dumps(DESCRIPTION)))
    assert (described.cubin_architectures, described.ptx_architectures) == ((80, 89), (80,))


def test_abi_version_agrees_with_the_sources() -> None:
    header = Path(module.__file__).parents[2] / "plugins" / "tensorrt" / "plugin_abi.h"
    assert f"kABI_VERSION{{{module.PLUGIN_ABI_VERSION}}}" in header.read_text()


def test_a_library_for_another_processor_can_be_read_but_does_not_serve(
    plugin_library: Path, tmp_path: Path
) -> None:
    data = bytearray(plugin_library.read_bytes())
    foreign, number = ("aarch64", 183) if platform.machine() == "x86_64" else ("x86_64", 62)
    data[18:20] = number.to_bytes(2, "little")
    path = tmp_path / "libhspan_plugin.so"
    path.write_bytes(data)
    described = plugin_info_from_library(path)
    assert described.machine == foreign
    with pytest.raises(HspanError, match=f"is for {foreign}, this machine is {platform.machine()}"):
        check_plugin_serves(described, ["sm_86"])


def test_missing_architectures_are_named_with_the_command_that_adds_them() -> None:
    with pytest.raises(HspanError) as caught:
        check_plugin_serves(info((89,), (89,)), ["sm_80", "sm_86", "sm_89"])
    assert str(caught.value) == (
        "libhspan_plugin.so: built without sm_80, sm_86; "
        "rebuild with trt-hspan plugin build --arch 80 --arch 86 --arch 89"
    )


@pytest.mark.parametrize(
    ("target", "architecture"),
    [("sm_86", 86), ("8.6", 86), ("86", 86), (86, 86), ("12.0", 120), ("compute_75", 75)],
)
def test_targets_are_read_in_every_usual_spelling(target: str | int, architecture: int) -> None:
    assert architecture_from_target(target) == architecture


@pytest.mark.parametrize("target", ["", "sm_", "ampere", "8", "8.60", "sm_86a", "-86"])
def test_what_is_no_compute_capability_is_a_usage_error(target: str) -> None:
    with pytest.raises(UsageError, match="expected a compute capability"):
        architecture_from_target(target)


def test_the_default_place_is_in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRT_HSPAN_PLUGIN", raising=False)
    root = Path(module.__file__).parents[2]
    assert default_plugin_path() == root / "build" / "plugin" / "libhspan_plugin.so"


def test_the_environment_names_another_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRT_HSPAN_PLUGIN", str(tmp_path / "mine.so"))
    assert default_plugin_path() == tmp_path / "mine.so"


def test_info_command_prints_the_description_as_json(run: CommandLine, plugin_library: Path) -> None:
    result = run("plugin", "info", plugin_library, "--json")
    assert result.code == 0, result.err
    printed = json.loads(result.out)
    assert printed["name"] == "HighSimilarityPassAttention"
    assert printed["path"] == str(plugin_library)


def test_info_command_prints_a_table(run: CommandLine, plugin_library: Path) -> None:
    result = run("plugin", "info", plugin_library)
    assert result.code == 0, result.err
    assert "sm_86" in result.out
    assert "compute_75" in result.out


def test_info_command_reports_a_missing_library_in_one_line(run: CommandLine, tmp_path: Path) -> None:
    result = run("plugin", "info", tmp_path / "no.so")
    assert (result.code, result.out) == (1, "")
    assert "there is no plugin library here" in result.error_line


def test_reading_a_library_runs_none_of_its_code(tmp_path: Path) -> None:
    """A constructor would write a file; opening the library for real shows that the trap works."""
    trace = tmp_path / "ran"
    (tmp_path / "trap.c").write_text(
        "#include <stdio.h>\n"
        f"const char kInfo[] = {json.dumps('hspan-plugin-info:' + json.dumps(DESCRIPTION))};\n"
        "__attribute__((constructor)) static void trap(void) "
        f'{{ fclose(fopen({json.dumps(str(trace))}, "w")); }}\n'
    )
    path = tmp_path / "libtrap.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", path, tmp_path / "trap.c"], check=True)
    plugin_info_from_library(path)
    assert not trace.exists()
    ctypes.CDLL(str(path))
    assert trace.exists()


def test_info_does_not_depend_on_the_files_name(plugin_library: Path, tmp_path: Path) -> None:
    shutil.copy(plugin_library, tmp_path / "renamed")
    assert plugin_info_from_library(tmp_path / "renamed").abi_version == module.PLUGIN_ABI_VERSION


def elf(*, kind: int = 3, machine: int = 62, text: str = "") -> bytes:
    return b"\x7fELF" + bytes(12) + struct.pack("<HH", kind, machine) + text.encode()


def described(**changes: object) -> str:
    fields = {name: value for name, value in (DESCRIPTION | changes).items() if value is not None}
    return f"hspan-plugin-info:{json.dumps(fields)}"


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (elf()[:19], "is no shared library"),
        (b"\x7fELG" + elf()[4:], "is no shared library"),
        (elf(), "it contains no description"),
        (elf(kind=2), "is an ELF file but no shared library"),
        (elf(kind=4), "is an ELF file but no shared library"),
    ],
)
def test_a_library_begins_as_one(tmp_path: Path, data: bytes, line: str) -> None:
    (tmp_path / "own.so").write_bytes(data)
    assert line in error_of(tmp_path / "own.so")


@pytest.mark.parametrize(
    ("number", "name"),
    [(3, "i386"), (62, "x86_64"), (183, "aarch64"), (40, "machine 40"), (61, "machine 61")],
)
def test_processors_have_the_names_that_platforms_have(tmp_path: Path, number: int, name: str) -> None:
    (tmp_path / "own.so").write_bytes(elf(machine=number, text=described()))  # up to the end of the file
    assert plugin_info_from_library(tmp_path / "own.so").machine == name


def test_a_library_has_the_driver_that_its_code_needs() -> None:
    check_plugin_serves(info((80,), (80,)), ["sm_80", "8.6"], (13, 0))
    with pytest.raises(HspanError, match=r"was compiled with CUDA 13\.0, this driver runs CUDA up to 12\.9"):
        check_plugin_serves(info((80,), (80,)), ["sm_80"], (12, 9))


@pytest.mark.parametrize(
    "missing", ["cubin_architectures", "ptx_architectures", "cuda_version", "ptx_isa_version"]
)
def test_a_plan_says_what_code_is_in_it(tmp_path: Path, missing: str) -> None:
    plan = tmp_path / "net.plan"
    plan.write_bytes(b"layers" + described().encode() + b"\0weights")
    code = module.code_in_plan(plan)
    assert (code.path, code.cubin_architectures, code.ptx_architectures) == (plan, (80, 89), (80,))
    assert (code.cuda_version, code.ptx_isa_version) == ("13.0.88", "9.0")
    for data, line in (
        (described(**{missing: None}), "its description is incomplete"),
        (described(cuda_version="?"), "its description is incomplete"),
        (described(cubin_architectures=7), "its description is incomplete"),
        ("nothing", "it contains no description"),
    ):
        plan.write_bytes(data.encode())
        with pytest.raises(HspanError, match=line):
            module.code_in_plan(plan)
    plan.unlink()
    with pytest.raises(HspanError, match="no such file"):
        module.code_in_plan(plan)


def test_jetsons_are_systems_on_a_chip() -> None:
    assert [module.is_tegra(target) for target in ("sm_87", 110, "8.6", "sm_90")] == [
        True,
        True,
        False,
        False,
    ]
