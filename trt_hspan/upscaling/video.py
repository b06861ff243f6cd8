"""Videos, frame by frame, by PyAV.

Every frame keeps its time stamp, also where frames come at uneven intervals. Audio and subtitles are copied without
being decoded (`video_streams`). Colors are the source's in both directions and its tags are written into the result
(`video_colors`). Whatever cannot be kept is reported, one line each.
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

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.files import atomic_path, error_from_os_error, require_regular_file
from trt_hspan.media.formats import VIDEO_SUFFIXES
from trt_hspan.media.pixels import require_finite
from trt_hspan.runtime.runner import Float32Array
from trt_hspan.sizes import ImageSize
from trt_hspan.upscaling.upscaler import Upscaler
from trt_hspan.upscaling.video_colors import (
    FULL_RANGE,
    LIMITED_RANGE,
    RGB,
    FrameWriter,
    bits_of_frame,
    chroma_location,
    has_linear_matrix,
    is_gray,
    matrix_of_frame,
    rgb_from_frame,
)
from trt_hspan.upscaling.video_encoder import (
    DEFAULT_VIDEO,
    VideoEncoder,
    VideoOptions,
    load_av,
    require_encoder,
)
from trt_hspan.upscaling.video_streams import StreamPlan, is_cover, planned_streams

#: Called after each frame with the frames that are done and frames in all (None where the file does not say).
OnFrame = Callable[[int, int | None], None]

_HDR_DATA: Final = ("MASTERING_DISPLAY_METADATA", "CONTENT_LIGHT_LEVEL", "DYNAMIC_HDR_PLUS", "DOVI_METADATA")


@dataclass(frozen=True, kw_only=True)
class UpscaledVideo:
    """The outcome of a video.

    Attributes:
        frames_per_second: mean.
        dropped_streams: streams that the target's format cannot contain, each with the reason.
        notes: other differences from the source, one line each.
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
    notes: tuple[str, ...] = ()


def upscale_video(
    upscaler: Upscaler,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    options: VideoOptions = DEFAULT_VIDEO,
    *,
    on_frame: OnFrame | None = None,
) -> UpscaledVideo:
    """Upscales a video; audio, subtitles, timing and metadata stay. The file appears whole or not at all.

    Videos of more than 8 bits a sample are encoded to 10 where the encoder can. Chroma keeps its resolution where the
    encoder and the size allow it. Rotated or mirrored videos become upright; pixels that are not square stay so.

    Args:
        source: any container and codec that FFmpeg reads.
        target: ends in one of `VIDEO_SUFFIXES`.

    Raises:
        UsageError: the target's suffix is not a video's, the codec is unknown or has no such CRF.
        HspanError: PyAV is not installed; the source cannot be read, is damaged or contains no video; the target
            cannot be written, or its codec does not take such frames; a frame fails as a picture would.
    """
    source, target = Path(source), Path(target)
    if target.suffix.lower() not in VIDEO_SUFFIXES:
        raise UsageError(
            target, f"cannot tell the format from {target.suffix!r}", f"end it in {', '.join(VIDEO_SUFFIXES)}"
        )
    require_encoder(options)
    with _opened(source) as container, atomic_path(target) as temporary:
        return _Transcoding(upscaler, source, target, options, container).run(temporary, on_frame)


def video_frames(path: Path) -> tuple[int, ImageSize] | None:
    """(frames, their size) from the file's header; None where it does not say."""
    try:
        with _opened(path) as container:
            video = _videos(container)[0]
            count = _frame_count(container, video)
            return None if count is None else (count, ImageSize(video.height, video.width))
    except (HspanError, IndexError):
        return None


