"""Picture files and the tensors made of them. Owns formats and color modes; knows nothing of networks."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.files import atomic_path, error_from_os_error, require_regular_file

if TYPE_CHECKING:
    from PIL import Image

Uint8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]

# What is read. Not on the list: formats whose Pillow plugins start other programs, as EPS does.
READ_FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
# What is written, by suffix: Pillow's format and the options that lose the least.
WRITE_FORMATS: Final[dict[str, tuple[str, dict[str, object]]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True, "exact": True}),
    ".bmp": ("BMP", {}),
    ".tif": ("TIFF", {"compression": "tiff_deflate"}),
    ".tiff": ("TIFF", {"compression": "tiff_deflate"}),
}
# How files of READ_FORMATS begin, and the suffix of a result of the same kind.
_STARTS: Final[dict[bytes, str]] = {
    b"\x89PNG\r\n\x1a\n": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"RIFF": ".webp",
    b"BM": ".bmp",
    b"II": ".tif",
    b"MM": ".tif",
    b"GIF8": ".png",
    **{b"P%d" % kind: ".png" for kind in range(1, 7)},
}
# Pixels that a side may have in libjpeg and in libwebp.
_LONGEST_SIDES: Final = {".jpg": 65500, ".jpeg": 65500, ".webp": 16383}
READ_SUFFIXES: Final = (*WRITE_FORMATS, ".gif", ".ppm", ".pgm", ".pnm")
MAX_PIXELS: Final = 1 << 27  # 134 million: more than any camera's picture, less than would fill the memory
# Pillow's decoders meet damaged files with any of these.
DAMAGE: Final = (
    SyntaxError,
    ValueError,
    EOFError,
    TypeError,
    LookupError,
    OverflowError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    zlib.error,
)


def read_image(path: str | os.PathLike[str]) -> Uint8Array:
    """Reads a picture as it is meant to be seen.

    Turned upright by its EXIF orientation. Gray and palette become RGB, 16-bit gray is scaled to 8 bits
    (rounded; Pillow itself reads 16-bit color as its upper 8 bits), CMYK is converted without a color
    profile, transparency is laid on white, and of an animation the first frame is taken.

    Args:
        path: PNG, JPEG, WebP, BMP, TIFF, GIF or PPM, recognized by content.

    Returns:
        (H, W, 3) uint8 RGB, 0..255, writable.

    Raises:
        HspanError: missing, a folder, empty, not a picture, truncated, of more than `MAX_PIXELS` pixels, or
            in a mode without a fixed range or a plain way to RGB (float, 32-bit integer, LAB).
    """
    from PIL import ImageOps

    source = Path(path)
    with _opened(source) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd tags; what matters is raised
        try:
            image.load()
            upright = ImageOps.exif_transpose(image)
            rgb = _rgb_from_pillow(upright, source)
        except OSError as error:
            raise damaged(source, error) from error
        except DAMAGE as error:
            raise damaged(source, error) from error
        return np.array(rgb, dtype=np.uint8)


def size_from_image_file(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(height, width) in pixels that `read_image` would give, from the file's header alone.

    Raises:
        HspanError: as `read_image`, except that a truncated file may pass.
    """
    source = Path(path)
    with _opened(source) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            orientation = image.getexif().get(0x0112, 1)
        except (OSError, *DAMAGE) as error:
            raise damaged(source, error) from error
        width, height = image.size
    # EXIF orientations 5 to 8 are the ones with a quarter turn.
    return (width, height) if orientation in (5, 6, 7, 8) else (height, width)


def _opened(path: Path) -> Image.Image:
    if path.is_dir():
        raise HspanError(path, "is a folder, expected a picture", "name a picture in it")
    try:
        if path.stat().st_size == 0:
            raise HspanError(path, "is empty (0 bytes), expected a picture", "copy or download it again")
    except OSError as error:
        raise error_from_os_error(path, error, action="read") from error
    return opened(path, path)


def opened(source: Path | io.BytesIO, where: object) -> Image.Image:
    """Opens a picture with Pillow, its header only.

    Args:
        source: the file, or its bytes.
        where: what an error is about.

    Raises:
        HspanError: not a picture, damaged, or of more than `MAX_PIXELS` pixels.
    """
    from PIL import Image, UnidentifiedImageError

    if isinstance(source, Path):
        require_regular_file(source)
    try:
        with warnings.catch_warnings():
            # Pillow's remarks on odd tags and its milder limit of size; the check below replaces that.
            warnings.simplefilter("ignore")
            image = Image.open(source, formats=READ_FORMATS)
    except UnidentifiedImageError as error:
        raise not_a_picture(where) from error
    except Image.DecompressionBombError as error:
        raise HspanError(where, f"too large: {error}", "cut it into smaller pictures") from error
    except OSError as error:
        if error.errno is None or not isinstance(source, Path):
            raise damaged(where, error) from error
        raise error_from_os_error(source, error, action="read") from error
    except DAMAGE as error:
        raise damaged(where, error) from error
    try:
        require_accepted(image.height, image.width, where)
    except HspanError:
        image.close()
        raise
    return image


def require_accepted(height: int, width: int, where: object) -> None:
    """Raises: HspanError for more than `MAX_PIXELS` pixels, which no picture in memory may have."""
    if width * height > MAX_PIXELS:
        raise HspanError(
            where,
            f"claims {width}x{height} pixels, more than the {MAX_PIXELS / 1e6:.0f} million accepted",
            "cut it into smaller pictures",
        )


