# SPDX-License-Identifier: Apache-2.0
"""The facts of a training step that a single batch does not hold."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .point_sampling import PointSampler, uniform_points


@dataclass(frozen=True)
class StepContext:
    r"""Argument `context` of every model's `forward` and `loss_counts`; a family reads the fields that concern it.

    Args:
        loss_counts: Sum of `model.loss_counts(labels)` over all batches of an optimiser step and all processes. The
            loss is then this batch's share: the losses of the step add up to what one large batch would give. Defaults
            to the counts of the batch, averaged over the processes.
        matching_rounds: Overrides the configuration's number of matching rounds: 1 is the loss of the warm-up
            (THE-Mask, section 4.1). For families that match in rounds.
        point_generator: Passed on to `point_sampler`. With one per clip the points of a clip do not depend on its
            batch.
        point_sampler: Source of the random points of matching and losses.

    Raises:
        ValueError: If `matching_rounds` is neither 1 nor 2.
    """

    loss_counts: Tensor | None = None
    matching_rounds: int | None = None
    point_generator: torch.Generator | Sequence[torch.Generator] | None = None
    point_sampler: PointSampler = uniform_points

    def __post_init__(self):
        if self.matching_rounds not in (None, 1, 2):
            raise ValueError(f"`matching_rounds` must be 1 or 2. Got {self.matching_rounds}.")


__all__ = ["StepContext"]
