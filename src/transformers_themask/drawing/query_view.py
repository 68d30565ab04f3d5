# SPDX-License-Identifier: Apache-2.0
"""The two queries of each class in one frame: how a hierarchical model divides a picture among its queries."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from .heat_map import draw_heat_map, heat_bar
from .legend import PANEL_COLOR, TEXT_COLOR, fitted_text, font_for, line_height_of
from .visualization import best_num_columns, draw_contours, overlay

# Width of a picture by the number of pairs of them, so that all fit on a screen.
MANY_PAIRS = 6
PICTURE_WIDTH, SMALL_PICTURE_WIDTH = 480, 320
# The letters are as large as in a picture of this size.
TEXT_SIDE = 360
GAP = 12
SUBTITLE_COLOR = (190, 190, 190)
EMPTY_COLOR = (40, 40, 40)


class QueryMask(NamedTuple):
    """A query matched to a class: its number, its probability of the class and of every pixel `(height, width)`."""

    query_index: int
    class_probability: float
    mask: np.ndarray


class ClassQueries(NamedTuple):
    """The queries that the two rounds of matching gave to a class; `None` where a round had none left, or was not."""

    class_index: int
    primary: QueryMask | None
    secondary: QueryMask | None


class FrameQueries(NamedTuple):
    """A frame of a clip with its queries.

    `target` is the label map `(height, width)` that they were matched to, `classes` are the classes of the clip, that
    with the most pixels in the frame first.
    """

    picture: np.ndarray
    target: np.ndarray
    classes: list[ClassQueries]


def draw_queries(
    queries: FrameQueries, class_names: Mapping[int, str], palette: np.ndarray, target_title: str
) -> Image.Image:
    """Draw a frame, its label map, and for each class the masks of its primary and its secondary query.

    A heat map shows the probability that a pixel belongs to the query's mask; a white line surrounds the region that
    the query was matched to.

    `queries`: the frame and its queries. `palette` `(num_classes, 3)`. `target_title`: title of the label map.
    """
    pairs = [_frame_pair(queries, palette, target_title)]
    pairs += [_class_pair(queries, entry, class_names[entry.class_index], palette) for entry in queries.classes]
    return _sheet(pairs, f"white line: the class in the {target_title}")


class _Pair(NamedTuple):
    """Two pictures with a title each, under a common one with the colour of a class."""

    title: str
    color: tuple[int, ...] | None
    pictures: tuple[tuple[str, np.ndarray | None], tuple[str, np.ndarray | None]]


def _frame_pair(queries: FrameQueries, palette: np.ndarray, target_title: str) -> _Pair:
    void = len(palette)
    is_class = (queries.target >= 0) & (queries.target < void)
    target = np.where(is_class, queries.target, void)
    picture = overlay(queries.picture, target, palette, ignore_index=void)
    picture = draw_contours(picture, target, palette, ignore_index=void)
    num_classes = len(np.unique(target[is_class]))
    title = f"{num_classes} class" if num_classes == 1 else f"{num_classes} classes"
    return _Pair(title, None, (("frame", queries.picture), (target_title, picture)))


def _class_pair(queries: FrameQueries, entry: ClassQueries, name: str, palette: np.ndarray) -> _Pair:
    region = (queries.target == entry.class_index).astype(np.uint8)
    title = f"{name.replace('_', ' ')}, {100 * region.mean():.1f} % of the frame"
    outline = np.full((2, 3), 255, dtype=np.uint8)
    pictures: list[tuple[str, np.ndarray | None]] = []
    for kind, query in (("primary", entry.primary), ("secondary", entry.secondary)):
        if query is None:
            pictures.append((f"{kind}: no query", None))
            continue
        heat = draw_contours(draw_heat_map(queries.picture, query.mask), region, outline)
        pictures.append((f"{kind}: query {query.query_index}, class probability {query.class_probability:.2f}", heat))
    return _Pair(title, tuple(palette[entry.class_index].tolist()), (pictures[0], pictures[1]))


def _sheet(pairs: Sequence[_Pair], note: str) -> Image.Image:
    """Put pairs in rows and columns, over the bar that explains the heat."""
    font = font_for(TEXT_SIDE)
    line = line_height_of(font)
    (_, first), _ = pairs[0].pictures
    assert first is not None  # the frame itself
    width = SMALL_PICTURE_WIDTH if len(pairs) > MANY_PAIRS else PICTURE_WIDTH
    height = round(width * first.shape[0] / first.shape[1])
    cell_width, cell_height = 2 * width + 2 * GAP, height + 2 * line + GAP
    num_columns = best_num_columns(len(pairs), cell_height, cell_width)
    num_rows = -(-len(pairs) // num_columns)
    sheet = Image.new("RGB", (num_columns * cell_width + GAP, num_rows * cell_height + GAP + line), PANEL_COLOR[:3])
    for position, pair in enumerate(pairs):
        row, column = divmod(position, num_columns)
        _draw_pair(sheet, pair, (GAP + column * cell_width, GAP // 2 + row * cell_height), (width, height))
    bar_width = min(2 * width, sheet.width - round(font.getlength(note)) - 3 * GAP)
    sheet.paste(
        heat_bar("not in the mask", "in the mask", bar_width, font), (GAP // 2, sheet.height - line - GAP // 2)
    )
    beside_bar = bar_width + GAP, sheet.height - GAP // 2 - line // 2
    ImageDraw.Draw(sheet).text(beside_bar, note, fill=TEXT_COLOR[:3], font=font, anchor="lm")
    return sheet


def _draw_pair(sheet: Image.Image, pair: _Pair, corner: tuple[int, int], size: tuple[int, int]) -> None:
    font = font_for(TEXT_SIDE)
    line = line_height_of(font)
    draw = ImageDraw.Draw(sheet)
    left, top = corner
    width, height = size
    indent = 0
    if pair.color is not None:
        swatch = line // 2
        box = (left, top + line // 2 - swatch // 2, left + swatch, top + line // 2 + swatch // 2)
        draw.rectangle(box, fill=pair.color, outline=TEXT_COLOR[:3])
        indent = 3 * swatch // 2
    title = fitted_text(pair.title, font, 2 * width - indent)
    draw.text((left + indent, top + line // 2), title, fill=TEXT_COLOR[:3], font=font, anchor="lm")
    for position, (text, picture) in enumerate(pair.pictures):
        side = left + position * (width + GAP // 2)
        middle = top + line + line // 2
        draw.text((side, middle), fitted_text(text, font, width), fill=SUBTITLE_COLOR, font=font, anchor="lm")
        if picture is None:
            draw.rectangle((side, top + 2 * line, side + width - 1, top + 2 * line + height - 1), fill=EMPTY_COLOR)
        else:
            resized = Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS)
            sheet.paste(resized, (side, top + 2 * line))
