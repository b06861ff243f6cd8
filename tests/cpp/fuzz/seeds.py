"""Writes the first inputs of the fuzzers: `python seeds.py FOLDER` fills FOLDER/TARGET/corpus."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 7, 3), np.uint8)

MANIFEST = {
    "format_version": 4,
    "traits": ["embedded-plugin"],
    "plan_sha256": "0" * 64,
    "plan_size_bytes": 5,
    "plugin": {"file": "libhspan_plugin.so", "sha256": "0" * 64, "abi_version": 1},
    "flavor": "tensorrt",
    "tensorrt_version": "10.3.0.26",
    "targets": ["sm_87"],
    "precision": "fp16",
    "scale": 2,
    "profiles": [
        {
            "min": [1, 3, 8, 8],
            "opt": [1, 3, 64, 64],
            "max": [1, 3, 128, 128],
            "activation_memory_bytes": 1000,
        },
        {"min": [1, 3, 8, 8], "opt": [2, 3, 8, 8], "max": [4, 3, 16, 16], "activation_memory_bytes": None},
    ],
    "io_tensors": [
        {"name": "input", "dtype": "float32", "shape": [-1, 3, -1, -1], "mode": "input"},
        {"name": "output", "dtype": "float32", "shape": [-1, 3, -1, -1], "mode": "output"},
    ],
    "activation_memory_bytes": 1000,
}


def _encoded(kind: str, mode: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def _exif(order: bytes) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return (b"II*\0" if order == b"I" else b"MM\0*") + exif.tobytes()[10:]


def main() -> None:
    seeds = {
        "manifest": [json.dumps(MANIFEST).encode(), json.dumps({**MANIFEST, "plugin": None}).encode()],
        "picture": [
            *(_encoded("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
            *(
                _encoded("JPEG", mode, progressive=progressive)
                for mode in ("L", "RGB", "CMYK")
                for progressive in (0, 1)
            ),
            *(_encoded("PPM", mode) for mode in ("L", "RGB")),
        ],
        "exif": [_exif(b"I"), _exif(b"M")],
    }
    for target, contents in seeds.items():
        folder = Path(sys.argv[1]) / target / "corpus"
        folder.mkdir(parents=True, exist_ok=True)
        for index, content in enumerate(contents):
            (folder / f"seed{index}").write_bytes(content)


if __name__ == "__main__":
    main()
