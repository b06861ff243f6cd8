"""Stored reference outputs: what PyTorch computed elsewhere, to compare an engine with where there is no PyTorch.

Owns the file and the comparison. A file is an .npz of numpy: `about`, one JSON text, and for each picture NAME
`input/NAME`, (H, W, 3) uint8 RGB, and `output/NAME`, (3, scale * H, scale * W) float32, neither clamped nor rounded.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.evaluation.metrics import Agreement, agreement, default_bar_db
from trt_hspan.files import atomic_path, error_from_os_error
from trt_hspan.media.pictures import read_image
from trt_hspan.media.pixels import tensor_from_image
from trt_hspan.runtime.runner import CHANNELS, Float32Array, Runner
from trt_hspan.sizes import ImageSize
from trt_hspan.upscaling.options import UpscaleOptions
from trt_hspan.upscaling.tile_size import require_size
from trt_hspan.upscaling.upscaler import upscale_batch

SUFFIX: Final = ".npz"
#: References of the shipped networks.
SHIPPED_FOLDER: Final = Path(__file__).parent.parent / "data" / "reference"
_FORMAT: Final = 1
_LARGEST_BYTES: Final = 1 << 30
_REMAKE: Final = "make it where PyTorch is: trt-hspan jetson reference CHECKPOINT -o ref.npz"


@dataclass(frozen=True, kw_only=True)
class ReferencePicture:
    """One picture, (H, W, 3) uint8 RGB, and the network's output, (3, scale * H, scale * W) float32."""

    name: str
    picture: npt.NDArray[np.uint8]
    output: Float32Array


@dataclass(frozen=True, kw_only=True)
class StoredReference:
    """What one network gives for some pictures, at least one.

    `source_sha256` is the hash of its checkpoint, which ties the reference to engines; `made_by` backend and precision.
    """

    network: str
    source_sha256: str
    scale: int
    res_scale: float
    made_by: str
    pictures: tuple[ReferencePicture, ...]


@dataclass(frozen=True, kw_only=True)
class ReferenceReport:
    """How an engine agrees with a reference; it passes when the worst picture reaches the bar and nothing is NaN."""

    candidate: str
    reference: str
    emulated: bool
    why_emulated: str | None
    agreements: Mapping[str, Agreement]
    min_psnr_db: float
    passed: bool

    @property
    def worst(self) -> tuple[str, Agreement]:
        """The picture with the smallest PSNR; one with NaN before all others."""
        return min(self.agreements.items(), key=lambda item: (item[1].nan_count == 0, item[1].psnr_db))


def made_reference(
    checkpoint: str, pictures: Mapping[str, npt.NDArray[np.uint8]], *, res_scale: float | None = None
) -> StoredReference:
    """Runs a network in PyTorch, in float32 on the CPU, on (H, W, 3) uint8 pictures by name, each as a whole."""
    from trt_hspan.runtime.memory import require_memory
    from trt_hspan.runtime.opening import open_runner

    with open_runner(checkpoint, device="cpu", res_scale=res_scale) as runner:
        assert runner.source_sha256 is not None
        assert runner.res_scale is not None
        computed = []
        for name, picture in pictures.items():
            batch = tensor_from_image(picture)
            require_memory(runner, (1, CHANNELS, *picture.shape[:2]), name)
            computed.append(ReferencePicture(name=name, picture=picture, output=runner.run(batch)[0]))
        return StoredReference(
            network=checkpoint if Path(checkpoint).name == checkpoint else Path(checkpoint).name,
            source_sha256=runner.source_sha256,
            scale=runner.scale,
            res_scale=runner.res_scale,
            made_by=runner.label,
            pictures=tuple(computed),
        )


def default_pictures() -> dict[str, npt.NDArray[np.uint8]]:
    """What the shipped references are made of: a piece of the shipped photograph, and a flat area.

    The photograph, 32x40 pixels, has rows of scores with few keys. In the flat picture, 40x48 with a darker square,
    more than a thousand positions have equal scores: rows that pass the length of the kernels' lists.
    """
    from trt_hspan.data import DEMO_PHOTOGRAPH

    photograph = read_image(DEMO_PHOTOGRAPH)[100:132, 180:220]
    flat = np.full((40, 48, CHANNELS), (168, 120, 72), np.uint8)
    flat[4:10, 4:10] = (40, 48, 56)
    return {"photograph": np.ascontiguousarray(photograph), "flat": flat}


def pictures_from_files(paths: Sequence[Path]) -> dict[str, npt.NDArray[np.uint8]]:
    """Pictures by their file names without suffix. Raises: HspanError for one that cannot be read, or two of a name."""
    pictures: dict[str, npt.NDArray[np.uint8]] = {}
    for path in paths:
        if path.stem in pictures:
            raise UsageError(path, "has the name of another picture", "rename one of them")
        pictures[path.stem] = read_image(path)
    return pictures


def write_reference(path: Path, reference: StoredReference) -> None:
    """Writes the file, whole or not at all. Raises: UsageError for another suffix than .npz; HspanError as `files`."""
    require_reference_name(path)
    about = {
        "format": _FORMAT,
        **{name: getattr(reference, name) for name in _ABOUT},
        "pictures": [picture.name for picture in reference.pictures],
    }
    arrays: dict[str, npt.NDArray[Any]] = {"about": np.array(json.dumps(about))}
    for picture in reference.pictures:
        arrays[f"input/{picture.name}"] = picture.picture
        arrays[f"output/{picture.name}"] = picture.output
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]


