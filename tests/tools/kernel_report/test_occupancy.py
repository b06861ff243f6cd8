"""Our occupancy arithmetic against NVIDIA's own: the header cuda_occupancy.h of the CUDA toolkit, compiled."""

from __future__ import annotations

import itertools
import json
import subprocess
from pathlib import Path

import pytest

from tools.kernel_report.plugin_code import programs_folder
from tools.kernel_report.plugin_occupancy import LIMITS, occupancy
from trt_hspan.errors import HspanError
from trt_hspan.native.toolchain import find_host_compiler, find_nvcc

THREADS = (1, 32, 33, 64, 96, 128, 160, 256, 384, 512, 1024)
REGISTERS = (16, 24, 32, 40, 63, 64, 65, 96, 128, 168, 200, 255)
SHARED = (0, 1, 1024, 8192, 12000, 20480, 33000, 49152)

# The device's sizes are handed over; what NVIDIA's header contributes is its rules: units, quarters, block limits.
PROGRAM = r"""
#include <cstdio>
#include <cstdlib>
#include <cuda_occupancy.h>

int main()
{
    int architecture, threads, registers, shared, warps, sharedSm, reserved;
    std::printf("[");
    char const* comma = "";
    while (std::scanf("%d %d %d %d %d %d %d", &architecture, &threads, &registers, &shared, &warps, &sharedSm,
               &reserved) == 7)
    {
        cudaOccDeviceProp device;
        device.computeMajor = architecture / 10;
        device.computeMinor = architecture % 10;
        device.maxThreadsPerBlock = 1024;
        device.maxThreadsPerMultiprocessor = 32 * warps;
        device.regsPerBlock = device.regsPerMultiprocessor = 65536;
        device.warpSize = 32;
        device.sharedMemPerBlock = 48 * 1024;
        device.sharedMemPerMultiprocessor = sharedSm;
        device.numSms = 1;
        device.sharedMemPerBlockOptin = sharedSm - reserved;
        device.reservedSharedMemPerBlock = reserved;
        cudaOccFuncAttributes kernel;
        kernel.maxThreadsPerBlock = 1024;
        kernel.numRegs = registers;
        kernel.sharedSizeBytes = shared;
        kernel.partitionedGCConfig = PARTITIONED_GC_OFF;
        kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
        kernel.maxDynamicSharedSizeBytes = 0;
        kernel.numBlockBarriers = 1;
        cudaOccDeviceState state;
        cudaOccResult result;
        if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, 0)
            != CUDA_OCC_SUCCESS)
        {
            return 1;
        }
        std::printf("%s%d", comma, result.activeBlocksPerMultiprocessor);
        comma = ",";
    }
    std::printf("]");
}
"""


def test_blocks_are_those_of_nvidias_occupancy_header(tmp_path: Path) -> None:
    (tmp_path / "occupancy.cpp").write_text(PROGRAM)
    include = programs_folder(find_nvcc()).parent / "include"
    if not (include / "cuda_occupancy.h").is_file():
        pytest.skip(f"{include} contains no cuda_occupancy.h")
    program = tmp_path / "occupancy"
    command = [find_host_compiler(), "-std=c++17", "-w", "-isystem", include, "-o", program]
    subprocess.run([*command, tmp_path / "occupancy.cpp"], check=True)
    cases = list(itertools.product(LIMITS, THREADS, REGISTERS, SHARED))
    lines = []
    for architecture, threads, registers, shared in cases:
        limits = LIMITS[architecture]
        sizes = [limits.warps, limits.shared_bytes, limits.shared_reserved_bytes]
        lines.append(" ".join(map(str, [architecture, threads, registers, shared, *sizes])))
    completed = subprocess.run([program], input="\n".join(lines), capture_output=True, text=True, check=True)
    expected = json.loads(completed.stdout)
    computed = [
        occupancy(architecture, threads=threads, registers=registers, shared_bytes=shared).blocks
        for architecture, threads, registers, shared in cases
    ]
    assert len(computed) == len(LIMITS) * len(THREADS) * len(REGISTERS) * len(SHARED)
    assert computed == expected


@pytest.mark.parametrize(
    ("architecture", "registers", "shared", "blocks", "limited_by"),
    [
        (80, 64, 0, 8, "registers"),  # 65536 / (64 * 128)
        (80, 16, 20480, 7, "shared memory"),  # 164 KiB / 21 KiB
        (86, 40, 0, 12, "registers"),  # 48 warps of 4; as many blocks as warps allow
        (86, 16, 0, 12, "warps"),
        (90, 168, 20480, 3, "registers"),
    ],
)
def test_what_runs_out_first_is_named(
    architecture: int, registers: int, shared: int, blocks: int, limited_by: str
) -> None:
    computed = occupancy(architecture, threads=128, registers=registers, shared_bytes=shared)
    assert (computed.blocks, computed.limited_by) == (blocks, limited_by)
    assert computed.warps == 4 * blocks
    assert computed.fraction == pytest.approx(4 * blocks / LIMITS[architecture].warps)


def test_an_unknown_architecture_is_reported() -> None:
    with pytest.raises(HspanError, match="sm_61: its limits are unknown; choose among 75, 80"):
        occupancy(61, threads=128, registers=32, shared_bytes=0)


@pytest.mark.parametrize(
    ("threads", "registers", "shared"), [(2048, 32, 0), (0, 32, 0), (128, 256, 0), (128, 32, 10**6)]
)
def test_a_block_that_cannot_run_is_reported(threads: int, registers: int, shared: int) -> None:
    with pytest.raises(HspanError, match=r"no block of .* runs"):
        occupancy(86, threads=threads, registers=registers, shared_bytes=shared)
