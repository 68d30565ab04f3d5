# SPDX-License-Identifier: Apache-2.0
"""The interface of all sources of frames."""

from collections.abc import Generator
from contextlib import closing
from fractions import Fraction
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

# VSPW's; used where frames come without a rate.
DEFAULT_FRAME_RATE = Fraction(15)


class IncompleteVideoError(ValueError):
    """A video that cannot be read to its end; raised after its last readable frame."""


class TimedFrame(NamedTuple):
    """A frame, a `uint8` RGB array `(height, width, 3)`, and when it is shown, in seconds.

    `end` is `None` where nothing tells until when.
    """

    time: Fraction
    picture: np.ndarray
    end: Fraction | None = None


@runtime_checkable
class FrameSource(Protocol):
    """One video, frame by frame; see [`open_frame_source`].

    Files and devices are open while the source is iterated over, and closed with the iterator.

    Attributes:
        path (`str`): What to call the source in messages: the path of a file or folder, a URL, a camera.
        frame_rate (`Fraction`, *optional*): Average frames per second; `None` when nothing tells.
        time_base (`Fraction`): Unit of the times in seconds; every time is a whole multiple.
        num_frames (`int`, *optional*): Number of frames, as declared or estimated; `None` when nothing tells.
        has_audio (`bool`): Whether `path` names a file with sound that can be copied.
    """

    path: str
    frame_rate: Fraction | None
    time_base: Fraction
    num_frames: int | None = None
    has_audio: bool = False

    def timed_frames(self) -> Generator[TimedFrame, None, None]:
        """Yield the frames with their exact times.

        Raises `IncompleteVideoError` after the last readable frame, if there should be more.
        """
        ...

    def __iter__(self) -> Generator[np.ndarray, None, None]:
        """Yield the frames as `uint8` RGB arrays of shape `(height, width, 3)`."""
        with closing(self.timed_frames()) as timed_frames:
            for frame in timed_frames:
                yield frame.picture

    def frame_name(self, index: int) -> str:
        """Name for files that belong to a frame: its index in eight digits."""
        return f"{index:08d}"
