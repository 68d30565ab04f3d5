# SPDX-License-Identifier: Apache-2.0
"""What grows with the frames of a clip, their size, the number of classes and the length of a video: exact figures."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from measure_memory import peak_memory
from transformers_themask import THEMaskForVideoSemanticSegmentation, THEMaskVideoProcessor

from . import post_processing
from .measuring import Setting, Work
from .models import random_frames, themask, themask_config
from .whole_clip import OfficialClip, our_clip

CLIP_LENGTHS = (1, 2, 4, 8, 16)
SIZES = ((256, 448), (480, 864), (736, 1280), (1088, 1920))
NUMBERS_OF_CLASSES = (8, 32, 124, 256)
VIDEO_LENGTHS = (4, 8, 16, 32)
CLIP = 4


def growth_curves(setting: Setting) -> dict[str, dict[str, Any]]:
    """By name a curve: `x` with its `x_label`, and `lines` of values with their `y_label`."""
    return {
        "frames": curve(
            "frames of a clip",
            "GFLOP per frame",
            CLIP_LENGTHS,
            {
                "official style": lambda length: gigaflops(setting, length, setting.size, official_work) / length,
                "ours": lambda length: gigaflops(setting, length, setting.size, our_work) / length,
            },
        ),
        "window": curve(
            "frames of a sliding window",
            "GFLOP per new frame",
            CLIP_LENGTHS[1:4],
            {
                "computed anew, official style": lambda length: gigaflops(
                    setting, length, setting.size, official_work
                ),
                "computed anew, ours": lambda length: gigaflops(setting, length, setting.size, our_work),
                "remembered, ours": lambda length: gigaflops(setting, length, setting.size, our_step),
            },
        ),
        "resolution": curve(
            "megapixels of a frame",
            "GFLOP per frame",
            [height * width / 1e6 for height, width in SIZES],
            {
                "official style": lambda index: gigaflops(setting, CLIP, SIZES[index], official_work) / CLIP,
                "ours": lambda index: gigaflops(setting, CLIP, SIZES[index], our_work) / CLIP,
            },
            points=range(len(SIZES)),
        ),
        "classes": curve(
            "classes",
            "peak of post-processing a frame, MB",
            NUMBERS_OF_CLASSES,
            {
                "official chain": lambda classes: labelling_megabytes(setting, classes, is_official=True),
                "ours": lambda classes: labelling_megabytes(setting, classes, is_official=False),
            },
        ),
        "video": curve(
            "frames of a video",
            "peak of labelling it with a tiny model, MB",
            VIDEO_LENGTHS,
            {
                "as one clip": lambda length: video_megabytes(setting, length, is_stream=False),
                "as a stream": lambda length: video_megabytes(setting, length, is_stream=True),
            },
        ),
    }


def curve(
    x_label: str,
    y_label: str,
    x: Sequence[float],
    lines: dict[str, Callable[[Any], float]],
    points: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """Compute every line at every point, which is its `x` unless `points` say otherwise."""
    values = {name: [line(point) for point in points or x] for name, line in lines.items()}
    return {"x_label": x_label, "y_label": y_label, "x": list(x), "lines": values}


# ---- floating-point operations, on tensors without content ----------------------------------------------------------


@torch.no_grad()
def gigaflops(
    setting: Setting,
    num_frames: int,
    size: tuple[int, int],
    make: Callable[[THEMaskForVideoSemanticSegmentation, torch.Tensor], Work],
) -> float:
    """Giga-operations of one call."""
    with torch.device("meta"):
        # A model of one frame would have another decoder.
        model = THEMaskForVideoSemanticSegmentation(themask_config(setting, max(2, num_frames)))
        # Some parameters are made with `torch.Tensor(...)`, on the CPU all the same.
        model = model.to("meta").eval().requires_grad_(False)
        work = make(model, torch.empty(num_frames, 3, *size))
        with FlopCounterMode(display=False) as counter:
            work()
    return counter.get_total_flops() / 1e9


def official_work(model: THEMaskForVideoSemanticSegmentation, frames: torch.Tensor) -> Work:
    """The official style on a clip."""
    official = OfficialClip(model).to("meta").eval().requires_grad_(False)
    return lambda: official(frames)


def our_work(model: THEMaskForVideoSemanticSegmentation, frames: torch.Tensor) -> Work:
    """Our model on a clip."""
    return lambda: our_clip(model, frames)


def our_step(model: THEMaskForVideoSemanticSegmentation, frames: torch.Tensor) -> Work:
    """Our streaming step with a full window."""
    state = model.initial_state(len(frames), 1)
    for earlier in frames[:-1]:
        _, state = model.streaming_step(earlier[None, None], state)
    return lambda: model.streaming_step(frames[None, -1:], state)


# ---- memory ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def labelling_megabytes(setting: Setting, num_labels: int, is_official: bool) -> float:
    """Peak of post-processing one frame with sixteen, or all, classes in it."""
    num_classes = min(16, num_labels)
    outputs = post_processing.synthetic_outputs(setting, num_classes, num_levels=2, num_labels=num_labels)
    size = post_processing.target_size(setting)
    if is_official:
        return peak_memory(lambda: post_processing.official_labels(outputs, setting.size, size), setting.device) / 1e6
    return peak_memory(lambda: post_processing.our_labels(outputs, size), setting.device) / 1e6


@torch.no_grad()
def video_megabytes(setting: Setting, num_frames: int, is_stream: bool) -> float:
    """Peak of labelling a video with the tiny model of quick runs, whose label maps are let go one by one."""
    tiny = replace(setting, size=(96, 160), quick=True)
    model, processor = themask(tiny, CLIP), THEMaskVideoProcessor(do_resize=False)
    frames = random_frames(tiny, 1, num_frames)
    state = model.initial_state(CLIP, 1)

    def label(outputs: Any) -> None:
        processor.post_process_semantic_segmentation(outputs, target_sizes=[tiny.size])

    def stream() -> None:
        passed_on = state
        for frame in frames[0]:
            outputs, passed_on = model.streaming_step(frame[None, None], passed_on)
            label(outputs)

    def at_once() -> None:
        label(model(pixel_values_videos=frames))

    return peak_memory(stream if is_stream else at_once, setting.device) / 1e6
