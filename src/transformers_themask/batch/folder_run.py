# SPDX-License-Identifier: Apache-2.0
"""Segment every video below a folder that is not segmented yet."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from transformers_themask.files.atomic import AtomicFolder
from transformers_themask.inference.loading import label_names
from transformers_themask.inference.model_fingerprint import model_fingerprint
from transformers_themask.inference.segment_video import segment_video
from transformers_themask.models.protocols import VideoModel, VideoProcessor
from transformers_themask.sinks.outputs import Drawing, Outputs
from transformers_themask.sinks.sink import LabelledFrame, Sink
from transformers_themask.terminal_text import counted, error_line
from transformers_themask.videos.frame_source import open_frame_source
from transformers_themask.videos.source import DEFAULT_FRAME_RATE, IncompleteVideoError

from .video_batch import FoundVideo, Status, VideoRecord, read_record

# Below Transformers' own logger, so that TRANSFORMERS_VERBOSITY reaches it.
logger = logging.get_logger("transformers.segment_videos")


@dataclass(frozen=True)
class Settings:
    """What to make of every video: file names by output, see [`Outputs`]; how to draw, stream and compute.

    `frame_rate` is that of folders of frames.
    """

    files: Mapping[str, str]
    palette: str = "default"
    alpha: float = 0.5
    legend: bool = True
    mode: str | None = None
    num_frames: int | None = None
    frame_stride: int | None = None
    frame_rate: Fraction = DEFAULT_FRAME_RATE
    bf16: bool = False


class FolderRun:
    """Segments videos one after the other, each into a folder of its own below `output`, until it `is_stopping`."""

    def __init__(
        self,
        model: VideoModel,
        processor: VideoProcessor,
        output: Path,
        settings: Settings,
        is_stopping: Callable[[], bool],
    ):
        self._output, self._settings, self._is_stopping = output, settings, is_stopping
        self._device = model.device.type
        self._class_names = label_names(model.config)
        self._session = model.stream(processor, settings.mode, settings.num_frames, settings.frame_stride)
        self._job = {
            "model": model_fingerprint(model, processor),
            "mode": self._session.mode,
            "num_frames": self._session.num_frames,
            "frame_stride": self._session.frame_stride,
            "outputs": list(settings.files.values()),
            "palette": settings.palette,
            "alpha": settings.alpha,
            "legend": settings.legend,
            "folder_frame_rate": str(settings.frame_rate),
            "bf16": settings.bf16,
        }

    def segment(self, video: FoundVideo, progress: bool = False) -> str:
        """Segment one video, unless an earlier run has completed it; returns the outcome in words."""
        if self.record_of(video).status == "complete":
            return "complete, from an earlier run"
        start = time.monotonic()
        folder = self._output / video.name
        try:
            with AtomicFolder(folder, replace=True) as unfinished:
                num_frames, error = self._write_results(video, unfinished, progress)
                record = self._record(video, "incomplete" if error else "complete", start, num_frames, error)
                record.write(unfinished)
        except StopRequestedError:
            return "unfinished, as the run was asked to stop"
        except Exception as error:  # whatever is wrong with one video must not cost the others
            logger.debug(f"{video.name} failed.", exc_info=True)
            record = self._record(video, "failed", start, 0, error_line(error))
            # Where not even this can be written, the summary calls the video unfinished.
            with suppress(OSError), AtomicFolder(folder, replace=True) as unfinished:
                record.write(unfinished)
        speed = f", {record.frames / record.seconds:.2f} frames/s" if record.frames else ""
        problem = f": {record.error}" if record.error else ""
        return f"{record.status}, {counted(record.frames, 'frame')}{speed}{problem}"

    def record_of(self, video: FoundVideo) -> VideoRecord:
        """The record of a video's results, if they are those of this run's settings."""
        record = read_record(self._output / video.name)
        if record is None or record.job != self._job_of(video):
            return VideoRecord(video.name, "unfinished")
        return record

    def _write_results(self, video: FoundVideo, folder: Path, progress: bool) -> tuple[int, str | None]:
        """Write all outputs; returns the number of frames and, of a damaged video, the error."""
        source = open_frame_source(video.path, self._settings.frame_rate)
        outputs = Outputs(**{name: folder / file for name, file in self._settings.files.items()})
        watch = _Watch(self._is_stopping)
        drawing = Drawing(self._settings.palette, self._settings.alpha, self._settings.legend)
        sinks = [watch, *outputs.open(source, self._class_names, drawing).values()]
        try:
            with torch.autocast(self._device, torch.bfloat16, enabled=self._settings.bf16):
                return segment_video(self._session, source, sinks, progress=progress), None
        except IncompleteVideoError as error:
            if watch.num_frames == 0:
                raise
            return watch.num_frames, error_line(error)

    def _record(
        self, video: FoundVideo, status: Status, start: float, num_frames: int, error: str | None
    ) -> VideoRecord:
        seconds = round(time.monotonic() - start, 3)
        return VideoRecord(video.name, status, num_frames, seconds, error, self._job_of(video))

    def _job_of(self, video: FoundVideo) -> dict[str, Any]:
        """Everything that the results of a video depend on."""
        return {**self._job, "source_bytes": video.num_bytes}


class StopRequestedError(Exception):
    """Raised in the middle of a video when the run is asked to stop."""


class _Watch(Sink):
    """Sink that counts frames, and ends a video early when the run is asked to stop."""

    def __init__(self, is_stopping: Callable[[], bool]):
        self._is_stopping = is_stopping
        self.num_frames = 0

    def write(self, frame: LabelledFrame) -> None:
        if self._is_stopping():
            raise StopRequestedError
        self.num_frames += 1
