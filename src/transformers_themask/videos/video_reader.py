# SPDX-License-Identifier: Apache-2.0
"""Read a video file or stream one frame at a time, with PyAV; the whole video is never in memory."""

import re
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from transformers_themask.data.orientation import Orientation
from transformers_themask.terminal_text import counted

from .decoding import DamageError, decoded_frames, stream_time_base
from .ffmpeg_files import is_url, open_input, reason
from .mp4_boxes import lacks_fragments
from .source import FrameSource, IncompleteVideoError

# What FFmpeg and others write for every track of a Matroska file.
MATROSKA_DURATION = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")


class VideoReader(FrameSource):
    """The frames of one video file, or of a URL, decoded while they are iterated over.

    Every iteration starts at the first frame, or, in a live stream, where the stream is; the connection that the
    constructor opens to a URL serves the first iteration. Frames are turned upright as the file's display matrix asks
    (phones store portrait video lying on its side). They have the stored number of pixels, square or not; what is
    transparent is shown opaque.

    A frame that cannot be decoded, one of another size, and a file that ends before its declared length raise an
    [`IncompleteVideoError`] naming the file and the frame index, after the frames before it; a file without any
    readable frame is a `ValueError` in the constructor. Damaged frames of a live stream are left out.

    Args:
        path (`str` or `Path`):
            Video file, or a URL that FFmpeg can open (http, https, rtsp, ...).

    Attributes:
        num_frames (`int`, *optional*): Number of frames the file declares, or an estimate from its duration; `None`
            for a live stream.
        height (`int`): Height of the upright frames.
        width (`int`): Width of the upright frames.
        has_audio (`bool`): Whether there is a sound track that can be copied; a live stream's would take a second
            connection.
    """

    def __init__(self, path: str | Path):
        self.path = str(path)
        self._is_url = is_url(path)
        self._opened: tuple[av.container.InputContainer, Iterator[tuple[Fraction, av.VideoFrame]]] | None = None
        with ExitStack() as stack:
            container = stack.enter_context(self._open())
            self._read_header(container)
            frames = self._checked_frames(container)
            first = next(frames)
            self._orientation = Orientation.of(first[1])
            self.height, self.width = self._orientation.size_of(first[1])
            if self._is_url:
                self._opened = container, chain([first], frames)
                stack.pop_all()

    def timed_frames(self) -> Generator[tuple[Fraction, np.ndarray], None, None]:
        """Yield `(time, frame)` pairs; `time` is the frame's presentation time in seconds, exact.

        Returns:
            Iterator over `(Fraction, np.ndarray of shape (height, width, 3))`.
        """
        container, frames = self._opened or self._start()
        self._opened = None
        reformatter = VideoReformatter()
        with container:
            for time, frame in frames:
                self.end = time + frame.duration * self.time_base if frame.duration else None
                yield time, self._orientation.rgb_array(frame, reformatter)

    def _start(self) -> "tuple[av.container.InputContainer, Iterator[tuple[Fraction, av.VideoFrame]]]":
        container = self._open()
        return container, self._checked_frames(container)

    def _open(self) -> "av.container.InputContainer":
        if not self._is_url and not Path(self.path).is_file():
            raise FileNotFoundError(f"`path` must name an existing video file. Got {self.path}.")
        try:
            return open_input(self.path)
        except av.FFmpegError as error:
            raise ValueError(
                f"`path` must name a video file that FFmpeg can read. Got {self.path} ({reason(error)})."
            ) from error

    def _read_header(self, container: "av.container.InputContainer") -> None:
        stream = self._video_stream(container)
        self.frame_rate: Fraction | None = stream.average_rate or stream.guessed_rate
        self.time_base = stream_time_base(stream)
        self._is_live = self._is_url and container.duration is None
        self.has_audio = bool(container.streams.audio) and not self._is_live
        # Only the index of an mp4 file that is in one piece counts the frames.
        self._is_fragmented = _is_mp4(container) and not self._is_url and not stream.frames
        self._declared_end = _declared_end(container, stream)
        self._declared_file_end = None if self._declared_end else _declared_file_end(container)
        self.num_frames = stream.frames or self._estimated_num_frames()

    def _video_stream(self, container: "av.container.InputContainer") -> "av.VideoStream":
        # The cover of a piece of music is a video stream too.
        streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
        if not streams:
            raise ValueError(f"`path` must name a file with a video stream. Got {self.path}, which has none.")
        if streams[0].codec_context is None:
            raise ValueError(
                f"`path` must name a video of a codec that FFmpeg can decode. Got {self.path}, whose codec is unknown."
            )
        return streams[0]

    def _checked_frames(self, container: "av.container.InputContainer") -> Iterator[tuple[Fraction, "av.VideoFrame"]]:
        """Decode the file; every failure to do so names the file and the frame."""
        index = 0
        size: tuple[int, int] | None = None
        try:
            stream = self._video_stream(container)
            for frame in decoded_frames(container, stream, self._declared_end, self._declared_file_end, self._is_live):
                size = size or (frame.height, frame.width)
                if (frame.height, frame.width) != size:
                    change = f"from {size[0]}x{size[1]} to {frame.height}x{frame.width}"
                    raise DamageError(f"the picture size changes {change}")
                yield self._frame_time(frame, index), frame
                index += 1
            if self._is_fragmented and lacks_fragments(self.path):
                raise DamageError("a piece of the file is missing")
        except DamageError as damage:
            raise self._decoding_error(index, str(damage)) from damage
        if index == 0:
            raise ValueError(f"`path` must name a video with at least one frame. Got {self.path}, which has none.")

    def _frame_time(self, frame: "av.VideoFrame", index: int) -> Fraction:
        if frame.pts is not None:
            return frame.pts * self.time_base
        if self.frame_rate is None:
            raise DamageError("there is neither a time stamp nor a frame rate")
        return index / self.frame_rate

    def _estimated_num_frames(self) -> int | None:
        if self._declared_end is None or self.frame_rate is None:
            return None
        return round(self._declared_end * self.frame_rate)

    def _decoding_error(self, index: int, problem: str) -> ValueError:
        message = (
            f"`path` must name an undamaged video. Got {self.path}, which cannot be decoded at frame {index}: "
            f"{problem}. {'Try again' if self._is_url else 'Copy or encode the file again'}"
        )
        if index == 0:
            return ValueError(f"{message}.")
        return IncompleteVideoError(f"{message}; {counted(index, 'frame')} could be read.")


