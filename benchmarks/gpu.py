# SPDX-License-Identifier: Apache-2.0
"""Row 16, on a GPU only: the official style in eager float32, and ours compiled in bfloat16."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from transformers_themask import THEMaskForVideoSemanticSegmentation

from .decoder import NUM_FRAMES
from .growth import our_step
from .loss import crop_size
from .measuring import Bound, Case, Result, Setting, faster, measure, product_speed, take_turns
from .models import blocky_labels, random_frames, themask
from .whole_clip import mask2former_swin, official_and_ours, our_clip

BATCH_SIZE = 2


def gpu_results(setting: Setting) -> Iterator[Result]:
    """Row 16: clips, streams and training steps."""
    with torch.no_grad():
        yield clip_result(setting)
        yield stream_result(setting)
    yield training_result(setting)


def clip_result(setting: Setting) -> Result:
    """A clip of four frames; also frames per second, share of the measured peak, and time of the parts."""
    official, _, frames = official_and_ours(setting)
    half, half_frames = themask(setting, NUM_FRAMES).bfloat16(), frames.bfloat16()
    ours = partial(our_clip, half, half_frames)
    figures = eager_and_compiled(setting, partial(official, frames), ours)
    clip_seconds = figures["speed_up"]["seconds"]["ours"]
    parts = seconds_by_part(half, half_frames)
    figures |= {
        "frames_per_s": {"value": NUM_FRAMES / clip_seconds},
        "share_of_peak": {"value": figures["flops"]["ours"] / clip_seconds / product_speed(setting, torch.bfloat16)},
        "seconds_by_part": {"value": sum(parts.values()), **parts},
    }
    targets = (Bound("frames_per_s", None, 300, at_least=True), Bound("share_of_peak", None, 0.25, at_least=True))
    return Result("clip", (faster(4, 8), *targets), figures)


def stream_result(setting: Setting) -> Result:
    """The newest frame of a sliding window of four."""
    official, _, frames = official_and_ours(setting)
    half = themask(setting, NUM_FRAMES).bfloat16()
    ours = our_step(half, frames.bfloat16())
    figures = eager_and_compiled(setting, partial(official, frames), ours)
    figures["latency_ms"] = {"value": 1e3 * figures["speed_up"]["seconds"]["ours"]}
    return Result("stream", (Bound("latency_ms", None, 10),), figures)


def eager_and_compiled(setting: Setting, official: Any, ours: partial) -> dict[str, Any]:
    """Figures of ours, compiled; memory, operations and synchronisations are those of eager mode."""
    eager = measure(Case("", official, ours, dtype=torch.bfloat16), setting)
    compiled = partial(torch.compile(ours.func, mode="reduce-overhead"), *ours.args)  # with CUDA graphs
    for _ in range(3):  # the graph is recorded after the first calls
        compiled()
    # The pool that the graphs keep would not count as memory.
    counts = {name: eager[name] for name in ("flops", "operations", "memory", "syncs")}
    figures = measure(Case("", official, compiled, measures=("time",)), setting)
    return {**figures, **counts, "eager_speed_up": eager["speed_up"]}


def seconds_by_part(model: THEMaskForVideoSemanticSegmentation, frames: Tensor) -> dict[str, float]:
    """Seconds of backbone, pixel decoder and the rest, eager."""
    pixel_level = model.model.pixel_level_module
    works = {
        "backbone": partial(pixel_level.encoder, frames),
        "pixel_level": partial(pixel_level, frames),
        "clip": partial(our_clip, model, frames),
    }
    times = {name: seconds for name, (seconds,) in take_turns(works, 1, frames.device.type).items()}
    return {
        "backbone": times["backbone"],
        "pixel_decoder": times["pixel_level"] - times["backbone"],
        "decoder": times["clip"] - times["pixel_level"],
    }


def training_result(setting: Setting) -> Result:
    """A training step of two crops: Transformers' Mask2Former with its own loss, and our one-frame model."""
    crops = replace(setting, size=crop_size(setting))
    labels, frames = blocky_labels(crops, BATCH_SIZE, crops.size), random_frames(crops, BATCH_SIZE)
    class_labels = [clip.unique() for clip in labels]
    pairs = zip(labels, class_labels, strict=True)
    masks = [(clip == classes[:, None, None]).float() for clip, classes in pairs]
    inputs = (
        {"pixel_values": frames, "mask_labels": masks, "class_labels": class_labels},
        {"pixel_values_videos": frames[:, None], "labels": labels},
    )
    models = [model.requires_grad_(True).train() for model in (mask2former_swin(setting), themask(setting, 1))]
    optimizers = [torch.optim.AdamW(model.parameters()) for model in models]

    def step(index: int) -> None:
        with torch.autocast(setting.device, torch.bfloat16):
            loss = models[index](**inputs[index]).loss.sum()
        loss.backward()
        optimizers[index].step()
        optimizers[index].zero_grad()

    steps = partial(step, 0), partial(step, 1)
    figures = measure(Case("", *steps, has_gradients=True, dtype=torch.bfloat16), setting)
    figures["steps_per_s"] = {"value": 1 / figures["speed_up"]["seconds"]["ours"]}
    return Result("training step", (), figures)
