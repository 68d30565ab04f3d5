# SPDX-License-Identifier: Apache-2.0
"""Write a video file one frame at a time, with PyAV; the whole video is never in memory."""

from fractions import Fraction
from math import ceil, lcm
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from transformers.utils import logging

from transformers_themask.files.atomic import AtomicFile
from transformers_themask.files.file_names import check_suffix
from transformers_themask.files.media_files import ffmpeg_location, open_media, reason

logger = logging.get_logger(__name__)

# ITU-T H.273 code of BT.709 (matrix, primaries and transfer) and FFmpeg's code of limited range. Without the tags a
# player guesses the matrix from the picture height, and the class colours of the overlay shift.
BT709 = 1
LIMITED_RANGE = 1
# x264's quality setting keeps small text free of visible artefacts. The preset takes a third of the CPU time of x264's
# usual one, and compresses overlays as well. Without B-frames packets come in the order of their times: mp4 stores
# how far apart they are, and of packets in another order it gets a wrong length for the video.
ENCODING = {"crf": "16", "preset": "veryfast", "bf": "0"}
# Ticks per second of the times in an mp4 file's header: FFmpeg's default, and what fits into it (ISO 14496-12, 8.2.2).
MIN_TIMESCALE = 1000
MAX_TIMESCALE = 2**31 - 1
# The index at the front: a browser shows the first picture before it has the whole file.
INDEX_FIRST = {"movflags": "faststart"}


