"""Writes the first inputs of the fuzzers: `python seeds.py FOLDER` fills FOLDER/TARGET/corpus."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 7, 3), np.uint8)

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

MANIFEST = json.loads((Path(__file__).parents[2] / "engine" / "manifests.json").read_text())["base"]


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
        "manifest": [
            json.dumps(MANIFEST).encode(),
            json.dumps({**MANIFEST, "plugin": None, "traits": []}).encode(),
        ],
        "picture": [
            *(_encoded("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
            *(
                _encoded("JPEG", mode, progressive=progressive)
                for mode in ("L", "RGB", "CMYK")
                for progressive in (0, 1)
            ),
            *(_encoded("PPM", mode) for mode in ("L", "RGB")),
            *(_encoded(kind, "RGB", icc_profile=PROFILE) for kind in ("PNG", "JPEG")),
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
