#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Compare what a new frame costs in a sliding window with one-frame clips and with computing the window anew.

    python scripts/benchmark_streaming.py [--backbone mit-b1 --num_frames 4 --size 480 864] [--json OUT.json]

one     the model on the new frame alone: what a frame costs without any context
sliding `streaming_step` with a full window: the context is remembered
anew    the model on the whole window, as if nothing were remembered

All three are the same model with the same random weights. Floating-point operations are counted (a multiplication
with its addition is two) on tensors without content; interpolation, softmax and the gathers of deformable attention
do not count. Times are wall times of the model alone, with one thread: the three take turns frame by frame, and a
ratio is the median over the frames of one time divided by the other of the same turn.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from transformers_themask import THEMaskConfig, THEMaskForVideoSemanticSegmentation


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="mit-b1", help="size of the backbone (default: mit-b1)")
    parser.add_argument("--num_frames", type=int, default=4, help="frames of the window (default: 4)")
    parser.add_argument("--num_labels", type=int, default=124, help="classes (default: 124)")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 864), help="height and width, multiples of 32")
    parser.add_argument("--turns", type=int, default=7, help="frames to time, 0 for none (default: 7)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--json", type=Path, help="where to write the result")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = THEMaskConfig(
        backbone=arguments.backbone, num_frames=arguments.num_frames, num_labels=arguments.num_labels
    )
    size = tuple(arguments.size)
    result = {"gigaflops": {name: count / 1e9 for name, count in count_flops(config, size).items()}}
    if arguments.turns:
        seconds = measure_seconds(config, size, arguments.turns, arguments.device)
        result["seconds"] = {name: statistics.median(times) for name, times in seconds.items()}
        result["time_ratio"] = {
            "sliding / one": paired_ratio(seconds["sliding"], seconds["one"]),
            "anew / sliding": paired_ratio(seconds["anew"], seconds["sliding"]),
        }
    flops = result["gigaflops"]
    result["flop_ratio"] = {
        "sliding / one": flops["sliding"] / flops["one"],
        "anew / sliding": flops["anew"] / flops["sliding"],
    }
    for name, numbers in result.items():
        print(f"{name:<12}" + "".join(f"{key:>20} {number:8.3f}" for key, number in numbers.items()))
    print(json.dumps(result))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


def ways_to_answer(
    model: THEMaskForVideoSemanticSegmentation, frames: torch.Tensor
) -> dict[str, Callable[[], object]]:
    """The three ways to segment the last of some frames `(1, num_frames, 3, height, width)`."""
    state = model.initial_state(frames.shape[1], 1)
    for earlier in frames[:, :-1].split(1, dim=1):
        _, state = model.streaming_step(earlier, state)
    return {
        "one": lambda: model(frames[:, -1:]),
        "sliding": lambda: model.streaming_step(frames[:, -1:], state),
        "anew": lambda: model(frames),
    }


@torch.inference_mode()
def count_flops(config: THEMaskConfig, size: tuple[int, int]) -> dict[str, int]:
    """Floating-point operations for a new frame, exact and without doing them."""
    with torch.device("meta"):
        model = THEMaskForVideoSemanticSegmentation(config).eval()
    # The counter cannot follow parameters that want a gradient. One is made by `torch.Tensor(...)`, on the CPU all the
    # same.
    model.requires_grad_(False).to("meta")
    flops = {}
    for name, work in ways_to_answer(model, torch.empty(1, config.num_frames, 3, *size, device="meta")).items():
        with FlopCounterMode(display=False) as counter:
            work()
        flops[name] = counter.get_total_flops()
    return flops


@torch.inference_mode()
def measure_seconds(config: THEMaskConfig, size: tuple[int, int], turns: int, device: str) -> dict[str, list[float]]:
    """Seconds for a new frame, turn by turn."""
    torch.manual_seed(0)
    model = THEMaskForVideoSemanticSegmentation(config).eval().to(device)
    ways = ways_to_answer(model, torch.randn(1, config.num_frames, 3, *size, device=device))
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(-1, turns):  # one to warm up
        for name, work in ways.items():
            start = time.perf_counter()
            work()
            if device != "cpu":
                torch.cuda.synchronize(device)
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def paired_ratio(numerators: list[float], denominators: list[float]) -> float:
    """Median over the turns."""
    return statistics.median(above / below for above, below in zip(numerators, denominators, strict=True))


if __name__ == "__main__":
    main()
