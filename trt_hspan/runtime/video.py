"""Videos, frame by frame, by PyAV. Owns decoding, encoding and what is copied; a frame is a picture elsewhere.

Every frame keeps its time stamp, also where frames come at uneven intervals. Audio and subtitles are copied without
being decoded. The matrix between RGB and YUV is the source's on both ways and is written into the result.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.files import atomic_path, error_from_os_error, require_regular_file
from trt_hspan.runtime.jobs import VIDEO_SUFFIXES
from trt_hspan.runtime.pixels import PixelFormat
from trt_hspan.runtime.upscaling import Upscaler

#: Told after each frame: frames that are done, frames in all (None where the file does not say).
OnFrame = Callable[[int, int | None], None]

_DEFAULT_CODECS: Final = {".webm": "libvpx-vp9"}
_DEFAULT_CODEC: Final = "libx264"
_DEFAULT_CRF: Final = {"libx264": 18, "libx265": 20, "libvpx-vp9": 24, "libsvtav1": 24}
# FFmpeg's numbers of the matrices: AVCOL_SPC_BT709, UNSPECIFIED, SMPTE170M.
_BT709, _UNSPECIFIED, _BT601 = 1, 2, 6
_FULL_RANGE: Final = 2  # AVCOL_RANGE_JPEG
_HD_HEIGHT: Final = 720


@dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """How videos are encoded.

    Attributes:
        codec: as FFmpeg names its encoders; None takes libx264, libvpx-vp9 for .webm.
        crf: constant rate factor, smaller is better; None takes 18 for libx264 and what corresponds for others.

    Raises:
        UsageError: a CRF outside 0 to 63.
    """

    codec: str | None = None
    crf: int | None = None

    def __post_init__(self) -> None:
        if self.crf is not None and not 0 <= self.crf <= 63:
            raise UsageError("--crf", f"got {self.crf}, expected 0 to 63")


DEFAULT_VIDEO: Final = VideoOptions()


@dataclass(frozen=True, kw_only=True)
class UpscaledVideo:
    """What became of a video. Sizes in pixels.

    Attributes:
        backend: label of the runner.
        frames: number of them.
        frames_per_second: mean.
        codec: the encoder.
        copied_streams: audio and subtitle streams that were copied.
        dropped_streams: those that the target's format cannot hold, each with the reason.
    """

    backend: str
    input_height: int
    input_width: int
    output_height: int
    output_width: int
    frames: int
    frames_per_second: float | None
    codec: str
    copied_streams: int
    dropped_streams: tuple[str, ...]


def require_encoder(options: VideoOptions) -> None:
    """Checks, before any work, that PyAV is there and knows the codec.

    Raises:
        HspanError: PyAV is not installed.
        UsageError: it has no such video encoder.
    """
    av = _av()
    if options.codec is None:
        return
    try:
        codec = av.codec.Codec(options.codec, "w")
    except (ValueError, av.error.FFmpegError) as error:
        raise UsageError(
            "--codec",
            f"no encoder is named {options.codec!r}",
            "try libx264, libx265, libsvtav1 or libvpx-vp9",
        ) from error
    if codec.type != "video":
        raise UsageError("--codec", f"{options.codec} encodes {codec.type}, not video")


def upscale_video(
    upscaler: Upscaler,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    options: VideoOptions = DEFAULT_VIDEO,
    *,
    on_frame: OnFrame | None = None,
) -> UpscaledVideo:
    """Up-scales a video; audio, subtitles, timing and metadata stay. The file appears whole or not at all.

    Videos of more than 8 bits a sample are decoded to 16 and encoded to 10. A turned video (as telephones write
    them) is turned upright.

    Args:
        upscaler: with an active runner.
        source: any container and codec that FFmpeg reads.
        target: ends in .mp4, .mkv, .mov, .webm, .avi or .m4v.
        options: codec and quality.
        on_frame: told after each frame.

    Raises:
        UsageError: the target's suffix is not a video's, or the codec is unknown.
        HspanError: PyAV is not installed; the source cannot be read, is damaged or holds no video; the target
            cannot be written, or its codec cannot hold such frames; a frame fails as a picture would.
    """
    source, target = Path(source), Path(target)
    if target.suffix.lower() not in VIDEO_SUFFIXES:
        raise UsageError(
            target, f"cannot tell the format from {target.suffix!r}", f"end it in {', '.join(VIDEO_SUFFIXES)}"
        )
    require_encoder(options)
    with _opened(source) as container, atomic_path(target) as temporary:
        return _Transcoding(upscaler, source, target, options, container).run(temporary, on_frame)


def video_frames(path: Path) -> tuple[int, int, int] | None:
    """(frames, height, width) by the file's header, for progress; None where it does not say."""
    try:
        with _opened(path) as container:
            video = container.streams.video[0]
            count = _frame_count(container, video)
            return None if count is None else (count, video.height, video.width)
    except (HspanError, IndexError):
        return None


