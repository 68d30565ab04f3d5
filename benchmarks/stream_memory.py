# SPDX-License-Identifier: Apache-2.0
"""Measure that memory does not grow with the length of a video (Linux only)."""

import argparse
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import pipeline

from themask_command import main as themask_command
from transformers_themask import THEMaskVideoProcessor
from transformers_themask.inference.loading import load_model
from transformers_themask.videos.video_reader import VideoReader
from transformers_themask.videos.video_writer import VideoWriter

from .measuring import MIB, Setting, process_bytes, reset_process_peak, table
from .models import themask
from .plot import line_plot

ROUTES = {
    "session": "session.step",
    "pipeline": "pipeline, stream=True",
    "command": "themask segment, all outputs",
}
COLORS = ("#4477aa", "#ee6677", "#228833")
WIDTHS = (4, 1.5, 1.5)  # lines may coincide
WARM_UP_FRAMES = 128
SAMPLE_SECONDS = 0.2
PERIOD = 16  # frames after which the picture repeats
Segment = Callable[[Path, Callable[[int], None]], None]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--frames", type=int, nargs=2, default=(64, 3000), help="two lengths (default: 64 3000)")
    parser.add_argument("--size", type=int, nargs=2, default=(240, 320), help="height and width of the video")
    parser.add_argument("--mode", default="sliding", help="mode of the session (default: sliding)")
    parser.add_argument("--model", help="saved model (default: a small random one of THE-Mask, of 4 frames)")
    parser.add_argument("--plot", type=Path, help="plot of memory over frames, .svg or .png")


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure every route on both lengths, each in a process of its own."""
    runs: dict[str, list[dict[str, Any]]] = {}
    with TemporaryDirectory() as name, multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        folder = Path(name)
        if options.model is None:
            themask(Setting(quick=True), num_frames=4).save_pretrained(folder / "model")
            THEMaskVideoProcessor(size={"shortest_edge": 64}).save_pretrained(folder / "model")
        else:
            folder.joinpath("model").symlink_to(Path(options.model).absolute())
        for num_frames in (WARM_UP_FRAMES, *options.frames):
            write_video(folder / f"{num_frames}.mp4", num_frames, *options.size)
        for route in ROUTES:
            runs[route] = [pool.apply(measure, (route, folder, each, options.mode)) for each in options.frames]
    result = {route: summarise(*pair) for route, pair in runs.items()}
    print(table({ROUTES[route]: facts for route, facts in result.items()}))
    if options.plot is not None:
        draw(options.plot, {route: long for route, (_, long) in runs.items()}, result)
    yield result


def measure(route: str, folder: Path, num_frames: int, mode: str) -> dict[str, Any]:
    """Peak memory in bytes, and samples of frames done and memory, of one route on one video."""
    torch.set_num_threads(1)
    segment = {"session": run_session, "pipeline": run_pipeline, "command": run_command}[route](folder, mode)
    segment(folder / f"{WARM_UP_FRAMES}.mp4", lambda _: None)
    reset_process_peak()
    samples: list[tuple[int, int]] = []
    num_done = 0

    def note(number: int) -> None:
        nonlocal num_done
        num_done = number

    with repeated(lambda: samples.append((num_done, process_bytes("VmRSS")))):
        segment(folder / f"{num_frames}.mp4", note)
    return {"peak": process_bytes("VmHWM"), "samples": samples}


def run_session(folder: Path, mode: str) -> Segment:
    """A session, frame by frame."""
    model, processor = load_model(folder / "model")

    def segment(video: Path, note: Callable[[int], None]) -> None:
        session = model.stream(processor, mode)
        for frame in VideoReader(video):
            for index, _ in session.step(frame):
                note(index)
        session.flush()

    return segment


def run_pipeline(folder: Path, mode: str) -> Segment:
    """The pipeline."""
    segmenter = pipeline("video-semantic-segmentation", model=str(folder / "model"), device="cpu")

    def segment(video: Path, note: Callable[[int], None]) -> None:
        for result in segmenter(str(video), mode=mode, stream=True):
            note(result["frame_index"])

    return segment


def run_command(folder: Path, mode: str) -> Segment:
    """The command with every output."""

    def segment(video: Path, note: Callable[[int], None]) -> None:
        with TemporaryDirectory() as output:
            files = {"--output": "o.mp4", "--labels": "labels", "--label-track": "t.mkv", "--statistics": "s.parquet"}
            files |= {"--contact-sheet": "c.png", "--timeline": "t.png"}
            flags = [part for flag, name in files.items() for part in (flag, str(Path(output, name)))]

            def count_labels() -> None:
                for labels in Path(output).glob("*/"):  # the labels, under a hidden name until they are complete
                    note(sum(1 for _ in os.scandir(labels)))

            with repeated(count_labels):
                code = themask_command(
                    ["segment", str(video), "--model", str(folder / "model"), "--mode", mode, *flags]
                )
            if code:
                sys.exit(code)

    return segment


@contextmanager
def repeated(work: Callable[[], None]) -> Iterator[None]:
    """Call a function several times a second in the `with` block."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            work()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def write_video(path: Path, num_frames: int, height: int, width: int) -> None:
    """Write a video of moving blocks of colour."""
    cells = np.random.default_rng(0).integers(0, 256, (PERIOD, 8, 8, 3), dtype=np.uint8)
    rows, columns = np.arange(height) * 8 // height, np.arange(width) * 8 // width
    with VideoWriter(path, 25) as writer:
        for index in range(num_frames):
            writer.write(cells[index % PERIOD][rows[:, None], columns])


def summarise(short: dict[str, Any], long: dict[str, Any]) -> dict[str, float]:
    """Peaks in MiB, their ratio, and the growth in KiB per frame."""
    frames, sizes = np.array(long["samples"], dtype=float).T
    late = (frames > frames.max() / 2) & (frames < frames.max())  # drawing at the end is no growth
    return {
        "short_peak_mib": short["peak"] / MIB,
        "long_peak_mib": long["peak"] / MIB,
        "ratio": long["peak"] / short["peak"],
        "growth_kib_per_frame": float(np.polyfit(frames[late], sizes[late], 1)[0]) / 1024,
    }


def draw(path: Path, runs: dict[str, dict[str, Any]], result: dict[str, dict[str, float]]) -> None:
    """Plot memory over frames, with the ratio of each line in the legend."""
    with line_plot(path, (8, 3.6), "frames segmented", "resident memory in MiB") as axes:
        for (route, run), color, width in zip(runs.items(), COLORS, WIDTHS, strict=True):
            frames, sizes = np.array(run["samples"], dtype=float).T
            label = f"{ROUTES[route]}: {result[route]['ratio']:.3f}"
            axes.plot(frames, sizes / MIB, color=color, linewidth=width, label=label)
        axes.legend(title="peak against that of the short video", loc="lower right")
