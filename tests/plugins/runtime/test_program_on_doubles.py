"""hspan-upscale from engine to file: its own objects, with doubles of TensorRT and CUDA that execute on main memory."""

from __future__ import annotations

import signal
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
        completed = subprocess.run(words, capture_output=True, check=False, timeout=60)
        assert "out of memory" in only_line(completed, 1)
        assert not (tmp_path / "out.png").exists()

    def test_the_c_api_chooses_the_gpu_whichever_thread_calls(
        self, program: UpscaleProgram, engine: Path, tmp_path: Path
    ) -> None:
        """The double ends the program where work goes to a stream of another GPU than the thread's current one."""
        c_api = UpscaleProgram([str(Path(program.command[0]).with_name("c-api-on-doubles"))])
        completed = c_api.run(engine, HSPAN_DOUBLE_GPUS=2)
        assert completed.returncode == 0, completed.stderr
        assert completed.stdout.decode().splitlines() == [
            "2 --device: 7 does not exist: there are 2 GPUs; give 0 to 1",
            "0",
        ]
        counts = c_api.counts(tmp_path, engine, HSPAN_DOUBLE_GPUS=2)
        assert (counts["device"], counts["left"]) == (1, 0)

    def test_a_signal_waits_until_the_file_is_whole(self, program: UpscaleProgram, tmp_path: Path) -> None:
        profile = {"min": [1, 3, 8, 8], "opt": [1, 3, 256, 256], "max": [1, 3, 256, 256]}
        engine = program.engine(tmp_path, profiles=[{**profile, "activation_memory_bytes": None}])
        (tmp_path / "in.ppm").write_bytes(b"P6\n1200 1200\n255\n" + bytes(1200 * 1200 * 3))
        output = tmp_path / "out.ppm"
        words = [*program.command, "-e", str(engine), str(tmp_path / "in.ppm"), "-o", str(output)]
        with subprocess.Popen(words, stderr=subprocess.PIPE) as process:
            while process.poll() is None:
                if list(tmp_path.glob("out.ppm*")):  # under its temporary name: writing has begun
                    process.terminate()
                    break
            process.communicate(timeout=60)
        assert process.returncode in {0, -signal.SIGTERM}
        assert output.stat().st_size == len(b"P6\n3600 3600\n255\n") + 3600 * 3600 * 3
        assert len(list(tmp_path.iterdir())) == 4
