# SPDX-License-Identifier: Apache-2.0
"""A folder of images as a video."""

from collections.abc import Generator
from fractions import Fraction
from pathlib import Path

import numpy as np

from transformers_themask.data.image_folder import FRAME_SUFFIXES, check_stems, list_images
from transformers_themask.data.images import DamagedFileError, read_frame
from transformers_themask.terminal_text import counted

from .source import DEFAULT_FRAME_RATE, FrameSource, IncompleteVideoError, TimedFrame


class FrameFolder(FrameSource):
    """A folder of jpg or png images as one video of `frame_rate` frames per second.

    They come in the order of the numbers in their names, as in training and evaluation.
    """

    def __init__(self, path: str | Path, frame_rate: Fraction = DEFAULT_FRAME_RATE):
        if frame_rate <= 0:
            raise ValueError(f"`frame_rate` must be positive. Got {frame_rate}.")
        self.path = str(path)
        self._names = list_images(Path(path), FRAME_SUFFIXES)
        if not self._names:
            raise ValueError(f"`path` must name a video file or a folder with jpg or png images. Got {self.path}.")
        check_stems(Path(path), self._names)
        self.frame_rate = Fraction(frame_rate)
        self.time_base = Fraction(1, self.frame_rate.numerator)
        self.num_frames = len(self._names)

    def timed_frames(self) -> Generator[TimedFrame, None, None]:
        """Yield the frames with their times in seconds.

        Raises `IncompleteVideoError` at an image that is damaged or of another size than the first. Raises
        `DamagedFileError` if the first image is damaged.
        """
        size: tuple[int, ...] | None = None
        for index in range(len(self._names)):
            frame = self._read(index)
            size = size or frame.shape[:2]
            if frame.shape[:2] != size:
                raise self._unreadable(
                    index, f"the picture is {frame.shape[0]}x{frame.shape[1]}, the first one {size[0]}x{size[1]}"
                )
            yield TimedFrame(index / self.frame_rate, frame)

    def frame_name(self, index: int) -> str:
        """File name of a frame, without suffix."""
        return Path(self._names[index]).stem

    def _read(self, index: int) -> np.ndarray:
        try:
            return read_frame(Path(self.path) / self._names[index])
        except DamagedFileError as error:
            if index == 0:
                raise
            raise self._unreadable(index, "the image is damaged") from error

    def _unreadable(self, index: int, problem: str) -> IncompleteVideoError:
        return IncompleteVideoError(
            f"`path` must name a folder of undamaged images of one size. Got {Path(self.path) / self._names[index]}: "
            f"{problem}. Replace or remove this file; {counted(index, 'frame')} could be read."
        )
