# SPDX-License-Identifier: Apache-2.0
"""Read and write video files one frame at a time, with PyAV; the whole video is never in memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from transformers.utils import logging

logger = logging.get_logger(__name__)

# ITU-T H.273 code of BT.709 (matrix, primaries and transfer) and FFmpeg's code of limited range. Without the tags a
# player guesses the matrix from the picture height, and the class colours of the overlay shift.
BT709 = 1
LIMITED_RANGE = 1
# x264's quality setting; 18 keeps small text free of visible artefacts.
QUALITY = {"crf": "18"}
# These containers store the length of a track, so a file that was cut off can be told from one that just ends.
FORMATS_WITH_EXACT_DURATION = ("mov", "matroska")
# A track may end a little before or after its declared duration (rounded time stamps, B-frame delay).
DURATION_TOLERANCE = Fraction(1, 2)


class VideoReader:
    """The frames of one video file, decoded while they are iterated over.

    Every iteration opens the file anew and starts at the first frame. Frames are turned upright as the file's display
    matrix asks (phones store portrait video lying on its side). A frame that cannot be decoded and a file that ends
    before its declared length raise a `ValueError` naming the file and the frame index.

    Args:
        path (`str` or `Path`):
            Video file, or a URL that FFmpeg can open.

    Attributes:
        frame_rate (`Fraction`, *optional*): Average frames per second; `None` when the file declares none.
        time_base (`Fraction`): Unit of the file's time stamps in seconds.
        num_frames (`int`, *optional*): Number of frames the file declares, or an estimate from its duration.
        height (`int`): Height of the upright frames.
        width (`int`): Width of the upright frames.
        has_audio (`bool`): Whether there is a sound track.
    """

    def __init__(self, path: str | Path):
        self.path = str(path)
        with self._open() as container:
            stream = self._video_stream(container)
            self.frame_rate: Fraction | None = stream.average_rate or stream.guessed_rate
            self.time_base = _time_base(stream)
            self.has_audio = bool(container.streams.audio)
            self._duration = _declared_duration(container, stream)
            self.num_frames = stream.frames or self._estimated_num_frames()
        # Looked up once: PyAV ties a frame whose side data was asked for into a cycle, and such frames pile up.
        _, first_frame = next(self._checked_frames())
        self._orientation = _Orientation.of(first_frame)
        sides = first_frame.height, first_frame.width
        self.height, self.width = reversed(sides) if self._orientation.is_transposed else sides

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the frames as `uint8` RGB arrays of shape `(height, width, 3)`."""
        for _, frame in self.timed_frames():
            yield frame

    def frame_name(self, index: int) -> str:
        """Name for files that belong to a frame: its index in eight digits."""
        return f"{index:08d}"

    def timed_frames(self) -> Iterator[tuple[Fraction, np.ndarray]]:
        """Yield `(time, frame)` pairs; `time` is the frame's presentation time in seconds, exact.

        Returns:
            Iterator over `(Fraction, np.ndarray of shape (height, width, 3))`.
        """
        for time, frame in self._checked_frames():
            yield time, self._orientation.apply(frame.to_ndarray(format="rgb24"))

    def _checked_frames(self) -> Iterator[tuple[Fraction, "av.VideoFrame"]]:
        """Decode the file; every failure to do so names the file and the frame."""
        index = 0
        end = Fraction(0)
        with self._open() as container:
            frames = container.decode(self._video_stream(container))
            while True:
                try:
                    frame = next(frames, None)
                except av.FFmpegError as error:
                    raise self._decoding_error(index, str(error.strerror)) from error
                if frame is None:
                    break
                if frame.is_corrupt:
                    raise self._decoding_error(index, "damaged picture data")
                time = self._frame_time(frame, index)
                end = time + (frame.duration or 0) * self.time_base
                yield time, frame
                index += 1
        if index == 0:
            raise ValueError(f"`path` must name a video with at least one frame. Got {self.path}, which has none.")
        if self._duration is not None and end < self._duration - DURATION_TOLERANCE:
            problem = f"the file declares {float(self._duration):.2f} s but ends after {float(end):.2f} s"
            raise self._decoding_error(index, problem)

    def _open(self) -> "av.container.InputContainer":
        if "://" not in self.path and not Path(self.path).is_file():
            raise FileNotFoundError(f"`path` must name an existing video file. Got {self.path}.")
        try:
            return av.open(self.path)
        except av.FFmpegError as error:
            raise ValueError(
                f"`path` must name a video file that FFmpeg can read. Got {self.path} ({error.strerror})."
            ) from error

    def _video_stream(self, container: "av.container.InputContainer") -> "av.VideoStream":
        if not container.streams.video:
            raise ValueError(f"`path` must name a file with a video stream. Got {self.path}, which has none.")
        return container.streams.video[0]

    def _frame_time(self, frame: "av.VideoFrame", index: int) -> Fraction:
        if frame.pts is not None and frame.time_base is not None:
            return frame.pts * frame.time_base
        if self.frame_rate is None:
            raise self._decoding_error(index, "neither a time stamp nor a frame rate")
        return index / self.frame_rate

    def _estimated_num_frames(self) -> int | None:
        if self._duration is None or self.frame_rate is None:
            return None
        return round(self._duration * self.frame_rate)

    def _decoding_error(self, index: int, problem: str) -> ValueError:
        return ValueError(
            f"`path` must name an undamaged video. Got {self.path}, which cannot be decoded at frame {index}: "
            f"{problem}. Copy or encode the file again."
        )


