#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Measure how well `themask segment` keeps its stages busy at the same time.

    python scripts/benchmark_pipeline.py --model MODEL [VIDEO.mp4 ...] [--frames 64] [--device cuda] [--json OUT.json]

Each stage does its work alone and one after the other, a few frames at a time as in the pipeline: with the whole video
in memory, new pages would cost some stage more than its work. Then the pipeline does all of it at once. A video is
generated where none is named.

wall        seconds that passed
CPU         seconds that all threads computed, the encoder's own included
bound       the larger of the slowest stage's wall time and the pipeline's CPU time divided by the cores: no overlap of
            this work can be faster
ratio       wall time of the pipeline over this bound; 1 is perfect overlap
growth      CPU time of the pipeline over that of the stages alone: cores that share memory and clock compute less each
            when all of them work, in processes of their own as well

PyTorch uses one thread (`--threads`), so that no stage but the encoder is more than one thread.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from transformers_themask.drawing.palettes import class_palette
from transformers_themask.inference.loading import load_model
from transformers_themask.inference.segment_video import segment_video
from transformers_themask.sinks.overlay_video import OverlayVideo
from transformers_themask.sinks.sink import LabelledFrame
from transformers_themask.videos.frame_source import open_frame_source
from transformers_themask.videos.video_writer import VideoWriter

BLOCK = 8
STAGES = ("decode", "prepare", "model", "label", "draw and write")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="*", type=Path, metavar="VIDEO", help="(default: a generated one)")
    parser.add_argument("--model", required=True, help="saved model (folder or Hub id)")
    parser.add_argument("--frames", type=int, default=64, help="frames of each video (default: 64)")
    parser.add_argument("--size", type=int, nargs=2, default=(720, 1280), help="height and width of the generated one")
    parser.add_argument("--mode", help="mode of the session (default: the model's first)")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch (default: 1)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--json", type=Path, help="where to write the result")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model, processor = load_model(arguments.model, arguments.device)
    session = model.stream(processor, arguments.mode)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        videos = arguments.videos or [generated_video(Path(folder), arguments.frames, *arguments.size)]
        for video in videos:
            results[video.name] = result = measure(session, video, Path(folder), arguments.frames)
            print_result(video.name, result)
    print(json.dumps(results))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


def generated_video(folder: Path, num_frames: int, height: int, width: int) -> Path:
    """A window that moves over a smooth random texture."""
    coarse = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    texture = coarse.repeat(16, axis=0).repeat(16, axis=1)
    path = folder / "generated.mp4"
    with VideoWriter(path, 30) as writer:
        for index in range(num_frames):
            top, left = 2 * index % (height // 2), 3 * index % (width // 2)
            writer.write(texture[top : top + height, left : left + width])
    return path


@dataclass
class Stopwatch:
    """Seconds that passed and seconds that all threads of this process computed."""

    wall: float = 0.0
    cpu: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of the `with` block."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu


def measure(session: Any, video: Path, folder: Path, num_frames: int) -> dict[str, Any]:
    """Measure stages and pipeline on one video."""
    source = open_frame_source(video)
    segment_video(session, source, [new_sink(session, source, folder)], max_frames=3)  # warm up
    stages, num_frames = measure_stages(session, source, folder, num_frames)
    pipeline = Stopwatch()
    with pipeline.running():
        segment_video(session, source, [new_sink(session, source, folder)], max_frames=num_frames)
        synchronise(session)
    bound = max(max(stage.wall for stage in stages.values()), pipeline.cpu / num_cores())
    return {
        "num_frames": num_frames,
        "size": list(next(iter(source)).shape[:2]),
        "num_cores": num_cores(),
        "stages": {name: vars(stage) for name, stage in stages.items()},
        "pipeline": vars(pipeline),
        "bound": bound,
        "ratio": pipeline.wall / bound,
        "growth": pipeline.cpu / sum(stage.cpu for stage in stages.values()),
    }


def measure_stages(session: Any, source: Any, folder: Path, num_frames: int) -> tuple[dict[str, Stopwatch], int]:
    """Run one stage after the other on a block of frames, then on the next; also returns the number of frames."""
    watches = {name: Stopwatch() for name in STAGES}
    timed_frames = source.timed_frames()
    sink = new_sink(session, source, folder)
    waiting: dict[int, Any] = {}
    num_read = 0
    session.reset()
    while True:
        with watches["decode"].running():
            block = list(islice(timed_frames, min(BLOCK, num_frames - num_read)))
        waiting.update(enumerate(block, start=num_read))
        num_read += len(block)
        with watches["prepare"].running():
            prepared = [session.prepare(frame.picture) for frame in block]
        with watches["model"].running():
            clips = [clip for frame in prepared or [None] for clip in session.advance(frame)]
            synchronise(session)
        with watches["label"].running():
            label_maps = [labelled for clip in clips for labelled in session.label(clip)]
        with watches["draw and write"].running():
            for index, label_map in sorted(label_maps):
                moment, picture, _ = waiting.pop(index)
                sink.write(LabelledFrame(index, moment, str(index), picture, label_map))
            if not block:
                sink.close()
                return watches, num_read


def new_sink(session: Any, source: Any, folder: Path) -> OverlayVideo:
    """The overlay video, which every user writes."""
    id2label = session.model.config.id2label
    names = [id2label[index] for index in range(session.model.config.num_labels)]
    return OverlayVideo(folder / "overlay.mp4", source, names, class_palette(len(names)), cut_sound=True)


def synchronise(session: Any) -> None:
    """Wait for what the accelerator still computes."""
    if session.model.device.type == "cuda":
        torch.cuda.synchronize()


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def print_result(name: str, result: dict[str, Any]) -> None:
    """One line per stage, then the pipeline."""
    num_frames = result["num_frames"]
    print(f"{name}: {num_frames} frames, {result['num_cores']} cores")
    rows = {**result["stages"], "pipeline": result["pipeline"]}
    for row, seconds in rows.items():
        speed = num_frames / seconds["wall"]
        print(f"  {row:<16} wall {seconds['wall']:8.3f} s   CPU {seconds['cpu']:8.3f} s   {speed:8.2f} frames/s")
    print(f"  bound {result['bound']:.3f} s, ratio {result['ratio']:.3f}, growth {result['growth']:.3f}")


if __name__ == "__main__":
    main()
