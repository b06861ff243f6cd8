"""Reading machine code: small kernels with known properties through the real compiler, and the report on them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tools.kernel_report import report as report_module
from tools.kernel_report.plugin_code import (
    ALL_ARCHITECTURES,
    KernelCode,
    find_disassembler,
    inspect_kernels,
    kernel_sources,
    least_architecture,
    resources_from_ptxas,
    threads_from_ptx,
)
from tools.kernel_report.plugin_loops import functions_from_sass, main_loop_from_sass, product_loops_from_sass
from tools.kernel_report.plugin_occupancy import LIMITS
from trt_hspan.errors import HspanError
from trt_hspan.native.sources import sources_folder

ROOT = Path(__file__).resolve().parents[3]

PLAIN = r"""
template <typename T> __global__ void __launch_bounds__(96) dot(T const* a, T const* b, T* c, int n)
{
    __shared__ T stage[96];
    T sum = 0;
#pragma unroll 1
    for (int i = 0; i < n; ++i)
    {
        sum = fmaf(a[i], b[i], sum);
    }
    stage[threadIdx.x] = sum;
    __syncthreads();
    c[threadIdx.x] = stage[95 - threadIdx.x];
}
template __global__ void dot<float>(float const*, float const*, float*, int);
"""

# One product on tensor cores per turn; a second loop multiplies more, but not on tensor cores.
MATRIX = r"""
extern "C" __global__ void __launch_bounds__(64, 1) matrix(unsigned const* a, unsigned const* b, float* c, int n)
{
    float d[4] = {};
#pragma unroll 1
    for (int i = 0; i < n; ++i)
    {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                     "{%0,%1,%2,%3};" : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[i]), "r"(a[i + 1]), "r"(a[i + 2]), "r"(a[i + 3]), "r"(b[i]), "r"(b[i + 1]));
    }
