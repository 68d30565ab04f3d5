# SPDX-License-Identifier: Apache-2.0
"""Where the frames of one video come from: a video file or a folder of images."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from transformers_themask.data.images import read_frame

from .video_io import VideoReader

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
# VSPW's; used where frames come without a rate.
DEFAULT_FRAME_RATE = Fraction(15)


class FrameFolder:
    """A folder of images as one video, ordered by file name; the counterpart of [`VideoReader`] for data sets.

    Args:
        path (`str` or `Path`):
            Folder with jpg or png images, for example `ROOT/data/<video>/origin` of a VSPW-layout data set.
        frame_rate (`Fraction`, *optional*, defaults to 15):
            Frames per second to play them at; 15 is VSPW's.

    Attributes:
        num_frames (`int`): Number of images.
    """

    has_audio = False

    def __init__(self, path: str | Path, frame_rate: Fraction = DEFAULT_FRAME_RATE):
        if frame_rate <= 0:
            raise ValueError(f"`frame_rate` must be positive. Got {frame_rate}.")
        self.path = str(path)
        self._files = sorted(file for file in Path(path).iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        if not self._files:
            raise ValueError(f"`path` must name a video file or a folder with jpg or png images. Got {self.path}.")
        self.frame_rate = frame_rate
        self.time_base = Fraction(1, frame_rate.numerator)
        self.num_frames = len(self._files)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the frames as `uint8` RGB arrays of shape `(height, width, 3)`."""
        for file in self._files:
            yield read_frame(file)

    def frame_name(self, index: int) -> str:
        """File name of a frame, without suffix."""
        return self._files[index].stem

    def timed_frames(self) -> Iterator[tuple[Fraction, np.ndarray]]:
        """Yield `(time, frame)` pairs; `time` in seconds."""
        for index, frame in enumerate(self):
            yield index / self.frame_rate, frame


def open_frame_source(path: str | Path, folder_frame_rate: Fraction = DEFAULT_FRAME_RATE) -> VideoReader | FrameFolder:
    """Open a video file, or a folder of frames, as a source of frames.

    Args:
        path (`str` or `Path`):
            Video file or folder of images.
        folder_frame_rate (`Fraction`, *optional*, defaults to 15):
            Frames per second of a folder; a video file has its own.

    Returns:
        [`VideoReader`] or [`FrameFolder`]; both can be iterated over any number of times.
    """
    return FrameFolder(path, folder_frame_rate) if Path(path).is_dir() else VideoReader(path)
