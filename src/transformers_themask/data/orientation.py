# SPDX-License-Identifier: Apache-2.0
"""Orientation of decoded frames: phones store portrait video rotated by a quarter turn."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import av
    from av.video.reformatter import VideoReformatter


@dataclass(frozen=True)
class Orientation:
    """Swap the axes of a picture, then mirror rows and columns."""

    is_transposed: bool = False
    is_upside_down: bool = False
    is_mirrored: bool = False

    @classmethod
    def of(cls, frame: "av.VideoFrame") -> "Orientation":
        """Orientation in the display matrix of a frame, to the nearest quarter turn; read it once per file.

        Reading the side data creates a reference cycle in PyAV that keeps the frame alive.
        """
        from av.sidedata.sidedata import Type as SideDataType  # PyAV takes long to import

        side_data = frame.side_data.get(SideDataType.DISPLAYMATRIX)  # type: ignore[call-overload]
        if side_data is None:
            return cls()
        # Row-major 3x3 matrix in fixed point: a source point (x, y) is shown at (a x + c y, b x + d y).
        a, b, _, c, d = np.frombuffer(side_data, dtype=np.int32)[:5].tolist()
        if abs(b) + abs(c) > abs(a) + abs(d):
            return cls(is_transposed=True, is_upside_down=b < 0, is_mirrored=c < 0)
        return cls(is_upside_down=d < 0, is_mirrored=a < 0)

    def size_of(self, frame: "av.VideoFrame") -> tuple[int, int]:
        """Height and width of a frame after rotation."""
        return (frame.width, frame.height) if self.is_transposed else (frame.height, frame.width)

    def rgb_array(self, frame: "av.VideoFrame", reformatter: "VideoReformatter") -> np.ndarray:
        """A frame turned upright, as a `uint8` RGB array of shape `(height, width, 3)`.

        The reformatter caches its tables between frames, two thirds of the work; it is not thread-safe.
        """
        picture = reformatter.reformat(frame, format="rgb24").to_ndarray()
        if self.is_transposed:
            picture = picture.transpose(1, 0, 2)
        row_step, column_step = -1 if self.is_upside_down else 1, -1 if self.is_mirrored else 1
        return np.ascontiguousarray(picture[::row_step, ::column_step])
