# SPDX-License-Identifier: Apache-2.0
"""A tiny model of every family, for tests that ask the same of each of them."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from transformers import PreTrainedModel

from tiny import TINY_MIT, random_clips, tiny_config, tiny_model
from transformers_themask import (
    CFFMConfig,
    CFFMForVideoSemanticSegmentation,
    MiTConfig,
    MPVSSConfig,
    MPVSSForVideoSemanticSegmentation,
)
from transformers_themask.registry import Family, families

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


def cffm_model(seed: int = 0, **overrides) -> CFFMForVideoSemanticSegmentation:
    fields = {"hidden_dim": 16, "num_attention_heads": 4, "mining_layers": 2, "num_labels": 6}
    if "backbone_config" not in overrides:
        fields["backbone_config"] = MiTConfig(**TINY_MIT)
    torch.manual_seed(seed)
    return CFFMForVideoSemanticSegmentation(CFFMConfig(**{**fields, **overrides})).eval()


def mpvss_model(seed: int = 0, segmenter: dict | None = None, **overrides) -> MPVSSForVideoSemanticSegmentation:
    fields = {
        "segmenter_config": tiny_config(**(segmenter or {})),
        "motion_channels": (8, 8, 8, 16, 16, 16),
        "motion_decoder_channels": (8, 8, 8, 8),
        "motion_layers": 3,
        "motion_attention_heads": 2,
        "motion_feedforward_dim": 16,
    }
    torch.manual_seed(seed)
    return MPVSSForVideoSemanticSegmentation(MPVSSConfig(**{**fields, **overrides})).eval()


def row_model(row: Family) -> PreTrainedModel:
    torch.manual_seed(0)
    return row.tiny().eval()


# One model per family that is trained here, and further variants.
FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    **{row.name: partial(row_model, row) for row in families() if not row.is_native},
    "themask_video_frame": lambda: tiny_model(num_frames=2),
    "cffm_small_windows": lambda: cffm_model(**SMALL_WINDOWS, first_frames="repeated"),
}

every_family = pytest.mark.parametrize("family", FAMILIES)


def family_clips(model: PreTrainedModel, batch_size: int = 2, **options):
    """Frames and labels of clips as long as those that a model is trained with, in its precision."""
    frames, labels = random_clips(batch_size, model.config.num_frames, **options)
    return frames.to(model.dtype), labels
