"""Compiled CUDA code against driver and GPU. tests/cpp/runtime/test_runtime.cpp runs the same cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trt_hspan.errors import HspanError
from trt_hspan.native.compatibility import CompiledCode, error_from_verdict, require_runs, verdict

CASES = json.loads((Path(__file__).parent / "compatibility.json").read_text())


def code(**changes: Any) -> CompiledCode:
    fields = {
        "path": Path("libhspan_plugin.so"),
        "cubin_architectures": (75, 86),
        "ptx_architectures": (75,),
        "cuda_version": "13.2.51",
        "ptx_isa_version": "9.2",
    }
    return CompiledCode(**(fields | changes))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["why"])
def test_what_runs_is_what_nvidia_documents(case: dict[str, Any]) -> None:
    compiled = code(
        cubin_architectures=tuple(case["cubins"]),
        ptx_architectures=tuple(case["ptx"]),
        cuda_version=case["cuda"],
        ptx_isa_version=case["ptx_isa"],
    )
    driver = tuple(case["driver"])
    assert verdict(compiled, case["gpu"], driver) == case["verdict"]
    error = error_from_verdict(compiled, case["gpu"], driver)
    assert (error is None) == (case["verdict"] in {"machine code", "ptx"})


def test_every_verdict_has_a_case() -> None:
    assert {case["verdict"] for case in CASES} == {"machine code", "ptx", "old driver", "new ptx", "no code"}


@pytest.mark.parametrize(
    ("changes", "gpu", "driver", "line"),
    [
        (
            {},
            86,
            (12, 8),
            "was compiled with CUDA 13.2, this driver runs CUDA up to 12.8; install NVIDIA driver 580 or newer, "
            "or CUDA 12 and trt-hspan plugin build --nvcc /usr/local/cuda-12/bin/nvcc",
        ),
        (
            {},
            86,
            (11, 8),
            "was compiled with CUDA 13.2, this driver runs CUDA up to 11.8; install NVIDIA driver 580 or newer",
        ),
        (
            {"cuda_version": "14.0.1"},
            86,
            (13, 2),
            "was compiled with CUDA 14.0, this driver runs CUDA up to 13.2; install an NVIDIA driver of CUDA 14, "
            "or CUDA 13 and trt-hspan plugin build --nvcc /usr/local/cuda-13/bin/nvcc",
        ),
        (
            {},
            90,
            (13, 0),
            "has no machine code for sm_90, and its PTX 9.2 needs a driver of CUDA 13.2; this driver runs CUDA up to "
            "13.0; trt-hspan plugin build --arch 75 --arch 86 --arch 90, or install a newer NVIDIA driver",
        ),
        (
            {"ptx_architectures": ()},
            90,
            (13, 2),
            "built without sm_90; rebuild with trt-hspan plugin build --arch 75 --arch 86 --arch 90",
        ),
    ],
)
def test_each_reason_is_one_line_with_the_way_out(
    changes: dict[str, Any], gpu: int, driver: tuple[int, int], line: str
) -> None:
    assert str(error_from_verdict(code(**changes), gpu, driver)) == f"libhspan_plugin.so: {line}"


def test_a_driver_that_is_yet_to_come_is_taken_for_new_enough() -> None:
    assert verdict(code(), 90, None) == "ptx"


@pytest.mark.parametrize("field", ["cuda_version", "ptx_isa_version"])
def test_versions_that_are_none_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=r"invalid|unpack"):
        code(**{field: "thirteen"})


@pytest.mark.parametrize("soc", [53, 62, 72, 87, 101, 110])
def test_code_for_desktops_and_for_systems_on_a_chip_is_not_the_same(soc: int) -> None:
    desktop = soc // 10 * 10
    for compiled, gpu in ((desktop, soc), (soc, soc + 1)):
        alone = code(cubin_architectures=(compiled,), ptx_architectures=())
        assert verdict(alone, gpu, None) == ("no code" if compiled != gpu else "machine code")
    assert verdict(code(cubin_architectures=(soc,), ptx_architectures=()), soc, None) == "machine code"


def test_code_runs_on_all_gpus_or_the_first_reason_is_said() -> None:
    require_runs(code(), [75, 80, 86], (13, 2))
    with pytest.raises(
        HspanError, match=r"built without sm_70, sm_72; rebuild with .* --arch 70 --arch 72 --arch 75"
    ):
        require_runs(code(), [86, 70, 72], (13, 2))
    with pytest.raises(HspanError, match=r"no machine code for sm_90, and its PTX 9\.2"):
        require_runs(code(), [86, 90], (13, 0))


@pytest.mark.parametrize(
    ("isa", "driver", "runs"),
    [
        ("8.5", (12, 5), True),
        ("8.6", (12, 7), True),
        ("8.6", (12, 6), False),
        ("8.4", (12, 4), True),
        ("9.0", (13, 0), True),
    ],
)
def test_ptx_needs_the_driver_of_the_cuda_that_it_came_with(
    isa: str, driver: tuple[int, int], runs: bool
) -> None:
    own = code(cuda_version="12.4.1", ptx_isa_version=isa, cubin_architectures=())
    assert (verdict(own, 86, driver) == "ptx") is runs


def test_cuda_for_an_older_driver_is_one_that_the_kernels_compile_with() -> None:
    for driver, has_way in (((12, 3), False), ((12, 4), True)):
        line = str(error_from_verdict(code(), 86, driver))
        assert ("or CUDA 12 and trt-hspan plugin build" in line) is has_way


@pytest.mark.parametrize(("driver", "number"), [((11, 8), 525), ((12, 9), 580)])
def test_the_driver_to_install_is_the_first_of_the_librarys_cuda(
    driver: tuple[int, int], number: int
) -> None:
    error = error_from_verdict(code(cuda_version=f"{driver[0] + 1}.0.1"), 86, driver)
    assert f"install NVIDIA driver {number} or newer" in str(error)
