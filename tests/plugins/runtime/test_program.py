"""hspan-upscale, the program: what it checks before it needs a GPU, and how it fails where there is none."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from support.small_engine import SmallEngine
from support.upscale_program import only_line

from trt_hspan.errors import STEERING
from trt_hspan.machine.gpu import gpu_architectures

needs_no_gpu = pytest.mark.skipif(bool(gpu_architectures()), reason="shows what happens without a GPU")


def _run(program: Path, *arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [program, *map(str, arguments)], input=stdin, capture_output=True, check=False, timeout=60
    )


def test_all_profiles_of_a_manifest_are_read(program: Path, engine_copy: Path) -> None:
    profiles = [
        {"min": [1, 3, 8, 8], "opt": [1, 3, 8, 8], "max": [4, 3, 16, 16], "activation_memory_bytes": None},
        {"min": [1, 3, 8, 8], "opt": [1, 3, 8, 8], "max": [1, 3, 64, 48], "activation_memory_bytes": 7},
    ]
    _edit(engine_copy, {"profiles": profiles})
    info = json.loads(_run(program, "-e", engine_copy, "--info", "--json").stdout)
    assert [profile["max"] for profile in info["profiles"]] == [[4, 3, 16, 16], [1, 3, 64, 48]]
    assert info["largest"] == [1, 3, 64, 48]


def _edit(plan: Path, change: dict[str, Any]) -> None:
    path = plan.with_suffix(".json")
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, **change}))


def test_info_says_what_the_engine_is_without_a_gpu(
    program: Path, engine_copy: Path, small_engine: SmallEngine
) -> None:
    completed = _run(program, "--engine", engine_copy, "--info", "--json")
    assert completed.returncode == 0, completed.stderr
    info = json.loads(completed.stdout)
    manifest = small_engine.manifest
    assert info["flavor"] == "tensorrt-rtx"
    assert info["tensorrt_version"] == manifest.tensorrt_version
    assert info["scale"] == manifest.scale
    (profile,) = manifest.profiles
    assert info["profiles"] == [{"min": [*profile.min], "opt": [*profile.opt], "max": [*profile.max]}]
    assert info["largest"] == list(profile.max)
    assert info["program"].startswith("tensorrt-rtx " + ".".join(manifest.tensorrt_version.split(".")[:3]))


@needs_no_gpu
def test_without_a_driver_a_good_engine_fails_in_one_line(
    program: Path, engine_copy: Path, gray_picture: Path, tmp_path: Path
) -> None:
    line = only_line(_run(program, "-e", engine_copy, gray_picture, "-o", tmp_path / "out.png"), 1)
    assert "driver" in line
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "is empty"),
        (b"{", "malformed JSON"),
        (b"\xff\xfe\x00", "malformed JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"format_version": 2}', "format_version is another than 4"),
        (b" " * (1 << 23), "accepted"),
    ],
)
def test_a_hostile_manifest_is_one_line(program: Path, engine_copy: Path, content: bytes, part: str) -> None:
    """What is a manifest and what is none: tests/engine/manifests.json."""
    engine_copy.with_suffix(".json").write_bytes(content)
    assert part in only_line(_run(program, "-e", engine_copy, "--info"), 1)


def test_a_truncated_or_changed_plan_is_not_opened(program: Path, engine_copy: Path) -> None:
    content = engine_copy.read_bytes()
    _edit(engine_copy, {"plan_size_bytes": len(content) + 1})
    assert "bytes long" in only_line(_run(program, "-e", engine_copy, "--info"), 1)
    _edit(engine_copy, {"plan_size_bytes": len(content)})
    engine_copy.write_bytes(content[:-1])
    assert " says " in only_line(_run(program, "-e", engine_copy, "--info"), 1)
    engine_copy.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "SHA-256" in only_line(_run(program, "-e", engine_copy, "--info"), 1)
    engine_copy.unlink()
    assert "no such file" in only_line(_run(program, "-e", engine_copy, "--info"), 1)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ((), "--engine is required"),
        (("-e", "a.plan"), "expected pictures and --output"),
        (("-e", "a.plan", "in.png"), "expected pictures and --output"),
        (("-e", "a.plan", "in.png", "-o", "out.gif"), "cannot tell the format"),
        (("-e", "a.plan", "in.png", "more.png", "-o", "out.png"), "is not a folder"),
        (("-e", "a.plan", "--raw", "640"), "expected height x width"),
        (("-e", "a.plan", "--raw", "height=360,width=640x"), "expected height x width"),
        (("-e", "a.plan", "--raw", "360x640", "-o", "x.png"), "expected pictures and --output"),
        (("-e", "a.plan", "in.png", "-o", "out.png", "--tile", "0x5"), "expected height x width"),
        (("-e", "a.plan", "in.png", "-o", "out.png", "--overlap", "-3"), "--overlap"),
        (("-e", "a.onnx", "in.png", "-o", "out.png"), "is not an engine"),
        (("-e", "a.plan", "--bogus"), "--bogus"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    program: Path, arguments: tuple[str, ...], part: str
) -> None:
    assert part in only_line(_run(program, *arguments), 2)


def _record_plugin(plan: Path, library: bytes, *, abi: int = 2) -> Path:
    """Makes the manifest name a plugin library of this content, beside the plan."""
    path = plan.parent / "libhspan_plugin.so"
    path.write_bytes(library)
    record = {
        "file": path.name,
        "sha256": sha256(library).hexdigest(),
        "abi_version": abi,
        "architectures": [],
    }
    _edit(plan, {"plugin": record})
    return path


# e_machine of ELF files.
_PROCESSORS = {"x86_64": 62, "aarch64": 183}
_HERE = _PROCESSORS[os.uname().machine]
(_ELSEWHERE,) = set(_PROCESSORS.values()) - {_HERE}


def _library(*, machine: int = _HERE, abi: int = 2) -> bytes:
    """The beginning of an ELF file, and a plugin's description."""
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHI", 3, machine, 1) + bytes(40)
    return header + b'hspan-plugin-info:{"abi_version": %d}\0' % abi


