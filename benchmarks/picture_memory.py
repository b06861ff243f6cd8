"""Memory that a 120-megapixel picture takes on its way from file to file, by format, without a network.

    python benchmarks/picture_memory.py [--json]

Pictures of 12000x10000 RGB pixels pass, each through a process of its own, in tiles through a runner that copies them.
The figure is the most main memory that the process ever had (VmHWM of Linux), Python's own 100 megabytes included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

HEIGHT: Final = 12_000
WIDTH: Final = 10_000
SOURCES: Final = ("png", "interlaced png", "tiff", "jpeg", "progressive jpeg", "ppm")
TARGETS: Final = ("png", "tiff", "jpeg")
_CHILD: Final = """
import json, sys, time
from pathlib import Path
from support.runner_doubles import NearestRunner
from trt_hspan.upscaling.pictures import upscale_picture_file
from trt_hspan.upscaling.upscaler import Upscaler
started = time.perf_counter()
with NearestRunner(scale=1) as runner:
    report = upscale_picture_file(Upscaler(runner), Path(sys.argv[1]), Path(sys.argv[2]))
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
peak = int(status["VmHWM"].split()[0]) * 1024
print(json.dumps({"peak_bytes": peak, "streamed": report.streamed, "seconds": time.perf_counter() - started}))
"""


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print figures as data")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measured(Path(folder))
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, figure in figures.items():
        print(f"{name:28} {figure['peak_bytes'] / 1e6:6.0f} MB  {figure['seconds']:6.1f} s")


def measured(folder: Path) -> dict[str, dict[str, float]]:
    """Figures of every way in and out."""
    figures = {}
    for kind in SOURCES:
        source = written_source(folder, kind)
        figures[f"{kind} -> png"] = passed_through(source, folder / "result.png")
        if kind == "png":
            for target in TARGETS[1:]:
                suffix = {"tiff": ".tif", "jpeg": ".jpg"}[target]
                figures[f"png -> {target}"] = passed_through(source, folder / f"result{suffix}")
        source.unlink()
    return figures


def written_source(folder: Path, kind: str) -> Path:
    """A picture with flat and detailed parts, in a file of a format."""
    import pyvips

    position = pyvips.Image.xyz(WIDTH, HEIGHT)
    channels = [position[0] % 256, position[1] % 256, (position[0] + position[1]) // 64 % 256]
    picture = channels[0].bandjoin(channels[1:]).cast("uchar").copy(interpretation="srgb")
    name, is_interlaced = kind.rsplit(maxsplit=1)[-1], " " in kind
    path = folder / f"source.{name}"
    if name == "ppm":
        path.write_bytes(b"P6 %d %d 255\n" % (WIDTH, HEIGHT) + bytes(picture.write_to_memory()))
    elif name == "tiff":
        picture.tiffsave(str(path), compression="lzw")
    elif name == "png":
        picture.pngsave(str(path), compression=1, interlace=is_interlaced)
    else:
        picture.jpegsave(str(path), interlace=is_interlaced)
    return path


def passed_through(source: Path, target: Path) -> dict[str, float]:
    """What a process that does it reports."""
    root = Path(__file__).parents[1]
    process = subprocess.run(
        [sys.executable, "-c", _CHILD, source, target],
        env={"PYTHONPATH": f"{root}:{root / 'tests'}", "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        sys.exit(process.stderr)
    figures: dict[str, float] = json.loads(process.stdout)
    return figures


if __name__ == "__main__":
    main()
