# SPDX-License-Identifier: Apache-2.0
"""Row 12: the newest frame of a sliding window of four, with everything computed anew and from what is remembered."""

from collections.abc import Iterator

import torch

from .decoder import NUM_FRAMES, TOLERANCE, ClipPrediction, clip_difference, clip_prediction
from .measuring import Bound, Case, Setting, faster
from .models import random_frames, themask
from .whole_clip import OfficialClip, our_clip


def streaming_cases(setting: Setting) -> Iterator[Case]:
    """Row 12: the window computed anew as released and by us, and our streaming step."""
    model, frames = themask(setting, NUM_FRAMES), random_frames(setting, NUM_FRAMES)
    official = OfficialClip(model).eval().requires_grad_(False)
    frames_encoded: list[int] = []
    model.model.pixel_level_module.encoder.register_forward_hook(
        lambda _, inputs, __: frames_encoded.append(len(inputs[0]))
    )
    state = model.initial_state(NUM_FRAMES, 1)
    with torch.no_grad():
        for earlier in frames[:-1]:
            _, state = model.streaming_step(earlier[None, None], state)

    def step() -> ClipPrediction:
        outputs, _ = model.streaming_step(frames[None, -1:], state)
        return clip_prediction(outputs)

    with torch.no_grad():
        newest = step()
        calls = sum(frames_encoded) / NUM_FRAMES
        differences = [
            clip_difference(of_newest(clip), newest) for clip in (official(frames), our_clip(model, frames))
        ]
    for name, baseline, difference, bounds in (
        ("official", lambda: official(frames), differences[0], (Bound("flops", 0.31),)),
        ("ours anew", lambda: our_clip(model, frames), differences[1], (Bound("flops", 0.35), faster(None, 2.5))),
    ):
        found = {"difference": difference, "encodings_per_frame": calls}
        shared = (Bound("difference", TOLERANCE), Bound("encodings_per_frame", 1))
        yield Case(name, baseline, step, (*bounds, *shared), found)


def of_newest(clip: ClipPrediction) -> ClipPrediction:
    """What a clip's prediction says about its last frame."""
    return ClipPrediction(clip.video_classes, clip.video_masks[-1:], clip.frame_classes[-1:], clip.frame_masks[-1:])
