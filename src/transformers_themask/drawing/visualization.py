# SPDX-License-Identifier: Apache-2.0
"""Draw label maps: overlays on frames, a legend, and panels side by side."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .legend import PANEL_COLOR, TEXT_COLOR, fitted_text, font_for, legend_strip, line_height_of
from .palettes import VOID_COLOR

# Contours are one pixel wide per this many pixels of the picture's shorter side: 1 at 360, 2 at 720.
PIXELS_PER_CONTOUR = 360
# No legend covers more than this share of the picture's height.
LEGEND_HEIGHT_SHARE = 1 / 3
# Width of a sheet of pictures over its height, without legend.
SHEET_ASPECT = 1.6
# So many pixels in float32 stay in the processor's cache; a whole picture at once takes four times as long.
PIXELS_AT_ONCE = 2**16


def colorize(label_map: np.ndarray, palette: np.ndarray, ignore_index: int = 255) -> np.ndarray:
    """Paint a label map in the colours of its classes; pixels of `ignore_index` that are no class become black."""
    return _colors_by_label(label_map, palette, ignore_index).take(label_map, axis=0)


def check_alpha(alpha: float) -> None:
    """Raise a `ValueError` unless `alpha` is an opacity."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"`alpha` must be between 0 and 1. Got {alpha}.")


