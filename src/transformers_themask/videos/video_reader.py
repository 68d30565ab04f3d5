# SPDX-License-Identifier: Apache-2.0
"""Read a video file or stream one frame at a time, with PyAV; the whole video is never in memory."""

from collections.abc import Generator, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from transformers_themask.data.orientation import Orientation

from .containers import DeclaredEnds, is_mp4, lacks_fragments, stream_time_base
from .decoding import DamageError, decoded_frames
from .ffmpeg_files import is_url, open_input, reason
from .source import FrameSource, IncompleteVideoError, TimedFrame, num_frames_in_words


class VideoReader(FrameSource):
    """The frames of one video file, or of a URL, decoded while they are iterated over.

    Every iteration starts at the first frame, or, in a live stream, at its current position; the first one continues
    what the constructor has opened. Frames are turned upright as the file's display matrix asks
    (phones store portrait video lying on its side). They have the stored number of pixels, square or not; what is
    transparent is shown opaque.

    A frame that cannot be decoded, one of another size, and a file that ends before its declared length raise an
    [`IncompleteVideoError`] naming the file and the frame index, after the frames before it; a file without any
    readable frame is a `ValueError` in the constructor. Damaged frames of a live stream are dropped.

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
        container = self._open()
        try:
            self._read_header(container)
            frames = self._checked_frames(container)
            first = next(frames)
        except BaseException:
            container.close()
            raise
        self._orientation = Orientation.of(first[1])
        self.height, self.width = self._orientation.size_of(first[1])
        self._opened = container, chain([first], frames)

    def __getstate__(self) -> dict[str, Any]:
        # Open files stay in their process.
        return {**self.__dict__, "_opened": None}

    def timed_frames(self) -> Generator[TimedFrame, None, None]:
        """Yield the frames with their exact presentation times in seconds."""
        container, frames = self._opened or self._start()
        self._opened = None
        reformatter = VideoReformatter()
        with container:
            for time, frame in frames:
                end = time + frame.duration * self.time_base if frame.duration else None
                yield TimedFrame(time, self._orientation.rgb_array(frame, reformatter), end)

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
        self._is_fragmented = is_mp4(container) and not self._is_url and not stream.frames
        self._declared = DeclaredEnds.of(container, stream)
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
            for frame in decoded_frames(container, stream, self._declared, self._is_live):
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
        if self._declared.video is None or self.frame_rate is None:
            return None
        return round(self._declared.video * self.frame_rate)

    def _decoding_error(self, index: int, problem: str) -> ValueError:
        message = (
            f"`path` must name an undamaged video. Got {self.path}, which cannot be decoded at frame {index}: "
            f"{problem}. {'Try again' if self._is_url else 'Copy or encode the file again'}"
        )
        if index == 0:
            return ValueError(f"{message}.")
        return IncompleteVideoError(f"{message}; {num_frames_in_words(index)} could be read.")
