# SPDX-License-Identifier: Apache-2.0
"""The results to make of a labelled video, each by the sink that writes it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from pathlib import Path

from transformers_themask.drawing.palettes import named_palette
from transformers_themask.videos.source import FrameSource

from .class_statistics import ClassStatistics
from .contact_sheet import ContactSheet
from .label_maps import LabelFolder
from .label_track import LabelTrack
from .output_folder import check_output_folder
from .overlay_video import OverlayVideo
from .sink import Sink
from .timeline import ClassTimeline


@dataclass(frozen=True)
class Drawing:
    """How classes are drawn: name of the palette, opacity 0 to 1, and whether the overlay names its colours."""

    palette: str = "default"
    alpha: float = 0.5
    legend: bool = True


@dataclass(frozen=True)
class Outputs:
    """Paths of the results to make of a labelled video; `None` for those that are not asked for.

    In order they are those of [`OverlayVideo`], [`LabelFolder`], [`LabelTrack`], [`ClassStatistics`],
    [`ContactSheet`] and [`ClassTimeline`].
    """

    overlay: Path | None = None
    labels: Path | None = None
    label_track: Path | None = None
    statistics: Path | None = None
    contact_sheet: Path | None = None
    timeline: Path | None = None

    def paths(self) -> dict[str, Path]:
        """The paths that are asked for, by their names here."""
        asked = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: path for name, path in asked.items() if path is not None}

    def open(
        self,
        source: FrameSource,
        class_names: Sequence[str],
        drawing: Drawing = Drawing(),
        cut_sound: bool = False,
        arguments: Mapping[str, str] | None = None,
    ) -> dict[str, Sink]:
        """Open a sink for every result, without writing anything yet.

        `cut_sound` says whether the overlay's sound ends with its last frame; `arguments` names, for errors, what asks
        for the results. Raises a `ValueError` for a path that cannot be written, has the wrong ending, or is in
        another's way.
        """
        named = {name: (arguments or {}).get(name, name) for name in self.paths()}
        self._check_apart(named)
        palette = named_palette(drawing.palette, len(class_names))
        makers: dict[str, Callable[[Path, str], Sink]] = {
            "overlay": lambda path, argument: OverlayVideo(
                path,
                source,
                class_names,
                palette,
                alpha=drawing.alpha,
                legend=drawing.legend,
                cut_sound=cut_sound,
                argument=argument,
            ),
            "labels": LabelFolder,
            "label_track": lambda path, argument: LabelTrack(path, source, class_names, palette, argument),
            "statistics": lambda path, argument: ClassStatistics(path, class_names, argument),
            "contact_sheet": lambda path, argument: ContactSheet(
                path, class_names, palette, alpha=drawing.alpha, argument=argument
            ),
            "timeline": lambda path, argument: ClassTimeline(path, class_names, palette, argument=argument),
        }
        return {name: makers[name](path, named[name]) for name, path in self.paths().items()}

    def _check_apart(self, named: Mapping[str, str]) -> None:
        """Raise a `ValueError` for results in one place, among the label maps, or where nothing can be written."""
        paths = {name: path.resolve() for name, path in self.paths().items()}
        for (first, path), (second, other) in combinations(paths.items(), 2):
            if path == other:
                raise ValueError(f"`{named[first]}` and `{named[second]}` must differ. Got {path} for both.")
        for name, path in paths.items():
            if self.labels is not None and paths["labels"] in path.parents:
                raise ValueError(
                    f"`{named[name]}` must not lie in the folder of `{named['labels']}`, which holds label maps only. "
                    f"Got {path}."
                )
            check_output_folder(named[name], path.parent)
