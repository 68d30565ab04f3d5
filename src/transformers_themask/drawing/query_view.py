# SPDX-License-Identifier: Apache-2.0
"""The two queries of each class in one frame: how a hierarchical model divides a picture among its queries."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from .heat_map import draw_heat_map, heat_bar
from .legend import PANEL_COLOR, TEXT_COLOR, font_for, legend_strip, line_height_of
from .visualization import best_num_columns, draw_contours, overlay, side_by_side

# Width of a picture by the number of classes, so that all fit on a screen.
MANY_CLASSES = 6
PICTURE_WIDTH, SMALL_PICTURE_WIDTH = 480, 320
# The letters are as large as in a picture of this size.
TEXT_SIDE = 360
GAP = 12
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
    the query was matched to. `target_title` is the title of the label map.
    """
    width = SMALL_PICTURE_WIDTH if len(queries.classes) >= MANY_CLASSES else PICTURE_WIDTH
    pairs = [_frame_pair(queries, palette, target_title, width)]
    pairs += [_class_pair(queries, entry, class_names[entry.class_index], palette, width) for entry in queries.classes]
    return _sheet(pairs, f"white line: the class in the {target_title}")


def _frame_pair(queries: FrameQueries, palette: np.ndarray, target_title: str, width: int) -> Image.Image:
    void = len(palette)
    is_class = (queries.target >= 0) & (queries.target < void)
    target = np.where(is_class, queries.target, void)
    picture = overlay(queries.picture, target, palette, ignore_index=void)
    picture = draw_contours(picture, target, palette, ignore_index=void)
    num_classes = len(np.unique(target[is_class]))
    title = f"{num_classes} class" if num_classes == 1 else f"{num_classes} classes"
    return _pair(title, None, [("frame", queries.picture), (target_title, picture)], width)


def _class_pair(queries: FrameQueries, entry: ClassQueries, name: str, palette: np.ndarray, width: int) -> Image.Image:
    region = (queries.target == entry.class_index).astype(np.uint8)
    outline = np.full((2, 3), 255, dtype=np.uint8)
    pictures = []
    for kind, query in (("primary", entry.primary), ("secondary", entry.secondary)):
        if query is None:
            pictures.append((f"{kind}: no query", np.full_like(queries.picture, EMPTY_COLOR)))
            continue
        heat = draw_contours(draw_heat_map(queries.picture, query.mask), region, outline)
        pictures.append((f"{kind}: query {query.query_index}, class probability {query.class_probability:.2f}", heat))
    title = f"{name}, {100 * region.mean():.1f} % of the frame"
    return _pair(title, tuple(palette[entry.class_index].tolist()), pictures, width)


def _pair(
    title: str, color: tuple[int, ...] | None, pictures: Sequence[tuple[str, np.ndarray]], width: int
) -> Image.Image:
    """Two pictures with a title each, under a common one with the colour of a class."""
    font = font_for(TEXT_SIDE)
    height = round(width * pictures[0][1].shape[0] / pictures[0][1].shape[1])
    resized = [
        (text, np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)))
        for text, picture in pictures
    ]
    panels = side_by_side(resized, font)
    strip = legend_strip(((title, color),), panels.width, font, max_height=line_height_of(font))
    return Image.fromarray(np.vstack([np.asarray(strip.convert("RGB")), np.asarray(panels)]))


def _sheet(pairs: Sequence[Image.Image], note: str) -> Image.Image:
    """Put pairs in rows and columns, over the bar that explains the heat."""
    font = font_for(TEXT_SIDE)
    line = line_height_of(font)
    cell_width, cell_height = pairs[0].width + GAP, pairs[0].height + GAP
    num_columns = best_num_columns(len(pairs), cell_height, cell_width)
    num_rows = -(-len(pairs) // num_columns)
    sheet = Image.new("RGB", (num_columns * cell_width + GAP, num_rows * cell_height + GAP + line), PANEL_COLOR[:3])
    for position, pair in enumerate(pairs):
        row, column = divmod(position, num_columns)
        sheet.paste(pair, (GAP + column * cell_width, GAP // 2 + row * cell_height))
    bar_width = min(pairs[0].width, sheet.width - round(font.getlength(note)) - 3 * GAP)
    bar = heat_bar("not in the mask", "in the mask", bar_width, font)
    sheet.paste(bar, (GAP // 2, sheet.height - line - GAP // 2))
    beside_bar = bar_width + GAP, sheet.height - GAP // 2 - line // 2
    ImageDraw.Draw(sheet).text(beside_bar, note, fill=TEXT_COLOR[:3], font=font, anchor="lm")
    return sheet