class _Transcoding:
    """One video on its way. Lives for one call of `upscale_video`."""

    def __init__(
        self, upscaler: Upscaler, source: Path, target: Path, options: VideoOptions, container: Any
    ) -> None:
        self._av = _av()
        self._upscaler, self._source, self._target, self._options = upscaler, source, target, options
        self._container = container
        videos = [
            s for s in container.streams.video if not s.disposition & self._av.stream.Disposition.attached_pic
        ]
        if not videos:
            raise HspanError(source, "holds no video stream", "give a video")
        self._video = videos[0]
        self._codec = options.codec or _DEFAULT_CODECS.get(target.suffix.lower(), _DEFAULT_CODEC)
        context = self._video.codec_context
        self._deep = bool(context.format) and context.format.components[0].bits > 8
        matrix = int(context.colorspace)
        if matrix in (_UNSPECIFIED, 0):
            matrix = _BT709 if context.height >= _HD_HEIGHT else _BT601
        self._matrix = matrix
        self._range = int(context.color_range)
        self._encoder: Any = None
        self._sizes = (0, 0, 0, 0)

    def run(self, temporary: Path, on_frame: OnFrame | None) -> UpscaledVideo:
        av, done = self._av, 0
        total = _frame_count(self._container, self._video)
        try:
            with av.open(str(temporary), "w") as output:
                output.metadata.update(self._container.metadata)
                copied, dropped = self._copied_streams(output)
                stream = self._added_stream(output)
                waiting: list[Any] = []  # copied packets
                wanted = [self._video, *copied]
                for packet in self._packets(wanted):
                    if packet.stream is not self._video:
                        if packet.dts is not None:
                            packet.stream = copied[packet.stream]
                            waiting.append(packet)
                        if self._encoder is None:
                            continue  # the header, written with the first packet, says how large frames are
                        while waiting:
                            output.mux(waiting.pop(0))
                        continue
                    for frame in self._decoded(packet):
                        output.mux(self._encoded(stream, frame))
                        done += 1
                        if on_frame is not None:
                            on_frame(done, total)
                if not done:
                    raise HspanError(self._source, "holds no frame that can be read", "copy it again")
                for packet in (*waiting, *stream.encode(None)):
                    output.mux(packet)
        except av.error.FFmpegError as error:
            if isinstance(error, OSError) and error.errno and error.errno > 0:
                raise error_from_os_error(self._target, error) from error
            raise HspanError(
                self._target,
                f"{self._codec} cannot write {self._sizes[3]}x{self._sizes[2]} pixels here: {error}",
                "choose another --codec or container",
            ) from error
        rate = self._video.average_rate
        return UpscaledVideo(
            backend=self._upscaler.runner.label,
            input_height=self._sizes[0],
            input_width=self._sizes[1],
            output_height=self._sizes[2],
            output_width=self._sizes[3],
            frames=done,
            frames_per_second=None if rate is None else float(rate),
            codec=self._codec,
            copied_streams=len(copied),
            dropped_streams=tuple(dropped),
        )

    def _added_stream(self, output: Any) -> Any:
        try:
            return output.add_stream(self._codec, rate=self._video.average_rate or 25)
        except ValueError as error:
            raise HspanError(self._target, str(error), "choose another --codec or container") from error

    def _copied_streams(self, output: Any) -> tuple[dict[Any, Any], list[str]]:
        copied: dict[Any, Any] = {}
        dropped = []
        for stream in self._container.streams:
            if stream.type not in ("audio", "subtitle"):
                continue
            try:
                copied[stream] = output.add_stream_from_template(stream)
            except (ValueError, self._av.error.FFmpegError) as error:
                dropped.append(f"{stream.type} stream {stream.index}: {error}")
        return copied, dropped

    def _configure(self, stream: Any, height: int, width: int) -> None:
        scale = self._upscaler.scale
        self._sizes = (height, width, height * scale, width * scale)
        stream.height, stream.width = height * scale, width * scale
        halved = (height * scale) % 2 == 0 and (width * scale) % 2 == 0
        stream.pix_fmt = ("yuv420p" if halved else "yuv444p") + ("10le" if self._deep else "")
        stream.time_base = self._video.time_base
        stream.codec_context.time_base = self._video.time_base or Fraction(1, 90_000)
        context = self._video.codec_context
        stream.codec_context.colorspace = self._matrix
        stream.codec_context.color_range = self._range
        stream.codec_context.color_primaries = context.color_primaries
        stream.codec_context.color_trc = context.color_trc
        crf = self._options.crf if self._options.crf is not None else _DEFAULT_CRF.get(self._codec)
        settings = {} if crf is None else {"crf": str(crf)}
        if self._codec.startswith("libvpx"):
            settings["b"] = "0"  # without it libvpx takes the CRF for a limit only
        if self._target.suffix.lower() == ".avi":
            settings["bf"] = "0"  # AVI stores no time stamps, so frames must come in order
        stream.options = settings
        self._encoder = stream

    def _packets(self, streams: list[Any]) -> Iterator[Any]:
        try:
            yield from self._container.demux(streams)
        except self._av.error.FFmpegError as error:
            raise self._damaged(error) from error

    def _decoded(self, packet: Any) -> list[Any]:
        try:
            return list(packet.decode())
        except self._av.error.FFmpegError as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> HspanError:
        return HspanError(
            self._source, f"a damaged or truncated video ({error})", "copy or download it again"
        )

    def _encoded(self, stream: Any, frame: Any) -> Any:
        pixels = self._rgb(frame)
        height, width = pixels.shape[:2]
        if self._encoder is None:
            self._configure(stream, height, width)
        elif (height, width) != self._sizes[:2]:
            raise HspanError(
                self._source,
                f"its frames change from {self._sizes[1]}x{self._sizes[0]} to {width}x{height} pixels",
                "cut the video there first",
            )
        kind = PixelFormat.of(pixels, where=self._source)
        result = self._upscaler.whole(pixels, kind, what=self._source)
        made = self._av.VideoFrame.from_ndarray(result, format="rgb48le" if self._deep else "rgb24")
        made = made.reformat(
            format=stream.pix_fmt,
            src_color_range=_FULL_RANGE,
            dst_colorspace=self._matrix,
            dst_color_range=self._range or 1,
        )
        made.pts, made.time_base, made.duration = frame.pts, frame.time_base, frame.duration
        return stream.encode(made)

    def _rgb(self, frame: Any) -> npt.NDArray[Any]:
        converted = frame.reformat(
            format="rgb48le" if self._deep else "rgb24",
            src_colorspace=self._matrix,
            src_color_range=self._range or 1,
            dst_color_range=_FULL_RANGE,
        )
        pixels: npt.NDArray[Any] = converted.to_ndarray()
        turns = round(getattr(frame, "rotation", 0) / 90) % 4
        return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def _frame_count(container: Any, video: Any) -> int | None:
    if video.frames:
        return int(video.frames)
    if video.average_rate and container.duration:
        seconds = float(container.duration) / 1_000_000
        return max(1, round(float(video.average_rate) * seconds))
    return None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    av = _av()
    if path.is_dir():
        raise HspanError(path, "is a folder, expected a video", "name a video in it")
    require_regular_file(path)
    try:
        container = av.open(str(path))
    except (OSError, ValueError, av.error.FFmpegError) as error:
        if isinstance(error, (FileNotFoundError, PermissionError)):
            raise error_from_os_error(path, error, action="read") from error
        raise HspanError(
            path, f"not a video that can be read ({error})", "copy or download it again"
        ) from error
    with container:
        yield container


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise HspanError(
            "video",
            f"needs PyAV, which cannot be loaded ({error})",
            "install it with pip install 'trt-hspan[media]'",
        ) from error
    return av