def check_mp4_path(path: Path, argument: str = "path") -> None:
    """Raise a `ValueError` that names the argument unless [`VideoWriter`] can write a file of this name."""
    if path.suffix != ".mp4" or path.is_dir():
        raise ValueError(f"`{argument}` must be a file whose name ends in .mp4. Got {path}.")


class VideoWriter:
    """Write RGB frames to an H.264 mp4 file (yuv420p, which every player shows).

    One frame is written per call, in order, with exactly the given time stamps. H.264 in yuv420p needs even sides: an
    odd height or width grows by one pixel that repeats the last row or column, so the picture stays aligned. The file
    appears under its name when it is complete: leaving the `with` block through an error leaves nothing behind.

    Args:
        path (`str` or `Path`):
            File to write; must end in `.mp4`.
        frame_rate (`Fraction` or `int`):
            Frames per second, for the file's header and for frames written without a time.
        time_base (`Fraction`, *optional*):
            Unit in seconds that times are rounded to. Pass the reader's to keep its times exactly. Defaults to the
            longest unit in which frames of `frame_rate` fall on whole numbers.
        audio_from (`str` or `Path`, *optional*):
            Video whose sound is copied, without encoding it again. A codec that mp4 cannot hold is left out with a
            warning.
    """

    def __init__(
        self,
        path: str | Path,
        frame_rate: Fraction | int,
        time_base: Fraction | None = None,
        audio_from: str | Path | None = None,
    ):
        self.path = Path(path)
        check_mp4_path(self.path)
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"`path` must lie in an existing folder. Got {self.path}.")
        if frame_rate <= 0:
            raise ValueError(f"`frame_rate` must be positive. Got {frame_rate}.")
        self.frame_rate = Fraction(frame_rate)
        self.num_frames = 0
        self._time_base = time_base or Fraction(1, self.frame_rate.numerator)
        self._shape: tuple[int, ...] | None = None
        self._last_pts: int | None = None
        self._unfinished = self.path.with_suffix(".unfinished.mp4")
        self._container = av.open(str(self._unfinished), "w", format="mp4")
        self._stream = self._container.add_stream("libx264", rate=self.frame_rate, options=QUALITY)
        self._audio = None if audio_from is None else _AudioCopy.start(audio_from, self._container)

    def write(self, frame: np.ndarray, time: Fraction | None = None) -> None:
        """Append one frame.

        Args:
            frame (`np.ndarray` of shape `(height, width, 3)`):
                `uint8` RGB picture; every frame of a file has the same size.
            time (`Fraction`, *optional*):
                Presentation time in seconds, later than the frame's before. Defaults to the frame's index divided by
                `frame_rate`.
        """
        self._check_frame(frame)
        time = self.num_frames / self.frame_rate if time is None else time
        pts = round(time / self._time_base)
        if self._last_pts is not None and pts <= self._last_pts:
            raise ValueError(
                f"`time` must grow by at least {self._time_base} s from frame to frame. Got {float(time):.6f} s for "
                f"frame {self.num_frames} of {self.path}, after {float(self._last_pts * self._time_base):.6f} s."
            )
        if self._audio is not None:
            self._audio.copy_until(time, self._container)
        picture = av.VideoFrame.from_ndarray(_padded_to_even(frame), format="rgb24")
        picture = picture.reformat(format="yuv420p", dst_colorspace=BT709, dst_color_range=LIMITED_RANGE)
        picture.pts, picture.time_base = pts, self._time_base
        self._container.mux(self._stream.encode(picture))
        self._last_pts = pts
        self.num_frames += 1

    def close(self) -> None:
        """Finish the file: write what the encoder still holds and the rest of the sound."""
        if self._shape is None:
            self._abandon()
            raise ValueError(f"`frames` must hold at least one frame. Got none for {self.path}.")
        self._container.mux(self._stream.encode(None))
        if self._audio is not None:
            self._audio.copy_until(None, self._container)
        self._release()
        self._unfinished.replace(self.path)

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the file, or delete it when an error ended the block."""
        if error_type is None:
            self.close()
        else:
            self._abandon()

    def _check_frame(self, frame: np.ndarray) -> None:
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(
                f"`frame` must be a uint8 array of shape (height, width, 3). Got {frame.dtype} {frame.shape} for "
                f"frame {self.num_frames} of {self.path}."
            )
        if self._shape is None:
            self._shape = frame.shape
            self._configure_stream(*frame.shape[:2])
        elif frame.shape != self._shape:
            raise ValueError(
                f"`frame` must have the size of the first one, {self._shape[0]}x{self._shape[1]}. Got "
                f"{frame.shape[0]}x{frame.shape[1]} for frame {self.num_frames} of {self.path}."
            )

    def _configure_stream(self, height: int, width: int) -> None:
        self._stream.height, self._stream.width = height + height % 2, width + width % 2
        self._stream.pix_fmt = "yuv420p"
        codec = self._stream.codec_context
        codec.time_base = self._time_base
        codec.colorspace = codec.color_primaries = codec.color_trc = BT709
        codec.color_range = LIMITED_RANGE

    def _abandon(self) -> None:
        self._release()
        self._unfinished.unlink(missing_ok=True)

    def _release(self) -> None:
        self._container.close()
        if self._audio is not None:
            self._audio.close()


class _AudioCopy:
    """Copies the packets of one sound track to a file being written, in step with its frames."""

    def __init__(self, source: "av.container.InputContainer", stream: "av.AudioStream"):
        self._source = source
        self._stream = stream
        self._packets = source.demux(source.streams.audio[0])
        self._next = next(self._packets, None)

    @classmethod
    def start(cls, path: str | Path, container: "av.container.OutputContainer") -> "_AudioCopy | None":
        """Add a sound track like that of `path` to `container`; `None` when there is none that can be copied."""
        source = av.open(str(path))
        if not source.streams.audio:
            source.close()
            return None
        template = source.streams.audio[0]
        if template.codec_context.name not in container.supported_codecs:
            logger.warning(f"The sound of {path} ({template.codec_context.name}) is left out: mp4 cannot hold it.")
            source.close()
            return None
        return cls(source, container.add_stream_from_template(template))

    def copy_until(self, time: Fraction | None, container: "av.container.OutputContainer") -> None:
        """Write the packets that start up to `time` seconds, or all that are left."""
        while self._next is not None:
            packet = self._next
            # The packet that ends the demuxing carries no data and no time stamp.
            if packet.dts is not None:
                if time is not None and packet.dts * packet.time_base > time:
                    return
                packet.stream = self._stream
                container.mux(packet)
            self._next = next(self._packets, None)

    def close(self) -> None:
        """Close the file the sound comes from."""
        self._source.close()


def _declared_duration(container: "av.container.InputContainer", stream: "av.VideoStream") -> Fraction | None:
    """Time in seconds at which the video must end, if the file says so and can be believed."""
    if not container.format.name.startswith(FORMATS_WITH_EXACT_DURATION):
        return None
    if stream.duration:
        return ((stream.start_time or 0) + stream.duration) * _time_base(stream)
    # Matroska declares one duration for all tracks: it is the video's only where the video is alone.
    if container.duration and len(container.streams) == 1:
        return Fraction(container.duration, av.time_base)
    return None


def _time_base(stream: "av.VideoStream") -> Fraction:
    assert stream.time_base is not None  # FFmpeg sets it for every stream of an opened file.
    return stream.time_base


@dataclass(frozen=True)
class _Orientation:
    """How to turn a decoded picture upright: swap its axes, then mirror rows and columns."""

    is_transposed: bool = False
    is_upside_down: bool = False
    is_mirrored: bool = False

    @classmethod
    def of(cls, frame: "av.VideoFrame") -> "_Orientation":
        """What the display matrix of a frame asks for, to the nearest quarter turn."""
        side_data = frame.side_data.get(SideDataType.DISPLAYMATRIX)  # type: ignore[call-overload]
        if side_data is None:
            return cls()
        # Row-major 3x3 matrix in fixed point: a source point (x, y) is shown at (a x + c y, b x + d y).
        a, b, _, c, d = np.frombuffer(side_data, dtype=np.int32)[:5].tolist()
        if abs(b) + abs(c) > abs(a) + abs(d):
            return cls(is_transposed=True, is_upside_down=b < 0, is_mirrored=c < 0)
        return cls(is_upside_down=d < 0, is_mirrored=a < 0)

    def apply(self, picture: np.ndarray) -> np.ndarray:
        """Turn a picture of shape `(height, width, 3)`."""
        if self.is_transposed:
            picture = picture.transpose(1, 0, 2)
        row_step, column_step = -1 if self.is_upside_down else 1, -1 if self.is_mirrored else 1
        return np.ascontiguousarray(picture[::row_step, ::column_step])


def _padded_to_even(frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape[:2]
    if height % 2 == 0 and width % 2 == 0:
        return np.ascontiguousarray(frame)
    return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
