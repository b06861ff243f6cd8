"""Reading ELF files and holding them against a target: real files from real compilers, and damaged ones."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.jetson_package.cross_toolkit import CROSS_COMPILER, CROSS_PACKAGE
from tools.jetson_package.elf import ElfNeeds, check_runs_on, elf_needs_from_file, version_from_symbol
from tools.jetson_package.targets import TARGETS, Target, target_from_name
from trt_hspan.errors import HspanError, UsageError

ORIN, THOR = target_from_name("jetson-orin"), target_from_name("jetson-thor")

needs_cross_compiler = pytest.mark.skipif(
    shutil.which(CROSS_COMPILER) is None,
    reason=f"{CROSS_COMPILER} is not installed (apt install {CROSS_PACKAGE})",
)


def library(folder: Path, text: str, *options: str, compiler: str = CROSS_COMPILER) -> Path:
    source, output = folder / "library.cpp", folder / "library.so"
    source.write_text(text)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", output, source, *options], check=True)
    return output


def asking_for(folder: Path, version: str, name: str = "libc.so.6") -> Path:
    """A library for 64-bit Arm that takes a symbol of this version from a library of this name."""
    (folder / "stub.c").write_text("int required(void) { return 0; }\n")
    (folder / "stub.map").write_text(f"{version} {{ required; }};\n")
    stub = folder / "stub" / name
    stub.parent.mkdir()
    stub_options = [
        "-shared",
        "-fPIC",
        "-nostdlib",
        f"-Wl,-soname,{name}",
        f"-Wl,--version-script={folder / 'stub.map'}",
    ]
    subprocess.run([CROSS_COMPILER, "-xc", folder / "stub.c", *stub_options, "-o", stub], check=True)
    text = 'extern "C" int required(void); extern "C" int called(void) { return required(); }\n'
    return library(folder, text, "-nostdlib", str(stub))


@needs_cross_compiler
def test_a_library_says_what_it_needs_and_what_it_gives(tmp_path: Path) -> None:
    path = library(tmp_path, '#include <cstdlib>\nextern "C" void* given() { return std::malloc(8); }\n')
    needs = elf_needs_from_file(path)
    assert (needs.path, needs.machine) == (path, "aarch64")
    assert "libc.so.6" in needs.libraries
    assert needs.versions["libc.so.6"] == ("GLIBC_2.17",)
    assert needs.newest("GLIBC") == (2, 17)
    assert needs.newest("GLIBCXX") is None
    assert "malloc" in needs.undefined
    assert needs.exported == ("given",)
    check_runs_on(needs, ORIN)
    check_runs_on(needs, THOR)


def refusal(needs: ElfNeeds, target: Target) -> str | None:
    try:
        check_runs_on(needs, target)
    except HspanError as error:
        return str(error)
    return None


@needs_cross_compiler
@pytest.mark.parametrize(
    ("version", "refused"),
    [
        ("GLIBC_2.35", []),
        ("GLIBC_2.36", ["jetson-orin"]),
        ("GLIBC_2.39", ["jetson-orin"]),
        ("GLIBC_2.41", ["jetson-orin", "jetson-orin-jp7", "jetson-thor"]),
        ("GLIBC_2.4.9", []),  # 4 is less than 35, whatever the text says
        ("GLIBC_ABI_DT_RELR", ["jetson-orin"]),  # since 2.36
        ("GLIBC_PRIVATE", ["jetson-orin", "jetson-orin-jp7", "jetson-thor"]),
        ("GLIBCXX_3.4.30", []),
        ("GLIBCXX_3.4.31", ["jetson-orin"]),
        ("GLIBCXX_3.4.34", ["jetson-orin", "jetson-orin-jp7", "jetson-thor"]),
        ("CXXABI_1.3.14", ["jetson-orin"]),
        ("GCC_13.0.0", ["jetson-orin"]),
        ("OTHER_99", []),  # a family of a library that no target limits
    ],
)
def test_symbols_newer_than_the_targets_are_refused(tmp_path: Path, version: str, refused: list[str]) -> None:
    needs = elf_needs_from_file(asking_for(tmp_path, version))
    assert needs.versions == {"libc.so.6": (version,)}
    refusals = {target.name: refusal(needs, target) for target in TARGETS}
    for name, line in refusals.items():
        assert (line is not None) == (name in refused)
        assert line is None or f"built too new for {name}: it needs {version} of libc.so.6" in line


@needs_cross_compiler
def test_the_line_says_what_the_target_has(tmp_path: Path) -> None:
    path = asking_for(tmp_path, "GLIBC_2.38")
    with pytest.raises(HspanError) as caught:
        check_runs_on(elf_needs_from_file(path), ORIN)
    assert str(caught.value) == (
        f"{path}: built too new for jetson-orin: it needs GLIBC_2.38 of libc.so.6, Ubuntu 22.04 has GLIBC 2.35; "
        "build it with the libraries of an older system"
    )


@needs_cross_compiler
def test_a_library_that_the_target_lacks_is_refused(tmp_path: Path) -> None:
    needs = elf_needs_from_file(asking_for(tmp_path, "V_1", "libnvinfer.so.10"))
    with pytest.raises(HspanError, match=r"loads libnvinfer\.so\.10, which Ubuntu 22\.04 does not have"):
        check_runs_on(needs, ORIN)


def test_another_processor_is_refused(tmp_path: Path) -> None:
    needs = elf_needs_from_file(library(tmp_path, "int one() { return 1; }\n", compiler="g++"))
    if needs.machine == "aarch64":
        pytest.skip("this machine is a 64-bit Arm")
    with pytest.raises(
        HspanError, match=f"is for {needs.machine}, jetson-orin is aarch64; build it for the target"
    ):
        check_runs_on(needs, ORIN)


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"text, and more of it\n" * 10])
def test_what_is_no_elf_file_is_reported(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.so"
    path.write_bytes(content)
    with pytest.raises(HspanError, match="is no ELF file, or a damaged one"):
        elf_needs_from_file(path)


def test_every_cut_of_a_library_is_reported_or_read(tmp_path: Path) -> None:
    """A download that broke off: never a traceback."""
    whole = library(tmp_path, "int one() { return 1; }\n", compiler="g++").read_bytes()
    path, refused = tmp_path / "cut.so", 0
    for length in range(0, len(whole), max(len(whole) // 97, 1)):
        path.write_bytes(whole[:length])
        try:
            elf_needs_from_file(path)
        except HspanError:
            refused += 1
    assert refused > 90


def test_an_object_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "number.c").write_text("int number = 1;\n")
    subprocess.run(["gcc", "-c", "-o", tmp_path / "number.o", tmp_path / "number.c"], check=True)
    with pytest.raises(HspanError, match="is not dynamically linked"):
        elf_needs_from_file(tmp_path / "number.o")


def test_a_missing_pyelftools_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "elftools.elf.elffile", None)
    with pytest.raises(
        HspanError, match=r"pyelftools: is not installed; pip install -e '\.\[jetson-build\]'"
    ):
        elf_needs_from_file(tmp_path / "any")


def test_missing_files_and_folders_are_reported(tmp_path: Path) -> None:
    with pytest.raises(HspanError, match="no such file or folder"):
        elf_needs_from_file(tmp_path / "none.so")
    with pytest.raises(HspanError, match="is a folder"):
        elf_needs_from_file(tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("GLIBC_2.34", ("GLIBC", (2, 34))),
        ("GLIBCXX_3.4.30", ("GLIBCXX", (3, 4, 30))),
        ("CXXABI_1.3", ("CXXABI", (1, 3))),
        ("GCC_3.0", ("GCC", (3, 0))),
        ("libcudart.so.12", ("libcudart.so.12", (1 << 30,))),
    ],
)
def test_versions_are_numbers(name: str, expected: tuple[str, tuple[int, ...]]) -> None:
    assert version_from_symbol(name) == expected


def test_an_unknown_target_is_a_usage_error() -> None:
    with pytest.raises(
        UsageError, match="got 'jetson-nano', expected one of jetson-orin, jetson-orin-jp7, jetson-thor"
    ):
        target_from_name("jetson-nano")
