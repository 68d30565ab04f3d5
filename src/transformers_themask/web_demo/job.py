# SPDX-License-Identifier: Apache-2.0
"""Segment an uploaded video in the background, with progress and cancellation."""

import threading
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from transformers_themask.drawing.palettes import named_palette
from transformers_themask.inference.segment_video import segment_video
from transformers_themask.models.protocols import ModelSession
from transformers_themask.sinks.outputs import Drawing, Outputs
from transformers_themask.sinks.sink import LabelledFrame
from transformers_themask.sinks.timeline import ClassTimeline
from transformers_themask.videos.source import FrameSource, IncompleteVideoError, TimedFrame


@dataclass(frozen=True)
class Coloring:
    """How classes are shown: their names, the palette's name (see [`named_palette`]) and the opacity, 0 to 1."""

    class_names: Sequence[str]
    palette_name: str
    alpha: float

    @cached_property
    def palette(self) -> np.ndarray:
        """RGB colour of each class, `(num_classes, 3)`."""
        return named_palette(self.palette_name, len(self.class_names))


@dataclass(frozen=True)
class Results:
    """What a job has made: files by name of the output (see [`Outputs`]), and the numbers of the plot.

    `damage` is what is wrong with a video of which only a part could be read; empty for others.
    """

    files: dict[str, Path]
    timeline: ClassTimeline
    damage: str


class SegmentationJob:
    """One video on its way through a model, in a thread of its own.

    The files of the job are in a subfolder of `folder` until its `with` block ends. Leaving the block early stops the
    job without waiting for it; setting `stopping` ends the video with the frame that is being read.
    """

    def __init__(
        self,
        session: ModelSession,
        source: FrameSource,
        coloring: Coloring,
        folder: Path,
        stopping: threading.Event,
    ):
        self.coloring = coloring
        self.stopping = stopping
        self.progress = Progress(source.num_frames)
        self._session, self._folder = session, folder
        self._source = _StoppableSource(source, stopping)
        self._outcome: Future[Results] = Future()
        self._released = threading.Event()

    def __enter__(self) -> "SegmentationJob":
        threading.Thread(target=self._work, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stopping.set()
        self._released.set()

    def updates(self, interval: float) -> Iterator["Progress"]:
        """Yield what is done every `interval` seconds until the job is finished."""
        while not wait([self._outcome], interval).done:
            yield self.progress

    def results(self) -> Results | None:
        """What a finished job has made; `None` when it was stopped before there was a frame.

        Raises `ValueError` or `OSError`: what is wrong with a video of which nothing could be read.
        """
        if self.stopping.is_set() and self.progress.latest is None:
            return None
        return self._outcome.result()

    def _work(self) -> None:
        with TemporaryDirectory(dir=self._folder, ignore_cleanup_errors=True) as folder:
            try:
                self._outcome.set_result(self._segment(Path(folder)))
            except Exception as error:
                self._outcome.set_exception(error)
            self._released.wait()

    def _segment(self, folder: Path) -> Results:
        stem = Path(self._source.path).stem
        outputs = Outputs(
            overlay=folder / f"{stem}_overlay.mp4",
            label_track=folder / f"{stem}_labels.mkv",
            statistics=folder / f"{stem}_statistics.csv",
            timeline=folder / f"{stem}_shares.svg",
        )
        drawing = Drawing(self.coloring.palette_name, self.coloring.alpha, legend=False)
        sinks = outputs.open(self._source, self.coloring.class_names, drawing, cut_sound=True)
        timeline = sinks["timeline"]
        assert isinstance(timeline, ClassTimeline)
        damage = ""
        try:
            segment_video(self._session, self._source, [*sinks.values(), self.progress])
        except IncompleteVideoError as error:
            if self.progress.latest is None:
                raise
            damage = str(error)
        return Results(outputs.paths(), timeline, damage)


@dataclass
class Progress:
    """A sink that only keeps the newest frame, for a page that looks at it now and then.

    `num_expected` is the number of frames that the video declares, `started` is on the clock of `time.monotonic`.
    """

    num_expected: int | None
    latest: LabelledFrame | None = None
    started: float = field(default_factory=time.monotonic)

    def write(self, frame: LabelledFrame) -> None:
        """Remember the frame."""
        self.latest = frame

    def close(self) -> None:
        """No-op."""

    def abandon(self) -> None:
        """No-op."""


class _StoppableSource(FrameSource):
    """A source that ends when an event is set."""

    def __init__(self, source: FrameSource, stopping: threading.Event):
        self.path, self.has_audio = source.path, source.has_audio
        self.frame_rate, self.time_base, self.num_frames = source.frame_rate, source.time_base, source.num_frames
        self._source, self._stopping = source, stopping

    def timed_frames(self) -> Generator[TimedFrame, None, None]:
        with closing(self._source.timed_frames()) as timed_frames:
            for timed_frame in timed_frames:
                if self._stopping.is_set():
                    return
                yield timed_frame
