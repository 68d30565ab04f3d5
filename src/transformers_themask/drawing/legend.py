# SPDX-License-Identifier: Apache-2.0
"""Colours and their names, as text on a strip."""

from collections.abc import Sequence
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

PANEL_COLOR = (16, 16, 16, 184)
TEXT_COLOR = (255, 255, 255, 255)


@lru_cache(maxsize=8)
def legend_strip(
    entries: tuple[tuple[str, tuple[int, ...] | None], ...], width: int, font: ImageFont.FreeTypeFont, max_height: int
) -> Image.Image:
    """Draw names and RGB colours of classes on a half-transparent RGBA strip; cached, as it stays for many frames.

    Underscores are drawn as spaces, and a name wider than the strip is cut. Rows that do not fit into `max_height` are
    counted instead; the first is always there.
    """
    line_height = line_height_of(font)
    room = width - _entry_width("", font)
    entries = tuple((fitted_text(name.replace("_", " "), font, room), color) for name, color in entries)
    rows = _legend_rows(entries, font, width, max_rows=max(1, max_height // line_height))
    strip = Image.new("RGBA", (width, line_height * len(rows)), PANEL_COLOR)
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


def line_height_of(font: ImageFont.FreeTypeFont) -> int:
    """Height of a line of text with the space around it."""
    return round(font.size * 1.6)


@lru_cache(maxsize=8)
def font_for(side: int) -> ImageFont.FreeTypeFont:
    """PIL's built-in font at a readable size for pictures with this shorter side: 14 px at 360, 24 at 720."""
    font = ImageFont.load_default(size=max(11, 4 + side // 36))
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def fitted_text(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Cut a text so that it is at most `width` pixels wide."""
    if font.getlength(text) <= width:
        return text
    beginnings = (f"{text[:length].rstrip()}…" for length in range(len(text) - 1, 0, -1))
    return next((beginning for beginning in beginnings if font.getlength(beginning) <= width), "…")


def _legend_rows(
    entries: Sequence[tuple[str, tuple[int, ...] | None]], font: ImageFont.FreeTypeFont, width: int, max_rows: int
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
    swatch = line_height_of(font) // 2
    return 3 * swatch + round(font.getlength(name))
