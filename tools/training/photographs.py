"""The photographs that the demo networks are trained and tested on: the list, the split, the preparation.

All of them come with Debian packages or Python wheels; drawings and gradients of those packages are left out.
The split is by name, here, so that no test picture can slip into training.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from trt_hspan.errors import HspanError
from trt_hspan.evaluation.resize import downscale
from trt_hspan.files import atomic_path
from trt_hspan.machine.install_advice import install_command

Pixels = npt.NDArray[np.uint8]

SCALES: Final = (2, 4)
# Every size is a multiple of this, so that low-resolution pictures fit at each scale.
_MULTIPLE: Final = 4
# Training pictures are kept at two sizes (longest side in pixels): reduced photographs are sharper.
_TRAINING_SIDES: Final = (1400, 800)
# Held-out pictures: attention over a whole picture has to finish on a small machine.
_HELD_OUT_SIDE: Final = 640

_LOMIRI_16 = "lomiri-wallpapers-16.04:usr/share/backgrounds"
_LOMIRI_20 = "lomiri-wallpapers-20.04:usr/share/backgrounds"
_MATE = "mate-backgrounds:usr/share/backgrounds/mate/nature"
_PLASMA = "plasma-workspace-wallpapers:usr/share/wallpapers"


@dataclass(frozen=True)
class Photograph:
    """One picture: its name in the data set and where it lies.

    Attributes:
        name: file stem in the prepared set.
        package: Debian package, or the Python package that ships it.
        path: path inside the unpacked Debian package, or inside the Python package.
    """

    name: str
    package: str
    path: str


def _debian(place: str, *names: str) -> tuple[Photograph, ...]:
    package, folder = place.split(":")
    return tuple(
        Photograph(name.split("/")[0].split(".")[0].lower(), package, f"{folder}/{name}") for name in names
    )


def _plasma(*names: str) -> tuple[Photograph, ...]:
    return _debian(_PLASMA, *(f"{name}/contents/images/2560x1600.jpg" for name in names))


HELD_OUT: Final = (
    Photograph("astronaut", "skimage", "data/astronaut.png"),
    Photograph("chelsea", "skimage", "data/chelsea.png"),
    Photograph("coffee", "skimage", "data/coffee.png"),
    Photograph("rocket", "skimage", "data/rocket.jpg"),
    Photograph("china", "sklearn", "datasets/images/china.jpg"),
    Photograph("flower", "sklearn", "datasets/images/flower.jpg"),
    *_debian(_LOMIRI_16, "picosdeeuropa_by_Aitzol_Berasategi.jpg", "friends_by_Aitzol_Berasategi.jpg"),
    *_debian(_MATE, "LadyBird.jpg"),
    *_plasma("EveningGlow", "Kite"),
)

TRAINING: Final = (
    *_debian(
        _LOMIRI_16,
        "Bridge_by_Sander_Klootwijk.jpg",
        "Dragonfly_by_Bolly.jpg",
        "Picture_0B_by_freespace.jpg",
        "Picture_1A_by_freespace.jpg",
        "Wine_by_Jakkub_Mede.jpg",
        "aitzgorri_by_Aitzol_Berasategi.jpg",
        "free_by_Peter_Nerlich.jpg",
        "greentock_by_Peter_Nerlich.jpg",
        "life_by_Aitzol_Berasategi.jpg",
        "seeding_by_Clements_Engelhardt.jpg",
        "sunset_by_Aitzol_Berasategi.jpg",
    ),
    *_debian(_LOMIRI_20, "Kleiber_by_Lukas_Baubkus.jpg"),
    *_debian(
        _MATE,
        "Aqua.jpg",
        "Blinds.jpg",
        "Dune.jpg",
        "FreshFlower.jpg",
        "Garden.jpg",
        "GreenMeadow.jpg",
        "RainDrops.jpg",
        "Storm.jpg",
        "TwoWings.jpg",
        "Wood.jpg",
        "YellowFlower.jpg",
    ),
    *_plasma(
        "BytheWater",
        "ColdRipple",
        "ColorfulCups",
        "DarkestHour",
        "FallenLeaf",
        "Grey",
        "OneStandsOut",
        "Path",
        "summer_1am",
    ),
    *_debian(_PLASMA, "Volna/contents/images/5120x2880.jpg"),
    Photograph("motorcycle", "skimage", "data/motorcycle_left.png"),
)

DEBIAN_PACKAGES: Final = sorted({p.package for p in (*HELD_OUT, *TRAINING) if "/share/" in p.path})


def source_path(photograph: Photograph, packages: Path) -> Path:
    """Where the picture lies. `packages` contains one folder per unpacked Debian package.

    Raises:
        HspanError: the package that ships the picture is not there.
    """
    if photograph.package in DEBIAN_PACKAGES:
        path = packages / photograph.package / photograph.path
        hint = f"apt-get download {photograph.package} && dpkg -x *.deb {packages / photograph.package}"
    else:
        spec = importlib.util.find_spec(photograph.package)
        root = Path(spec.origin).parent if spec and spec.origin else Path(photograph.package)
        path = root / photograph.path
        hint = install_command("training")
    if not path.is_file():
        raise HspanError(path, "no such picture", hint)
    return path


def prepare(packages: Path, output: Path, *, report: Callable[[str], None]) -> None:
    """Writes `train/` and `heldout/`, each with `HR/NAME.png` and `LR_bicubic/X{2,4}/NAMEx{2,4}.png`.

    Args:
        packages: contains one folder per unpacked Debian package.
        output: receives the two sets.
        report: called with the name of each finished picture.

    Raises:
        HspanError: a picture is missing or the output cannot be written.
    """
    for folder, photographs, sides in (
        ("heldout", HELD_OUT, (_HELD_OUT_SIDE,)),
        ("train", TRAINING, _TRAINING_SIDES),
    ):
        for photograph in photographs:
            with Image.open(source_path(photograph, packages)) as picture:
                for suffix, pixels in _sizes(picture.convert("RGB"), sides):
                    _write_pair(output / folder, photograph.name + suffix, pixels)
            report(f"{folder}/{photograph.name}")


def _sizes(picture: Image.Image, sides: tuple[int, ...]) -> Iterator[tuple[str, Pixels]]:
    """The picture at each longest side below its own (antialiased), cropped to a multiple of 4."""
    sizes: set[tuple[int, int]] = set()
    for side in sides:
        factor = min(1.0, side / max(picture.size))
        size = (round(picture.width * factor), round(picture.height * factor))
        if size in sizes:
            continue
        sizes.add(size)
        resized = picture if factor == 1.0 else picture.resize(size, Image.Resampling.BICUBIC)
        width, height = (length // _MULTIPLE * _MULTIPLE for length in size)
        yield f"-{side}" if len(sides) > 1 else "", np.asarray(resized.crop((0, 0, width, height)))


def _write_pair(folder: Path, name: str, pixels: Pixels) -> None:
    with atomic_path(folder / "HR" / f"{name}.png") as path:
        Image.fromarray(pixels).save(path)
    for scale in SCALES:
        with atomic_path(folder / "LR_bicubic" / f"X{scale}" / f"{name}x{scale}.png") as path:
            Image.fromarray(downscale(pixels, scale)).save(path)
