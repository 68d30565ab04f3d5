# SPDX-License-Identifier: Apache-2.0
"""Draw label maps: class colours, overlays on frames, a legend, and panels side by side."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Paul Tol's "bright" scheme without its grey, then orange, indigo and brown: told apart with the common colour
# deficiencies.
FIRST_COLORS = (
    (68, 119, 170),
    (238, 102, 119),
    (34, 136, 51),
    (204, 187, 68),
    (102, 204, 238),
    (170, 51, 119),
    (242, 140, 30),
    (51, 34, 136),
    (140, 86, 40),
)
VOID_COLOR = (0, 0, 0)
# Colours no class may come close to: void, and the white of the text.
RESERVED_COLORS = (VOID_COLOR, (255, 255, 255))
# Further colours come from a cube of this many levels per channel, without the nearly black and nearly white and the
# most glaring ones (Oklab lightness and chroma); that leaves enough for `MAX_CLASSES`.
COLOR_LEVELS = 12
LIGHTNESS_RANGE = (0.4, 0.92)
MAX_CHROMA = 0.25
MAX_CLASSES = 1024
PANEL_COLOR = (16, 16, 16, 184)
TEXT_COLOR = (255, 255, 255, 255)
# Contours are one pixel wide per this many pixels of the picture's shorter side: 1 at 360, 2 at 720.
PIXELS_PER_CONTOUR = 360
# No legend covers more than this share of the picture's height.
LEGEND_HEIGHT_SHARE = 1 / 3


def class_palette(num_classes: int) -> np.ndarray:
    """Colours for classes `0 ... num_classes - 1`, the same in every run and for every number of classes.

    The first ten are hand-picked; each further one is the candidate that lies farthest, in the perceptual space Oklab
    (B. Ottosson, 2020), from all colours before it.

    Args:
        num_classes (`int`):
            Number of classes, at most 1024.

    Returns:
        `np.ndarray` of shape `(num_classes, 3)`: `uint8` RGB, without repetitions.
    """
    if not 1 <= num_classes <= MAX_CLASSES:
        raise ValueError(f"`num_classes` must be between 1 and {MAX_CLASSES}. Got {num_classes}.")
    colors = list(FIRST_COLORS[:num_classes])
    levels = np.linspace(0, 255, COLOR_LEVELS).round()
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    candidates_oklab = _oklab(candidates)
    lightness, chroma = candidates_oklab[:, 0], np.hypot(candidates_oklab[:, 1], candidates_oklab[:, 2])
    darkest, lightest = LIGHTNESS_RANGE
    is_usable = (lightness >= darkest) & (lightness <= lightest) & (chroma <= MAX_CHROMA)
    candidates, candidates_oklab = candidates[is_usable], candidates_oklab[is_usable]
    distance = np.full(len(candidates), np.inf)
    for color in (*RESERVED_COLORS, *colors):
        distance = np.minimum(distance, ((candidates_oklab - _oklab(np.array(color))) ** 2).sum(axis=1))
    while len(colors) < num_classes:
        farthest = int(distance.argmax())
        colors.append(tuple(candidates[farthest].astype(int).tolist()))
        distance = np.minimum(distance, ((candidates_oklab - candidates_oklab[farthest]) ** 2).sum(axis=1))
    return np.array(colors, dtype=np.uint8)


def colorize(label_map: np.ndarray, palette: np.ndarray, ignore_index: int = 255) -> np.ndarray:
    """Paint a label map in the colours of its classes.

    Args:
        label_map (`np.ndarray` of shape `(height, width)`):
            Class indices; `ignore_index` marks void pixels, which become black.
        palette (`np.ndarray` of shape `(num_classes, 3)`):
            RGB colour of each class.
        ignore_index (`int`, *optional*, defaults to 255):
            Value of void pixels, where it is not itself a class of the palette.

    Returns:
        `np.ndarray` of shape `(height, width, 3)`: `uint8` RGB.
    """
    num_classes = len(palette)
    is_void = (label_map == ignore_index) & (label_map >= num_classes)
    is_unknown = ((label_map < 0) | (label_map >= num_classes)) & ~is_void
    if is_unknown.any():
        raise ValueError(
            f"`label_map` must hold class indices below {num_classes} or {ignore_index} for void. Got "
            f"{int(label_map[is_unknown][0])}."
        )
    colors = np.vstack([palette, np.array([VOID_COLOR], dtype=np.uint8)])
    return colors[np.where(is_void, num_classes, label_map)]


def check_alpha(alpha: float) -> None:
    """Raise a `ValueError` unless `alpha` is an opacity."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"`alpha` must be between 0 and 1. Got {alpha}.")