class _Transcoding:
    """The state of one call of `upscale_video`."""

    def __init__(
        self, upscaler: Upscaler, source: Path, target: Path, options: VideoOptions, container: Any
    ) -> None:
        self._av = load_av()
        self._upscaler, self._source, self._target = upscaler, source, target
        self._container = container
        if not _videos(container):
            raise HspanError(source, "contains no video stream", "give a video")
        self._video = _videos(container)[0]
        self._encoder = VideoEncoder(options, target.suffix.lower())
        self._rate = self._video.average_rate or 25
        # AVI stores no time stamps: a frame is as long as every other.
        self._even_rate = self._rate if target.suffix.lower() == ".avi" else None
        self._time: int | None = None  # of the last frame, in ticks of the encoder
        self._end, self._seen = Fraction(0), 0  # of all that was read, in seconds; packets of the video
        self._writer: FrameWriter | None = None
        self._input_size = self._output_size = ImageSize(1, 1)
        self._aspect = Fraction(1)  # of a pixel of the result
        self._notes: dict[str, None] = {}  # in their order, each once

    def run(self, temporary: Path, on_frame: OnFrame | None) -> UpscaledVideo:
        av, frames = self._av, 0
        total = _frame_count(self._container, self._video)
        try:
            with av.open(
                str(temporary), "w", options=self._muxing(), metadata_errors="surrogateescape"
            ) as output:
                plan = planned_streams(
                    av, self._container, output, self._video, lambda: self._added_stream(output)
                )
                stream = plan.video
                waiting: list[Any] = []  # copied packets
                for packet in self._packets([self._video, *plan.with_packets]):
                    if packet.stream is not self._video:
                        if packet.size:  # the end of a stream has none
                            if packet.dts is None:  # a cover
                                packet.pts = packet.dts = 0
                            packet.stream = plan.copies[packet.stream]
                            waiting.append(packet)
                        if self._writer is not None:  # whose frames' size the header contains, written first
                            self._copy(output, waiting)
                        continue
                    for frame in self._decoded(packet):
                        output.mux(self._encoded(stream, frame))
                        frames += 1
                        if on_frame is not None:
                            on_frame(frames, total)
                if not frames:
                    raise HspanError(self._source, "contains no frame that can be read", "copy it again")
                self._copy(output, waiting)
                output.mux(stream.encode(None))
        except av.error.FFmpegError as error:
            if isinstance(error, OSError) and "avcodec" not in str(error.filename):
                raise error_from_os_error(self._target, error) from error
            raise HspanError(
                self._target,
                f"{self._encoder.name} cannot write {self._output_size} pixels here: {error}",
                "choose another --codec or container",
            ) from error
        self._note_missing_end(plan)
        with _opened(temporary) as result:
            if (_videos(result)[0].sample_aspect_ratio or 1) != self._aspect:
                kinds = f"{self._encoder.name} cannot say so in {self._target.suffix}"
                self._note(f"its pixels are not square ({self._aspect}): {kinds}")
        rate = self._video.average_rate
        return UpscaledVideo(
            backend=self._upscaler.runner.label,
            input_height=self._input_size.height,
            input_width=self._input_size.width,
            output_height=self._output_size.height,
            output_width=self._output_size.width,
            frames=frames,
            frames_per_second=None if rate is None else float(rate),
            codec=self._encoder.name,
            copied_streams=len(plan.copies),
            dropped_streams=tuple(plan.dropped),
            notes=tuple(self._notes),
        )

    def _note(self, line: str) -> None:
        self._notes[line] = None

    def _note_missing_end(self, plan: StreamPlan) -> None:
        """FFmpeg reports no error where a file is cut off between two packets."""
        video = self._video
        by_frames = self._container.format.name.startswith("mov")  # AVI counts empty ones too
        if by_frames and video.frames - self._seen > video.frames // 100:
            self._note(
                f"its header promises {video.frames} frames, it contains {self._seen}: it may be cut off"
            )
            return
        if video.duration:
            length = video.duration * video.time_base
            missing = float(length + (video.start_time or 0) * video.time_base - self._end)
        elif self._container.duration and not plan.dropped:
            length = Fraction(self._container.duration, self._av.time_base)  # counted from 0 by some formats
            missing = float(length - self._end)
        else:
            return
        if missing > max(0.2, 0.01 * float(length)):
            self._note(f"its header promises {missing:.1f} s more than there is: it may be cut off")

    def _muxing(self) -> dict[str, str]:
        # Sound may begin before 0, with what decoders need to settle. MP4 stores that; these would move all streams.
        early = self._target.suffix.lower() in (".mkv", ".avi")
        return {"avoid_negative_ts": "disabled"} if early else {}

    def _added_stream(self, output: Any) -> Any:
        try:
            return output.add_stream(self._encoder.name, rate=self._rate)
        except ValueError as error:
            raise HspanError(self._target, str(error), "choose another --codec or container") from error

    def _configured(self, stream: Any, frame: Any, size: ImageSize, turned: bool) -> FrameWriter:
        self._input_size, self._output_size = size, size.scaled(self._upscaler.scale)
        stream.height, stream.width = self._output_size
        stream.pix_fmt = self._pixel_format(frame)
        tick = 1 / Fraction(self._even_rate) if self._even_rate else self._video.time_base
        stream.time_base = stream.codec_context.time_base = tick
        matrix, color_range = matrix_of_frame(frame), int(frame.color_range)
        if not has_linear_matrix(matrix):
            self._note(f"its color matrix (number {matrix} of ITU-T H.273) is processed as that of BT.2020")
        if frame.format.is_rgb:
            color_range = LIMITED_RANGE  # of YUV, unless its encoder takes RGB
        if self._av.VideoFormat(stream.pix_fmt).is_rgb:
            matrix, color_range = RGB, FULL_RANGE
        tags = {
            "colorspace": matrix,
            "color_range": color_range,
            "color_primaries": int(frame.color_primaries),
            "color_trc": int(frame.color_trc),
        }
        for name, tag in tags.items():
            setattr(stream.codec_context, name, tag)
        location = self._encoder.chroma_location(chroma_location(frame))
        if aspect := self._video.sample_aspect_ratio:
            self._aspect = stream.codec_context.sample_aspect_ratio = 1 / aspect if turned else aspect
        self._encoder.configure(stream, location)
        self._note_losses(frame)
        return FrameWriter(
            self._av,
            stream.pix_fmt,
            self._output_size,
            tags=tags,
            location=location,
            gray=is_gray(frame),
        )

    def _pixel_format(self, frame: Any) -> str:
        bits = bits_of_frame(frame)
        kind, is_deep = self._encoder.pixel_format(self._least_chroma(frame), deep=bits > 8)
        if bits > 8 and not is_deep:
            self._note(f"{bits} bits a sample became 8: {self._encoder.name} takes no more")
        return kind

    def _least_chroma(self, frame: Any) -> int:
        """The place among 4:2:0, 4:2:2, 4:4:4 and RGB of the chroma to keep: halved only where both sides are even."""
        if any(side % 2 for side in self._output_size):
            return 2
        kind = frame.format
        if kind.is_rgb:
            return 3
        if is_gray(frame) or kind.chroma_height(4) < 4:
            return 0
        return 1 if kind.chroma_width(4) < 4 else 2

    def _note_losses(self, frame: Any) -> None:
        if any(part.is_alpha for part in frame.format.components) or "1" in (
            self._video.metadata.get("alpha_mode"),
            self._video.metadata.get("ALPHA_MODE"),
        ):
            self._note("its alpha channel is dropped")
        if frame.interlaced_frame:
            self._note("its frames are interlaced and were upscaled as they are: deinterlace them before")
        if any(data.type.name in _HDR_DATA for data in frame.side_data):
            self._note("HDR metadata of the mastering display and light level is not copied; color tags are")

    def _packets(self, streams: list[Any]) -> Iterator[Any]:
        try:
            for packet in self._container.demux(streams):
                self._seen += packet.stream is self._video and packet.size > 0
                if packet.is_corrupt:
                    self._note(
                        "it is damaged: frames or sound are missing, or are what a decoder made of them"
                    )
                if packet.pts is not None:
                    self._end = max(self._end, (packet.pts + (packet.duration or 0)) * packet.time_base)
                yield packet
        except self._av.error.FFmpegError as error:
            raise self._damaged(error) from error

    def _copy(self, output: Any, waiting: list[Any]) -> None:
        """Writes packets as they were read: one that its format refuses is damaged, or the disk is full."""
        try:
            while waiting:
                output.mux(waiting.pop(0))
        except self._av.error.FFmpegError as error:
            if isinstance(error, OSError):
                raise
            raise self._damaged(error) from error

    def _decoded(self, packet: Any) -> list[Any]:
        try:
            return list(packet.decode())
        except self._av.error.FFmpegError as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Any) -> HspanError:
        return HspanError(
            self._source, f"a damaged or truncated video ({error.strerror})", "copy or download it again"
        )

    def _encoded(self, stream: Any, frame: Any) -> Any:
        rgb, turned = self._upright(frame)
        size = ImageSize(*rgb.shape[1:])
        if self._writer is None:
            self._writer = self._configured(stream, frame, size, turned)
        elif size != self._input_size:
            raise HspanError(
                self._source,
                f"its frames change from {self._input_size} to {size} pixels",
                "cut the video there first",
            )
        result = self._upscaler.batch(rgb[None], what=self._source)
        require_finite(result, self._source)
        encodable = self._writer.frame(result[0])
        encodable.pts, encodable.time_base, encodable.duration = self._timed(frame)
        return stream.encode(encodable)

    def _timed(self, frame: Any) -> tuple[int, Fraction, int]:
        """(time stamp, tick, duration) of an encoded frame; time stamps rise from frame to frame."""
        tick, time, duration = frame.time_base, frame.pts, frame.duration or 0
        if self._even_rate:
            tick, duration = 1 / Fraction(self._even_rate), 1
            if time is not None:
                exact = time * frame.time_base / tick
                time = round(exact)
                if abs(exact - time) > Fraction(1, 4):
                    self._note("AVI stores frames at even intervals only: these were uneven")
        if time is None or (self._time is not None and time <= self._time):
            if self._time is not None:
                self._note("frames without a time of their own follow one tick after the frame before")
            time = 0 if self._time is None else self._time + 1
        self._time = time
        return time, tick, duration

    def _upright(self, frame: Any) -> tuple[Float32Array, bool]:
        """(3, H, W) as shown by players, and whether height and width changed places."""
        rgb = rgb_from_frame(frame)
        matrix = frame.side_data.get(self._av.sidedata.sidedata.Type.DISPLAYMATRIX)
        if matrix is None:
            return rgb, False
        # x' = a x + c y, y' = b x + d y, apart from the shift: ISO/IEC 14496-12, "matrix".
        a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
        turned = abs(b) > abs(a)
        if turned:
            rgb, a, d = rgb.transpose(0, 2, 1), c, b
        return rgb[:, :: -1 if d < 0 else 1, :: -1 if a < 0 else 1], turned


def _videos(container: Any) -> list[Any]:
    """Its video streams, without covers."""
    return [stream for stream in container.streams.video if not is_cover(load_av(), stream)]


def _frame_count(container: Any, video: Any) -> int | None:
    if video.frames:
        return int(video.frames)
    if video.average_rate and container.duration:
        return max(1, round(float(video.average_rate * container.duration / load_av().time_base)))
    return None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    av = load_av()
    if path.is_dir():
        raise HspanError(path, "is a folder, expected a video", "name a video in it")
    require_regular_file(path)
    try:
        container = av.open(str(path), metadata_errors="surrogateescape")
    except (OSError, ValueError, av.error.FFmpegError) as error:
        if isinstance(error, OSError) and not os.access(path, os.R_OK):
            raise error_from_os_error(path, error, action="read") from error
        raise HspanError(
            path, f"not a video that can be read ({error})", "copy or download it again"
        ) from error
    with container:
        yield container
