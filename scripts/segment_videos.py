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
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm.auto import tqdm

from themask_command.commands import add_segmentation_options
from transformers_themask.batch.folder_run import FolderRun, Settings, logger
from transformers_themask.batch.video_batch import (
    check_result_folders,
    divide_work,
    find_videos,
    summarise,
    write_summary,
)
from transformers_themask.batch.worker_group import WorkerGroup
from transformers_themask.cli.command import usable_device
from transformers_themask.inference.loading import load_model
from transformers_themask.sinks.output_folder import check_output_folder
from transformers_themask.terminal_text import error_line, printable

# Flags, and the file or folder that each adds to the results of a video.
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
    """Segment this process's share of the videos; the main process also writes the summary. Returns the exit code."""
    check_output_folder("--output", options.output)
    if options.output.resolve() == options.folder.resolve():
        raise ValueError(f"`--output` must differ from the folder of videos. Got {options.output} for both.")
    videos = find_videos(options.folder, options.output)
    check_result_folders("--output", (options.output / video.name for video in videos))
    folder_run = open_run(options, group.local_rank, is_stopping)
    share = videos
    if group.size > 1:
        # Divided without regard to what is finished, so that processes that start at different times agree.
        shares = divide_work([video.num_frames() for video in videos], group.size)
        share = [videos[index] for index in shares[group.rank]]
    process = f"process {group.rank}, " if group.size > 1 else ""
    for position, video in enumerate(share, start=1):
        if is_stopping():
            break
        report = folder_run.segment(video, progress=group.size == 1 and sys.stderr.isatty())
        tqdm.write(f"[{process}{position}/{len(share)}] {printable(video.name)}: {report}")
        sys.stdout.flush()
    if not group.is_main:
        return group.finish()
    group.wait_for_others(is_stopping)
    totals = write_summary(options.output, summarise([folder_run.record_of(video) for video in videos]))
    print(f"{totals}; {options.output / 'summary.json'}", flush=True)
    exit_code = 0 if all(folder_run.record_of(video).status == "complete" for video in videos) else 1
    group.conclude(exit_code)
    return exit_code


def open_run(options: argparse.Namespace, local_rank: int, is_stopping: Callable[[], bool]) -> FolderRun:
    device = usable_device(options.device)
    if device == "cuda":
        device = f"cuda:{local_rank % torch.cuda.device_count()}"
    files = {name: file for name, file in OUTPUTS.items() if getattr(options, name)} or {"overlay": OUTPUTS["overlay"]}
    if "statistics" in files:
        files["statistics"] = f"statistics.{options.statistics}"
    names = ("palette", "alpha", "legend", "mode", "num_frames", "frame_stride", "frame_rate", "bf16")
    settings = Settings(files, **{name: getattr(options, name) for name in names})
    model, processor = load_model(options.model, argument="--model")
    return FolderRun(model.to(device), processor, options.output, settings, is_stopping)


if __name__ == "__main__":
    sys.exit(main())
