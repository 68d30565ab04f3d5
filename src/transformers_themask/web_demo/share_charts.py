# SPDX-License-Identifier: Apache-2.0
"""Class shares as HTML that fits any width: a legend with a bar per class, and areas over time."""

from collections.abc import Sequence
from html import escape

import numpy as np

from transformers_themask.drawing.numbers import clock, percent

# The areas are drawn in these units and stretched to the page.
CHART_WIDTH, CHART_HEIGHT = 1000, 100
NUM_TIME_LABELS = 5
# From this many seconds on, tenths are left out.
LONG_VIDEO = 90


def legend_html(class_names: Sequence[str], palette: np.ndarray, shares: np.ndarray) -> str:
    """A list of the classes that occur with their share (0 to 1) of shape `(num_classes,)`, the largest first."""
    rows = []
    for index in _present(shares):
        color, length = _css_color(palette[index]), 100 * shares[index] / shares.max()
        rows.append(
            f'<li><i class="swatch" style="background:{color}"></i><span class="name">{_text(class_names[index])}'
            f'</span><b>{escape(percent(shares[index]))}</b><span class="bar"><span style="width:{length:.1f}%;'
            f'background:{color}"></span></span></li>'
        )
    return f'<ul class="legend">{"".join(rows)}</ul>'


def timeline_html(class_names: Sequence[str], palette: np.ndarray, edges: np.ndarray, shares: np.ndarray) -> str:
    """Shares over time as areas on top of one another, the class with the largest share at the bottom.

    `edges` `(num_bins + 1,)` are where stretches of time begin and end, in seconds, `shares` `(num_bins, num_classes)`
    is the share of each class in each. The name of a class is shown when the pointer rests on its area.
    """
    means = mean_shares(edges, shares)
    present = _present(means)
    across = CHART_WIDTH * (edges - edges[0]) / (edges[-1] - edges[0])
    tops = CHART_HEIGHT * (1 - np.cumsum(shares[:, present], axis=1))
    bottoms = np.hstack([np.full((len(shares), 1), float(CHART_HEIGHT)), tops[:, :-1]])
    areas = [
        f'<path d="{_area(across, bottoms[:, place], tops[:, place])}" fill="{_css_color(palette[index])}">'
        f"<title>{_text(class_names[index])}: {escape(percent(means[index]))}</title></path>"
        for place, index in enumerate(present)
    ]
    digits = 1 if edges[-1] < LONG_VIDEO else 0
    moments = np.linspace(edges[0], edges[-1], NUM_TIME_LABELS)
    times = "".join(f"<span>{clock(seconds, digits)}</span>" for seconds in moments)
    return (
        '<figure class="timeline"><div class="shares"><span>100 %</span><span>50 %</span><span>0 %</span></div>'
        f'<svg viewBox="0 0 {CHART_WIDTH} {CHART_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="Class shares over time">{"".join(areas)}</svg><div class="times">{times}</div></figure>'
    )


def mean_shares(edges: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Share of each class in the whole video, in which every stretch counts as long as it lasts."""
    return np.average(shares, axis=0, weights=np.diff(edges))


def _present(shares: np.ndarray) -> list[int]:
    """The classes that occur, the largest first."""
    return [index for index in np.argsort(-shares, kind="stable").tolist() if shares[index] > 0]


def _area(across: np.ndarray, bottoms: np.ndarray, tops: np.ndarray) -> str:
    """Path around the steps between two heights: there along the tops, back along the bottoms."""
    corners = np.repeat(across, 2)[1:-1]  # every stretch has a left and a right end
    there = zip(corners, np.repeat(tops, 2), strict=True)
    back = zip(corners[::-1], np.repeat(bottoms, 2)[::-1], strict=True)
    return f"M{'L'.join(f'{x:.1f},{y:.2f}' for x, y in (*there, *back))}Z"


def _text(class_name: str) -> str:
    return escape(class_name.replace("_", " "))


def _css_color(color: np.ndarray) -> str:
    return "#" + bytes(color).hex()