def overlay(
    frame: np.ndarray, label_map: np.ndarray, palette: np.ndarray, alpha: float = 0.5, ignore_index: int = 255
) -> np.ndarray:
    """Blend the class colours over a `uint8` RGB frame: `(1 - alpha) * frame + alpha * color`, rounded.

    Pixels of `ignore_index` that are no class of the palette are darkened.
    """
    check_alpha(alpha)
    if label_map.shape != frame.shape[:2]:
        raise ValueError(f"`label_map` must have the frame's size {frame.shape[:2]}. Got {label_map.shape}.")
    tints = _colors_by_label(label_map, palette, ignore_index) * np.float32(alpha)
    picture = np.empty(frame.shape, dtype=np.uint8)
    num_rows = max(1, PIXELS_AT_ONCE // max(1, frame.shape[1]))
    for top in range(0, len(frame), num_rows):
        rows = slice(top, top + num_rows)
        blended = frame[rows] * np.float32(1 - alpha)
        blended += tints.take(label_map[rows], axis=0)
        picture[rows] = np.rint(blended, out=blended)
    return picture


def draw_contours(
    image: np.ndarray, label_map: np.ndarray, palette: np.ndarray, ignore_index: int = 255
) -> np.ndarray:
    """Draw a thin line in the class's full colour along the inside of every region's border with another class.

    The line is drawn into a copy of the `uint8` RGB picture.
    """
    is_contour = np.zeros(label_map.shape, dtype=bool)
    for distance in range(1, max(1, round(min(label_map.shape) / PIXELS_PER_CONTOUR)) + 1):
        # The transposed views share the memory of the maps: rows first, then columns.
        for labels, contour in ((label_map, is_contour), (label_map.T, is_contour.T)):
            differs = labels[distance:] != labels[:-distance]
            contour[distance:] |= differs
            contour[:-distance] |= differs
    picture = image.copy()
    picture[is_contour] = colorize(label_map[is_contour], palette, ignore_index)
    return picture


def shrunk_label_map(label_map: np.ndarray, height: int, width: int) -> np.ndarray:
    """Make a label map of integers of any size smaller, without inventing labels.

    Takes the pixel in the middle of each new one's place, as Pillow's NEAREST does, which lacks 64-bit images.
    """
    rows, columns = (
        ((np.arange(new) + 0.5) * (old / new)).astype(int)
        for old, new in zip(label_map.shape, (height, width), strict=True)
    )
    return label_map[np.ix_(rows, columns)]


class RecentClasses:
    """The classes of the last frames of a video, so that a legend does not flicker when one comes and goes.

    A class keeps its place, in order of appearance, until it has been absent for `hold_frames` frames.
    """

    def __init__(self, hold_frames: int):
        self.hold_frames = hold_frames
        self._age: dict[int, int] = {}

    def update(self, label_map: np.ndarray) -> list[int]:
        """Take in the next frame's label map and return the classes to show with it."""
        self._age = {index: age + 1 for index, age in self._age.items() if age < self.hold_frames}
        if label_map.dtype == np.uint8:  # `bincount` takes four times as long, and holds up all other threads
            counts = Image.fromarray(np.ascontiguousarray(label_map)).histogram()
        else:
            counts = np.bincount(label_map.ravel()).tolist()
        self._age.update({index: 0 for index, count in enumerate(counts) if count})
        return list(self._age)


def draw_legend(
    image: np.ndarray, class_indices: Sequence[int], class_names: Sequence[str], palette: np.ndarray
) -> np.ndarray:
    """Draw colour and name of classes on a half-transparent strip along the bottom edge, inside a copy of the picture.

    The text scales with the picture's shorter side. Names that do not fit into a third of the height are counted
    instead; a name wider than the picture is cut. An index without a name is shown as void.
    """
    entries = tuple(
        (class_names[index], tuple(palette[index].tolist())) if index < len(class_names) else ("void", VOID_COLOR)
        for index in class_indices
    )
    if not entries:
        return image.copy()
    height, width = image.shape[:2]
    strip = legend_strip(entries, width, font_for(min(height, width)), int(height * LEGEND_HEIGHT_SHARE))
    picture = image.copy()
    bottom = picture[max(0, height - strip.height) :]
    canvas = Image.fromarray(bottom).convert("RGBA")
    canvas.alpha_composite(strip)
    bottom[:] = np.asarray(canvas.convert("RGB"))
    return picture


def side_by_side(panels: Sequence[tuple[str, np.ndarray]], font: ImageFont.FreeTypeFont | None = None) -> Image.Image:
    """Put `uint8` RGB pictures of one height next to each other, each under its title, which is cut to fit.

    The default font suits the size of the pictures.
    """
    heights = {image.shape[0] for _, image in panels}
    if len(heights) != 1:
        raise ValueError(f"`panels` must hold pictures of one height. Got heights {sorted(heights)}.")
    (height,) = heights
    font = font or font_for(min(height, *(image.shape[1] for _, image in panels)))
    title_height, gap = line_height_of(font), max(4, height // 90)
    width = sum(image.shape[1] for _, image in panels) + gap * (len(panels) - 1)
    canvas = Image.new("RGB", (width, title_height + height), PANEL_COLOR[:3])
    draw = ImageDraw.Draw(canvas)
    left = 0
    for title, image in panels:
        title = fitted_text(title, font, image.shape[1] - gap)
        draw.text((left + gap, title_height // 2), title, fill=TEXT_COLOR[:3], font=font, anchor="lm")
        canvas.paste(Image.fromarray(image), (left, title_height))
        left += image.shape[1] + gap
    return canvas


def best_num_columns(count: int, cell_height: int, cell_width: int) -> int:
    """Number of columns of a sheet of pictures closest to its aspect; of equal ones, that with fewer empty cells."""

    def misfit(columns: int) -> tuple[float, int]:
        rows = -(-count // columns)
        return abs(np.log(columns * cell_width / (rows * cell_height) / SHEET_ASPECT)), rows * columns - count

    return min(range(1, count + 1), key=misfit)


def _colors_by_label(label_map: np.ndarray, palette: np.ndarray, ignore_index: int) -> np.ndarray:
    """A colour for every value that the label map may hold: `uint8` of shape `(num_values, 3)`."""
    num_classes = len(palette)
    if label_map.max(initial=0) >= num_classes or label_map.min(initial=0) < 0:
        is_unknown = (label_map < 0) | ((label_map >= num_classes) & (label_map != ignore_index))
        if is_unknown.any():
            raise ValueError(
                f"`label_map` must hold class indices below {num_classes} or {ignore_index} for void. Got "
                f"{int(label_map[is_unknown][0])}."
            )
    colors = np.full((max(num_classes, ignore_index + 1), 3), VOID_COLOR, dtype=np.uint8)
    colors[:num_classes] = palette
    return colors
