# SPDX-License-Identifier: Apache-2.0
"""Base class of the video models."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init

from .step_context import StepContext


class VideoPreTrainedModel(PreTrainedModel):
    """A model that takes `pixel_values_videos` and divides its loss by counts of its own."""

    main_input_name = "pixel_values_videos"
    input_modalities = ("video",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    # The loss is normalised by its own counts, not by Trainer's count of labelled pixels.
    accepts_loss_kwargs = False

    # Whether the loss matches in up to two rounds, so that a warm-up with one round makes sense.
    has_matching_rounds: ClassVar[bool] = False
    # The parts of a model that `freeze` takes, each a few of its modules.
    freezable_parts: ClassVar[dict[str, tuple[str, ...]]] = {}

    def __init__(self, config: PreTrainedConfig, *inputs: Any, **kwargs: Any):
        super().__init__(config, *inputs, **kwargs)
        self._frozen_parts: set[str] = set()

    def loss_counts(self, labels: Tensor, context: StepContext | None = None) -> Tensor:
        """The divisors of the loss of labels `(batch, num_frames, height, width)`, known before the forward pass.

        One per loss term, in float64 on the CPU. Summed over the batches of a step, as `context.loss_counts`, they
        make the batches' losses shares of one.

        Raises:
            ValueError: If a label is neither a class index nor `config.ignore_value`.
        """
        raise NotImplementedError

    def freeze(self, *parts: str) -> None:
        """Keep parts of the model, some of its `freezable_parts`, as they are in training.

        They take no gradient and stay in evaluation mode under `train()`, so that drop path is off.

        Raises:
            ValueError: If the model has no such part.
        """
        for part in parts:
            if part not in self.freezable_parts:
                known = ", ".join(self.freezable_parts) or "none"
                raise ValueError(f"`freeze` must name parts of a {type(self).__name__}: {known}. Got {part!r}.")
        self._frozen_parts.update(parts)
        for module in self._frozen_modules():
            module.requires_grad_(False)
        self.train(self.training)

    def is_frozen(self, part: str) -> bool:
        """True if `freeze` was called for a part."""
        return part in self._frozen_parts

    def train(self, mode: bool = True) -> "VideoPreTrainedModel":
        """Set the training mode, of frozen parts always the evaluation mode."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def _frozen_modules(self) -> list[nn.Module]:
        paths = [path for part in sorted(self._frozen_parts) for path in self.freezable_parts[part]]
        return [self.get_submodule(path) for path in paths]

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
