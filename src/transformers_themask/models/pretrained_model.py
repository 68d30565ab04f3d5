# SPDX-License-Identifier: Apache-2.0
"""What the video models of this package have in common as models of Transformers."""

import math

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init


class VideoPreTrainedModel(PreTrainedModel):
    """A model that takes `pixel_values_videos` and divides its loss by counts of its own."""

    main_input_name = "pixel_values_videos"
    input_modalities = ("video",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    # The loss is normalised by its own counts, not by Trainer's count of labelled pixels.
    accepts_loss_kwargs = False

    @classmethod
    def is_custom_code(cls) -> bool:
        """`False`: `_init_weights` leaves loaded parameters alone by itself.

        For other classes outside Transformers, modules without parameters of their own are never handed to
        `_init_weights`, which would leave attention and feed-forward layers at PyTorch's defaults.
        """
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialise a layer as PyTorch does."""
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(nn.init._calculate_fan_in_and_fan_out(module.weight)[0])
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d)):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            if isinstance(module, nn.BatchNorm2d):
                init.zeros_(module.running_mean)
                init.ones_(module.running_var)
                init.zeros_(module.num_batches_tracked)
