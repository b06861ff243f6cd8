"""hspan-upscale, native or emulated, and what is expected of it: the same checks wherever it runs.

The engines are those of tests/cpp/gpu_double: its doubles of TensorRT and CUDA execute a small network on main memory.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from support.hostile_pictures import HOSTILE
from support.manifest_corpus import BASE
from support.tile_networks import BoundedRunner
from trt_hspan.media.metadata import png_chunk
from trt_hspan.upscaling.options import UpscaleOptions
from trt_hspan.upscaling.upscaler import upscale_array

SCALE = 3
#: The largest input of the double's engines, height and width.
LARGEST = (24, 32)
_BYTES_PER_PIXEL = 64
#: A plan of the double's that contains code.
_CODE = f"hspan double {SCALE} {_BYTES_PER_PIXEL} code\n".encode()
_SECONDS = 120
# White, red, green and blue, x and y of each, as the chunk cHRM has them.
_BT709 = (31_270, 32_900, 64_000, 33_000, 30_000, 60_000, 15_000, 6_000)


@dataclass(frozen=True)
class UpscaleProgram:
    """How it is started.

    Attributes:
        command: the program, with an emulator before it where one is needed.
        flavor: of the engines that it takes.
    """

    command: Sequence[str]
    flavor: str = "tensorrt"

    def run(
        self,
        *arguments: object,
        stdin: bytes = b"",
        stdout: int = subprocess.PIPE,
        **environment: object,
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*self.command, *map(str, arguments)],
            input=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            check=False,
            timeout=_SECONDS,
            env={**os.environ, **{name: str(value) for name, value in environment.items()}},
        )

    def counts(self, folder: Path, *arguments: object, **environment: object) -> dict[str, int]:
        """What the double of CUDA counted in a run that succeeds."""
        report = folder / "report"
        completed = self.run(*arguments, HSPAN_DOUBLE_REPORT=report, **environment)
        assert completed.returncode == 0, completed.stderr
        counts: dict[str, int] = json.loads(report.read_text())
        report.unlink()
        return counts

    def engine(self, folder: Path, **changes: Any) -> Path:
        """A plan of the double's and its manifest; `changes` go into the manifest."""
        plan = folder / "double.plan"
        plan.write_bytes(changes.pop("content", f"hspan double {SCALE} {_BYTES_PER_PIXEL}\n".encode()))
        height, width = LARGEST
        profile = {
            "min": [1, 3, 8, 8],
            "opt": [1, 3, height, width],
            "max": [1, 3, height, width],
            "activation_memory_bytes": height * width * _BYTES_PER_PIXEL,
        }
        manifest = BASE | {
            "plan_sha256": sha256(plan.read_bytes()).hexdigest(),
            "plan_size_bytes": plan.stat().st_size,
            "plugin": None,
            "flavor": self.flavor,
            "tensorrt_version": "10.3.0.30",
            "traits": [],
            "targets": ["sm_87"],
            "precision": "fp16",
            "scale": SCALE,
            "profiles": [profile],
            "io_tensors": [
                {"name": name, "mode": name, "dtype": "float32", "shape": [-1, 3, -1, -1]}
                for name in ("input", "output")
            ],
        }
        plan.with_suffix(".json").write_text(json.dumps({**manifest, **changes}))
        return plan


def only_line(completed: subprocess.CompletedProcess[bytes], code: int) -> str:
    """The one line of an error; nothing else was printed, and no signal ended the program."""
    assert completed.returncode == code, completed
    assert not completed.stdout
    (line,) = completed.stderr.decode(errors="replace").splitlines()
    assert line.startswith("hspan-upscale: error: ")
    return line


def line_after_broken_pipe(command: Sequence[object], frames: bytes, count: int) -> str:
    """Feeds frames, reads so many bytes of the result, and ends reading. The line that the program leaves."""
    reading, writing = os.pipe()
    with subprocess.Popen(
        [str(word) for word in command], stdin=subprocess.PIPE, stdout=writing, stderr=subprocess.PIPE
    ) as process:
        os.close(writing)
        assert process.stdin is not None
        if count:
            process.stdin.write(frames)
            process.stdin.flush()
            with os.fdopen(reading, "rb", closefd=False) as stream:
                assert len(stream.read(count)) == count
        os.close(reading)
        _, errors = process.communicate(frames * 4, timeout=_SECONDS)
    return only_line(subprocess.CompletedProcess([], process.returncode, b"", errors), 1)


