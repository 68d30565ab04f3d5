#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Segment every video below a folder, on as many processes and machines as there are.

    accelerate launch scripts/segment_videos.py VIDEOS --model MODEL --output OUT [--overlay] [--labels] [...]

Video files and folders of frames are found at any depth; the results of `VIDEOS/trip/a.mp4` are in `OUT/trip/a.mp4/`.
Each process takes whole videos, about the same number of frames as the others. A video whose results are there, made
from a file of the same size with the same model and options, is passed over; everything else is done anew. A damaged
video costs its own results, or those of its damaged part, and nothing else: `OUT/summary.json` and `summary.csv` say
what became of each.

Exit code 0: all videos are complete. 1: they are not. 2: a problem with the arguments. SIGTERM and Ctrl-C leave the
video at hand unfinished; the same command goes on from there.
"""

import argparse
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers.utils import logging

from themask_command.commands import add_segmentation_options
from transformers_themask.batch.video_batch import (
    FoundVideo,
    VideoRecord,
    check_result_folders,
    divide_work,
    find_videos,
    read_record,
    summarise,
    write_summary,
)
from transformers_themask.batch.worker_group import WorkerGroup
from transformers_themask.cli.command import autocast, usable_device
from transformers_themask.files.atomic import AtomicFolder
from transformers_themask.inference.loading import load_model
from transformers_themask.inference.model_fingerprint import model_fingerprint
from transformers_themask.inference.segment_video import segment_video
from transformers_themask.sinks.output_folder import check_output_folder
from transformers_themask.sinks.outputs import Drawing, Outputs
from transformers_themask.sinks.sink import LabelledFrame
from transformers_themask.terminal_text import counted, error_line, printable
from transformers_themask.videos.frame_source import open_frame_source
from transformers_themask.videos.source import IncompleteVideoError

# Below Transformers' own logger, so that TRANSFORMERS_VERBOSITY reaches it.
logger = logging.get_logger("transformers.segment_videos")

# Flags, and what each adds to the results of a video.
OUTPUTS = {
    "overlay": "overlay.mp4",
    "labels": "labels",
    "label_track": "labels.mkv",
    "statistics": "statistics",
    "contact_sheet": "contact_sheet.png",
    "timeline": "timeline.png",
}


def main() -> int:
    """Run the command line; a problem with the arguments is one sentence and exit code 2."""
    options = parse_arguments()
    is_stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: is_stopping.set())
    try:
        return run(options, WorkerGroup.of_launcher(), is_stopping.is_set)
    except (ValueError, OSError) as error:
        logger.debug("The run ends with an error.", exc_info=True)
        print(f"segment_videos.py: {error_line(error)}", file=sys.stderr)
        return 2


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to look for videos")
    parser.add_argument("--model", required=True, metavar="DIR", help="saved model (folder or Hub id)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for all results")
    outputs = parser.add_argument_group("results of each video (default: --overlay)")
    outputs.add_argument("--overlay", action="store_true", help="overlay.mp4: the video with the class colours on top")
    outputs.add_argument("--labels", action="store_true", help="labels/: class indices, one PNG per frame")
    outputs.add_argument("--label-track", action="store_true", help="labels.mkv: class indices, lossless")
    outputs.add_argument(
        "--statistics",
        nargs="?",
        choices=("csv", "parquet"),
        const="csv",
        help="statistics.csv or .parquet: pixels of each class in each frame (default: csv)",
    )
    outputs.add_argument("--contact-sheet", action="store_true", help="contact_sheet.png: frames from the whole video")
    outputs.add_argument("--timeline", action="store_true", help="timeline.png: each class's share over time")
    add_segmentation_options(parser)
    return parser.parse_args()


def run(options: argparse.Namespace, group: WorkerGroup, is_stopping: Callable[[], bool]) -> int:
    """Segment this process's share of the videos; in the main process also sum up. Returns the exit code."""
    check_output_folder("--output", options.output)
    if options.output.resolve() == options.folder.resolve():
        raise ValueError(f"`--output` must differ from the folder of videos. Got {options.output} for both.")
    videos = find_videos(options.folder, options.output)
    check_result_folders("--output", (options.output / video.name for video in videos))
    batch = Batch(options, group.local_rank, is_stopping)
    share = own_share(videos, group)
    process = f"process {group.rank}, " if group.size > 1 else ""
    for position, video in enumerate(share, start=1):
        if is_stopping():
            break
        report = batch.segment(video, progress=group.size == 1 and sys.stderr.isatty())
        tqdm.write(f"[{process}{position}/{len(share)}] {printable(video.name)}: {report}")
        sys.stdout.flush()
    if not group.is_main:
        return group.finish()
    group.wait_for_others(is_stopping)
    exit_code = sum_up(options.output, [batch.record_of(video) for video in videos])
    group.conclude(exit_code)
    return exit_code


def own_share(videos: list[FoundVideo], group: WorkerGroup) -> list[FoundVideo]:
    """The videos of this process."""
    if group.size == 1:
        return videos
    # Divided without regard to what is finished, so that processes that start at different times agree.
    shares = divide_work([video.num_frames() for video in videos], group.size)
    return [videos[index] for index in shares[group.rank]]


