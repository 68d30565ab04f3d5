# SPDX-License-Identifier: Apache-2.0
"""What every source of frames has in common."""

from collections.abc import Generator
from contextlib import closing
from fractions import Fraction
from typing import Protocol, runtime_checkable

import numpy as np

# VSPW's; used where frames come without a rate.
DEFAULT_FRAME_RATE = Fraction(15)


class IncompleteVideoError(ValueError):
    """A video that cannot be read to its end. Whoever iterates over it has got every readable frame before."""


@runtime_checkable
class FrameSource(Protocol):
    """One video, frame by frame; see [`open_frame_source`].

    Iterating opens what has to be opened; it is closed at the end, at an error, and when the iterator is closed.

    Attributes:
        path (`str`): What to call the source in messages: the path of a file or folder, a URL, a camera.
        frame_rate (`Fraction`, *optional*): Average frames per second; `None` when nothing tells.
        time_base (`Fraction`): Unit of the times in seconds; every time is a whole multiple.
        num_frames (`int`, *optional*): Number of frames, as declared or estimated; `None` when nothing tells.
        has_audio (`bool`): Whether `path` names a file with sound that can be copied.
        end (`Fraction`, *optional*): Time in seconds until which the frame given last is shown; `None` when nothing
            tells.
    """

    path: str
    frame_rate: Fraction | None
    time_base: Fraction
    num_frames: int | None
    has_audio: bool
    end: Fraction | None = None

    def timed_frames(self) -> Generator[tuple[Fraction, np.ndarray], None, None]:
        """Yield `(time, frame)` pairs; `time` is in seconds, exact, and `frame` as in iterating.

        Raises:
            IncompleteVideoError: After the last readable frame, if there should be more.
        """
        ...

    def __iter__(self) -> Generator[np.ndarray, None, None]:
        """Yield the frames as `uint8` RGB arrays of shape `(height, width, 3)`."""
        with closing(self.timed_frames()) as timed_frames:
            for _, frame in timed_frames:
                yield frame

    def frame_name(self, index: int) -> str:
        """Name for files that belong to a frame: its index in eight digits."""
        return f"{index:08d}"