class VideoWriter:
    """Write RGB frames to an H.264 mp4 file (yuv420p, which every player shows).

    One frame is written per call, in order, with exactly the given time stamps. H.264 in yuv420p needs even sides: an
    odd height or width grows by one pixel that repeats the last row or column, so the picture stays aligned. The file
    appears under its name when it is complete: leaving the `with` block through an error leaves nothing behind.

    Args:
        path: File to write; must end in `.mp4`.
        frame_rate: Frames per second, for the file's header and for frames written without a time.
        time_base: Unit in seconds that times are rounded to. Pass the reader's to keep its times exactly. Defaults to
            the longest unit in which frames of `frame_rate` fall on whole numbers.
        audio_from: Video whose sound is copied at its own times, without encoding it again, to its end: it may begin
            later or end later than the pictures. A codec that mp4 cannot hold is left out with a warning, and so is
            what comes after a damage.
    """

    def __init__(
        self,
        path: str | Path,
        frame_rate: Fraction | int,
        time_base: Fraction | None = None,
        audio_from: str | Path | None = None,
    ):
        self.path = Path(path)
        check_suffix(self.path, (".mp4",))
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"`path` must lie in an existing folder. Got {self.path}.")
        if frame_rate <= 0:
            raise ValueError(f"`frame_rate` must be positive. Got {frame_rate}.")
        self.frame_rate = Fraction(frame_rate)
        self.num_frames = 0
        self._time_base = time_base or Fraction(1, self.frame_rate.numerator)
        self._shape: tuple[int, ...] | None = None
        self._last_pts: int | None = None
        # Keeps its tables from frame to frame.
        self._reformatter = VideoReformatter()
        self._audio: _AudioCopy | None = None
        # The encoder's latest packet, which waits until its length is known.
        self._waiting: av.Packet | None = None
        self._unfinished = AtomicFile(self.path)
        self._container = av.open(ffmpeg_location(self._unfinished.make()), "w", format="mp4", options=INDEX_FIRST)
        try:
            self._stream = self._container.add_stream("libx264", rate=self.frame_rate, options=ENCODING)
            self._audio = None if audio_from is None else _AudioCopy.start(audio_from, self._container)
            self._container.options["movie_timescale"] = str(self._movie_timescale())
        except BaseException:
            self.abandon()
            raise

    def write(self, frame: np.ndarray, time: Fraction | None = None) -> None:
        """Append a frame, a `uint8` RGB picture of the same size `(height, width, 3)` as all others.

        `time` is that of presentation in seconds, later than the frame's before; by default its index / `frame_rate`.
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
        # A copy would hold up all other threads: PyAV makes it under Python's lock.
        picture = av.VideoFrame.from_numpy_buffer(_padded_to_even(frame), format="rgb24")
        picture = self._reformatter.reformat(
            picture, format="yuv420p", dst_colorspace=BT709, dst_color_range=LIMITED_RANGE
        )
        picture.pts, picture.time_base = pts, self._time_base
        self._mux(self._stream.encode(picture))
        self._last_pts = pts
        self.num_frames += 1

    def close(self, sound_until: Fraction | None = None, end: Fraction | None = None) -> None:
        """Finish the file: write what the encoder still holds and the rest of the sound.

        `sound_until`: time in seconds at which the sound ends too. Defaults to its own end. `end`: time in seconds
        until which the last frame is shown. Defaults to 1 / `frame_rate` after its own time.
        """
        if self._last_pts is None:
            self.abandon()
            raise ValueError(f"`frames` must hold at least one frame. Got none for {self.path}.")
        self._mux(self._stream.encode(None))
        end = self._last_pts * self._time_base + 1 / self.frame_rate if end is None else end
        self._mux_waiting(max(self._last_pts + 1, round(end / self._time_base)))
        if self._audio is not None:
            self._audio.copy_until(sound_until, self._container)
        self._release()
        self._unfinished.finish()

    def abandon(self) -> None:
        """Remove the file, unless it is finished."""
        self._unfinished.remove(self._release)

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the file, or delete it when an error ended the block."""
        try:
            if error_type is None:
                self.close()
        finally:
            self.abandon()

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

    def _movie_timescale(self) -> int:
        """Unit in which the file tells when its tracks start: one that fits them all, where 32 bits can hold it."""
        video_rate = self._time_base.denominator
        common = video_rate if self._audio is None else lcm(video_rate, self._audio.stream.codec_context.sample_rate)
        fitting = common if common <= MAX_TIMESCALE else video_rate
        return fitting * ceil(MIN_TIMESCALE / fitting)

    def _configure_stream(self, height: int, width: int) -> None:
        self._stream.height, self._stream.width = height + height % 2, width + width % 2
        self._stream.pix_fmt = "yuv420p"
        codec = self._stream.codec_context
        codec.time_base = self._time_base
        codec.colorspace = codec.color_primaries = codec.color_trc = BT709
        codec.color_range = LIMITED_RANGE

    def _mux(self, packets: "list[av.Packet]") -> None:
        for packet in packets:
            if packet.pts is not None:
                self._mux_waiting(packet.pts)
            self._waiting = packet

    def _mux_waiting(self, end: int) -> None:
        if self._waiting is not None and self._waiting.pts is not None:
            self._waiting.duration = end - self._waiting.pts
            self._container.mux(self._waiting)

    def _release(self) -> None:
        if self._audio is not None:
            self._audio.source.close()
        self._container.close()


class _AudioCopy:
    """Copies the packets of one sound track to a file being written, in step with its frames."""

    def __init__(self, source: "av.container.InputContainer", stream: "av.AudioStream"):
        self.source = source
        self.stream = stream
        self._packets = source.demux(source.streams.audio[0])
        self._next = self._read()

    @classmethod
    def start(cls, path: str | Path, container: "av.container.OutputContainer") -> "_AudioCopy | None":
        """Add a sound track like that of `path` to `container`; `None` when there is none that can be copied."""
        source = open_media(path)
        if not source.streams.audio:
            source.close()
            return None
        template = source.streams.audio[0]
        codec = "an unknown codec" if template.codec_context is None else template.codec_context.name
        if codec not in container.supported_codecs:
            logger.warning(f"The sound of {path} ({codec}) is left out: mp4 cannot hold it.")
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
                packet.stream = self.stream
                container.mux(packet)
            self._next = self._read()

    def _read(self) -> "av.Packet | None":
        try:
            packet = next(self._packets, None)
        except av.FFmpegError as error:
            logger.warning(f"The sound of {self.source.name} is cut off where it is damaged ({reason(error)}).")
            return None
        return None if packet is not None and packet.is_corrupt else packet


def _padded_to_even(frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape[:2]
    if height % 2 == 0 and width % 2 == 0:
        return np.ascontiguousarray(frame)
    return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