class Batch:
    """What the videos of a batch have in common: the model and what is made of each video."""

    def __init__(self, options: argparse.Namespace, local_rank: int, is_stopping: Callable[[], bool]):
        self.options = options
        self.is_stopping = is_stopping
        self.outputs = [name for name in OUTPUTS if getattr(options, name)] or ["overlay"]
        self.device = device = usable_device(options.device)
        if device == "cuda":
            device = f"cuda:{local_rank % torch.cuda.device_count()}"
        model, processor = load_model(options.model, argument="--model")
        self.class_names = [model.config.id2label[index] for index in range(model.config.num_labels)]
        self.session = model.to(device).stream(processor, options.mode, options.num_frames, options.frame_stride)
        self.job = {
            "model": model_fingerprint(model, processor),
            "mode": self.session.mode,
            "num_frames": self.session.num_frames,
            "frame_stride": self.session.frame_stride,
            "outputs": [self.file_name(name) for name in self.outputs],
            "palette": options.palette,
            "alpha": options.alpha,
            "legend": options.legend,
            "folder_frame_rate": str(options.frame_rate),
            "bf16": options.bf16,
        }

    def segment(self, video: FoundVideo, progress: bool) -> str:
        """Bring one video to its end, unless an earlier run did; returns what became of it, in words."""
        record = self.record_of(video)
        if record.status == "complete":
            return "complete, from an earlier run"
        start = time.monotonic()
        folder = self.options.output / video.name
        try:
            with AtomicFolder(folder, replace=True) as unfinished:
                num_frames, error = self.write_results(video, unfinished, progress)
                record = self.record(video, "incomplete" if error else "complete", start, num_frames, error)
                record.write(unfinished)
        except StopRequestedError:
            return "unfinished, as the run was asked to stop"
        except Exception as error:  # whatever is wrong with one video must not cost the others
            logger.debug(f"{video.name} failed.", exc_info=True)
            record = self.record(video, "failed", start, 0, error_line(error))
            # Where not even this can be written, the summary calls the video unfinished.
            with suppress(OSError), AtomicFolder(folder, replace=True) as unfinished:
                record.write(unfinished)
        speed = f", {record.frames / record.seconds:.2f} frames/s" if record.frames else ""
        problem = f": {record.error}" if record.error else ""
        return f"{record.status}, {counted(record.frames, 'frame')}{speed}{problem}"

    def write_results(self, video: FoundVideo, folder: Path, progress: bool) -> tuple[int, str | None]:
        """Write what was asked for; returns the number of frames and, of a damaged video, what is wrong."""
        source = open_frame_source(video.path, self.options.frame_rate)
        outputs = Outputs(**{name: folder / self.file_name(name) for name in self.outputs})
        drawing = Drawing(self.options.palette, self.options.alpha, self.options.legend)
        watch = Watch(self.is_stopping)
        sinks = [watch, *outputs.open(source, self.class_names, drawing).values()]
        try:
            with autocast(self.device, self.options.bf16):
                segment_video(self.session, source, sinks, progress=progress)
        except IncompleteVideoError as error:
            if watch.num_frames == 0:
                raise
            return watch.num_frames, error_line(error)
        return watch.num_frames, None

    def record_of(self, video: FoundVideo) -> VideoRecord:
        """What became of a video as far as anybody has written it down."""
        record = read_record(self.options.output / video.name)
        if record is None or record.job != self.job_of(video):
            return VideoRecord(video.name, "unfinished")
        return record

    def record(self, video: FoundVideo, status: Any, start: float, num_frames: int, error: str | None) -> VideoRecord:
        """What is to be written down about a video."""
        seconds = round(time.monotonic() - start, 3)
        return VideoRecord(video.name, status, num_frames, seconds, error, self.job_of(video))

    def job_of(self, video: FoundVideo) -> dict[str, Any]:
        """Everything that the results of a video depend on."""
        return {**self.job, "source_bytes": video.num_bytes}

    def file_name(self, output: str) -> str:
        """Name of one of the results."""
        return f"statistics.{self.options.statistics}" if output == "statistics" else OUTPUTS[output]


class StopRequestedError(Exception):
    """Raised in the middle of a video when the run is asked to stop."""


class Watch:
    """Sink that counts frames, and ends a video early when the run is asked to stop."""

    def __init__(self, is_stopping: Callable[[], bool]):
        self.is_stopping = is_stopping
        self.num_frames = 0

    def write(self, frame: LabelledFrame) -> None:
        """Count the next frame."""
        if self.is_stopping():
            raise StopRequestedError
        self.num_frames += 1

    def close(self) -> None:
        """Nothing is left to do."""

    def abandon(self) -> None:
        """Nothing is left behind."""


def sum_up(output: Path, records: list[VideoRecord]) -> int:
    """Write and print the summary; returns the exit code."""
    summary = summarise(records)
    output.mkdir(parents=True, exist_ok=True)
    write_summary(output, summary)
    totals = summary["totals"]
    counts = ", ".join(
        f"{totals[status]} {status}" for status in ("complete", "incomplete", "failed", "unfinished") if totals[status]
    )
    print(f"{counted(totals['videos'], 'video')}: {counts}; {output / 'summary.json'}", flush=True)
    return 0 if totals["complete"] == totals["videos"] else 1


if __name__ == "__main__":
    sys.exit(main())