def _picture(size: tuple[int, ...], seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def expected_pixels(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.generic]:
    """What the Python runtime makes of it with the double's network."""
    with BoundedRunner((8, 8), LARGEST, scale=SCALE) as runner:
        return upscale_array(runner, image, UpscaleOptions())


class ProgramContract:
    """Subclasses are collected by pytest and give the fixture `program`."""

    @pytest.fixture
    def engine(self, program: UpscaleProgram, tmp_path: Path) -> Path:
        return program.engine(tmp_path)

    @pytest.fixture
    def picture(self, tmp_path: Path) -> Path:
        Image.fromarray(_picture((50, 41, 3))).save(tmp_path / "in.png")
        return tmp_path / "in.png"

    def test_an_engine_gives_the_python_runtimes_pixels(
        self, program: UpscaleProgram, engine: Path, tmp_path: Path
    ) -> None:
        for channels in (3, 4):
            image = _picture((50, 41, channels), channels)
            Image.fromarray(image).save(tmp_path / "in.png")
            words = ("-e", engine, tmp_path / "in.png", "-o", tmp_path / "out.png", "--overwrite")
            program.counts(tmp_path, *words)
            assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png")), expected_pixels(image))

    def test_graphs_and_shared_memory_change_no_pixel_and_leak_nothing(
        self, program: UpscaleProgram, engine: Path, picture: Path, tmp_path: Path
    ) -> None:
        words = ("-e", engine, picture, "--repeat", 2, "-o")
        plain = program.counts(tmp_path, *words, tmp_path / "a.png", "--no-cuda-graph")
        graphs = program.counts(tmp_path, *words, tmp_path / "b.png")
        shared = program.counts(tmp_path, *words, tmp_path / "c.png", HSPAN_DOUBLE_INTEGRATED=1)
        uncaptured = program.run(*words, tmp_path / "d.png", HSPAN_DOUBLE_CAPTURE=0)
        alone = program.run(*words, tmp_path / "e.png", HSPAN_DOUBLE_CONTEXTS=1)
        contents = {(tmp_path / f"{name}.png").read_bytes() for name in "abcde"}
        assert len(contents) == 1
        tiles = plain["copies"] // 4  # two runs, up and down
        assert tiles > 1
        assert (plain["captures"], plain["launches"]) == (0, 0)
        # The first tile is run plainly, the second too and captured; all others replay it.
        assert (graphs["captures"], graphs["launches"]) == (1, 2 * tiles - 2)
        assert shared["copies"] == 0
        assert graphs["allocations"] == plain["allocations"] == 3  # input, output, activations
        assert plain["left"] == graphs["left"] == shared["left"] == 0
        assert (plain["blocking_waits"], shared["waits"]) == (0, 0)
        assert (
            shared["blocking_waits"] == graphs["waits"]
        )  # a shared GPU leaves the processor to others meanwhile
        assert uncaptured.stderr.count(b"no CUDA graph") == 1
        assert alone.stderr.count(b"no CUDA graph: ") == 1
        assert b"TensorRT cannot create an execution context" in alone.stderr

    @pytest.mark.parametrize("sizes", [3, 12])
    def test_graphs_of_many_sizes_keep_to_their_contexts_and_are_not_captured_over_and_over(
        self, program: UpscaleProgram, tmp_path: Path, sizes: int
    ) -> None:
        """The double ends the program when a graph is replayed after its context has changed."""
        engine = program.engine(tmp_path)
        (tmp_path / "in").mkdir()
        for number in range(12 * sizes):
            image = Image.fromarray(_picture((8, 7 + sizes - number % sizes, 3), number))
            image.save(tmp_path / "in" / f"{number:03}.png")
        pictures = sorted((tmp_path / "in").iterdir())
        for folder in ("plain", "graphs"):
            (tmp_path / folder).mkdir()
        words = ("-e", engine, "--repeat", 2, *pictures, "-o")
        program.counts(tmp_path, *words, tmp_path / "plain", "--no-cuda-graph")
        counts = program.counts(tmp_path, *words, tmp_path / "graphs")
        for path in (tmp_path / "plain").iterdir():
            assert path.read_bytes() == (tmp_path / "graphs" / path.name).read_bytes()
        assert counts["captures"] == min(sizes, 8)  # the most that are kept
        assert counts["launches"] >= 22 * counts["captures"]
        assert counts["left"] == 0

    @pytest.mark.parametrize("where", ["main", "shared"])
    def test_out_of_memory_makes_tiles_smaller_or_is_one_line(
        self, program: UpscaleProgram, engine: Path, picture: Path, tmp_path: Path, where: str
    ) -> None:
        words = ("-e", engine, picture, "-o", tmp_path / "out.png")
        shared = {"HSPAN_DOUBLE_INTEGRATED": int(where == "shared")}
        completed = program.run(*words, HSPAN_DOUBLE_MEMORY=100_000, **shared)
        assert completed.returncode == 0
        assert re.search(rb"out of memory with tiles of \d+x\d+, going on with \d+x\d+\n", completed.stderr)
        assert Image.open(tmp_path / "out.png").size == (123, 150)
        (tmp_path / "out.png").unlink()
        completed = program.run(*words, HSPAN_DOUBLE_MEMORY=1000, **shared)
        *notes, error = completed.stderr.decode().splitlines()
        assert completed.returncode == 1
        assert all("going on with" in note for note in notes)
        assert "out of memory even with tiles of 16x16" in error
        completed = program.run(*words, "--tile", "none", HSPAN_DOUBLE_MEMORY=1000, **shared)
        assert "does not fit the engine" in only_line(completed, 1)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["double.json", "double.plan", "in.png"]

    def test_hostile_pictures_are_reported_before_the_gpu_is_touched(
        self, program: UpscaleProgram, engine: Path, tmp_path: Path
    ) -> None:
        bad, output = tmp_path / "bad", tmp_path / "out.png"
        output.write_bytes(b"the user's")
        for name, (content, part) in HOSTILE.items():
            bad.write_bytes(content)
            # A GPU that is not there: had the engine been opened, the line would be another.
            words = ("-e", engine, bad, "-o", output, "--overwrite")
            line = only_line(program.run(*words, HSPAN_DOUBLE_GPUS=0), 1)
            assert part in line, name
            assert str(bad) in line
        for missing, part in ((tmp_path / "none.png", "no such file"), (tmp_path, "is a folder")):
            words = ("-e", engine, missing, "-o", output, "--overwrite")
            line = only_line(program.run(*words, HSPAN_DOUBLE_GPUS=0), 1)
            assert part in line
        assert output.read_bytes() == b"the user's"
        assert len(list(tmp_path.iterdir())) == 4

    def test_what_cannot_be_done_is_reported_before_the_gpu_is_touched(
        self, program: UpscaleProgram, engine: Path, picture: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "large.pgm").write_bytes(b"P5\n4000 4000\n255\n" + bytes(16_000_000))
        Image.fromarray(_picture((9, 9, 4))).save(tmp_path / "clear.png")
        (tmp_path / "sub").mkdir()
        (tmp_path / "in.ppm").touch()
        for words, code, part in (
            ((tmp_path / "large.pgm", "-o", "o.png"), 1, "upscaled: claims 12000x12000 pixels"),
            ((tmp_path / "clear.png", "-o", "o.jpg"), 1, "JPEG cannot hold transparency"),
            ((picture, "-o", tmp_path / "none" / "o.png"), 1, "no such file"),
            ((picture, "-o", "o.png", "--tile", "none"), 1, "does not fit the engine"),
            ((picture, "-o", "o.png", "--tile", "99x99"), 1, "does not fit the engine"),
            ((picture, "-o", "o.png", "--tile", "16x16", "--overlap", "15"), 2, "overlap"),
            ((picture, tmp_path / "in.ppm", "-o", tmp_path / "sub"), 2, "two of the pictures"),
            (("--raw", "40000x40000"), 1, "million accepted"),
            (("--raw", "4000x4000"), 1, "upscaled: claims"),
        ):
            completed = program.run("-e", engine, *words, HSPAN_DOUBLE_GPUS=0)
            assert part in only_line(completed, code), words
        assert not list((tmp_path / "sub").iterdir())

    def test_an_engine_that_cannot_be_opened_is_one_line(
        self, program: UpscaleProgram, engine: Path, picture: Path, tmp_path: Path
    ) -> None:
        output = tmp_path / "out.png"
        words = ("-e", engine, picture, "-o", output)
        for reason, environment in (
            ("cannot be used: no NVIDIA driver here; install NVIDIA's driver", {"DRIVER": 0, "QUERY": 35}),
            ("cannot be used: the driver finds no GPU (CUDA error 100, no CUDA-capable", {"GPUS": 0}),
            (
                "cannot be used: the NVIDIA driver is older than the CUDA that this was compiled with (CUDA error 35",
                {"QUERY": 35},
            ),
            ("cannot be used: CUDA error 999, another error", {"QUERY": 999}),
            (
                "cannot choose the profiles: the library's PTX is newer than the driver's compiler",
                {"LAUNCH": 222},
            ),
        ):
            settings = {f"HSPAN_DOUBLE_{name}": value for name, value in environment.items()}
            assert f"GPU: {reason}" in only_line(program.run(*words, **settings), 1)
        assert "--device: 3 does not exist" in only_line(program.run(*words, "--device", 3), 2)
        line = only_line(program.run(*words, HSPAN_DOUBLE_TENSORRT="10.9.1"), 1)
        assert "10.3.0.30, here is 10.9.1" in line
        program.engine(tmp_path, traits=["version-compatible"])
        assert "10.2.9" in only_line(program.run(*words, HSPAN_DOUBLE_TENSORRT="10.2.9"), 1)
        program.engine(tmp_path, traits=["ampere+"], targets=["sm_86"])
        assert "built for sm_86, this GPU is sm_87" in only_line(program.run(*words), 1)
        program.engine(tmp_path, targets=["sm_110", "sm_121"])
        assert "built for sm_110, sm_121, this GPU is sm_87" in only_line(program.run(*words), 1)
        other = "tensorrt-rtx" if program.flavor == "tensorrt" else "tensorrt"
        program.engine(tmp_path, flavor=other)
        assert f"is a {other} engine" in only_line(program.run(*words), 1)
        # In the manifest, and still no plan of TensorRT's; reported once, not for each picture.
        program.engine(tmp_path, content=b"nonsense")
        several = (picture, picture.parent / "more.png", "-o", tmp_path, "--overwrite")
        line = only_line(program.run("-e", engine, *several), 1)
        assert "TensorRT refuses the engine" in line
        assert "magicTag" in line
        assert not output.exists()

    def test_an_engine_that_travels_runs_where_its_traits_say(
        self, program: UpscaleProgram, picture: Path, tmp_path: Path
    ) -> None:
        plan = program.engine(tmp_path, traits=["version-compatible"], content=_CODE)
        words = ("-e", plan, picture, "-o", tmp_path / "out.png", "--overwrite")
        is_for_a_board = "qemu" in str(
            program.command[0]
        )  # and takes TensorRT of the board's generation alone
        for version in ("10.3.0", "10.9.1", *(() if is_for_a_board else ("11.0.0",))):
            assert program.run(*words, HSPAN_DOUBLE_TENSORRT=version).returncode == 0
        program.engine(tmp_path, traits=["ampere+"], targets=["sm_86"])
        for capability, code in ((86, 0), (90, 0), (120, 0), (75, 1), (87, 1)):
            assert program.run(*words, HSPAN_DOUBLE_CAPABILITY=capability).returncode == code
        completed = program.run("-e", plan, "--info", "--json")
        assert json.loads(completed.stdout)["traits"] == ["ampere+"]

    def test_an_engine_with_its_plugin_inside_needs_no_library(
        self, program: UpscaleProgram, picture: Path, tmp_path: Path
    ) -> None:
        """The double opens such a plan only where its code is allowed, and a folder may hold it or memory does."""
        plugin = {"file": "none.so", "sha256": "0" * 64, "abi_version": 9, "architectures": []}
        inside = {"cubin_architectures": [87], "ptx_architectures": [], "cuda_version": "12.6.3"}
        inside |= {"ptx_isa_version": "8.5"}
        content = _CODE + b"hspan-plugin-info:" + json.dumps(inside).encode() + b"\0"
        plan = program.engine(tmp_path, traits=["embedded-plugin"], plugin=plugin, content=content)
        words = ("-e", plan, picture, "-o", tmp_path / "out.png", "--overwrite")
        for folder in (tmp_path, tmp_path / "none"):
            completed = program.run(*words, TMPDIR=folder)
            assert completed.returncode == 0, completed.stderr
        line = only_line(program.run(*words, HSPAN_DOUBLE_DRIVER=11080), 1)
        assert f"{plan}: was compiled with CUDA 12.6" in line
        program.engine(tmp_path, content=_CODE)
        assert "not allowed" in only_line(program.run(*words), 1)

    def test_a_picture_that_exists_is_replaced_only_on_request(
        self, program: UpscaleProgram, engine: Path, picture: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "to").mkdir()
        (tmp_path / "to" / "in.png").symlink_to("nowhere")
        (tmp_path / "out.png").write_bytes(b"the user's")
        for output, taken in (
            (tmp_path / "out.png", tmp_path / "out.png"),
            (tmp_path / "to", tmp_path / "to/in.png"),
        ):
            line = only_line(program.run("-e", engine, picture, "-o", output, HSPAN_DOUBLE_GPUS=0), 1)
            assert line.endswith(f"{taken}: exists; give --overwrite or another name")
        assert (tmp_path / "out.png").read_bytes() == b"the user's"
        completed = program.run("-e", engine, picture, "-o", tmp_path / "out.png", "--overwrite")
        assert (completed.returncode, Image.open(tmp_path / "out.png").size) == (0, (123, 150))

    def test_colors_that_a_format_cannot_say_are_said_and_no_byte_of_a_name_steers(
        self, program: UpscaleProgram, engine: Path, tmp_path: Path
    ) -> None:
        source = tmp_path / os.fsdecode(b"a\x9b31m\xc3\xa9\xc0\x9b.png")
        standard = b"".join(value.to_bytes(4, "big") for value in _BT709)
        Image.fromarray(_picture((9, 9, 3))).save(source)
        file = source.read_bytes()
        for chunks, lost in (
            ([(b"gAMA", (100_000).to_bytes(4, "big")), (b"cLLI", bytes(8))], "gAMA, cLLI"),
            ([(b"gAMA", (45_455).to_bytes(4, "big")), (b"cHRM", standard)], None),
            ([(b"sRGB", b"\0"), (b"gAMA", bytes(4)), (b"cHRM", bytes(32))], None),
        ):
            source.write_bytes(file[:33] + b"".join(png_chunk(*chunk) for chunk in chunks) + file[33:])
            for target in ("o.jpg", "o.ppm", "o.png"):
                completed = program.run("-e", engine, source, "-o", tmp_path / target, "--overwrite")
                *notes, result = completed.stderr.decode().splitlines()  # valid UTF-8
                assert "/a?31m\xe9??.png -> " in result
                expected = lost if target != "o.png" else None
                assert [f"its colors ({expected}) is lost" in note for note in notes] == [True] * bool(
                    expected
                )

    def test_the_device_chooses_the_gpu(
        self, program: UpscaleProgram, engine: Path, picture: Path, tmp_path: Path
    ) -> None:
        words = ("-e", engine, picture, "-o", tmp_path / "out.png", "--overwrite")
        assert program.counts(tmp_path, *words, HSPAN_DOUBLE_GPUS=3)["device"] == 0
        assert program.counts(tmp_path, *words, "--device", 2, HSPAN_DOUBLE_GPUS=3)["device"] == 2

    def test_one_bad_picture_of_several_is_counted(
        self, program: UpscaleProgram, engine: Path, picture: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "bad.jpg").write_bytes(HOSTILE["half a jpeg"][0])
        (tmp_path / "to").mkdir()
        completed = program.run("-e", engine, tmp_path / "bad.jpg", picture, "-o", tmp_path / "to", "--json")
        assert completed.returncode == 1
        assert [json.loads(line)["output_width"] for line in completed.stdout.splitlines()] == [123]
        first, last = completed.stderr.decode().splitlines()
        assert "damaged or truncated JPEG" in first
        assert last == "hspan-upscale: error: 1 of 2 pictures failed"
        assert [path.name for path in (tmp_path / "to").iterdir()] == ["in.png"]

    def test_frames_pass_through_the_pipe(self, program: UpscaleProgram, engine: Path) -> None:
        frames = [_picture((20, 30, 3), seed) for seed in range(3)]
        stdin = b"".join(frame.tobytes() for frame in frames)
        completed = program.run("-e", engine, "--raw", "20x30", stdin=stdin)
        assert completed.returncode == 0, completed.stderr
        assert completed.stdout == b"".join(expected_pixels(frame).tobytes() for frame in frames)
        assert completed.stderr == b"hspan-upscale: 3 frames\n"
        named = program.run("-e", engine, "--raw", "width=30,height=20", stdin=stdin)
        assert named.stdout == completed.stdout
        cut = program.run("-e", engine, "--raw", "20x30", stdin=stdin[:-7])
        assert cut.returncode == 1
        assert b"ends inside frame 2: 1793 of 1800 bytes" in cut.stderr
        assert len(cut.stdout) == 2 * len(completed.stdout) // 3

    @pytest.mark.parametrize("count", [0, 1, 30 * 20 * 3 * SCALE**2])
    def test_a_reader_that_ends_is_an_error_and_no_signal(
        self, program: UpscaleProgram, engine: Path, count: int
    ) -> None:
        command = [*program.command, "-e", engine, "--raw", "20x30"]
        line = line_after_broken_pipe(command, bytes(30 * 20 * 3), count)
        assert line == "hspan-upscale: error: standard output: the program that reads it has ended"

    def test_standard_descriptors_that_are_closed_are_reported(
        self, program: UpscaleProgram, engine: Path, picture: Path, tmp_path: Path
    ) -> None:
        def run(redirection: str, *words: object) -> subprocess.CompletedProcess[bytes]:
            shell = ["bash", "-c", f'exec "$@" {redirection}', "_", *program.command, "-e", engine, *words]
            return subprocess.run(
                [str(word) for word in shell],
                input=bytes(1800),
                capture_output=True,
                check=False,
                timeout=_SECONDS,
            )

        assert "standard output: cannot write" in only_line(run(">&-", "--raw", "20x30"), 1)
        assert "standard input: cannot read" in only_line(run("<&-", "--raw", "20x30"), 1)
        completed = run("<&- >&- 2>&-", picture, "-o", tmp_path / "out.png")
        assert (completed.returncode, Image.open(tmp_path / "out.png").size) == (0, (123, 150))

    def test_output_that_cannot_be_written_is_one_line(
        self, program: UpscaleProgram, engine: Path, picture: Path, tmp_path: Path
    ) -> None:
        with Path("/dev/full").open("wb") as full:
            words: list[Mapping[str, Any]] = [
                {"arguments": ("--info", "--json")},
                {"arguments": ("--info",)},
                {"arguments": ("--raw", "20x30"), "stdin": bytes(1800)},
                {"arguments": (picture, "-o", tmp_path / "out.png", "--json")},
            ]
            for each in words:
                completed = program.run(
                    "-e", engine, *each["arguments"], stdin=each.get("stdin", b""), stdout=full.fileno()
                )
                assert "standard output: no space left" in only_line(completed, 1)
