# SPDX-License-Identifier: Apache-2.0
"""A camera as an endless video, through OpenCV."""

import time
from collections.abc import Generator
from fractions import Fraction
from typing import Any

import numpy as np

from transformers_themask.terminal_text import counted

from .source import FrameSource, IncompleteVideoError, TimedFrame

# `cv2.CAP_PROP_FPS`, which is asked for without OpenCV where the capture is another one.
FRAME_RATE_PROPERTY = 5
# A driver that reports a higher rate does not know it.
MAX_FRAME_RATE = 1000


class Camera(FrameSource):
    """The frames of a camera, from the moment they are asked for until the iterator is closed; `index` counts from 0.

    A frame's time is when it arrived after the first one: cameras slow down in the dark, and drop frames that are not
    read in time. The camera that the constructor opens serves the first iteration. `frame_rate` is what it promises.
    """

    # Frames are never closer than that, and mp4 players know this unit.
    time_base = Fraction(1, 90000)
    _clock = staticmethod(time.monotonic)

    def __init__(self, index: int):
        self.path = f"camera {index}"
        self._index = index
        # As `_capture` returns them; OpenCV need not be installed.
        self._opened: Any = self._open()
        self.frame_rate = _plausible_rate(self._opened.get(FRAME_RATE_PROPERTY))

    def timed_frames(self) -> Generator[TimedFrame, None, None]:
        """Yield the frames with their times in seconds since the first frame.

        Raises `IncompleteVideoError` if the camera stops; `ValueError` if it never delivered anything.
        """
        capture, self._opened = self._opened or self._open(), None
        try:
            yield from self._read_on(capture)
        finally:
            capture.release()

    def _read_on(self, capture: Any) -> Generator[TimedFrame, None, None]:
        num_frames, start, tick = 0, 0.0, -1
        while True:
            is_read, picture = capture.read()
            if not is_read:
                raise self._stopped(num_frames)
            now = self._clock()
            start = now if num_frames == 0 else start
            tick = max(round((now - start) / self.time_base), tick + 1)
            yield TimedFrame(tick * self.time_base, np.ascontiguousarray(picture[:, :, ::-1]))
            num_frames += 1

    def _capture(self) -> Any:
        try:
            import cv2
        except ImportError as error:
            raise ValueError(
                f"`source` must be a file, a folder or a URL where OpenCV is not installed. Got camera {self._index}; "
                "`pip install transformers-themask[camera]` makes cameras work."
            ) from error
        return cv2.VideoCapture(self._index)

    def _open(self) -> Any:
        capture = self._capture()
        if not capture.isOpened():
            capture.release()
            raise ValueError(
                f"`source` must be the index of a camera that is connected and free. Got {self._index}, which cannot "
                "be opened."
            )
        return capture

    def _stopped(self, num_frames: int) -> ValueError:
        if num_frames == 0:
            return ValueError(f"`source` must be a camera that delivers pictures. Got none from {self.path}.")
        return IncompleteVideoError(
            f"`source` must be a camera that delivers pictures until it is closed. Got {self.path}, which stopped; "
            f"{counted(num_frames, 'frame')} could be read."
        )


def _plausible_rate(rate: float) -> Fraction | None:
    return Fraction(rate).limit_denominator(1001) if 0 < rate <= MAX_FRAME_RATE else None