def test_the_plugin_is_checked_before_anything_of_it_runs(program: Path, engine_copy: Path) -> None:
    plugin = _record_plugin(engine_copy, _library())
    assert _run(program, "-e", engine_copy, "--info").returncode == 0
    plugin.write_bytes(_library() + b"more")
    assert "SHA-256" in only_line(_run(program, "-e", engine_copy, "--info"), 1)
    _record_plugin(engine_copy, _library(machine=_ELSEWHERE))
    assert "this program is not" in only_line(_run(program, "-e", engine_copy, "--info"), 1)
    _record_plugin(engine_copy, _library(abi=7))
    assert "ABI version 7, the engine needs 2" in only_line(_run(program, "-e", engine_copy, "--info"), 1)
    _record_plugin(engine_copy, b"no library at all")
    assert "not a shared library" in only_line(_run(program, "-e", engine_copy, "--info"), 1)
    plugin.unlink()
    assert "no such file" in only_line(_run(program, "-e", engine_copy, "--info"), 1)


def test_names_that_steer_a_terminal_are_printed_harmless(
    program: Path, engine_copy: Path, tmp_path: Path
) -> None:
    odd = tmp_path / "a\x1b[31m\n\u202eb\x7f.plan"
    assert "a?[31m??b?.plan: no such file" in only_line(_run(program, "-e", odd, "--info"), 1)
    engine_copy.rename(odd)
    engine_copy.with_suffix(".json").rename(odd.with_suffix(".json"))
    for words in ((), ("--json",)):
        printed = _run(program, "-e", odd, "--info", *words).stdout.decode()
        assert STEERING.search(printed.replace("\n", "")) is None
        assert len(printed.splitlines()) == (1 if words else 11)


def test_another_plugin_can_be_named(program: Path, engine_copy: Path, tmp_path: Path) -> None:
    _record_plugin(engine_copy, _library()).rename(tmp_path / "elsewhere.so")
    assert _run(program, "-e", engine_copy, "--info", "--plugin", tmp_path / "elsewhere.so").returncode == 0
