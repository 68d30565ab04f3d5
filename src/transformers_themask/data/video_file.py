# SPDX-License-Identifier: Apache-2.0
"""Random access to frames of video files in bounded memory; frame 12 of `a/b.mp4` has the path `a/b.mp4/00000012`."""

import bisect
import os
import threading
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from transformers_themask.files.media_files import open_media

from .images import DamagedFileError
from .orientation import Orientation

# Containers that give every frame its time.
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm")


def video_frame_path(video: str, index: int) -> str:
    """Path of one frame of a video file."""
    return f"{video}/{index:08d}"


def is_video_frame(path: str) -> bool:
    """Whether a path is that of a frame of a video file."""
    return PurePosixPath(path).parent.suffix.lower() in VIDEO_SUFFIXES


def count_video_frames(path: Path) -> int:
    """Number of frames of a video file, which is demuxed but not decoded."""
    return len(_index_of(path).times)


def read_video_frame(path: Path) -> np.ndarray:
    """Read a frame by its [`video_frame_path`]: RGB, upright, `uint8` of shape `(height, width, 3)`.

    Every thread keeps its last file open, to decode frames in order once.
    """
    video = path.parent
    reader = getattr(_OPENED, "reader", None)
    if reader is None or reader.path != video:
        reader = _OPENED.reader = _VideoFile(video)
    return reader.read(int(path.name))


_OPENED = threading.local()
_INHERITED: list["_VideoFile | None"] = []


def _leave_to_parent() -> None:
    """Keep the parent's file unused in a fork: reading moves its position, closing waits for threads not forked."""
    _INHERITED.append(_OPENED.__dict__.pop("reader", None))


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_leave_to_parent)


class _VideoFile:
    """An open video file and the position of its decoder."""

    def __init__(self, path: Path):
        self.path = path
        self._index = _index_of(path)
        self._container = _open(path)
        self._stream = self._container.streams.video[0]
        self._frames: Iterator[av.VideoFrame] = iter(())
        self._last_time: int | None = None
        self._orientation: Orientation | None = None
        self._reformatter = VideoReformatter()

    def read(self, index: int) -> np.ndarray:
        times = self._index.times
        if not 0 <= index < len(times):
            raise ValueError(f"Video file {self.path} must have a frame {index}. Got {len(times)} frames.")
        frame, problem = None, "the picture is missing or damaged"
        try:
            frame = self._frame_at(times[index])
        except av.FFmpegError as error:
            problem = str(error.strerror)
        if frame is None or frame.is_corrupt:
            self._last_time = None
            raise DamagedFileError(
                f"Video file {self.path} must be readable. Got at frame {index}: {problem}. Encode the video again."
            )
        if self._orientation is None:
            self._orientation = Orientation.of(frame)
        return self._orientation.rgb_array(frame, self._reformatter)

    def _frame_at(self, time: int) -> "av.VideoFrame | None":
        times, key_times = self._index
        num_before = bisect.bisect_right(key_times, time)
        key_time = key_times[num_before - 1] if num_before else times[0]
        if self._last_time is None or not key_time <= self._last_time < time:
            self._seek(key_time)
        frame = self._decode_until(time)
        if frame is None:  # frames before a key frame in time may come after it in the file
            self._seek(times[0])
            frame = self._decode_until(time)
        return frame

    def _seek(self, time: int) -> None:
        self._container.seek(time, stream=self._stream)
        self._frames = self._container.decode(self._stream)

    def _decode_until(self, time: int) -> "av.VideoFrame | None":
        for frame in self._frames:
            self._last_time = frame.pts
            if frame.pts is None or frame.pts > time:
                break
            if frame.pts == time:
                return frame
        return None


class _FrameIndex(NamedTuple):
    """Sorted presentation times of the frames and the key frames of a file, in its time base."""

    times: list[int]
    key_times: list[int]


def _index_of(path: Path) -> _FrameIndex:
    if not path.is_file():
        raise FileNotFoundError(f"Video file {path} must exist; check the data folder.")
    status = path.stat()
    return _read_index(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _read_index(path: Path, size: int, changed: int) -> _FrameIndex:
    times, key_times = [], []
    with _open(path) as container:
        try:
            for packet in container.demux(container.streams.video[0]):
                if packet.pts is None or packet.is_discard:
                    continue
                times.append(packet.pts)
                if packet.is_keyframe:
                    key_times.append(packet.pts)
        except av.FFmpegError as error:
            raise DamagedFileError(f"Video file {path} must be readable. Got: {error.strerror}.") from error
    if not times:
        raise DamagedFileError(f"Video file {path} must hold frames.")
    return _FrameIndex(sorted(times), sorted(key_times))


def _open(path: Path) -> "av.container.InputContainer":
    try:
        container = open_media(path)
    except av.FFmpegError as error:
        raise DamagedFileError(f"Video file {path} must be readable. Got: {error.strerror}.") from error
    if not container.streams.video:
        container.close()
        raise DamagedFileError(f"Video file {path} must hold a video stream.")
    return container
