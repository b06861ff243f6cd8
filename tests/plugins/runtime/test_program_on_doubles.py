"""hspan-upscale from engine to file: its own objects, with doubles of TensorRT and CUDA that execute on main memory."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from support.upscale_program import ProgramContract, UpscaleProgram, only_line


@pytest.fixture
def program(runtime_folder: Path) -> UpscaleProgram:
    path = runtime_folder.parents[1] / "tests" / "cpp" / "runtime" / "hspan-upscale-on-doubles"
    if not path.is_file():
        pytest.skip("hspan-upscale needs CUDA's runtime library and TensorRT-RTX's wheel")
    return UpscaleProgram([str(path)], flavor="tensorrt-rtx")


class TestHere(ProgramContract):
    """The contract on this machine's processor."""

    def test_main_memory_that_runs_out_is_one_line(
        self, program: UpscaleProgram, engine: Path, tmp_path: Path
    ) -> None:
        """The picture takes 18 MB, the result nine times as much; the process may have 150 MB."""
        (tmp_path / "in.pgm").write_bytes(b"P5\n3000 3000\n65535\n" + bytes(18_000_000))
        words = ["bash", "-c", 'ulimit -v 150000; exec "$@"', "_", *program.command]
        words += ["-e", str(engine), str(tmp_path / "in.pgm"), "-o", str(tmp_path / "out.png")]
        done = subprocess.run(words, capture_output=True, check=False, timeout=60)
        assert "out of memory" in only_line(done, 1)
        assert not (tmp_path / "out.png").exists()
