"""The encoder that a video is written with: which one, and how it is set."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Final

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.machine.install_advice import install_command

_DEFAULT_CODECS: Final = {".webm": "libvpx-vp9"}
_DEFAULT_CODEC: Final = "libx264"
# Codec -> its default and its largest constant rate factor.
_RATE_FACTORS: Final[dict[str, tuple[int | None, int]]] = {
    **{"libx264": (18, 51), "libx264rgb": (18, 51), "libx265": (20, 51)},
    **{"libvpx": (None, 63), "libvpx-vp9": (24, 63), "libsvtav1": (24, 63), "libaom-av1": (None, 63)},
}
# Pixel formats of 8 and of 10 bits, from the least to the most chroma.
_FORMATS_8: Final = ("yuv420p", "yuv422p", "yuv444p", "gbrp", "bgr0", "rgb24")
_FORMATS_10: Final = ("yuv420p10le", "yuv422p10le", "yuv444p10le", "gbrp10le")
# Encoders of formats that leave no choice where the samples of halved chroma lie.
_CHROMA_LOCATIONS: Final = {"mpeg1video": "center", "mpeg2video": "left", "mpeg4": "left"}


@dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """How videos are encoded.

    None takes libx264, libvpx-vp9 for .webm, and their constant rate factors of `_RATE_FACTORS`; smaller is better.

    Raises:
        UsageError: a CRF outside 0 to 63.
    """

    codec: str | None = None
    crf: int | None = None

    def __post_init__(self) -> None:
        if self.crf is not None and not 0 <= self.crf <= 63:
            raise UsageError("--crf", f"got {self.crf}, expected 0 to 63")


DEFAULT_VIDEO: Final = VideoOptions()


def require_encoder(options: VideoOptions) -> None:
    """Checks, before any work, that PyAV is installed and has the codec, and that the codec has such a CRF."""
    load_av()
    if options.codec is not None:
        VideoEncoder(options, "")


class VideoEncoder:
    """An encoder of FFmpeg, for files of one suffix.

    Raises:
        UsageError: there is none of that name, it encodes no video, or it has no such CRF.
    """

    def __init__(self, options: VideoOptions, suffix: str) -> None:
        av, self._suffix = load_av(), suffix
        named = options.codec or _DEFAULT_CODECS.get(suffix, _DEFAULT_CODEC)
        try:
            codec = av.codec.Codec(named, "w")
        except (ValueError, av.error.FFmpegError) as error:
            raise UsageError(
                "--codec", f"no encoder is named {named!r}", "try libx264, libx265, libsvtav1 or libvpx-vp9"
            ) from error
        if codec.type != "video":
            raise UsageError("--codec", f"{named} encodes {codec.type}, not video")
        self.name: str = codec.name
        self._offered = {kind.name for kind in codec.video_formats or ()}
        usual, largest = _RATE_FACTORS.get(self.name, (None, None))
        self._crf = usual if options.crf is None else options.crf
        if options.crf is not None and largest is None:
            raise UsageError("--crf", f"{self.name} has no constant rate factor", "leave it out")
        if options.crf is not None and largest is not None and options.crf > largest:
            raise UsageError("--crf", f"got {options.crf}, {self.name} takes 0 to {largest}")

    def pixel_format(self, least: int, *, deep: bool) -> tuple[str, bool]:
        """The best one that it takes, and whether that has more than 8 bits.

        10 bits where `deep`, then the chroma of place `least` (of 4:2:0, 4:2:2, 4:4:4 and RGB) or the next finer.
        """
        formats = [
            name
            for names in ((_FORMATS_10, _FORMATS_8) if deep else (_FORMATS_8, _FORMATS_10))
            for name in (*names[least:], *reversed(names[:least]))
        ]
        kind = next((name for name in formats if name in self._offered), formats[0])
        return kind, kind in _FORMATS_10

    def chroma_location(self, of_source: str) -> str:
        """Where the samples of halved chroma lie: as in the source, where its format can say so."""
        return _CHROMA_LOCATIONS.get(self.name) or of_source

    def configure(self, stream: Any, location: str) -> None:
        """Sets an output stream's options: quality, where chroma lies, and what its container needs."""
        settings = {} if self._crf is None else {"crf": str(self._crf)}
        if self.name not in _CHROMA_LOCATIONS:
            settings["chroma_sample_location"] = location
        if self.name.startswith("libvpx"):
            settings["b"] = "0"  # without it libvpx treats the CRF as a limit only
        if self.name == "libx265":
            settings["x265-params"] = "log-level=error"
            if self._suffix in (".mp4", ".mov", ".m4v"):
                stream.codec_context.codec_tag = "hvc1"  # Apple's players open no other
        if self.name == "libsvtav1":
            os.environ.setdefault("SVT_LOG", "1")  # errors only
        if self._suffix == ".avi":
            settings["bf"] = "0"  # frames must come in order
            if self.name == "libx264":
                # With times in the stream, or FFmpeg's readers show each frame one late.
                settings["x264-params"] = "nal-hrd=vbr:vbv-maxrate=1000000:vbv-bufsize=1000000"
        stream.options = settings


def load_av() -> Any:
    """PyAV. Raises: HspanError when it cannot be loaded."""
    try:
        import av
    except ImportError as error:
        raise HspanError(
            "video",
            f"needs PyAV, which cannot be loaded ({error})",
            f"install it with {install_command('media')}",
        ) from error
    return av