#pragma unroll 1
    for (int i = 0; i < n; ++i)
    {
        for (int j = 0; j < 4; ++j)
        {
            d[j] = fmaf(c[i], d[j], c[i + 1]);
        }
    }
    c[threadIdx.x] = d[0] + d[1] + d[2] + d[3];
}
"""

# 1024 threads leave 64 registers each; the sums of a whole row of 100 must be kept at once.
SPILLING = r"""
extern "C" __global__ void __launch_bounds__(1024) spilling(float const* a, float* c, int n)
{
    float sums[100];
    for (int i = 0; i < 100; ++i)
    {
        sums[i] = a[i * n];
    }
    for (int k = 0; k < n; ++k)
    {
        for (int i = 0; i < 100; ++i)
        {
            sums[i] = fmaf(a[k + i], a[k * n], sums[i]);
        }
    }
    for (int i = 0; i < 100; ++i)
    {
        c[i * n + threadIdx.x] = sums[i];
    }
}
"""


def project(folder: Path, **sources: str) -> Path:
    (folder / "plugins" / "kernels").mkdir(parents=True)
    for name, text in sources.items():
        (folder / "plugins" / "kernels" / f"{name}.cu").write_text(text)
    return folder


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> list[KernelCode]:
    folder = project(tmp_path_factory.mktemp("project"), plain=PLAIN, matrix_sm80=MATRIX, spilling=SPILLING)
    fractions: list[float] = []
    kernels = inspect_kernels(
        folder,
        architectures=[75, 90],
        compilation="both",
        jobs=2,
        on_progress=lambda fraction, _what: fractions.append(fraction),
    )
    assert fractions[0] == 0.0
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    return kernels


@pytest.fixture(scope="module")
def inspected(kernels: list[KernelCode]) -> dict[tuple[str, int], KernelCode]:
    """As in the plugin, by name and architecture."""
    return {
        (kernel.kernel.split("<")[0], kernel.architecture): kernel
        for kernel in kernels
        if kernel.ptx_architecture == least_architecture(Path(kernel.source))
    }


def test_each_architecture_is_compiled_for_directly_too(kernels: list[KernelCode]) -> None:
    compiled = {
        (kernel.kernel.split("<")[0], kernel.architecture, kernel.ptx_architecture) for kernel in kernels
    }
    assert len(compiled) == len(kernels)
    assert {each for each in compiled if each[0] != "spilling"} == {
        ("dot", 75, 75),
        ("dot", 90, 75),
        ("dot", 90, 90),
        ("matrix", 90, 80),
        ("matrix", 90, 90),
    }


def test_what_is_compiled_directly_has_that_architectures_ptx_alone(tmp_path: Path) -> None:
    folder = project(tmp_path, plain=PLAIN)
    for compilation, expected in (("plugin", 75), ("direct", 90)):
        (kernel,) = inspect_kernels(folder, architectures=[90], compilation=compilation)
        assert kernel.ptx_architecture == expected


def test_each_source_is_translated_for_the_architectures_it_is_for(
    inspected: dict[tuple[str, int], KernelCode],
) -> None:
    assert sorted(inspected) == [("dot", 75), ("dot", 90), ("matrix", 90), ("spilling", 75), ("spilling", 90)]
    assert inspected["dot", 90].kernel == "dot<float>"
    assert inspected["matrix", 90].source == "matrix_sm80.cu"


def test_threads_and_shared_memory_are_those_of_the_source(
    inspected: dict[tuple[str, int], KernelCode],
) -> None:
    dot, matrix = inspected["dot", 75], inspected["matrix", 90]
    assert (dot.threads, dot.resources.shared_bytes) == (96, 96 * 4)
    assert (matrix.threads, matrix.resources.shared_bytes) == (64, 0)
    assert dot.occupancy.warps == dot.occupancy.blocks * 3


def test_registers_that_do_not_fit_are_seen_as_spills(inspected: dict[tuple[str, int], KernelCode]) -> None:
    for (name, _), kernel in inspected.items():
        spills = kernel.resources.spill_stores_bytes + kernel.resources.spill_loads_bytes
        assert (spills > 0) == (name == "spilling")
    assert inspected["spilling", 90].resources.registers <= 64


def test_the_main_loop_is_the_one_on_tensor_cores(inspected: dict[tuple[str, int], KernelCode]) -> None:
    matrix = inspected["matrix", 90]
    assert matrix.main_loop is not None
    assert (matrix.matrix, matrix.main_loop.matrix, matrix.main_loop.scalar) == (1, 1, 0)
    assert 0 < matrix.main_loop.matrix_share < 0.2
    assert matrix.main_loop.instructions < matrix.instructions


def test_without_tensor_cores_it_is_the_one_that_multiplies(
    inspected: dict[tuple[str, int], KernelCode],
) -> None:
    loop = inspected["dot", 75].main_loop
    assert loop is not None
    assert (loop.matrix, loop.scalar) == (0, 1)


def test_a_warning_is_an_error_that_names_the_source(tmp_path: Path) -> None:
    folder = project(tmp_path, careless="__global__ void careless(int* a) { int unused = 1; a[0] = 2; }\n")
    with pytest.raises(HspanError, match=r"careless\.cu: nvcc fails: .*unused.* was declared but never"):
        inspect_kernels(folder, architectures=[75])


def test_an_architecture_the_compiler_does_not_know_is_reported(tmp_path: Path) -> None:
    with pytest.raises(HspanError, match="cannot compile for sm_61; choose among 75"):
        inspect_kernels(project(tmp_path, plain=PLAIN), architectures=[61])


def test_a_folder_without_kernels_is_reported(tmp_path: Path) -> None:
    with pytest.raises(HspanError, match="contains no kernel sources"):
        inspect_kernels(tmp_path, architectures=[75])


def test_a_named_disassembler_that_is_not_there_is_reported() -> None:
    with pytest.raises(HspanError, match="--nvdisasm: /nowhere is no program"):
        find_disassembler("/nowhere")


def test_a_report_that_reads_differently_is_reported() -> None:
    with pytest.raises(HspanError, match="ptxas: its report reads differently here"):
        resources_from_ptxas("ptxas info : Compiling entry function 'k' for 'sm_86'\nUsed many registers\n")


def test_loops_are_found_by_branches_back() -> None:
    sass = """
