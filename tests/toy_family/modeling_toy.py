# SPDX-License-Identifier: Apache-2.0
"""The toy: a linear classifier of each pixel's colour."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_toy import ToyConfig
from .inputs import check_inputs
from .label_counts import averaged_over_processes, count_classes
from .outputs import VideoSegmentationOutput
from .pretrained_model import VideoPreTrainedModel
from .step_context import StepContext
from .streaming import StreamingMixin


@dataclass
class ToyForVideoSemanticSegmentationOutput(VideoSegmentationOutput):
    """Class scores of pixels and, given labels, the loss."""

    loss: Tensor | None = None
    logits: Tensor | None = None


class PixelClassifier(GradientCheckpointingLayer):
    """A 1x1 convolution."""

    def __init__(self, num_labels: int):
        super().__init__()
        self.convolution = nn.Conv2d(3, num_labels, kernel_size=1)

    def forward(self, frames: Tensor) -> Tensor:
        """Score the classes of every pixel."""
        return self.convolution(frames)


class ToyForVideoSemanticSegmentation(StreamingMixin, VideoPreTrainedModel):
    """A model of the toy family."""

    config_class = ToyConfig
    base_model_prefix = ""

    def __init__(self, config: ToyConfig):
        super().__init__(config)
        self.classifier = PixelClassifier(config.num_labels)
        self.post_init()

    def loss_counts(self, labels: Tensor, context: StepContext | None = None) -> Tensor:
        """The number of labelled pixels."""
        counts = count_classes(labels.flatten(1)[:, None], self.config.num_labels, self.config.ignore_value)
        return counts.sum().to(torch.float64)[None]

    def forward(
        self,
        pixel_values_videos: Tensor,
        labels: Tensor | None = None,
        context: StepContext | None = None,
        **kwargs: Any,
    ) -> ToyForVideoSemanticSegmentationOutput:
        """Segment clips and, given labels, compute the mean cross-entropy of labelled pixels."""
        check_inputs(pixel_values_videos, labels, kwargs)
        logits = self.classifier(pixel_values_videos.flatten(0, 1))
        outputs = ToyForVideoSemanticSegmentationOutput(logits=logits.unflatten(0, pixel_values_videos.shape[:2]))
        if labels is not None:
            counts = averaged_over_processes(self.loss_counts(labels))
            if context is not None and context.loss_counts is not None:
                counts = context.loss_counts
            scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
            targets = labels.flatten(0, 1).long()
            loss = nn.functional.cross_entropy(scores, targets, ignore_index=self.config.ignore_value, reduction="sum")
            outputs.loss = loss / counts.clamp(min=1).to(scores)[0]
        return outputs


__all__ = ["ToyForVideoSemanticSegmentation", "ToyForVideoSemanticSegmentationOutput"]