def overlay(
    frame: np.ndarray, label_map: np.ndarray, palette: np.ndarray, alpha: float = 0.5, ignore_index: int = 255
) -> np.ndarray:
    """Blend the class colours over a frame: `(1 - alpha) * frame + alpha * color`, rounded.

    Args:
        frame (`np.ndarray` of shape `(height, width, 3)`):
            `uint8` RGB frame.
        label_map (`np.ndarray` of shape `(height, width)`):
            Class index of every pixel of the frame.
        palette (`np.ndarray` of shape `(num_classes, 3)`):
            RGB colour of each class.
        alpha (`float`, *optional*, defaults to 0.5):
            Opacity of the colours: 0 leaves the frame as it is, 1 hides it.
        ignore_index (`int`, *optional*, defaults to 255):
            Value of void pixels, which are darkened.

    Returns:
        `np.ndarray` of shape `(height, width, 3)`: `uint8` RGB, pixel for pixel on top of the frame.
    """
    check_alpha(alpha)
    if label_map.shape != frame.shape[:2]:
        raise ValueError(f"`label_map` must have the frame's size {frame.shape[:2]}. Got {label_map.shape}.")
    colors = colorize(label_map, palette, ignore_index)
    blended = frame * np.float32(1 - alpha) + colors * np.float32(alpha)
    return blended.round().astype(np.uint8)


def draw_contours(
    image: np.ndarray, label_map: np.ndarray, palette: np.ndarray, ignore_index: int = 255
) -> np.ndarray:
    """Draw a thin line in the class's full colour along the inside of every region's border with another class.

    Args:
        image (`np.ndarray` of shape `(height, width, 3)`):
            `uint8` RGB picture, for example what [`overlay`] returns; it is not changed.
        label_map (`np.ndarray` of shape `(height, width)`):
            Class index of every pixel of the picture.
        palette (`np.ndarray` of shape `(num_classes, 3)`):
            RGB colour of each class.
        ignore_index (`int`, *optional*, defaults to 255):
            Value of void pixels.

    Returns:
        `np.ndarray` of shape `(height, width, 3)`: the picture with its contours.
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


class RecentClasses:
    """The classes of the last frames of a video, so that a legend does not flicker when one comes and goes.

    A class keeps its place, in order of appearance, until it has been absent for `hold_frames` frames.

    Args:
        hold_frames (`int`):
            For how many frames an absent class stays.
    """

    def __init__(self, hold_frames: int):
        self.hold_frames = hold_frames
        self._age: dict[int, int] = {}

    def update(self, label_map: np.ndarray) -> list[int]:
        """Take in the next frame's label map and return the classes to show with it."""
        self._age = {index: age + 1 for index, age in self._age.items() if age < self.hold_frames}
        self._age.update(dict.fromkeys(np.unique(label_map).tolist(), 0))
        return list(self._age)


def draw_legend(
    image: np.ndarray, class_indices: Sequence[int], class_names: Sequence[str], palette: np.ndarray
) -> np.ndarray:
    """Draw colour and name of classes on a half-transparent strip along the bottom edge, inside the picture.

    The text scales with the picture's height. Names that do not fit into a third of it are counted instead.

    Args:
        image (`np.ndarray` of shape `(height, width, 3)`):
            `uint8` RGB picture; it is not changed.
        class_indices (`Sequence[int]`):
            Classes to show, in this order; an index without a name is shown as void.
        class_names (`Sequence[str]`):
            Name of each class.
        palette (`np.ndarray` of shape `(num_classes, 3)`):
            RGB colour of each class.

    Returns:
        `np.ndarray` of shape `(height, width, 3)`: the picture with its legend.
    """
    entries = tuple(
        (class_names[index], tuple(palette[index].tolist())) if index < len(class_names) else ("void", VOID_COLOR)
        for index in class_indices
    )
    if not entries:
        return image.copy()
    height, width = image.shape[:2]
    strip = _legend_strip(entries, height, width)
    canvas = Image.fromarray(image).convert("RGBA")
    canvas.alpha_composite(strip, (0, height - strip.height))
    return np.asarray(canvas.convert("RGB"))