def _declared_end(container: "av.container.InputContainer", stream: "av.VideoStream") -> Fraction | None:
    """Time in seconds at which the video must end, if the file says so and can be believed."""
    time_base = stream_time_base(stream)
    if container.format.name == "avi":
        # FFmpeg shortens the duration of a cut file, but not the count of its frames, of `time_base` each.
        return stream.frames * time_base or None
    if _is_mp4(container) and stream.duration:
        return ((stream.start_time or 0) + stream.duration) * time_base
    if not _is_matroska(container):
        return None
    file_end = _declared_file_end(container)
    stream_end = file_end if len(container.streams) == 1 else _matroska_end(stream)
    # A tag that was copied from another file may be longer than this one.
    return min(stream_end, file_end) if stream_end and file_end else stream_end


def _matroska_end(stream: "av.VideoStream") -> Fraction | None:
    match = MATROSKA_DURATION.match(stream.metadata.get("DURATION", ""))
    if match is None:
        return None
    hours, minutes, seconds = map(Fraction, match.groups())
    return 3600 * hours + 60 * minutes + seconds


def _declared_file_end(container: "av.container.InputContainer") -> Fraction | None:
    """Time in seconds at which the longest stream must end, where the file stores it apart from the streams."""
    if not _is_matroska(container) or not container.duration:
        return None
    return Fraction(container.duration, av.time_base)


def _is_mp4(container: "av.container.InputContainer") -> bool:
    return container.format.name.startswith("mov")


def _is_matroska(container: "av.container.InputContainer") -> bool:
    return container.format.name.startswith("matroska")
