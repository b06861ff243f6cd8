"""Compiles the stand-in driver and, where PyCUDA is not installed, PyCUDA against it. Once; kept under build/.

What comes out is the real PyCUDA: it links to a library called libcuda.so.1, whichever that is. Its own setup compiles
40 files one after the other; here Boost.Python is one translation unit, nothing is optimized and two
compilers run at a time, which takes a good minute of processor time.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from trt_hspan.native.toolchain import find_nvcc

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / "build" / "cuda-standin"
CONSTRAINTS = HERE.parents[1] / "constraints.txt"
PYCUDA = "pycuda==2026.1"
PYCUDA_SHA256 = "759516160628ba06f32ce7e563e3f5b9214691dc9528a03ea99ea1073f4e14ba"
DEPENDENCIES = ("pytools", "platformdirs", "mako")

# PyCUDA's own settings for Boost.Python as it ships it, from its setup.
DEFINES = [
    "BOOST_ALL_NO_LIB=1",
    "BOOST_THREAD_BUILD_DLL=1",
    "BOOST_MULTI_INDEX_DISABLE_SERIALIZATION=1",
    "BOOST_PYTHON_SOURCE=1",
    "boost=pycudaboost",
    "BOOST_THREAD_DONT_USE_CHRONO=1",
    "PYGPU_PACKAGE=pycuda",
    "PYGPU_PYCUDA=1",
]


def standin_environment(**settings: str) -> dict[str, str]:
    """The environment in which a new process finds the stand-in driver and PyCUDA; builds both when they are not there.

    Args:
        settings: CUSTANDIN_* variables.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        library = _standin()
        packages = [] if importlib.util.find_spec("pycuda") else [str(_pycuda(library))]
    environment = dict(os.environ)
    for name, first in (("LD_LIBRARY_PATH", [str(library)]), ("PYTHONPATH", packages)):
        environment[name] = os.pathsep.join([*first, *filter(None, [environment.get(name)])])
    return environment | {"OMP_NUM_THREADS": "1"} | settings


def _cuda_include() -> Path:
    nvcc = find_nvcc()
    said = subprocess.run([nvcc, "--dryrun", "x.cu"], capture_output=True, text=True, check=False).stderr
    top = re.search(r"^#\$ TOP=(.*)$", said, re.MULTILINE)  # nvcc may be a wrapper that lies somewhere else
    root = Path(top[1]) if top else nvcc.resolve().parents[1]
    if (root / "include" / "cuda.h").is_file():
        return root / "include"
    raise RuntimeError(f"no cuda.h beside {nvcc}: install the CUDA toolkit or 'trt-hspan[nvcc]'")


def _standin() -> Path:
    source = HERE / "cuda_standin.c"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    folder = CACHE / f"driver-{digest}"
    library = folder / "libcuda.so.1"
    if not library.is_file():
        folder.mkdir(exist_ok=True)
        temporary = folder / "building.so"
        shared = ["-shared", "-fPIC", "-pthread", "-Wl,-soname,libcuda.so.1"]
        command = ["cc", "-std=gnu11", "-O1", "-g", "-Wall", *shared, f"-I{_cuda_include()}"]
        _run([*command, "-o", str(temporary), str(source), "-ldl"])
        if not (folder / "libcuda.so").is_symlink():
            (folder / "libcuda.so").symlink_to(library.name)
        temporary.rename(library)
    return folder


def _pycuda(driver: Path) -> Path:
    """The folder that holds the package `pycuda`."""
    tag = f"{PYCUDA.replace('==', '-')}-{sysconfig.get_config_var('SOABI')}"
    site = CACHE / tag
    if not site.is_dir():
        with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
            source = _pycuda_source(Path(temporary))
            _compile_pycuda(source, driver)
            built = Path(temporary) / "site"
            shutil.copytree(source / "pycuda", built / "pycuda")
            install = [
                sys.executable,
                "-m",
                "pip",
                "install",
                "-q",
                "--disable-pip-version-check",
                "--no-deps",
            ]
            if missing := [name for name in DEPENDENCIES if importlib.util.find_spec(name) is None]:
                _run([*install, "-c", str(CONSTRAINTS), "--target", str(built), *missing])
            built.rename(site)
    return site


def _pycuda_source(folder: Path) -> Path:
    """Downloads and unpacks the release. pip wants to know its metadata, for which its setup reads a file at home."""
    environment = os.environ | {"HOME": str(folder)}
    (folder / ".aksetup-defaults.py").write_text("CUDA_ENABLE_CURAND = False\n")
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
    _run([*command, "--no-binary", "pycuda", "-d", str(folder), PYCUDA], environment)
    (archive,) = folder.glob("pycuda-*.tar.gz")
    actual = hashlib.sha256(archive.read_bytes()).hexdigest()
    if actual != PYCUDA_SHA256:
        raise RuntimeError(f"{archive.name} has SHA-256 {actual}, expected {PYCUDA_SHA256}")
    with tarfile.open(archive) as stream:
        stream.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def _compile_pycuda(source: Path, driver: Path) -> None:
    import numpy

    libraries = source / "bpl-subset/bpl_subset/libs"
    boost = [path for path in sorted(libraries.glob("python/src/**/*.cpp")) if "numpy" not in path.parts]
    (source / "bpl-subset/bpl_subset/pycudaboost").symlink_to("boost")
    single = source / "boost_python.cpp"
    single.write_text("".join(f'#include "{path}"\n' for path in boost))
    threads = [libraries / "thread/src/pthread/once.cpp", libraries / "thread/src/pthread/thread.cpp"]
    system = [libraries / "system/src/error_code.cpp"]
    wrapper = [source / f"src/wrapper/{name}.cpp" for name in ("wrap_cudadrv", "mempool")]
    sources = [*wrapper, single, *sorted((source / "src/cpp").glob("*.cpp")), *threads, *system]
    includes = [source / "src/cpp", source / "bpl-subset/bpl_subset", _cuda_include(), numpy.get_include()]
    flags = ["-O0", "-g0", "-w", "-fPIC", "-DNDEBUG", *(f"-D{name}" for name in DEFINES)]
    flags += [f"-I{folder}" for folder in (*includes, sysconfig.get_path("include"))]
    objects = [source / f"{index}.o" for index in range(len(sources))]
    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(_run, ["c++", *flags, "-c", str(path), "-o", str(target)])
            for path, target in zip(sources, objects, strict=True)
        ]
        for job in jobs:
            job.result()
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    link = ["c++", "-shared", "-fPIC", "-pthread"]
    _run([*link, *map(str, objects), f"-L{driver}", "-lcuda", "-o", str(source / f"pycuda/_driver{suffix}")])
    structure = str(source / "src/wrapper/_pvt_struct_v3.cpp")
    _run([*link, *flags, structure, "-o", str(source / f"pycuda/_pvt_struct{suffix}")])


def _run(command: list[str], environment: dict[str, str] | None = None) -> None:
    completed = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if completed.returncode != 0:
        raise RuntimeError(f"{' '.join(command[:3])} ...: {(completed.stderr or completed.stdout)[-2000:]}")
