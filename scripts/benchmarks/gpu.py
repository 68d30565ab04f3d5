# SPDX-License-Identifier: Apache-2.0
"""Row 16, on a GPU only: the official style in eager float32, and ours compiled in bfloat16."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import Mask2FormerForUniversalSegmentation

from transformers_themask import THEMaskForVideoSemanticSegmentation

from .decoder import NUM_FRAMES
from .loss import crop_size
from .measuring import Bound, Case, Result, Setting, faster, measure, product_speed, seconds
from .models import blocky_labels, random_frames, themask
from .whole_clip import OfficialClip, mask2former_swin, our_clip

BATCH_SIZE = 2


def gpu_results(setting: Setting) -> Iterator[Result]:
    """Row 16: clips, streams and training steps."""
    yield clip_result(setting)
    yield stream_result(setting)
    yield training_result(setting)


@torch.no_grad()
def clip_result(setting: Setting) -> Result:
    """A clip of four frames; also frames per second, the share of the measured peak, and where the time goes."""
    model, frames = themask(setting, NUM_FRAMES), random_frames(setting, NUM_FRAMES)
    official = OfficialClip(model).eval().requires_grad_(False)
    half, half_frames = themask(setting, NUM_FRAMES).bfloat16(), frames.bfloat16()
    compiled = torch.compile(our_clip, mode="reduce-overhead")  # with CUDA graphs
    for _ in range(3):  # it records a graph after the first calls
        compiled(half, half_frames)
    eager = measure(
        Case("", lambda: official(frames), lambda: our_clip(half, half_frames), dtype=torch.bfloat16), setting
    )
    bounds = (
        faster(4, 8),
        Bound("frames_per_s", None, 300, at_least=True),
        Bound("share_of_peak", None, 0.25, at_least=True),
    )
    case = Case("clip", lambda: official(frames), lambda: compiled(half, half_frames), measures=("time",))
    figures = measure(case, setting)
    clip_seconds = figures["speed_up"]["seconds"]["ours"]
    flops_per_s = eager["flops"]["ours"] / clip_seconds
    parts = seconds_by_part(half, half_frames)
    figures |= {
        "eager_speed_up": eager["speed_up"],
        "flops": eager["flops"],
        "operations": eager["operations"],
        # Of the compiled form a pool that the graphs keep would not count.
        "memory": eager["memory"],
        "syncs": eager["syncs"],
        "frames_per_s": {"value": NUM_FRAMES / clip_seconds},
        "share_of_peak": {"value": flops_per_s / product_speed(setting, torch.bfloat16)},
        "seconds_by_part": {"value": sum(parts.values()), **parts},
    }
    return Result("clip", bounds, figures)


def seconds_by_part(model: THEMaskForVideoSemanticSegmentation, frames: Tensor) -> dict[str, float]:
    """Seconds of backbone, pixel decoder and the rest, uncompiled."""
    pixel_level = model.model.pixel_level_module
    device = frames.device.type
    parts: dict[str, Any] = {
        "backbone": lambda: pixel_level.encoder(frames),
        "pixel_level": lambda: pixel_level(frames),
        "clip": lambda: our_clip(model, frames),
    }
    for work in parts.values():
        work()
    times = {name: seconds(work, device) for name, work in parts.items()}
    return {
        "backbone": times["backbone"],
        "pixel_decoder": times["pixel_level"] - times["backbone"],
        "decoder": times["clip"] - times["pixel_level"],
    }


@torch.no_grad()
def stream_result(setting: Setting) -> Result:
    """The newest frame of a sliding window of four."""
    model = themask(setting, NUM_FRAMES)
    half = themask(setting, NUM_FRAMES).bfloat16()
    frames = random_frames(setting, NUM_FRAMES)
    official = OfficialClip(model).eval().requires_grad_(False)
    newest, state = frames[None, -1:].bfloat16(), half.initial_state(NUM_FRAMES, 1)
    for earlier in frames[:-1].bfloat16():
        _, state = half.streaming_step(earlier[None, None], state)
    eager = measure(
        Case("", lambda: official(frames), lambda: half.streaming_step(newest, state), measures=("memory", "counts")),
        setting,
    )
    compiled = torch.compile(half.streaming_step, mode="reduce-overhead")  # with CUDA graphs
    for _ in range(3):  # it records a graph after the first calls
        compiled(newest, state)
    case = Case("stream", lambda: official(frames), lambda: compiled(newest, state), measures=("time",))
    figures = measure(case, setting) | eager
    figures["latency_ms"] = {"value": 1e3 * figures["speed_up"]["seconds"]["ours"]}
    return Result("stream", (Bound("latency_ms", None, 10),), figures)


def training_result(setting: Setting) -> Result:
    """A training step of two crops: Transformers' Mask2Former with its own loss, and our one-frame model."""
    crops = replace(setting, size=crop_size(setting))
    labels, frames = blocky_labels(crops, BATCH_SIZE, crops.size), random_frames(crops, BATCH_SIZE)
    theirs, ours = mask2former_swin(setting), themask(setting, 1)
    class_labels = [clip.unique() for clip in labels]
    pairs = zip(labels, class_labels, strict=True)
    masks = [(clip == classes[:, None, None]).float() for clip, classes in pairs]

    def their_loss(model: Mask2FormerForUniversalSegmentation) -> Tensor:
        return model(pixel_values=frames, mask_labels=masks, class_labels=class_labels).loss.sum()

    def our_loss(model: THEMaskForVideoSemanticSegmentation) -> Tensor:
        return model(pixel_values_videos=frames[:, None], labels=labels).loss

    def step(model: Any, loss: Any) -> None:
        with torch.autocast(setting.device, torch.bfloat16):
            value = loss(model)
        value.backward()
        optimizers[model].step()
        optimizers[model].zero_grad()

    optimizers = {
        model: torch.optim.AdamW(model.requires_grad_(True).train().parameters()) for model in (theirs, ours)
    }
    case = Case(
        "training step",
        lambda: step(theirs, their_loss),
        lambda: step(ours, our_loss),
        has_gradients=True,
        dtype=torch.bfloat16,
    )
    figures = measure(case, setting)
    figures["steps_per_s"] = {"value": 1 / figures["speed_up"]["seconds"]["ours"]}
    return Result("training step", (), figures)
