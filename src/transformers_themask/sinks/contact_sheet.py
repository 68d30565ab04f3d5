# SPDX-License-Identifier: Apache-2.0
"""Contact sheets: small overlays of evenly spread frames of a video."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from transformers_themask.drawing.legend import PANEL_COLOR, TEXT_COLOR, font_for, legend_strip, line_height_of
from transformers_themask.drawing.numbers import clock
from transformers_themask.drawing.palettes import VOID_COLOR
from transformers_themask.drawing.visualization import (
    best_num_columns,
    check_alpha,
    shrunk_label_map,
)
from transformers_themask.files.atomic import AtomicFile
from transformers_themask.files.file_names import check_suffix

from .drawn_video import colored
from .sink import LabelledFrame, Sink

# Of the longer side of a picture; what a sheet of 20 needs to fit on a screen.
THUMBNAIL_SIDE = 320
GAP = 12
# The legend's letters and those of the times are as large as in a picture of this size.
TEXT_SIDE = 360


class Thumbnail(NamedTuple):
    """A frame, made small."""

    time: Fraction
    picture: np.ndarray
    label_map: np.ndarray


class ContactSheet(Sink):
    """Sink that draws evenly spread frames with their class colours and times, over a legend.

    Memory holds less than twice as many small pictures as the sheet shows, however long the video is: when it is full,
    every other picture is dropped.

    Args:
        path: The png file to write; its folder is made if needed.
        class_names: Name of each class.
        palette (`(num_classes, 3)`): RGB colour of each class.
        num_pictures: Number of pictures; a shorter video has one for each frame.
        alpha: Opacity of the colours, outlined at full opacity.
        argument: Name of the argument that gives the path, for the errors.
    """

    def __init__(
        self,
        path: str | Path,
        class_names: Sequence[str],
        palette: np.ndarray,
        *,
        num_pictures: int = 20,
        alpha: float = 0.5,
        argument: str = "path",
    ):
        self.path = Path(path)
        check_suffix(self.path, (".png",), argument)
        check_alpha(alpha)
        if num_pictures < 1:
            raise ValueError(f"`num_pictures` must be at least 1. Got {num_pictures}.")
        self._class_names = class_names
        self._palette = palette
        self._num_pictures = num_pictures
        self._alpha = alpha
        self._distance = 1
        self._thumbnails: list[Thumbnail] = []

    def write(self, frame: LabelledFrame) -> None:
        """Keep the next frame, if it falls on the grid."""
        if frame.index % self._distance:
            return
        self._thumbnails.append(_thumbnail(frame))
        if len(self._thumbnails) == 2 * self._num_pictures:
            del self._thumbnails[1::2]
            self._distance *= 2

    def close(self) -> None:
        """Draw the sheet."""
        if not self._thumbnails:
            return
        count = min(self._num_pictures, len(self._thumbnails))
        spread = np.linspace(0, len(self._thumbnails) - 1, count).round().astype(int)
        sheet = self._draw([self._thumbnails[position] for position in spread])
        with AtomicFile(self.path) as unfinished:
            sheet.save(unfinished)

    def _draw(self, thumbnails: Sequence[Thumbnail]) -> Image.Image:
        font = font_for(TEXT_SIDE)
        height, width = thumbnails[0].label_map.shape
        cell_height, cell_width = height + line_height_of(font) + GAP, width + GAP
        num_columns = best_num_columns(len(thumbnails), cell_height, cell_width)
        num_rows = -(-len(thumbnails) // num_columns)
        size = GAP + num_columns * cell_width, GAP + num_rows * cell_height  # without the legend
        legend = self._legend(thumbnails, size[0] - GAP, size[1])
        sheet = Image.new("RGBA", (size[0], size[1] + legend.height + GAP), (*PANEL_COLOR[:3], 255))
        draw = ImageDraw.Draw(sheet)
        for position, thumbnail in enumerate(thumbnails):
            row, column = divmod(position, num_columns)
            left, top = GAP + column * cell_width, GAP + row * cell_height
            picture = colored(thumbnail.picture, thumbnail.label_map, self._palette, self._alpha)
            sheet.paste(Image.fromarray(picture), (left, top))
            middle = top + height + line_height_of(font) // 2
            draw.text(
                (left + width // 2, middle), clock(thumbnail.time, digits=2), fill=TEXT_COLOR, font=font, anchor="mm"
            )
        sheet.alpha_composite(legend, (GAP // 2, size[1]))
        return sheet.convert("RGB")

    def _legend(self, thumbnails: Sequence[Thumbnail], width: int, max_height: int) -> Image.Image:
        """The classes on the sheet, those that cover most of it first."""
        classes, pixels = np.unique([thumbnail.label_map for thumbnail in thumbnails], return_counts=True)
        entries = tuple(
            (self._class_names[index], tuple(self._palette[index].tolist()))
            if index < len(self._class_names)
            else ("void", VOID_COLOR)
            for index in classes[np.argsort(-pixels, kind="stable")].tolist()
        )
        return legend_strip(entries, width, font_for(TEXT_SIDE), max_height)


def _thumbnail(frame: LabelledFrame) -> Thumbnail:
    height, width = frame.label_map.shape
    scale = min(1.0, THUMBNAIL_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = Image.fromarray(frame.picture).resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    return Thumbnail(frame.time, np.asarray(picture), shrunk_label_map(frame.label_map, size[1], size[0]))
