# SPDX-License-Identifier: Apache-2.0
"""Configuration of the toy."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class ToyConfig(PreTrainedConfig):
    """Configuration of a [`ToyForVideoSemanticSegmentation`]."""

    model_type = "toy"
    clip_sampler = "offsets"

    ignore_value: int = 255

    @property
    def num_frames(self) -> int:
        """Frames of a training clip."""
        return 1


__all__ = ["ToyConfig"]
