# SPDX-License-Identifier: Apache-2.0
"""Compare a new frame in a stream with a frame alone and with its clip computed anew; row 12."""

import argparse
import ctypes
import multiprocessing
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from transformers_themask import PerFrameConfig, PerFrameForVideoSemanticSegmentation
from transformers_themask.registry import family_of

from .decoder import NUM_FRAMES, TOLERANCE, ClipPrediction, clip_difference, clip_prediction
from .growth import our_step
from .measuring import (
    MIB,
    Bound,
    Case,
    Setting,
    Work,
    faster,
    flops_of,
    process_bytes,
    reset_process_peak,
    summarise_pairs,
    table,
    take_turns,
)
from .whole_clip import official_and_ours, our_clip

WAYS = ("one", "stream", "anew")
COMPARED = (("stream", "one"), ("anew", "stream"))
# glibc's `M_MMAP_THRESHOLD`: larger blocks return to the system as soon as they are free.
MMAP_THRESHOLD, LARGE_BLOCK = -3, 2**16


# ---- row 12 ---------------------------------------------------------------------------------------------------------


def streaming_cases(setting: Setting) -> Iterator[Case]:
    """Row 12: the newest frame of a window of four, computed anew as released and by us, and our streaming step."""
    official, model, frames = official_and_ours(setting)
    frames_encoded: list[int] = []
    model.model.pixel_level_module.encoder.register_forward_pre_hook(
        lambda _, inputs: frames_encoded.append(len(inputs[0]))
    )
    with torch.no_grad():
        next_step = our_step(model, frames)

    def step() -> ClipPrediction:
        return clip_prediction(next_step()[0])

    ways = {"official": partial(official, frames), "ours anew": partial(our_clip, model, frames)}
    bounds = {"official": (Bound("flops", 0.31),), "ours anew": (Bound("flops", 0.35), faster(None, 2.5))}
    with torch.no_grad():
        newest = step()
        encodings = sum(frames_encoded) / NUM_FRAMES
        differences = {name: clip_difference(of_newest(way()), newest) for name, way in ways.items()}
    for name, way in ways.items():
        found = {"difference": differences[name], "encodings_per_frame": encodings}
        shared = (Bound("difference", TOLERANCE), Bound("encodings_per_frame", 1))
        yield Case(name, way, step, (*bounds[name], *shared), found)


def of_newest(clip: ClipPrediction) -> ClipPrediction:
    """The part of a clip's prediction for its last frame."""
    return ClipPrediction(clip.video_classes, clip.video_masks[-1:], clip.frame_classes[-1:], clip.frame_masks[-1:])


# ---- the command ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """Family, backbone, frames of a window that can be chosen, classes, height and width of frames."""

    family: str = "themask"
    backbone: str = "mit-b1"
    num_frames: int = 4
    num_labels: int = 124
    size: tuple[int, int] = (480, 864)

    def model(self, way: str) -> Any:
        """A new model for one of the ways."""
        family = family_of(self.family)
        assert family is not None
        has_window = "num_frames" in family.config.__dataclass_fields__
        fields: dict[str, Any] = {"num_frames": self.num_frames} if has_window else {}
        config = family.config(backbone=self.backbone, num_labels=self.num_labels, **fields)
        if way != "one" or has_window:
            return family.model(config)
        encoder = {name: getattr(config.backbone_config, name) for name in ("hidden_sizes", "depths")}
        segformer = {"model_type": "segformer", "decoder_hidden_size": config.hidden_dim, **encoder}
        single = PerFrameConfig(segmenter_config=segformer, num_labels=self.num_labels)
        return PerFrameForVideoSemanticSegmentation(single)

    def work(self, way: str, device: str) -> Work:
        """One of the ways to a new frame."""
        with torch.device(device):
            model = self.model(way).eval().requires_grad_(False)
            clip_length = model.config.num_frames
            frames = torch.randn(1, clip_length, 3, *self.size)
            # All frames that a state can remember.
            earlier = torch.randn(getattr(model.config, "reach", clip_length - 1), 3, *self.size)
        model.to(device)  # `torch.Tensor(...)` makes parameters on the CPU all the same
        if way != "stream":
            return partial(model, frames[:, -1:] if way == "one" else frames)
        return our_step(model, torch.cat([earlier, frames[0, -1:]]), clip_length)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--family", choices=("themask", "cffm"), default="themask", help="(default: themask)")
    parser.add_argument("--backbone", default="mit-b1", help="size of the backbone (default: mit-b1)")
    parser.add_argument("--num_frames", type=int, default=4, help="frames of THE-Mask's window (default: 4)")
    parser.add_argument("--num_labels", type=int, default=124, help="classes (default: 124)")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 864), help="height and width, multiples of 32")
    parser.add_argument("--turns", type=int, default=7, help="frames to time, 0 for none (default: 7)")
    parser.add_argument("--memory", action="store_true", help="measure memory too")
    parser.add_argument("--device", default="cpu", help="cpu or cuda, for the times (default: cpu)")


@torch.inference_mode()
def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Compare the three ways; the result."""
    task = Task(options.family, options.backbone, options.num_frames, options.num_labels, tuple(options.size))
    flops = count_flops(task)
    result = {"gigaflops": {way: count / 1e9 for way, count in flops.items()}, "flop_ratio": ratios(flops)}
    if options.turns:
        works = {way: task.work(way, options.device) for way in WAYS}
        seconds = take_turns(works, options.turns, options.device)
        result["seconds"] = {way: statistics.median(times) for way, times in seconds.items()}
        result["time_ratio"] = {
            f"{above} / {below}": summarise_pairs(seconds[above], seconds[below])["value"] for above, below in COMPARED
        }
    if options.memory:
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            result["mebibytes"] = {way: pool.apply(peak_mebibytes, (task, way)) for way in WAYS}
        result["memory_ratio"] = ratios(result["mebibytes"])
    print(table(result))
    yield result


@torch.inference_mode()
def count_flops(task: Task) -> dict[str, int]:
    """Floating-point operations for a new frame by way, on tensors without content."""
    return {way: flops_of(task.work(way, "meta")) for way in WAYS}


@torch.inference_mode()
def peak_mebibytes(task: Task, way: str) -> float:
    """Peak of this process while it computes a frame, over its memory before."""
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, LARGE_BLOCK)
    before = process_bytes("VmRSS")
    work = task.work(way, "cpu")
    work()
    reset_process_peak()
    work()
    return (process_bytes("VmHWM") - before) / MIB


def ratios(values: Mapping[str, float]) -> dict[str, float]:
    """The ways compared."""
    return {f"{above} / {below}": values[above] / values[below] for above, below in COMPARED}
