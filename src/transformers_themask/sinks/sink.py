# SPDX-License-Identifier: Apache-2.0
"""Where the labelled frames of one video go."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class LabelledFrame:
    """One frame of a video with its label map. Several sinks share it: they must not change its arrays.

    Attributes:
        index: Position in the video.
        time: Presentation time in seconds.
        name: Name for files that belong to the frame, without suffix.
        picture (`(height, width, 3)`): `uint8` RGB frame.
        label_map (`(height, width)`): Class index of every pixel.
        end: Time in seconds until which the frame is shown, where the source tells.
    """

    index: int
    time: Fraction
    name: str
    picture: np.ndarray
    label_map: np.ndarray
    end: Fraction | None = None


class Sink(Protocol):
    """Takes the frames of one video, in order. Its result appears when it is closed.

    A subclass inherits a `close` and an `abandon` that do nothing.
    """

    def write(self, frame: LabelledFrame) -> None:
        """Take in the next frame."""

    def close(self) -> None:
        """Finish what is written."""
        return None

    def abandon(self) -> None:
        """Remove an unfinished result; a no-op if it is finished or nothing has been written."""
        return None
