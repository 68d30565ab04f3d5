#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Compare what a new frame costs in a stream with a frame by itself and with computing its clip anew.

    python scripts/benchmark_streaming.py [--family themask] [--backbone mit-b1 --num_frames 4 --size 480 864]
    python scripts/benchmark_streaming.py --family cffm --memory

one     a frame without any context: THE-Mask on the new frame alone; beside CFFM, SegFormer with its encoder and width
stream  `streaming_step` with a full state: the context is remembered
anew    the model on the whole clip, as if nothing were remembered

All weights are random. Floating-point operations are counted (a multiplication with its addition is two) on tensors
without content; interpolation, softmax and gathers do not count. Times are wall times of the models alone, with one
thread: the three take turns frame by frame, and a ratio is the median over the frames of one time divided by the
other of the same turn. Memory (Linux, CPU) is the most that a process holds while it answers a frame, weights and
state included, over what it held before.
"""

import argparse
import ctypes
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from transformers_themask import (
    CFFMConfig,
    CFFMForVideoSemanticSegmentation,
    PerFrameConfig,
    PerFrameForVideoSemanticSegmentation,
    THEMaskConfig,
    THEMaskForVideoSemanticSegmentation,
)

WAYS = ("one", "stream", "anew")
# glibc's `M_MMAP_THRESHOLD`: blocks from here on go back to the system as soon as they are free.
MMAP_THRESHOLD, LARGE_BLOCK = -3, 2**16


@dataclass(frozen=True)
class Task:
    """What is compared: a family, the backbone, frames of THE-Mask's window, classes, height and width of frames."""

    family: str = "themask"
    backbone: str = "mit-b1"
    num_frames: int = 4
    num_labels: int = 124
    size: tuple[int, int] = (480, 864)

    def config(self) -> Any:
        """The configuration of the family's model."""
        if self.family == "cffm":
            return CFFMConfig(backbone=self.backbone, num_labels=self.num_labels)
        return THEMaskConfig(backbone=self.backbone, num_frames=self.num_frames, num_labels=self.num_labels)

    def model(self, way: str) -> Any:
        """A new model for one of the ways."""
        config = self.config()
        if self.family == "themask":
            return THEMaskForVideoSemanticSegmentation(config)
        if way != "one":
            return CFFMForVideoSemanticSegmentation(config)
        encoder = {name: getattr(config.backbone_config, name) for name in ("hidden_sizes", "depths")}
        segformer = {"model_type": "segformer", "decoder_hidden_size": config.hidden_dim, **encoder}
        return PerFrameForVideoSemanticSegmentation(
            PerFrameConfig(segmenter_config=segformer, num_labels=self.num_labels)
        )

    def work(self, way: str, device: str) -> Callable[[], object]:
        """One of the ways to answer a frame, ready to be called."""
        with torch.device(device):
            model = self.model(way).eval().requires_grad_(False)
            frames = torch.randn(1, self.config().num_frames, 3, *self.size)
        model.to(device)  # THE-Mask makes a parameter with `torch.Tensor(...)`, on the CPU all the same
        if way == "one":
            return lambda: model(frames[:, -1:])
        if way == "anew":
            return lambda: model(frames)
        state = model.initial_state(self.num_frames, 1)
        for earlier in frames[:, :-1].split(1, dim=1):
            _, state = model.streaming_step(earlier, state)
        if self.family == "cffm":  # as if there had been frames at all offsets
            state = state._replace(num_seen=torch.full_like(state.num_seen, model.config.reach))
        return lambda: model.streaming_step(frames[:, -1:], state)


FAMILIES = ("themask", "cffm")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES, default="themask", help="(default: themask)")
    parser.add_argument("--backbone", default="mit-b1", help="size of the backbone (default: mit-b1)")
    parser.add_argument("--num_frames", type=int, default=4, help="frames of THE-Mask's window (default: 4)")
    parser.add_argument("--num_labels", type=int, default=124, help="classes (default: 124)")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 864), help="height and width, multiples of 32")
    parser.add_argument("--turns", type=int, default=7, help="frames to time, 0 for none (default: 7)")
    parser.add_argument("--memory", action="store_true", help="measure memory too")
    parser.add_argument("--device", default="cpu", help="cpu or cuda, for the times (default: cpu)")
    parser.add_argument("--json", type=Path, help="where to write the result")
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = Task(options.family, options.backbone, options.num_frames, options.num_labels, tuple(options.size))
    flops = count_flops(task)
    result = {"gigaflops": {way: count / 1e9 for way, count in flops.items()}, "flop_ratio": ratios(flops)}
    if options.turns:
        seconds = measure_seconds(task, options.turns, options.device)
        result["seconds"] = {way: statistics.median(times) for way, times in seconds.items()}
        result["time_ratio"] = {
            "stream / one": paired_ratio(seconds["stream"], seconds["one"]),
            "anew / stream": paired_ratio(seconds["anew"], seconds["stream"]),
        }
    if options.memory:
        result["mebibytes"] = {way: measure_memory(task, way) for way in WAYS}
        result["memory_ratio"] = ratios(result["mebibytes"])
    for name, numbers in result.items():
        print(f"{name:<12}" + "".join(f"{key:>20} {number:8.3f}" for key, number in numbers.items()))
    print(json.dumps(result))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


@torch.inference_mode()
def count_flops(task: Task) -> dict[str, int]:
    """Floating-point operations for a new frame, exact and without doing them."""
    flops = {}
    for way in WAYS:
        work = task.work(way, "meta")
        with FlopCounterMode(display=False) as counter:
            work()
        flops[way] = counter.get_total_flops()
    return flops


@torch.inference_mode()
def measure_seconds(task: Task, turns: int, device: str) -> dict[str, list[float]]:
    """Seconds for a new frame, turn by turn."""
    torch.manual_seed(0)
    ways = {way: task.work(way, device) for way in WAYS}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(-1, turns):  # one to warm up
        for way, work in ways.items():
            start = time.perf_counter()
            work()
            if device != "cpu":
                torch.cuda.synchronize(device)
            if turn >= 0:
                seconds[way].append(time.perf_counter() - start)
    return seconds


def measure_memory(task: Task, way: str) -> float:
    """Mebibytes that a process of its own needs to answer a frame."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(peak_mebibytes, (task, way))


@torch.inference_mode()
def peak_mebibytes(task: Task, way: str) -> float:
    """What this process holds at most while it answers a frame, over what it held before."""
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, LARGE_BLOCK)
    before = mebibytes_of("VmRSS")
    work = task.work(way, "cpu")
    work()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    work()
    return mebibytes_of("VmHWM") - before


def mebibytes_of(name: str) -> float:
    """One of Linux's numbers on the memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def ratios(values: dict[str, Any]) -> dict[str, float]:
    """What the ways need, compared."""
    return {
        "stream / one": values["stream"] / values["one"],
        "anew / stream": values["anew"] / values["stream"],
    }


def paired_ratio(numerators: list[float], denominators: list[float]) -> float:
    """Median over the turns."""
    return statistics.median(above / below for above, below in zip(numerators, denominators, strict=True))


if __name__ == "__main__":
    main()