def side_by_side(panels: Sequence[tuple[str, np.ndarray]]) -> Image.Image:
    """Put pictures of the same height next to each other, each under its title.

    Args:
        panels (`Sequence[tuple[str, np.ndarray]]`):
            Pairs of title and `uint8` RGB picture of shape `(height, width, 3)`.

    Returns:
        `PIL.Image.Image`, to be saved as PNG for example.
    """
    heights = {image.shape[0] for _, image in panels}
    if len(heights) != 1:
        raise ValueError(f"`panels` must hold pictures of one height. Got heights {sorted(heights)}.")
    (height,) = heights
    font = _font(height)
    title_height, gap = _line_height(font), max(4, height // 90)
    width = sum(image.shape[1] for _, image in panels) + gap * (len(panels) - 1)
    canvas = Image.new("RGB", (width, title_height + height), PANEL_COLOR[:3])
    draw = ImageDraw.Draw(canvas)
    left = 0
    for title, image in panels:
        draw.text((left + gap, title_height // 2), title, fill=TEXT_COLOR[:3], font=font, anchor="lm")
        canvas.paste(Image.fromarray(image), (left, title_height))
        left += image.shape[1] + gap
    return canvas


@lru_cache(maxsize=8)
def _legend_strip(entries: tuple[tuple[str, tuple[int, ...]], ...], height: int, width: int) -> Image.Image:
    """The legend alone; cached because it stays the same for many frames of a video."""
    font = _font(height)
    line_height = _line_height(font)
    rows = _legend_rows(entries, font, width, max_rows=max(1, int(height * LEGEND_HEIGHT_SHARE) // line_height))
    strip = Image.new("RGBA", (width, min(height, line_height * len(rows))), PANEL_COLOR)
    draw = ImageDraw.Draw(strip)
    swatch = line_height // 2
    for row_index, row in enumerate(rows):
        middle = row_index * line_height + line_height // 2
        left = swatch // 2
        for name, color in row:
            if color is not None:
                box = (left, middle - swatch // 2, left + swatch, middle - swatch // 2 + swatch)
                draw.rectangle(box, fill=(*color, 255), outline=TEXT_COLOR)
            draw.text((left + swatch + swatch // 2, middle), name, fill=TEXT_COLOR, font=font, anchor="lm")
            left += _entry_width(name, font)
    return strip


def _legend_rows(
    entries: Sequence[tuple[str, tuple[int, ...]]], font: ImageFont.FreeTypeFont, width: int, max_rows: int
) -> list[list[tuple[str, tuple[int, ...] | None]]]:
    """Break entries into rows of at most `width` pixels; the ones after the last row become one "+N more"."""
    rows: list[list[tuple[str, tuple[int, ...] | None]]] = [[]]
    left = 0
    for position, (name, color) in enumerate(entries):
        num_left = len(entries) - position
        # On the last row, room is kept for the count unless everything left is this entry.
        reserve = _entry_width(f"+{num_left} more", font) if len(rows) == max_rows and num_left > 1 else 0
        if rows[-1] and left + _entry_width(name, font) + reserve > width:
            if len(rows) == max_rows:
                rows[-1].append((f"+{num_left} more", None))
                return rows
            rows.append([])
            left = 0
        rows[-1].append((name, color))
        left += _entry_width(name, font)
    return rows


def _entry_width(name: str, font: ImageFont.FreeTypeFont) -> int:
    swatch = _line_height(font) // 2
    return 3 * swatch + round(font.getlength(name))


def _line_height(font: ImageFont.FreeTypeFont) -> int:
    return round(font.size * 1.6)


@lru_cache(maxsize=8)
def _font(height: int) -> ImageFont.FreeTypeFont:
    """PIL's built-in font at a size that can be read at the picture's height: 14 px at 360, 24 at 720."""
    font = ImageFont.load_default(size=max(11, 4 + height // 36))
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _oklab(colors: np.ndarray) -> np.ndarray:
    """RGB values 0 ... 255 of shape `(..., 3)` in Oklab (https://bottosson.github.io/posts/oklab/)."""
    rgb = colors / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    cones = linear @ np.array(
        [[0.4122214708, 0.2119034982, 0.0883024619], [0.5363325363, 0.6806995451, 0.2817188376],
         [0.0514459929, 0.1073969566, 0.6299787005]]
    )  # fmt: skip
    return np.cbrt(cones) @ np.array(
        [[0.2104542553, 1.9779984951, 0.0259040371], [0.7936177850, -2.4285922050, 0.7827717662],
         [-0.0040720468, 0.4505937099, -0.8086757660]]
    )  # fmt: skip
