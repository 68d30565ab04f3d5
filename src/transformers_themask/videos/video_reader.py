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
from transformers_themask.files.media_files import is_url, open_media, reason
from transformers_themask.terminal_text import counted

from .containers import DeclaredEnds, is_mp4, lacks_fragments, stream_time_base
from .decoding import DamageError, decoded_frames
from .source import FrameSource, IncompleteVideoError, TimedFrame


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
        path: Video file, or a URL that FFmpeg can open (http, https, rtsp, ...).

    Attributes:
        num_frames: Number of frames the file declares, or an estimate from its duration; `None` for a live stream.
        height, width: Size of the upright frames.
        has_audio: Whether there is a sound track that can be copied; a live stream's would take a second connection.
    """

    def __init__(self, path: str | Path):
        self.path = str(path)
        video = _OpenVideo(self.path)
        frames = video.frames()
        first = next(frames)
        self.frame_rate: Fraction | None = video.frame_rate
        self.time_base = video.time_base
        self.num_frames = video.num_frames
        self.has_audio = bool(video.container.streams.audio) and not video.is_live
        self._orientation = Orientation.of(first[1])
        self.height, self.width = self._orientation.size_of(first[1])
        # Closes the file at its end and when it is dropped.
        self._opened: Iterator[tuple[Fraction, av.VideoFrame]] | None = chain([first], frames)

    def __getstate__(self) -> dict[str, Any]:
        # Open files stay in their process.
        return {**self.__dict__, "_opened": None}

    def timed_frames(self) -> Generator[TimedFrame, None, None]:
        """Yield the frames with their exact presentation times in seconds."""
        frames, self._opened = self._opened or _OpenVideo(self.path).frames(), None
        reformatter = VideoReformatter()
        for time, frame in frames:
            end = time + frame.duration * self.time_base if frame.duration else None
            yield TimedFrame(time, self._orientation.rgb_array(frame, reformatter), end)


class _OpenVideo:
    """An open file or connection, and what its header says of the video."""

    def __init__(self, path: str):
        self.path = path
        self.container = self._open()
        try:
            self.stream = self._video_stream()
        except ValueError:
            self.container.close()
            raise
        self.frame_rate: Fraction | None = self.stream.average_rate or self.stream.guessed_rate
        self.time_base = stream_time_base(self.stream)
        self.is_live = is_url(path) and self.container.duration is None
        self._declared = DeclaredEnds.of(self.container, self.stream)
        self.num_frames = self.stream.frames or self._estimated_num_frames()

    def frames(self) -> Iterator[tuple[Fraction, "av.VideoFrame"]]:
        """Decode all frames, with their times, and close the file; errors name the file and the frame."""
        index = 0
        size: tuple[int, int] | None = None
        # Only the index of an mp4 file that is in one piece counts the frames.
        is_fragmented = is_mp4(self.container) and not is_url(self.path) and not self.stream.frames
        with self.container:
            try:
                for frame in decoded_frames(self.container, self.stream, self._declared, self.is_live):
                    size = size or (frame.height, frame.width)
                    if (frame.height, frame.width) != size:
                        change = f"from {size[0]}x{size[1]} to {frame.height}x{frame.width}"
                        raise DamageError(f"the picture size changes {change}")
                    yield self._frame_time(frame, index), frame
                    index += 1
                if is_fragmented and lacks_fragments(self.path):
                    raise DamageError("a piece of the file is missing")
            except DamageError as damage:
                raise self._decoding_error(index, str(damage)) from damage
        if index == 0:
            raise ValueError(f"`path` must name a video with at least one frame. Got {self.path}, which has none.")

    def _open(self) -> "av.container.InputContainer":
        if not is_url(self.path) and not Path(self.path).is_file():
            raise FileNotFoundError(f"`path` must name an existing video file. Got {self.path}.")
        try:
            return open_media(self.path)
        except av.FFmpegError as error:
            raise ValueError(
                f"`path` must name a video file that FFmpeg can read. Got {self.path} ({reason(error)})."
            ) from error

    def _video_stream(self) -> "av.VideoStream":
        streams = self.container.streams.video
        # The cover of a piece of music is a video stream too.
        videos = [stream for stream in streams if not stream.disposition & Disposition.attached_pic]
        if not videos:
            raise ValueError(f"`path` must name a file with a video stream. Got {self.path}, which has none.")
        if videos[0].codec_context is None:
            raise ValueError(
                f"`path` must name a video of a codec that FFmpeg can decode. Got {self.path}, whose codec is unknown."
            )
        return videos[0]

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
            f"{problem}. {'Try again' if is_url(self.path) else 'Copy or encode the file again'}"
        )
        if index == 0:
            return ValueError(f"{message}.")
        return IncompleteVideoError(f"{message}; {counted(index, 'frame')} could be read.")
