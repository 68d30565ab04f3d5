# SPDX-License-Identifier: Apache-2.0
"""Tiny models of every registered family, for tests that ask the same of each of them."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from transformers import PreTrainedModel

from tiny import random_clips, tiny_config
from transformers_themask.registry import families, family_of

# Windows of 3 places and two references; the defaults are the published ones, with windows of 7 and three.
SMALL_WINDOWS = {
    "reference_offsets": (-2, -1),
    "window_size": 3,
    "neighborhood": 1,
    "target_receptive_field": 9,
    "target_pooling_kernel": 3,
    "reference_receptive_fields": (9, 6),
    "reference_pooling_kernels": (3, 2),
}

# By family: the models to test, as overrides of its tiny configuration. Of other families it is the tiny model alone.
VARIANTS: dict[str, dict[str, dict]] = {
    "themask": {"themask_one_frame": {"num_frames": 1}, "themask_video_frame": {"num_frames": 2}},
    "cffm": {"cffm": {}, "cffm_small_windows": {**SMALL_WINDOWS, "first_frames": "repeated"}},
    "per_frame": {"segformer": {}},
}


def tiny_of(name: str, seed: int = 0, **overrides) -> PreTrainedModel:
    """A tiny model of the family of a model type."""
    torch.manual_seed(seed)
    return family_of(name).tiny(**overrides).eval()


cffm_model = partial(tiny_of, "cffm")


def mpvss_model(seed: int = 0, segmenter: dict | None = None, **overrides) -> PreTrainedModel:
    return tiny_of("mpvss", seed, **{"segmenter_config": tiny_config(**(segmenter or {})), **overrides})


# Without Transformers' own video models, which cannot be trained here.
FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    variant: partial(tiny_of, row.name, **overrides)
    for row in families()
    if not row.is_native
    for variant, overrides in VARIANTS.get(row.name, {row.name: {}}).items()
}

every_family = pytest.mark.parametrize("family", FAMILIES)


def family_clips(model: PreTrainedModel, batch_size: int = 2, **options):
    """Frames and labels of clips as long as those that a model is trained with, in its precision."""
    frames, labels = random_clips(batch_size, model.config.num_frames, **options)
    return frames.to(model.dtype), labels
