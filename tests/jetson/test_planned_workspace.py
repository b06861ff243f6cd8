"""The workspace that plans for boards count on is what the plugin requests from TensorRT, to the byte."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

from trt_hspan.jetson.plugin_workspace import plugin_workspace_bytes

ROOT = Path(__file__).resolve().parents[2]

# Lines of type, C, D, L -> bytes.
PROGRAM = """
#include <sparsemax_attention.h>
#include <cstdio>
int main()
{
    int type;
    long long scores, values, positions;
    while (std::scanf("%d %lld %lld %lld", &type, &scores, &values, &positions) == 4)
    {
        hspan::AttentionProblem const problem{static_cast<hspan::ElementType>(type), hspan::TensorLayout::kLINEAR,
            {1, scores, values, positions}};
        std::printf("%zu\\n", hspan::attentionWorkspaceBytes(problem, hspan::kAUTOMATIC_CONFIG));
    }
}
"""


def test_planned_bytes_are_the_plugins(emulation_folder: Path, tmp_path: Path) -> None:
    source, program = tmp_path / "ask.cpp", tmp_path / "ask"
    source.write_text(PROGRAM)
    includes = [f"-I{ROOT / folder}" for folder in ("plugins/kernels", "tests/cpp/emulation")]
    library = next(emulation_folder.rglob("libhspan_emulated.so"))
    linked = [str(library), f"-Wl,-rpath,{library.parent}"]
    subprocess.run(["c++", "-std=c++17", *includes, source, *linked, "-o", program], check=True)
    draw = random.Random(0)
    cases = [
        (kind, 96, 192, positions) for kind in (0, 1) for positions in (1, 128, 16_384, 230_400, 2_000_000)
    ]
    cases += [
        (draw.choice([0, 1, 2]), draw.randint(1, 300), draw.randint(1, 600), draw.randint(1, 1 << 21))
        for _ in range(200)
    ]
    stdin = "\n".join(" ".join(map(str, case)) for case in cases)
    completed = subprocess.run([program], input=stdin, capture_output=True, text=True, check=True)
    assert [int(line) for line in completed.stdout.split()] == [
        plugin_workspace_bytes(positions, scores, values, 4 if kind == 0 else 2)
        for kind, scores, values, positions in cases
    ]
