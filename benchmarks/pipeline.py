# SPDX-License-Identifier: Apache-2.0
"""Measure how well `themask segment` keeps its stages busy at the same time."""

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
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

from .measuring import table

BLOCK = 8
STAGES = ("decode", "prepare", "model", "label", "draw and write")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("videos", nargs="*", type=Path, metavar="VIDEO", help="(default: a generated one)")
    parser.add_argument("--model", required=True, help="saved model (folder or Hub id)")
    parser.add_argument("--frames", type=int, default=64, help="frames of each video (default: 64)")
    parser.add_argument("--size", type=int, nargs=2, default=(720, 1280), help="height and width of the generated one")
    parser.add_argument("--mode", help="mode of the session (default: the model's first)")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch (default: 1)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure every video; the results so far."""
    torch.set_num_threads(options.threads)
    model, processor = load_model(options.model, options.device)
    session = model.stream(processor, options.mode)
    results = {}
    with TemporaryDirectory() as folder:
        videos = options.videos or [generated_video(Path(folder), options.frames, *options.size)]
        for video in videos:
            results[video.name] = result = measure(session, video, Path(folder), options.frames)
            print(f"{video.name}: {result['num_frames']} frames, {result['num_cores']} cores")
            rows = {**result["stages"], "pipeline": result["pipeline"]}
            speeds = {row: {"frames/s": result["num_frames"] / seconds["wall"]} for row, seconds in rows.items()}
            print(table({row: seconds | speeds[row] for row, seconds in rows.items()}))
            print(f"bound {result['bound']:.3f} s, ratio {result['ratio']:.3f}, growth {result['growth']:.3f}")
            yield results


def generated_video(folder: Path, num_frames: int, height: int, width: int) -> Path:
    """A window that moves over a random texture."""
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
    """Wall time, and CPU time of all threads."""

    wall: float = 0.0
    cpu: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Add the time of the `with` block."""
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
    """Time of each stage, block by block of frames, and the number of frames."""
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
    """The overlay video."""
    id2label = session.model.config.id2label
    names = [id2label[index] for index in range(session.model.config.num_labels)]
    return OverlayVideo(folder / "overlay.mp4", source, names, class_palette(len(names)), cut_sound=True)


def synchronise(session: Any) -> None:
    """Wait for the GPU."""
    if session.model.device.type == "cuda":
        torch.cuda.synchronize()


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
