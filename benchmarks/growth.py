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

CLIP_LENGTHS, WINDOWS = (1, 2, 4, 8, 16), (2, 4, 8)
SIZES = ((256, 448), (480, 864), (736, 1280), (1088, 1920))
NUMBERS_OF_CLASSES = (8, 32, 124, 256)
VIDEO_LENGTHS = (4, 8, 16, 32)
CLIP = 4
Make = Callable[[THEMaskForVideoSemanticSegmentation, torch.Tensor], Work]


def growth_curves(setting: Setting) -> dict[str, dict[str, Any]]:
    """All curves by name."""

    def per_frame(make: Make, num_frames: int, size: tuple[int, int] | None = None) -> float:
        return gigaflops(setting, make, num_frames, size) / num_frames

    def per_size(make: Make, size: tuple[int, int]) -> float:
        return per_frame(make, CLIP, size)

    labelling, video = partial(labelling_megabytes, setting), partial(video_megabytes, setting)
    chains, videos = {"official chain": True, "ours": False}, {"as one clip": False, "as a stream": True}
    clips = {"official style": official_work, "ours": our_work}
    anew = {"computed anew, official style": official_work, "computed anew, ours": our_work}
    windows, per_window = {**anew, "remembered, ours": our_step}, partial(gigaflops, setting)
    return {
        "frames": curve("frames of a clip", "GFLOP per frame", CLIP_LENGTHS, clips, per_frame),
        "window": curve("frames of a sliding window", "GFLOP per new frame", WINDOWS, windows, per_window),
        "resolution": curve("megapixels of a frame", "GFLOP per frame", SIZES, clips, per_size),
        "classes": curve("classes", "peak of post-processing a frame, MB", NUMBERS_OF_CLASSES, chains, labelling),
        "video": curve(
            "frames of a video", "peak of labelling it with a tiny model, MB", VIDEO_LENGTHS, videos, video
        ),
    }


def curve(
    x_label: str, y_label: str, points: Sequence[Any], ways: dict[str, Any], value: Callable[[Any, Any], float]
) -> dict[str, Any]:
    """A line of values over the points for every way; sizes of frames become megapixels."""
    x = [point[0] * point[1] / 1e6 if isinstance(point, tuple) else point for point in points]
    lines = {name: [value(way, point) for point in points] for name, way in ways.items()}
    return {"x_label": x_label, "y_label": y_label, "x": x, "lines": lines}


@torch.no_grad()
def gigaflops(setting: Setting, make: Make, num_frames: int, size: tuple[int, int] | None = None) -> float:
    """Giga-operations of one call, on tensors without content."""
    # A model of one frame would have another decoder.
    model = on_meta(lambda: THEMaskForVideoSemanticSegmentation(themask_config(setting, max(2, num_frames))))
    with torch.device("meta"):
        return flops_of(make(model, torch.empty(num_frames, 3, *(size or setting.size)))) / 1e9


def official_work(model: THEMaskForVideoSemanticSegmentation, frames: torch.Tensor) -> Work:
    """The official style on a clip."""
    return partial(on_meta(lambda: OfficialClip(model)), frames)


def our_work(model: THEMaskForVideoSemanticSegmentation, frames: torch.Tensor) -> Work:
    """Our model on a clip."""
    return partial(our_clip, model, frames)


def our_step(model: Any, frames: torch.Tensor, window: int | None = None) -> partial:
    """The streaming step of the last frame after the others; by default the window holds all."""
    state = model.initial_state(window or len(frames), 1)
    for earlier in frames[:-1]:
        _, state = model.clip_step(earlier[None, None], state)
    return partial(model.clip_step, frames[None, -1:], state)


@torch.no_grad()
def labelling_megabytes(setting: Setting, is_official: bool, num_labels: int) -> float:
    """Peak of post-processing one frame with sixteen, or all, classes in it."""
    num_classes = min(16, num_labels)
    outputs = post_processing.synthetic_outputs(setting, num_classes, num_levels=2, num_labels=num_labels)
    size = post_processing.target_size(setting)
    official = partial(post_processing.official_labels, outputs, setting.size, size)
    ours = partial(post_processing.our_labels, outputs, size)
    return peak_memory(official if is_official else ours, setting.device) / 1e6


@torch.no_grad()
def video_megabytes(setting: Setting, is_stream: bool, num_frames: int) -> float:
    """Peak of labelling a video with the tiny model of quick runs; label maps are dropped one by one."""
    tiny = replace(setting, size=(96, 160), quick=True)
    model, processor = themask(tiny, CLIP), THEMaskVideoProcessor(do_resize=False)
    frames = random_frames(tiny, 1, num_frames)
    state = model.initial_state(CLIP, 1)
    label = partial(processor.post_process_semantic_segmentation, target_sizes=[tiny.size])

    def stream() -> None:
        passed_on = state
        for frame in frames[0]:
            outputs, passed_on = model.clip_step(frame[None, None], passed_on)
            label(outputs)

    def at_once() -> None:
        label(model(pixel_values_videos=frames))

    return peak_memory(stream if is_stream else at_once, setting.device) / 1e6
