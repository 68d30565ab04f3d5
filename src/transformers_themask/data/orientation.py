# SPDX-License-Identifier: Apache-2.0
"""How a decoded picture is turned upright: phones store portrait video lying on its side."""

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
        """What the display matrix of a frame asks for, to the nearest quarter turn.

        Ask once per file: PyAV ties a frame whose side data was looked at into a cycle, and such frames pile up.
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
        """Height and width of a frame that is upright."""
        return (frame.width, frame.height) if self.is_transposed else (frame.height, frame.width)

    def rgb_array(self, frame: "av.VideoFrame", reformatter: "VideoReformatter") -> np.ndarray:
        """A frame turned upright, as a `uint8` RGB array of shape `(height, width, 3)`.

        Args:
            frame (`av.VideoFrame`): The frame.
            reformatter (`VideoReformatter`): Converts the colours. It keeps its tables from frame to frame, which
                saves two thirds of the work; no two threads may share one.
        """
        picture = reformatter.reformat(frame, format="rgb24").to_ndarray()
        if self.is_transposed:
            picture = picture.transpose(1, 0, 2)
        row_step, column_step = -1 if self.is_upside_down else 1, -1 if self.is_mirrored else 1
        return np.ascontiguousarray(picture[::row_step, ::column_step])
