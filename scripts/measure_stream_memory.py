#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Measure that memory does not grow with the length of a video.

    python scripts/measure_stream_memory.py [--frames 64 3000] [--size 240 320] [--plot MEMORY.svg] [--json OUT.json]

Three ways of segmenting a generated video of either length, each in a fresh process: a session in a loop, the pipeline
with `stream=True`, and `themask segment` with every kind of output at once. After a warm-up on 128 frames the peak is
the high-water mark of the process's resident memory (`VmHWM`), Python, PyTorch and the model included. The growth is
the slope of the resident memory over the second half of the longer video. Linux only. The model is a small random one
unless `--model` names another.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from transformers import pipeline

from themask_command import main as themask
from transformers_themask import MiTConfig, THEMaskConfig, THEMaskForVideoSemanticSegmentation, THEMaskVideoProcessor
from transformers_themask.inference.loading import load_model
from transformers_themask.videos.video_reader import VideoReader
from transformers_themask.videos.video_writer import VideoWriter

ROUTES = {
    "session": "session.step",
    "pipeline": "pipeline, stream=True",
    "command": "themask segment, all outputs",
}
COLORS = ("#4477aa", "#ee6677", "#228833")
WIDTHS = (4, 1.5, 1.5)  # lines may lie on one another
WARM_UP_FRAMES = 128
SAMPLE_SECONDS = 0.2
PERIOD = 16  # frames after which the picture repeats
CLASSES = ("sky", "road", "tree", "car", "person", "house")
MIB = 2**20


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs=2, default=(64, 3000), help="two lengths (default: 64 3000)")
    parser.add_argument("--size", type=int, nargs=2, default=(240, 320), help="height and width of the video")
    parser.add_argument("--mode", default="sliding", help="mode of the session (default: sliding)")
    parser.add_argument("--model", help="saved model (default: a small random one of THE-Mask, of 4 frames)")
    parser.add_argument("--plot", type=Path, help="where to draw memory over frames, as .svg or .png")
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--child", nargs=3, metavar=("ROUTE", "VIDEO", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        route, video, folder = arguments.child
        print(json.dumps(measure(route, Path(video), Path(folder), arguments.mode)))
        return
    with tempfile.TemporaryDirectory() as folder:
        runs = measure_all(Path(folder), arguments)
    result = {route: summarise(*runs[route]) for route in ROUTES}
    for route, facts in result.items():
        print(f"{ROUTES[route]:<30}" + "".join(f"  {name} {value:.4g}" for name, value in facts.items()))
    print(json.dumps(result))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    if arguments.plot is not None:
        draw(arguments.plot, {route: runs[route][1] for route in ROUTES}, result)


