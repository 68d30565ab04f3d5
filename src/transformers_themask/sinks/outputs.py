# SPDX-License-Identifier: Apache-2.0
"""Everything that can be made of a labelled video."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from transformers_themask.files.output_paths import check_new_folder, check_output_file, check_output_folder
from transformers_themask.videos.source import FrameSource

from .class_statistics import ClassStatistics
from .contact_sheet import ContactSheet
from .label_maps import LabelFolder
from .label_track import LabelTrack
from .overlay_video import OverlayVideo
from .sink import Sink
from .timeline import ClassTimeline

# Endings of the output files; `labels` is a folder.
SUFFIXES: dict[str, tuple[str, ...]] = {
    "overlay": OverlayVideo.suffixes,
    "label_track": LabelTrack.suffixes,
    "statistics": ClassStatistics.suffixes,
    "contact_sheet": ContactSheet.suffixes,
    "timeline": ClassTimeline.suffixes,
}


@dataclass(frozen=True)
class Coloring:
    """How classes are shown.

    Attributes:
        class_names (`Sequence[str]`): Name of each class.
        palette (`np.ndarray` of shape `(num_classes, 3)`): RGB colour of each class.
        alpha (`float`): Opacity of the colours, 0 to 1.
    """

    class_names: Sequence[str]
    palette: np.ndarray
    alpha: float = 0.5


@dataclass(frozen=True)
class Outputs:
    """Paths of what to make of a video; `None` for what is not wanted. See the sink of each."""

    overlay: Path | None = None
    labels: Path | None = None
    label_track: Path | None = None
    statistics: Path | None = None
    contact_sheet: Path | None = None
    timeline: Path | None = None

    def paths(self) -> dict[str, Path]:
        """The paths that are not `None`, by name."""
        paths = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: path for name, path in paths.items() if path is not None}

    def check(self, arguments: Mapping[str, str]) -> None:
        """Find what is wrong with the paths before any work, without leaving anything behind.

        Args:
            arguments (`Mapping[str, str]`): What the user calls each output, for the errors.

        Raises:
            ValueError: If a path has the wrong ending, cannot be written or collides with another, or `labels` is a
                folder with files.
        """
        paths = {arguments[name]: path for name, path in self.paths().items()}
        for name, path in self.paths().items():
            if name == "labels":
                check_new_folder(arguments[name], path)
                continue
            check_output_file(arguments[name], path, *SUFFIXES[name])
            check_output_folder(arguments[name], path.parent)
            if self.labels is not None and self.labels.resolve() in path.resolve().parents:
                raise ValueError(
                    f"`{arguments[name]}` must not lie in the folder of `{arguments['labels']}`, which holds label "
                    f"maps only. Got {path}."
                )
        for (first, path), (second, other) in itertools.combinations(paths.items(), 2):
            if path.resolve() == other.resolve():
                raise ValueError(f"`{first}` and `{second}` must differ. Got {path} for both.")

    def open(
        self, source: FrameSource, coloring: Coloring, *, legend: bool = True, cut_sound: bool = False
    ) -> dict[str, Sink]:
        """Open a sink for every output.

        Args:
            source ([`FrameSource`]): The video.
            coloring ([`Coloring`]): How classes are shown.
            legend (`bool`, *optional*, defaults to `True`): Whether the overlay has a legend.
            cut_sound (`bool`, *optional*, defaults to `False`): Whether the overlay's sound ends with its last frame,
                because the source is not read to its end.

        Returns:
            `dict[str, Sink]`: The sinks, by name of the output.
        """
        names, palette, alpha = coloring.class_names, coloring.palette, coloring.alpha
        sinks: dict[str, Sink] = {}
        if self.overlay is not None:
            sinks["overlay"] = OverlayVideo(
                self.overlay, source, names, palette, alpha=alpha, legend=legend, cut_sound=cut_sound
            )
        if self.labels is not None:
            sinks["labels"] = LabelFolder(self.labels)
        if self.label_track is not None:
            sinks["label_track"] = LabelTrack(self.label_track, source, names, palette)
        if self.statistics is not None:
            sinks["statistics"] = ClassStatistics(self.statistics, names)
        if self.contact_sheet is not None:
            sinks["contact_sheet"] = ContactSheet(self.contact_sheet, names, palette, alpha=alpha)
        if self.timeline is not None:
            sinks["timeline"] = ClassTimeline(self.timeline, names, palette)
        return sinks