def require_reference_name(path: Path) -> None:
    """Raises: UsageError when a reference cannot have this name."""
    if path.suffix != SUFFIX:
        raise UsageError("--output", f"got {str(path)!r}", f"name a file that ends in {SUFFIX}")


def read_reference(path: Path) -> StoredReference:
    """Reads a file that `write_reference` wrote; nothing in it is executed."""
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _LARGEST_BYTES:
                raise HspanError(path, f"unpacks to more than {_LARGEST_BYTES >> 30} GiB", _REMAKE)
        with np.load(path, allow_pickle=False) as arrays:
            return _reference_from_arrays(arrays)
    except OSError as error:
        raise error_from_os_error(path, error, action="read") from error
    except _WRONG as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise HspanError(path, f"is not a reference, or damaged: {why[:120]}", _REMAKE) from error


def shipped_reference(source_sha256: str | None) -> StoredReference | None:
    """The shipped reference of the network with this source; None when none is shipped."""
    for path in sorted(SHIPPED_FOLDER.glob(f"*{SUFFIX}")):
        reference = read_reference(path)
        if reference.source_sha256 == source_sha256:
            return reference
    return None


def reference_for(runner: Runner, path: Path | None) -> StoredReference:
    """The reference of a runner's network: from a file, or, where `path` is None, what is shipped for its source."""
    if runner.source_sha256 is None:
        raise HspanError(
            runner.where,
            "does not say which checkpoint it comes from",
            "build it from an export of trt-hspan",
        )
    reference = shipped_reference(runner.source_sha256) if path is None else read_reference(path)
    short = f"{runner.source_sha256[:12]}..."
    if reference is None:
        raise HspanError(
            runner.where,
            f"no reference is shipped for its network, whose checkpoint has SHA-256 {short}",
            f"{_REMAKE}, and name it by --reference",
        )
    _require_same_network(runner, reference, path)
    return reference


def _require_same_network(runner: Runner, reference: StoredReference, path: Path | None) -> None:
    if reference.source_sha256 != runner.source_sha256:
        raise HspanError(
            path,
            f"is of {reference.network} ({reference.source_sha256[:12]}...), {runner.where} is of another checkpoint "
            f"({str(runner.source_sha256)[:12]}...)",
            _REMAKE,
        )
    if runner.res_scale not in (None, reference.res_scale) or runner.scale != reference.scale:
        raise HspanError(
            path or runner.where,
            f"the reference is of res_scale {reference.res_scale:g} and scale {reference.scale}, {runner.where} of "
            f"res_scale {runner.res_scale} and scale {runner.scale}",
            f"{_REMAKE} --res-scale {runner.res_scale}",
        )


def compared_with_reference(
    runner: Runner,
    reference: StoredReference,
    *,
    min_psnr_db: float | None = None,
    on_picture: Callable[[str], None] = lambda _: None,
) -> ReferenceReport:
    """Runs the network on the reference's pictures, each as a whole, and compares raw outputs.

    Args:
        runner: not active yet.
        min_psnr_db: the bar for the worst picture; None is `default_bar_db` of the network's precision.
    """
    for picture in reference.pictures:
        require_size(runner, ImageSize(*picture.picture.shape[:2]), f"the reference's picture {picture.name}")
    bar_db = default_bar_db(runner.precision) if min_psnr_db is None else min_psnr_db
    agreements = {}
    with runner:
        for picture in reference.pictures:
            output = upscale_batch(runner, tensor_from_image(picture.picture), UpscaleOptions(tile="none"))
            agreements[picture.name] = agreement(output[0], picture.output)
            on_picture(picture.name)
    return ReferenceReport(
        candidate=runner.label,
        reference=f"{reference.network}, {reference.made_by}",
        emulated=runner.emulated,
        why_emulated=runner.why_emulated,
        agreements=agreements,
        min_psnr_db=bar_db,
        passed=all(figures.psnr_db >= bar_db for figures in agreements.values()),  # NaN reaches no bar
    )


_ABOUT: Final[tuple[str, ...]] = ("network", "source_sha256", "scale", "res_scale", "made_by")
_WRONG: Final = (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, RecursionError)


def _reference_from_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> StoredReference:
    """Raises: one of `_WRONG` for everything that is not as `write_reference` writes it."""
    about = json.loads(str(arrays["about"]))
    if about["format"] != _FORMAT:
        raise ValueError(f"format {about['format']!r}, expected {_FORMAT}")
    scale, names = about["scale"], about["pictures"]
    types = {"network": str, "source_sha256": str, "scale": int, "res_scale": float, "made_by": str}
    for name, kind in types.items():
        if type(about[name]) is not kind:
            raise ValueError(f"{name} is {about[name]!r}")
    if not names or not isinstance(names, list):
        raise ValueError("it contains no pictures")
    pictures = []
    for name in names:
        picture, output = arrays[f"input/{name}"], arrays[f"output/{name}"]
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != CHANNELS or not picture.size:
            raise ValueError(f"input {name} is {picture.dtype} {picture.shape}")
        expected = (CHANNELS, scale * picture.shape[0], scale * picture.shape[1])
        if output.dtype != np.float32 or output.shape != expected:
            raise ValueError(f"output {name} is {output.dtype} {output.shape}, expected float32 {expected}")
        pictures.append(ReferencePicture(name=str(name), picture=picture, output=output))
    return StoredReference(**{name: about[name] for name in _ABOUT}, pictures=tuple(pictures))
