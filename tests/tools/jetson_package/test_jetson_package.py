"""Building for a Jetson from here: presets, toolkits, the cross-compiled plugin, and what the packages contain."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from support.arm64 import needs_cross_compiler

from tools.jetson_package import command, cross_sysroot, cross_toolkit, jetson_package
from tools.jetson_package.archive import JetsonPackage, PackageContents, PackageFile, pack
from tools.jetson_package.cross_sysroot import prepare_sysroot
from tools.jetson_package.cross_toolkit import (
    CROSS_COMPILER,
    TOOLKITS,
    Wheel,
    find_cross_compiler,
    prepare_toolkit,
)
from tools.jetson_package.debian import version_from_file_name
from tools.jetson_package.package_lock import LockedPackage, lock_from_file, require_locked
from tools.jetson_package.targets import TARGETS, Target, target_from_name
from trt_hspan.errors import HspanError
from trt_hspan.native.plugin import PLUGIN_ABI_VERSION
from trt_hspan.native.sources import sources_folder
from trt_hspan.native.toolchain import find_cmake

ORIN = target_from_name("jetson-orin")
ROOT = sources_folder()


def arm_library(folder: Path, text: str, name: str = "libhspan_plugin.so") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "source.c").write_text(text)
    options = ["-shared", "-fPIC", "-o", folder / name, folder / "source.c"]
    subprocess.run([CROSS_COMPILER, "-xc", *options], check=True)
    return folder / name


def described(architecture: int = 87) -> str:
    """C source of a library that describes itself as the plugin does."""
    info = {
        **{"name": "HighSimilarityPassAttention", "version": "1", "namespace": ""},
        **{
            "abi_version": PLUGIN_ABI_VERSION,
            "cuda_version": "12.4.131",
            "ptx_isa_version": "8.4",
            "tensorrt_header_version": "10.14.1",
        },
        **{"cubin_architectures": [architecture], "ptx_architectures": [architecture], "source_sha256": ""},
    }
    return f"const char kInfo[] = {json.dumps('hspan-plugin-info:' + json.dumps(info))};\n"


# --- presets


def test_presets_are_those_of_the_targets() -> None:
    presets = json.loads((ROOT / "CMakePresets.json").read_text())
    by_name = {each["name"]: each for each in presets["configurePresets"]}
    assert {"desktop", "server", *(target.name for target in TARGETS)} <= set(by_name)
    for target in TARGETS:
        variables = by_name[target.name]["cacheVariables"]
        assert variables["HSPAN_ARCHITECTURES"] == str(target.architecture)
        assert variables["HSPAN_CUDA_RUNTIME"] == target.cuda_runtime
        assert variables["HSPAN_TENSORRT_OLDEST"] == target.tensorrt
        assert variables["HSPAN_CROSS_TOOLKIT"].endswith(f"/build/cross/{target.toolkit}")
        assert by_name[target.name]["inherits"] == "jetson"
        assert target.toolkit in TOOLKITS
    assert (ROOT / "cmake" / "aarch64-linux-gnu.cmake").is_file()


def test_cmake_reads_the_presets() -> None:
    completed = subprocess.run(
        [find_cmake(), "--list-presets"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in ("desktop", "server", *(target.name for target in TARGETS)):
        assert f'"{name}"' in completed.stdout


# --- toolkits


def test_a_missing_cross_compiler_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HspanError) as caught:
        find_cross_compiler()
    assert str(caught.value) == (
        "aarch64-linux-gnu-g++: not found; install it: apt install g++-aarch64-linux-gnu"
    )


def small_wheel(folder: Path, inside: dict[str, str]) -> Wheel:
    import zipfile

    path = folder / "nvidia_small-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in inside.items():
            archive.writestr(name, text)
    return Wheel("nvidia-small==1.0", hashlib.sha256(path.read_bytes()).hexdigest(), aarch64=False)


def use_wheel(monkeypatch: pytest.MonkeyPatch, folder: Path, wheel: Wheel) -> None:
    toolkit = cross_toolkit.Toolkit(name="cuda-13", wheels=(wheel,), debian=None)
    monkeypatch.setitem(TOOLKITS, "cuda-13", toolkit)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


WHEEL_FILES = {
    "nvidia/cu13/bin/nvcc": "#!/bin/sh\n",
    "nvidia/cu13/nvvm/bin/cicc": "#!/bin/sh\n",
    "nvidia/cu13/lib/libcudart.so.13": "",
    "nvidia/cu13/include/cuda.h": "",
    "nvidia/../../evil": "",
    "nvidia_small-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: nvidia-small\nVersion: 1.0\n",
    "nvidia_small-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "nvidia_small-1.0.dist-info/RECORD": "",
}


def test_wheels_become_a_toolkit_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    use_wheel(monkeypatch, tmp_path / "wheels", small_wheel(tmp_path / "wheels", WHEEL_FILES))
    fetched: list[str] = []
    nvcc = prepare_toolkit("cuda-13", tmp_path / "cross" / "cuda-13", on_step=fetched.append)
    root = tmp_path / "cross" / "cuda-13"
    assert nvcc == root / "bin" / "nvcc"
    assert nvcc.stat().st_mode & 0o111
    assert (root / "lib64" / "libcudart.so").resolve() == root / "lib64" / "libcudart.so.13"
    assert (root / "include" / "cuda.h").is_file()
    assert not list(tmp_path.rglob("evil"))
    assert [path.name for path in root.parent.iterdir()] == ["cuda-13"]
    prepare_toolkit("cuda-13", root, on_step=fetched.append)
    assert fetched == ["nvidia-small==1.0"]


def test_a_wheel_of_another_hash_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    wheel = small_wheel(tmp_path / "wheels", WHEEL_FILES)
    use_wheel(monkeypatch, tmp_path / "wheels", Wheel(wheel.requirement, "0" * 64, aarch64=False))
    with pytest.raises(
        HspanError, match=r"nvidia-small==1\.0: the package index sent a file with SHA-256 .*, expected 0000"
    ):
        prepare_toolkit("cuda-13", tmp_path / "cross" / "cuda-13")
    assert list((tmp_path / "cross").iterdir()) == []


def test_a_wheel_that_cannot_be_fetched_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_wheel(monkeypatch, tmp_path, Wheel("nvidia-small==1.0", "0" * 64, aarch64=False))
    with pytest.raises(
        HspanError,
        match=r"nvidia-small==1\.0: cannot be fetched from the package index: No matching distribution",
    ):
        prepare_toolkit("cuda-13", tmp_path / "cuda-13")


def test_a_named_cuda12_toolkit_without_nvcc_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HSPAN_CUDA12_ROOT", str(tmp_path))
    with pytest.raises(
        HspanError, match=r"HSPAN_CUDA12_ROOT: .* contains no bin/nvcc; name the folder of a CUDA 12"
    ):
        prepare_toolkit("cuda-12", tmp_path / "cross" / "cuda-12")


def test_a_system_without_debians_packages_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HspanError, match=r"nvidia-cuda-toolkit: needs apt-get, .* by HSPAN_CUDA12_ROOT"):
        cross_toolkit._fetched_debian("12.4", "0" * 64, tmp_path)


# --- libraries


def test_a_named_sysroot_is_used_and_must_be_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    named = tmp_path / "mine"
    monkeypatch.setenv("HSPAN_CROSS_SYSROOT", str(named))
    with pytest.raises(
        HspanError, match=r"usr/include/png\.h: no such file: HSPAN_CROSS_SYSROOT names a folder"
    ):
        prepare_sysroot(tmp_path / "sysroot")
    for name in cross_sysroot._NEEDED:
        (named / name).parent.mkdir(parents=True, exist_ok=True)
        (named / name).touch()
    assert prepare_sysroot(tmp_path / "sysroot") == named
    assert not (tmp_path / "sysroot").exists()


def test_a_sysroot_without_debians_packages_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HspanError, match=r"libpng-dev: needs apt-get, .* by HSPAN_CROSS_SYSROOT"):
        prepare_sysroot(tmp_path / "cross" / "sysroot")
    assert list((tmp_path / "cross").iterdir()) == []


def test_a_mirror_that_cannot_be_reached_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """apt-get that knows a mirror of Debian and reaches none."""
    script = '#!/bin/sh\n[ "$1" = indextargets ] && { echo Debian Debian http://localhost/; exit; }\n'
    for name, text in (("apt-get", script + "echo E: no route >&2; exit 100\n"), ("dpkg-deb", "#!/bin/sh\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HspanError, match=r"libpng-dev: cannot be fetched: E: no route; name a folder"):
        prepare_sysroot(tmp_path / "cross" / "sysroot")
    assert list((tmp_path / "cross").iterdir()) == []


def send_packages(monkeypatch: pytest.MonkeyPatch, content: bytes = b"deb") -> None:
    """Stands in for apt: every package, of this content."""

    def fetched(folder: Path) -> list[Path]:
        folder.mkdir()
        paths = [folder / f"{name}_1.0_arm64.deb" for name in cross_sysroot._PACKAGES]
        for path in paths:
            path.write_bytes(content)
        return paths

    monkeypatch.setattr(cross_sysroot, "_fetched", fetched)


def test_every_package_that_is_linked_with_is_pinned() -> None:
    lock = lock_from_file()
    assert set(lock) == {*cross_sysroot.STATIC_PACKAGES, *cross_sysroot.SHARED_PACKAGES}
    assert all(re.fullmatch("[0-9a-f]{64}", each.sha256) for each in lock.values())


def test_a_package_that_is_not_the_pinned_one_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    send_packages(monkeypatch)
    digest = hashlib.sha256(b"deb").hexdigest()
    with pytest.raises(HspanError) as caught:
        prepare_sysroot(tmp_path / "cross" / "sysroot")
    pinned = lock_from_file()["libpng-dev"]
    assert str(caught.value) == (
        f"libpng-dev: the mirror sent version 1.0 with SHA-256 {digest}, pinned is {pinned.version} with "
        f"{pinned.sha256}; look at the mirror; take it over with python scripts/jetson_package.py --refresh-lock, "
        "or name a folder with these libraries for aarch64 by HSPAN_CROSS_SYSROOT"
    )
    assert list((tmp_path / "cross").iterdir()) == []


def test_a_later_package_is_used_and_named_and_the_same_version_with_another_hash_refused() -> None:
    lock = {"zlib1g-dev": LockedPackage("1:1.2.13", "a"), "libpng-dev": LockedPackage("1.6", "b")}
    later = {**lock, "zlib1g-dev": LockedPackage("1:1.2.13+deb12u1", "c")}
    assert require_locked(lock, lock, "stop") == []
    assert require_locked(later, lock, "stop") == ["zlib1g-dev"]
    assert cross_sysroot._is_current(later, lock)
    assert not cross_sysroot._is_current(lock, later)
    assert not cross_sysroot._is_current({}, lock)
    with pytest.raises(HspanError, match=r"zlib1g-dev: the mirror sent version 1:1\.2\.13 with SHA-256 c"):
        require_locked({"zlib1g-dev": LockedPackage("1:1.2.13", "c")}, lock, "stop")
    with pytest.raises(HspanError, match=r"libssl3: .*none is pinned"):
        require_locked({"libssl3": LockedPackage("3", "a")}, lock, "stop")


def test_a_refreshed_lock_pins_what_the_mirror_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    send_packages(monkeypatch)
    lock = tmp_path / "lock.json"
    lock.write_text("{}")
    with pytest.raises(
        HspanError, match="is no lock of packages; write it anew: python scripts/jetson_package"
    ):
        lock_from_file(lock)
    assert set(cross_sysroot.refresh_lock(lock)) == set(cross_sysroot._PACKAGES)
    assert cross_sysroot.refresh_lock(lock) == {}
    assert lock_from_file(lock)["zlib1g-dev"].version == "1.0"
    send_packages(monkeypatch, b"another")
    assert len(cross_sysroot.refresh_lock(lock)) == len(cross_sysroot._PACKAGES)


def test_versions_are_those_of_the_file_names() -> None:
    name = Path("libjpeg62-turbo-dev_1%3a2.1.5-2_arm64.deb")
    assert version_from_file_name(name) == ("libjpeg62-turbo-dev", "1:2.1.5-2")


# --- packages


@needs_cross_compiler
def test_a_package_contains_what_its_manifest_vouches_for(tmp_path: Path) -> None:
    library = arm_library(tmp_path / "in", described())
    (tmp_path / "notes.txt").write_text("notes\n")
    files = [
        PackageFile(library, "lib/libhspan_plugin.so"),
        PackageFile(tmp_path / "notes.txt", "share/notes.txt"),
    ]
    package = pack(
        ORIN, PackageContents(files=files, links={"lib/other.so": "libhspan_plugin.so"}), tmp_path / "out"
    )
    with tarfile.open(package.archive) as tar:
        top = f"hspan-jetson-orin-{package.manifest['version']}"
        assert tar.getmember(f"{top}/lib/other.so").linkname == "libhspan_plugin.so"
        files_inside = [entry.name for entry in tar.getmembers() if entry.isfile()]
        contents = {name.removeprefix(f"{top}/"): member(tar, name) for name in files_inside}
    manifest = json.loads(contents.pop("share/hspan/package.json"))
    assert manifest == package.manifest
    assert {each["path"]: each["sha256"] for each in manifest["files"]} == {
        name: hashlib.sha256(data).hexdigest() for name, data in contents.items()
    }
    entry = manifest["files"][0]
    assert (entry["machine"], entry["plugin"]["cubin_architectures"]) == ("aarch64", [87])
    assert manifest["target"]["jetpack"] == "6"
    assert manifest["target"]["compute_capability"] == 87


@needs_cross_compiler
@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")
def test_the_debian_package_contains_the_same_files(tmp_path: Path) -> None:
    library = arm_library(tmp_path / "in", described())
    package = pack(
        ORIN, PackageContents(files=[PackageFile(library, "lib/libhspan_plugin.so")]), tmp_path / "out"
    )
    assert package.deb is not None
    subprocess.run(["dpkg-deb", "-x", package.deb, tmp_path / "root"], check=True)
    assert (tmp_path / "root/opt/hspan/lib/libhspan_plugin.so").read_bytes() == library.read_bytes()
    assert json.loads((tmp_path / "root/opt/hspan/share/hspan/package.json").read_text()) == package.manifest
    fields = subprocess.run(
        ["dpkg-deb", "-f", package.deb], capture_output=True, text=True, check=True
    ).stdout
    assert "Package: hspan-jetson-orin\n" in fields
    assert "Architecture: arm64\n" in fields
    assert "Depends: libc6 (>= 2." in fields


@needs_cross_compiler
def test_what_would_not_run_on_the_target_is_not_packed(tmp_path: Path) -> None:
    stub = arm_library(tmp_path / "stub", "int required(void) { return 0; }\n", "libc.so.6")
    (tmp_path / "map").write_text("GLIBC_2.38 { required; };\n")
    options = [
        "-shared",
        "-fPIC",
        "-nostdlib",
        "-Wl,-soname,libc.so.6",
        f"-Wl,--version-script={tmp_path / 'map'}",
    ]
    subprocess.run([CROSS_COMPILER, "-xc", tmp_path / "stub" / "source.c", *options, "-o", stub], check=True)
    text = described() + "int required(void); int called(void) { return required(); }\n"
    (tmp_path / "new.c").write_text(text)
    new = tmp_path / "libhspan_plugin.so"
    subprocess.run(
        [
            CROSS_COMPILER,
            "-xc",
            "-shared",
            "-fPIC",
            "-nostdlib",
            "-o",
            new,
            tmp_path / "new.c",
            "-xnone",
            stub,
        ],
        check=True,
    )
    with pytest.raises(HspanError, match=r"built too new for jetson-orin: it needs GLIBC_2\.38"):
        pack(ORIN, PackageContents(files=[PackageFile(new, "lib/libhspan_plugin.so")]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@needs_cross_compiler
def test_a_plugin_for_another_gpu_is_not_packed(tmp_path: Path) -> None:
    library = arm_library(tmp_path / "in", described(architecture=110))
    with pytest.raises(HspanError, match="contains no code for sm_87; build it with the preset jetson-orin"):
        pack(ORIN, PackageContents(files=[PackageFile(library, "lib/libhspan_plugin.so")]), tmp_path / "out")


def test_a_file_that_is_not_there_is_reported(tmp_path: Path) -> None:
    with pytest.raises(HspanError, match="no such file or folder"):
        pack(ORIN, PackageContents(files=[PackageFile(tmp_path / "none", "share/none")]), tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (
            ["jetson-nano"],
            2,
            "target: got 'jetson-nano', expected one of jetson-orin, jetson-orin-jp7, jetson-thor",
        ),
        (["jetson-orin", "--refresh-lock"], 2, "--refresh-lock: builds nothing, so it takes no targets"),
        (["--jobs", "0"], 2, "--jobs: got 0, expected at least 1"),
    ],
)
def test_wrong_words_are_one_line(
    words: list[str], code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(words) == code
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"jetson_package: error: {line}\n")


@needs_cross_compiler
def test_the_command_prints_where_the_packages_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    library = arm_library(tmp_path / "in", described())

    def packed(targets: list[Target], output: Path, **_: Any) -> list[JetsonPackage]:
        contents = PackageContents(files=[PackageFile(library, "lib/libhspan_plugin.so")])
        return [pack(target, contents, output) for target in targets]

    monkeypatch.setattr(jetson_package, "build_jetson_packages", packed)
    assert command.main(["jetson-orin", "-o", str(tmp_path / "out"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)["packages"]
    assert Path(printed[0]["archive"]).is_file()
    assert printed[0]["manifest"]["target"]["name"] == "jetson-orin"
    assert command.main(["jetson-orin", "-o", str(tmp_path / "out")]) == 0
    assert "JetPack 6, Ubuntu 22.04" in capsys.readouterr().out


def member(tar: tarfile.TarFile, name: str) -> bytes:
    stream = tar.extractfile(name)
    assert isinstance(stream, io.BufferedReader | tarfile.ExFileObject)
    return stream.read()
