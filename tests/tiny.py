# SPDX-License-Identifier: Apache-2.0
"""The smallest THE-Mask that has every part: used by all tests that need a model."""

import torch

from transformers_themask import MiTConfig, THEMaskConfig, THEMaskForVideoSemanticSegmentation
from transformers_themask.families import QUERY_SEGMENTER, STAGES

TINY_MIT = STAGES


def tiny_config(**overrides) -> THEMaskConfig:
    fields = dict(QUERY_SEGMENTER)
    if "backbone_config" not in overrides:
        fields["backbone_config"] = MiTConfig(**TINY_MIT)
    return THEMaskConfig(**{**fields, **overrides})


def tiny_model(seed: int = 0, **overrides) -> THEMaskForVideoSemanticSegmentation:
    torch.manual_seed(seed)
    return THEMaskForVideoSemanticSegmentation(tiny_config(**overrides)).eval()


def random_clips(batch_size: int = 2, num_frames: int = 2, size: tuple[int, int] = (64, 96), seed: int = 0):
    """Frames, and label maps of a few rectangles of classes 0 to 5 and some ignored pixels."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randn(batch_size, num_frames, 3, *size, generator=generator)
    cells = torch.randint(0, 7, (batch_size, num_frames, 4, 6), generator=generator)
    cells[cells == 6] = 255
    labels = torch.nn.functional.interpolate(cells.float(), size, mode="nearest").long()
    return frames, labels