def measure_all(folder: Path, arguments: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Measure every route on both lengths, each in a process of its own."""
    if arguments.model is None:
        save_small_model(folder / "model")
    else:
        folder.joinpath("model").symlink_to(Path(arguments.model).absolute())
    for num_frames in (WARM_UP_FRAMES, *arguments.frames):
        write_video(folder / f"{num_frames}.mp4", num_frames, tuple(arguments.size))
    runs: dict[str, list[dict[str, Any]]] = {}
    for route in ROUTES:
        for num_frames in arguments.frames:
            command = [sys.executable, __file__, "--mode", arguments.mode]
            command += ["--child", route, str(folder / f"{num_frames}.mp4"), str(folder)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            runs.setdefault(route, []).append(json.loads(done.stdout.splitlines()[-1]))
    return runs


def measure(route: str, video: Path, folder: Path, mode: str) -> dict[str, Any]:
    """Peak memory in bytes, and samples of frames done and memory then, of one route on one video."""
    torch.set_num_threads(1)
    segment = {"session": run_session, "pipeline": run_pipeline, "command": run_command}[route](folder, mode)
    segment(folder / f"{WARM_UP_FRAMES}.mp4", lambda _: None)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    samples: list[tuple[int, int]] = []
    num_done = 0

    def note(number: int) -> None:
        nonlocal num_done
        num_done = number

    with Repeated(lambda: samples.append((num_done, memory("VmRSS")))):
        segment(video, note)
    return {"peak": memory("VmHWM"), "samples": samples}


def run_session(folder: Path, mode: str) -> Callable[[Path, Callable[[int], None]], None]:
    """Read, segment and forget, frame by frame."""
    model, processor = load_model(folder / "model")

    def segment(video: Path, note: Callable[[int], None]) -> None:
        session = model.stream(processor, mode)
        for frame in VideoReader(video):
            for index, _ in session.step(frame):
                note(index)
        session.flush()

    return segment


def run_pipeline(folder: Path, mode: str) -> Callable[[Path, Callable[[int], None]], None]:
    """Let the pipeline do it."""
    segmenter = pipeline("video-semantic-segmentation", model=str(folder / "model"), device="cpu")

    def segment(video: Path, note: Callable[[int], None]) -> None:
        for result in segmenter(str(video), mode=mode, stream=True):
            note(result["frame_index"])

    return segment


def run_command(folder: Path, mode: str) -> Callable[[Path, Callable[[int], None]], None]:
    """Call the command, with every output that it has."""

    def segment(video: Path, note: Callable[[int], None]) -> None:
        with tempfile.TemporaryDirectory() as output:
            files = {"--output": "o.mp4", "--labels": "labels", "--label-track": "t.mkv", "--statistics": "s.parquet"}
            files |= {"--contact-sheet": "c.png", "--timeline": "t.png"}
            flags = [part for flag, name in files.items() for part in (flag, str(Path(output, name)))]

            def count_labels() -> None:
                for labels in Path(output).glob("*labels*/"):
                    note(sum(1 for _ in os.scandir(labels)))

            with Repeated(count_labels):
                code = themask(["segment", str(video), "--model", str(folder / "model"), "--mode", mode, *flags])
            if code:
                sys.exit(code)

    return segment


class Repeated:
    """Calls a function several times a second in the `with` block."""

    def __init__(self, work: Callable[[], None]):
        self._work = work
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Repeated":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self._work()


def memory(kind: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(kind))


def save_small_model(folder: Path) -> None:
    """Save a model of four frames that takes milliseconds for one."""
    torch.manual_seed(0)
    backbone = MiTConfig(hidden_sizes=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_attention_heads=(1, 2, 3, 4))
    config = THEMaskConfig(
        backbone_config=backbone,
        num_frames=4,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=48,
        encoder_layers=1,
        decoder_layers=3,
        num_attention_heads=4,
        dim_feedforward=48,
        num_queries=8,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: index for index, name in enumerate(CLASSES)},
    )
    THEMaskForVideoSemanticSegmentation(config).save_pretrained(folder)
    THEMaskVideoProcessor(size={"shortest_edge": 64}).save_pretrained(folder)


def write_video(path: Path, num_frames: int, size: tuple[int, int]) -> None:
    """Write a video of moving blocks of colour."""
    height, width = size
    cells = np.random.default_rng(0).integers(0, 256, (PERIOD, 8, 8, 3), dtype=np.uint8)
    rows, columns = np.arange(height) * 8 // height, np.arange(width) * 8 // width
    with VideoWriter(path, 25) as writer:
        for index in range(num_frames):
            writer.write(cells[index % PERIOD][rows[:, None], columns])


def summarise(short: dict[str, Any], long: dict[str, Any]) -> dict[str, float]:
    """Peaks in MiB, their ratio, and the growth in KiB per frame."""
    frames, sizes = np.array(long["samples"], dtype=float).T
    late = (frames > frames.max() / 2) & (frames < frames.max())  # what is drawn at the end is no growth
    return {
        "short_peak_mib": short["peak"] / MIB,
        "long_peak_mib": long["peak"] / MIB,
        "ratio": long["peak"] / short["peak"],
        "growth_kib_per_frame": float(np.polyfit(frames[late], sizes[late], 1)[0]) / 1024,
    }


def draw(path: Path, runs: dict[str, dict[str, Any]], result: dict[str, dict[str, float]]) -> None:
    """Draw memory over frames, with each line's name and ratio at its end."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for (route, run), color, width in zip(runs.items(), COLORS, WIDTHS, strict=True):
        frames, sizes = np.array(run["samples"], dtype=float).T
        label = f"{ROUTES[route]}: {result[route]['ratio']:.3f}"
        axes.plot(frames, sizes / MIB, color=color, linewidth=width, label=label)
    axes.set(xlabel="frames segmented", ylabel="resident memory in MiB", ylim=(0, None), xlim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(title="peak against that of the short video", frameon=False, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
