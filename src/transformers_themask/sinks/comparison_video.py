# SPDX-License-Identifier: Apache-2.0
"""A video of two models side by side: their overlays, and where each of them flickers."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from transformers_themask.drawing.flicker import FlickerMap, flicker_bar
from transformers_themask.drawing.legend import (
    PANEL_COLOR,
    TEXT_COLOR,
    fitted_text,
    font_for,
    legend_strip,
    line_height_of,
)
from transformers_themask.drawing.numbers import percent
from transformers_themask.drawing.visualization import (
    RecentClasses,
    shrunk_label_map,
    side_by_side,
)
from transformers_themask.videos.source import FrameSource

from .drawn_video import DrawnVideo, colored
from .sink import LabelledFrame

# Four panels are about as large as a screen: larger frames are drawn smaller.
MAX_PANEL_SIDE = 540
MAX_LEGEND_ROWS = 3


class ComparedModel(NamedTuple):
    """What a comparison shows of a model: its title, and name and RGB colour `(num_classes, 3)` of each class."""

    title: str
    class_names: Sequence[str]
    palette: np.ndarray


class ComparisonVideo(DrawnVideo):
    """Sink that draws two models' overlays side by side over their flicker maps, with the source's times and sound.

    Each `label_map` has the shape `(2, height, width)`, the first model's first. `has_same_classes` says whether both
    models have the same classes, in the same order.
    """

    def __init__(
        self,
        path: str | Path,
        source: FrameSource,
        models: tuple[ComparedModel, ComparedModel],
        alpha: float = 0.5,
        argument: str = "path",
    ):
        super().__init__(path, source, alpha, argument=argument)
        self.has_same_classes = list(models[0].class_names) == list(models[1].class_names)
        self.num_frames = 0
        self.models = models
        self._flicker = (FlickerMap(), FlickerMap())
        self._recent_classes = (RecentClasses(self._hold_frames), RecentClasses(self._hold_frames))
        self._sum_of_agreements = 0.0

    @property
    def mean_changed_shares(self) -> list[float | None]:
        """For each model the share of pixels whose label differs from the frame before, averaged over the video."""
        return [flicker.mean_changed_share for flicker in self._flicker]

    @property
    def mean_agreement(self) -> float | None:
        """Share of pixels that both models label alike; `None` without frames or where their classes differ."""
        if not self.has_same_classes or self.num_frames == 0:
            return None
        return self._sum_of_agreements / self.num_frames

    def _draw(self, frame: LabelledFrame) -> np.ndarray:
        self._sum_of_agreements += float((frame.label_map[0] == frame.label_map[1]).mean())
        self.num_frames += 1
        picture = _panel(frame.picture)
        panel_height, panel_width = picture.shape[:2]
        overlays, heat = [], []
        for model, label_map, flicker in zip(self.models, frame.label_map, self._flicker, strict=True):
            flicker.update(label_map)
            label_map = shrunk_label_map(label_map, panel_height, panel_width)
            overlays.append((model.title, colored(picture, label_map, model.palette, self._alpha)))
            last, mean = percent(flicker.last_changed_share), percent(flicker.mean_changed_share)
            heat.append((f"flicker: {last} of the pixels changed, mean {mean}", flicker.draw(picture)))
        top, bottom = side_by_side(overlays), side_by_side(heat)
        font = font_for(min(panel_height, panel_width))
        measure = self._measure(top.width, panel_width, font)
        legend = self._legend(frame.label_map, top.width, panel_width, font)
        return np.vstack([np.asarray(strip) for strip in (top, bottom, measure, legend)])

    def _measure(self, width: int, panel_width: int, font: ImageFont.FreeTypeFont) -> Image.Image:
        """The line below the flicker maps: how far the models agree, and what the heat means."""
        text = "The models have different classes."
        if self.has_same_classes:
            text = f"A and B agree on {percent(self.mean_agreement)} of the pixels so far."
        strip = Image.new("RGB", (width, line_height_of(font)), PANEL_COLOR[:3])
        gap = strip.height // 4
        text = fitted_text(text, font, width - panel_width - gap)
        ImageDraw.Draw(strip).text((gap, strip.height // 2), text, fill=TEXT_COLOR[:3], font=font, anchor="lm")
        strip.paste(flicker_bar(panel_width, font), (width - panel_width, 0))
        return strip

    def _legend(
        self, label_maps: np.ndarray, width: int, panel_width: int, font: ImageFont.FreeTypeFont
    ) -> Image.Image:
        """Names of the classes of both models, or of each below its panels; of one height throughout the video."""
        shown = [recent.update(label_map) for recent, label_map in zip(self._recent_classes, label_maps, strict=True)]
        if self.has_same_classes:
            columns = [(0, width, self.models[0], list(dict.fromkeys(shown[0] + shown[1])))]
        else:
            lefts = (0, width - panel_width)
            columns = [
                (left, panel_width, model, indices)
                for left, model, indices in zip(lefts, self.models, shown, strict=True)
            ]
        max_height = MAX_LEGEND_ROWS * line_height_of(font)
        height = max(
            legend_strip(_entries(model, range(len(model.class_names))), column_width, font, max_height).height
            for _, column_width, model, _ in columns
        )
        legend = Image.new("RGBA", (width, height), (*PANEL_COLOR[:3], 255))
        for left, column_width, model, indices in columns:
            legend.alpha_composite(legend_strip(_entries(model, indices), column_width, font, max_height), (left, 0))
        return legend.convert("RGB")


def _entries(model: ComparedModel, indices: Sequence[int]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((model.class_names[index], tuple(model.palette[index].tolist())) for index in indices)


def _panel(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    scale = MAX_PANEL_SIDE / min(height, width)
    if scale >= 1:
        return picture
    size = round(width * scale), round(height * scale)
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))
