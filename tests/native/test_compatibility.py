"""Compiled CUDA code against driver and GPU. tests/cpp/runtime/test_runtime.cpp runs the same cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trt_hspan.native.compatibility import CompiledCode, error_from_verdict, verdict

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