def suffix_from_start(start: bytes) -> str | None:
    """The suffix of files that begin so, .png for formats that are not written; None for no known picture."""
    return next((suffix for magic, suffix in _STARTS.items() if start.startswith(magic)), None)


def not_a_picture(where: object) -> HspanError:
    """The one line for bytes that no decoder knows."""
    return HspanError(where, "not a picture that can be read", f"give {', '.join(READ_FORMATS[:-1])} or PPM")


def damaged(where: object, error: BaseException) -> HspanError:
    """The one line that a decoder's complaint deserves."""
    reason = str(error).strip().split("\n", maxsplit=1)[0][:120] or type(error).__name__
    return HspanError(where, f"a damaged or truncated picture ({reason})", "copy or download it again")


def _rgb_from_pillow(image: Image.Image, path: Path) -> Image.Image:
    from PIL import Image

    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        levels = np.asarray(image).astype(np.float64) / 257.0
        return Image.fromarray(np.rint(levels).astype(np.uint8)).convert("RGB")
    if image.mode in ("1", "L", "CMYK", "YCbCr", "HSV", "RGBX") or (
        image.mode == "P" and "transparency" not in image.info
    ):
        return image.convert("RGB")
    if image.mode in ("P", "PA", "LA", "La", "RGBA", "RGBa"):
        straight = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", straight.size, "white"), straight).convert("RGB")
    raise HspanError(
        path, f"its color mode {image.mode} has no plain way to 8-bit RGB", "convert it to an RGB picture"
    )


def require_writable_suffix(path: str | os.PathLike[str]) -> None:
    """Checks, before any work, that `write_image` knows the format.

    Raises:
        UsageError: a suffix that is not a picture's, or the name of a folder.
    """
    target = Path(path)
    if target.is_dir():
        raise UsageError(target, "is a folder, expected a picture's name", "name a file in it")
    if target.suffix.lower() not in WRITE_FORMATS:
        raise UsageError(
            target, f"cannot tell the format from {target.suffix!r}", f"end it in {', '.join(WRITE_FORMATS)}"
        )


def require_sides(path: str | os.PathLike[str], height: int, width: int) -> None:
    """Checks, before any work, that the format can hold a picture with such sides.

    Raises:
        HspanError: a side is longer than JPEG's 65500 or WebP's 16383 pixels.
    """
    suffix = Path(path).suffix.lower()
    most = _LONGEST_SIDES.get(suffix)
    if most is not None and max(height, width) > most:
        raise HspanError(
            path,
            f"{suffix} cannot hold {width}x{height} pixels, its sides have at most {most}",
            "name a .png or .tif file",
        )


def write_image(path: str | os.PathLike[str], image: Uint8Array) -> None:
    """Writes a picture, whole or not at all; the suffix says the format.

    PNG, WebP, BMP and TIFF are lossless; JPEG is written with quality 95 and full color resolution.

    Args:
        path: ends in .png, .jpg, .jpeg, .webp, .bmp, .tif or .tiff.
        image: (H, W, 3) uint8 RGB.

    Raises:
        UsageError: another suffix, or the name of a folder.
        HspanError: not an (H, W, 3) uint8 array, the folder cannot be written, the disk is full, or the
            format cannot hold a picture this large (JPEG 65535, WebP 16383 pixels a side).
    """
    from PIL import Image

    target = Path(path)
    require_writable_suffix(target)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise HspanError(target, f"expected pixels as (H, W, 3) uint8, got {image.shape} {image.dtype}")
    name, options = WRITE_FORMATS[target.suffix.lower()]
    with atomic_path(target) as temporary:
        try:
            Image.fromarray(image).save(temporary, format=name, **options)
        except OSError as error:
            if error.errno is not None:
                raise
            raise _unencodable(target, name, image, error) from error
        except DAMAGE as error:
            raise _unencodable(target, name, image, error) from error


def _unencodable(path: Path, name: str, image: Uint8Array, error: BaseException) -> HspanError:
    height, width = image.shape[:2]
    return HspanError(path, f"{name} cannot hold {width}x{height} pixels ({error})", "write .png instead")


def tensor_from_image(image: Uint8Array) -> Float32Array:
    """(H, W, 3) uint8 in 0..255 -> (1, 3, H, W) float32 in [0, 1], contiguous."""
    planes = np.ascontiguousarray(image.transpose(2, 0, 1))[None]
    return planes.astype(np.float32) / np.float32(255)


def image_from_tensor(tensor: npt.NDArray[np.floating], *, where: object = "network output") -> Uint8Array:
    """A network's output as a picture: times 255, clamped to 0..255, rounded half to even (as the official
    code).

    Args:
        tensor: (1, 3, H, W) or (3, H, W), nominally in [0, 1].
        where: what an error is about.

    Returns:
        (H, W, 3) uint8.

    Raises:
        HspanError: another shape, or a value that is NaN or infinite: such a pixel is never painted black or
            white.
    """
    planes = tensor[0] if tensor.ndim == 4 and tensor.shape[0] == 1 else tensor
    if planes.ndim != 3 or planes.shape[0] != 3:
        raise HspanError(where, f"expected shape (1, 3, H, W), got {tensor.shape}")
    broken = int(planes.size - np.count_nonzero(np.isfinite(planes)))
    if broken:
        raise HspanError(
            where,
            f"{broken} of {planes.size} values are NaN or infinite",
            "try --precision fp32 or bf16: FP16 overflows at 65504",
        )
    levels = np.clip(planes * planes.dtype.type(255), 0, 255)
    return np.ascontiguousarray(np.rint(levels).astype(np.uint8).transpose(1, 2, 0))