\t.section\t.text.outer,"ax",@progbits
.text.outer:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   LDG.E R2, [R4] ;
.L_x_1:
        /*0020*/              @!P0 HMMA.16816.F32 R4, R8, R10, R4 ;
        /*0030*/                   IADD3 R3, R3, 0x1, RZ ;
        /*0040*/               @P1 BRA `(.L_x_1) ;
        /*0050*/                   FFMA R1, R2, R3, R4 ;
        /*0060*/               @P2 BRA `(.L_x_0) ;
        /*0070*/               @P2 BRA `(.L_x_2) ;
        /*0080*/                   FFMA R1, R2, R3, R4 ;
.L_x_2:
        /*0090*/                   EXIT ;
.L_x_3:
        /*00a0*/                   BRA `(.L_x_3);
        /*00b0*/                   NOP;
\t.section\t.nv.shared,"aw",@nobits
        /*0000*/                   FFMA R1, R2, R3, R4 ;
"""
    functions = functions_from_sass(sass)
    assert list(functions) == ["outer"]
    loop = main_loop_from_sass(functions["outer"])
    assert loop is not None
    assert (loop.instructions, loop.matrix, loop.scalar) == (3, 1, 0)
    assert loop.matrix_share == pytest.approx(1 / 3)


# A list pass: products, a loop inside that multiplies no matrices, rare code behind the kernel that branches back,
# and a way out by a call; then a dense pass of four instructions.
PASSES = """
\t.section\t.text.select,"ax",@progbits
.text.select:
        /*0000*/                   CALL.REL.NOINC `($__internal_0_$__cuda_sm20_div_s64) ;
.L_x_0:
        /*0010*/                   HMMA.16816.F32 R4, R8, R10, R4 ;
        /*0020*/                   BSSY B0, `(.L_x_2) ;
        /*0030*/               @P0 BRA `(.L_x_3) ;
.L_x_1:
        /*0040*/                   IADD3 R3, R3, 0x1, RZ ;
        /*0050*/               @P1 BRA `(.L_x_1) ;
.L_x_3:
        /*0060*/                   BSYNC B0 ;
.L_x_2:
        /*0070*/                   BRA.DIV UR4, `(.L_x_6) ;
.L_x_4:
        /*0080*/               @P2 CALL.REL.NOINC `(.L_x_5) ;
        /*0090*/                   BRA `(.L_x_0) ;
.L_x_5:
        /*00a0*/                   HMMA.16816.F32 R4, R8, R10, R4 ;
        /*00b0*/                   HMMA.16816.F32 R4, R8, R10, R4 ;
        /*00c0*/                   IADD3 R3, R3, 0x1, RZ ;
        /*00d0*/               @P3 BRA `(.L_x_5) ;
        /*00e0*/                   EXIT ;
.L_x_6:
        /*00f0*/                   CALL.REL.NOINC `($__internal_4_$__cuda_sm70_warpsync) ;
        /*0100*/                   BRA `(.L_x_4) ;
