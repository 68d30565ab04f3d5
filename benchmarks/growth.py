# SPDX-License-Identifier: Apache-2.0
"""Growth with the frames of a clip, their size, the number of classes and the length of a video; exact figures."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from transformers_themask import THEMaskForVideoSemanticSegmentation, THEMaskVideoProcessor

from . import post_processing
from .measuring import Setting, Work, flops_of, peak_memory
from .models import on_meta, random_frames, themask, themask_config
from .whole_clip import OfficialClip, our_clip

CLIP_LENGTHS = (1, 2, 4, 8, 16)
SIZES = ((256, 448), (480, 864), (736, 1280), (1088, 1920))
NUMBERS_OF_CLASSES = (8, 32, 124, 256)
VIDEO_LENGTHS = (4, 8, 16, 32)
CLIP = 4


def growth_curves(setting: Setting) -> dict[str, dict[str, Any]]:
    """By name a curve: `x` with its `x_label`, and `lines` of values with their `y_label`."""
    per_call = partial(gigaflops, setting)

    def per_frame(make: Any, num_frames: int = CLIP, size: tuple[int, int] = setting.size) -> float:
        return per_call(num_frames, size, make) / num_frames

    curves: list[tuple[str, str, str, Sequence[Any], dict[str, Callable[[Any], float]]]] = [
        (
            "frames",
            "frames of a clip",
            "GFLOP per frame",
            CLIP_LENGTHS,
            {
                "official style": lambda length: per_frame(official_work, length),
                "ours": lambda length: per_frame(our_work, length),
            },
        ),
        (
            "window",
            "frames of a sliding window",
            "GFLOP per new frame",
            CLIP_LENGTHS[1:4],
            {
                "computed anew, official style": lambda length: per_call(length, setting.size, official_work),
                "computed anew, ours": lambda length: per_call(length, setting.size, our_work),
                "remembered, ours": lambda length: per_call(length, setting.size, our_step),
            },
        ),
        (
            "resolution",
            "megapixels of a frame",
            "GFLOP per frame",
            SIZES,
            {
                "official style": lambda size: per_frame(official_work, size=size),
                "ours": lambda size: per_frame(our_work, size=size),
            },
        ),
        (
            "classes",
            "classes",
            "peak of post-processing a frame, MB",
            NUMBERS_OF_CLASSES,
            {
                "official chain": partial(labelling_megabytes, setting, is_official=True),
                "ours": partial(labelling_megabytes, setting, is_official=False),
            },
        ),
        (
            "video",
            "frames of a video",
            "peak of labelling it with a tiny model, MB",
            VIDEO_LENGTHS,
            {
                "as one clip": partial(video_megabytes, setting, is_stream=False),
                "as a stream": partial(video_megabytes, setting, is_stream=True),
            },
        ),
    ]
    return {
        name: {
            "x_label": x_label,
            "y_label": y_label,
            "x": [point[0] * point[1] / 1e6 if isinstance(point, tuple) else point for point in points],
            "lines": {label: [line(point) for point in points] for label, line in lines.items()},
        }
        for name, x_label, y_label, points, lines in curves
    }


@torch.no_grad()
def gigaflops(
    setting: Setting,
    num_frames: int,
    size: tuple[int, int],
    make: Callable[[THEMaskForVideoSemanticSegmentation, torch.Tensor], Work],
) -> float:
    """Giga-operations of one call, on tensors without content."""
    # A model of one frame would have another decoder.
    model = on_meta(lambda: THEMaskForVideoSemanticSegmentation(themask_config(setting, max(2, num_frames))))
    with torch.device("meta"):
        return flops_of(make(model, torch.empty(num_frames, 3, *size))) / 1e9


def official_work(model: THEMaskForVideoSemanticSegmentation, frames: torch.Tensor) -> Work:
    """The official style on a clip."""
    return partial(on_meta(lambda: OfficialClip(model)), frames)


def our_work(model: THEMaskForVideoSemanticSegmentation, frames: torch.Tensor) -> Work:
    """Our model on a clip."""
    return partial(our_clip, model, frames)


def our_step(model: THEMaskForVideoSemanticSegmentation, frames: torch.Tensor) -> partial:
    """Our streaming step with a full window."""
    state = model.initial_state(len(frames), 1)
    for earlier in frames[:-1]:
        _, state = model.streaming_step(earlier[None, None], state)
    return partial(model.streaming_step, frames[None, -1:], state)


@torch.no_grad()
def labelling_megabytes(setting: Setting, num_labels: int, is_official: bool) -> float:
    """Peak of post-processing one frame with sixteen, or all, classes in it."""
    num_classes = min(16, num_labels)
    outputs = post_processing.synthetic_outputs(setting, num_classes, num_levels=2, num_labels=num_labels)
    size = post_processing.target_size(setting)
    official = partial(post_processing.official_labels, outputs, setting.size, size)
    ours = partial(post_processing.our_labels, outputs, size)
    return peak_memory(official if is_official else ours, setting.device) / 1e6


@torch.no_grad()
def video_megabytes(setting: Setting, num_frames: int, is_stream: bool) -> float:
    """Peak of labelling a video with the tiny model of quick runs; label maps are dropped one by one."""
    tiny = replace(setting, size=(96, 160), quick=True)
    model, processor = themask(tiny, CLIP), THEMaskVideoProcessor(do_resize=False)
    frames = random_frames(tiny, 1, num_frames)
    state = model.initial_state(CLIP, 1)
    label = partial(processor.post_process_semantic_segmentation, target_sizes=[tiny.size])

    def stream() -> None:
        passed_on = state
        for frame in frames[0]:
            outputs, passed_on = model.streaming_step(frame[None, None], passed_on)
            label(outputs)

    def at_once() -> None:
        label(model(pixel_values_videos=frames))

    return peak_memory(stream if is_stream else at_once, setting.device) / 1e6
