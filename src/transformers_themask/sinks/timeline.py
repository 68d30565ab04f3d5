# SPDX-License-Identifier: Apache-2.0
"""Plots of class shares over time."""

from collections.abc import Sequence
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transformers_themask.drawing.numbers import percent
from transformers_themask.drawing.palettes import VOID_COLOR
from transformers_themask.files.atomic import AtomicFile
from transformers_themask.files.file_names import check_suffix

from .sink import LabelledFrame, Sink

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")
# From this many seconds on, the axis counts minutes.
LONG_VIDEO = 180
# More than a screen can show side by side; a longer video gets wider bins.
MAX_BINS = 1024
# Names that can be read next to the plot; the rest is one grey area.
MAX_NAMED_CLASSES = 12
OTHER_COLOR = (0.82, 0.82, 0.82)
FIGURE_SIZE = (11.0, 4.2)  # inches; the names take a quarter of the width
# Text stays text, in names with `$` too, and equal videos give equal files.
STYLE: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "timeline", "text.parse_math": False}


class ClassTimeline(Sink):
    """A sink that plots the share of each class over time, stacked, in the colours of the classes.

    Memory does not grow with the video: frames are counted in bins, and when all are full, neighbours become one.

    Args:
        path: Picture to write, ending in `.png`, `.svg` or `.pdf`; its folder is made if needed.
        class_names: Name of each class.
        palette (`(num_classes, 3)`): RGB colour of each class.
        max_bins: Number of bins at which they are merged; even.
        argument: Name of the argument that gives the path, for the errors.
    """

    def __init__(
        self,
        path: str | Path,
        class_names: Sequence[str],
        palette: np.ndarray,
        max_bins: int = MAX_BINS,
        argument: str = "path",
    ):
        self.path = Path(path)
        check_suffix(self.path, FORMATS, argument)
        if max_bins < 2 or max_bins % 2:
            raise ValueError(f"`max_bins` must be an even number of at least 2. Got {max_bins}.")
        self.class_names = class_names
        self.palette = palette
        # One column more than classes, for void.
        self._pixels = np.zeros((max_bins, len(class_names) + 1), dtype=np.int64)
        self._starts: list[float] = []
        self._frames_per_bin = 1
        self._num_frames = 0
        self._last_times: tuple[Fraction, Fraction] | None = None

    def write(self, frame: LabelledFrame) -> None:
        """Count the pixels of a frame."""
        if self._num_frames == len(self._pixels) * self._frames_per_bin:
            self._merge_bins()
        position, offset = divmod(self._num_frames, self._frames_per_bin)
        if offset == 0:
            self._starts.append(float(frame.time))
        num_classes = len(self.class_names)
        classes = np.minimum(frame.label_map, num_classes).ravel()
        self._pixels[position] += np.bincount(classes, minlength=num_classes + 1)
        self._last_times = (self._last_times[1] if self._last_times else frame.time), frame.time
        self._num_frames += 1

    def close(self) -> None:
        """Draw the plot and write it."""
        if not self._starts:
            return
        import matplotlib

        plot = BytesIO()  # matplotlib does not say that a disk is full
        with matplotlib.rc_context(STYLE):
            metadata = {"Date": None} if self.path.suffix == ".svg" else None
            self.figure().savefig(plot, format=self.path.suffix[1:], dpi=120, metadata=metadata)
        with AtomicFile(self.path) as unfinished:
            unfinished.write_bytes(plot.getvalue())

    def shares(self) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of the plot.

        These are the edges of the bins in seconds, `(num_bins + 1,)`, and the share of each class and, last, of void
        in each bin, `(num_bins, num_classes + 1)`.
        """
        if self._last_times is None:
            raise ValueError("`write` must be called with a frame before `shares`.")
        pixels = self._pixels[: len(self._starts)]
        earlier, last = self._last_times
        # The last frame is shown as long as the one before it, a lone one for a moment.
        end = float(last + (last - earlier)) if last > earlier else float(last) + 1 / 15
        return np.array([*self._starts, end]), pixels / pixels.sum(axis=1, keepdims=True)

    def figure(self) -> "Figure":
        """The plot as a `matplotlib` figure, outside of pyplot; also while the video goes on."""
        # Loading it takes a second, which commands that draw nothing need not wait for.
        from matplotlib.figure import Figure

        edges, shares = self.shares()
        figure = Figure(figsize=FIGURE_SIZE, layout="constrained")
        axes = figure.subplots()
        unit, seconds = ("min", 60) if edges[-1] - edges[0] >= LONG_VIDEO else ("s", 1)
        edges = edges / seconds
        self._draw_areas(axes, edges, shares)
        axes.set(xlim=(edges[0], edges[-1]), ylim=(0, 1), xlabel=f"time ({unit})", ylabel="share of the picture")
        axes.yaxis.set_major_formatter(lambda share, position: f"{100 * share:.0f} %")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        handles, names = axes.get_legend_handles_labels()
        # From top to bottom as in the plot.
        axes.legend(
            handles[::-1], names[::-1], loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize="small"
        )
        return figure

    def _draw_areas(self, axes: "Axes", edges: np.ndarray, shares: np.ndarray) -> None:
        lower = np.zeros(len(shares))
        for name, color, share in self._areas(shares):
            upper = lower + share
            # A step per bin; its last value holds up to the last edge.
            bottom, top = np.append(lower, lower[-1]), np.append(upper, upper[-1])
            axes.fill_between(edges, bottom, top, step="post", color=color, linewidth=0, label=name, gid=name)
            lower = upper

    def _areas(self, shares: np.ndarray) -> list[tuple[str, tuple[float, ...], np.ndarray]]:
        """Name with mean share, colour and course of each area, from the largest at the bottom to "other" on top."""
        means = self._pixels.sum(axis=0) / self._pixels.sum()
        present = [int(index) for index in np.argsort(-means, kind="stable") if means[index] > 0]
        # A thirteenth class alone needs no more room by its own name.
        num_named = len(present) if len(present) == MAX_NAMED_CLASSES + 1 else MAX_NAMED_CLASSES
        named, other = present[:num_named], present[num_named:]
        names = [name.replace("_", " ") for name in (*self.class_names, "void")]
        colors = np.vstack([self.palette, [VOID_COLOR]]) / 255
        areas = [(f"{names[k]}  {percent(means[k], digits=0)}", tuple(colors[k]), shares[:, k]) for k in named]
        if other:
            title = f"{len(other)} other classes  {percent(means[other].sum(), digits=0)}"
            areas.append((title, OTHER_COLOR, shares[:, other].sum(axis=1)))
        return areas

    def _merge_bins(self) -> None:
        half = len(self._pixels) // 2
        self._pixels[:half] = self._pixels[0::2] + self._pixels[1::2]
        self._pixels[half:] = 0
        self._starts = self._starts[::2]
        self._frames_per_bin *= 2