"""


def test_a_loop_with_another_inside_and_rare_code_elsewhere_is_one_loop() -> None:
    list_pass, dense_pass = product_loops_from_sass(functions_from_sass(PASSES)["select"])
    # HMMA, BSSY, BRA, BSYNC, BRA.DIV, CALL, BRA, and the two that stand behind the kernel.
    assert (list_pass.instructions, list_pass.matrix, list_pass.nested_instructions) == (9, 1, 2)
    assert (dense_pass.instructions, dense_pass.matrix, dense_pass.nested_instructions) == (4, 2, 0)
    assert dense_pass.matrix_share == 0.5
    assert main_loop_from_sass(functions_from_sass(PASSES)["select"]) == dense_pass


def test_threads_of_a_block_with_three_dimensions_are_multiplied() -> None:
    text = ".visible .entry one(\n.param .u64 a\n)\n.maxntid 8, 4, 2\n{\n}\n.entry two()\n.maxntid 32\n{\n}\n"
    assert threads_from_ptx(text) == {"one": 64, "two": 32}


def test_every_default_architecture_has_limits() -> None:
    assert set(ALL_ARCHITECTURES) <= set(LIMITS)


def test_no_kernel_of_the_plugin_spills(plugin_library: Path) -> None:
    """The library as shipped: no kernel has a stack, and none that is in the sources is missing."""
    cuobjdump = find_disassembler().with_name("cuobjdump")
    completed = subprocess.run(
        [cuobjdump, "--dump-resource-usage", plugin_library], capture_output=True, text=True, check=True
    )
    used = re.findall(
        r"Function (\S+):\s*\n\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", completed.stdout
    )
    assert len(used) >= len(kernel_sources(sources_folder()))
    assert [name for name, _, stack, _, local in used if int(stack) or int(local)] == []


@pytest.mark.parametrize("name", ["plain_attention_half", "tiled_attention_half_sm80"])
def test_kernels_compiled_for_one_architecture_alone_do_not_spill(tmp_path: Path, name: str) -> None:
    """`python benchmarks/kernel_report.py` does it for all; registers are scarcest where the compiler unrolls most."""
    folder = project(tmp_path)
    for part in ("kernels", "device"):
        shutil.copytree(
            sources_folder() / "plugins" / part,
            tmp_path / "plugins" / part,
            ignore=lambda _folder, files: [
                each for each in files if each.endswith(".cu") and each != f"{name}.cu"
            ],
            dirs_exist_ok=True,
        )
    kernels = inspect_kernels(folder, architectures=[120], compilation="direct")
    assert len(kernels) >= 3
    assert [
        each.kernel for each in kernels if each.resources.spill_stores_bytes or each.resources.stack_bytes
    ] == []
    looks = [each for each in kernels if each.kernel.startswith(("blockMaximaKernel", "collectKernel"))]
    assert bool(looks) == ("tiled" in name)
    assert all(each.product_loops for each in looks)
    main = [each for each in looks if each.threads >= 128]
    assert all(each.occupancy.blocks >= 2 for each in main)


@pytest.mark.parametrize(
    ("name", "architecture"),
    [("kernel.cu", 75), ("kernel_sm80.cu", 80), ("kernel_sm120.cu", 120), ("sm80.cu", 75)],
)
def test_a_source_says_what_it_is_for_in_its_name(name: str, architecture: int) -> None:
    assert least_architecture(Path(name)) == architecture


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch, inspected: dict[tuple[str, int], KernelCode]) -> ModuleType:
    """The command's module, with the small kernels in place of the plugin's."""
    kept = [kernel for (name, _), kernel in inspected.items() if name != "spilling"]
    monkeypatch.setattr(report_module, "inspect_kernels", lambda *_, **__: kept)
    monkeypatch.setattr(sys, "argv", ["kernel_report.py"])
    return report_module


def test_the_report_prints_both_tables_and_says_what_is_a_bound(
    report: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main() == 0
    printed = capsys.readouterr().out
    assert re.search(r"│ dot<float> +│ 75 │ +75 │ +96 │ +\d+ │ +0 │ +384 │ +\d+% │", printed)
    assert "bound from published peak rates, not a measurement" in printed
    for text in ("2,304", "65,536", "A100", "RTX 4090", "Orin", "H100"):
        assert text in printed


def test_the_report_as_json_contains_the_same_figures(
    report: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["kernel_report.py", "--json"])
    assert report.main() == 0
    printed = json.loads(capsys.readouterr().out)
    matrix = next(kernel for kernel in printed["kernels"] if kernel["kernel"] == "matrix")
    assert matrix["resources"]["spill_stores_bytes"] == 0
    assert matrix["main_loop"]["matrix_share"] == 1 / matrix["main_loop"]["instructions"]
    assert matrix["product_loops"] == [matrix["main_loop"]]
    assert printed["roofline"]["label"] == "bound from published peak rates, not a measurement"
    row = printed["roofline"]["rows"][0]
    assert row["length"] == 2304
    assert row["floor"]["A100 80GB SXM"]["sparse_ms"] == pytest.approx(2 * 2304**2 * 96 / 312e9)


def test_spilled_registers_fail_the_report(
    report: ModuleType,
    inspected: dict[tuple[str, int], KernelCode],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(report, "inspect_kernels", lambda *_, **__: list(inspected.values()))
    assert report.main() == 1
    message = capsys.readouterr().err
    assert re.search(
        r"kernel_report: error: spilling\.cu: spilling for sm_75, PTX for 75, spills \d+ bytes", message
    )


def test_an_architecture_that_is_none_is_a_usage_error(
    report: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["kernel_report.py", "--arch", "ampere"])
    assert report.main() == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("kernel_report: error: architecture: got 'ampere', expected a compute")
