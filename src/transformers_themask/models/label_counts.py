# SPDX-License-Identifier: Apache-2.0
"""Classes of label maps, counted: the targets of clips, and the divisors of losses."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .loss_settings import LossSettings
from .point_sampling import TargetMaps


class ClipTargets(NamedTuple):
    """Classes of clips or frames, ascending and on the CPU, and labels `(entries, num_frames, height, width)`.

    Pixels of the `ignore_value` are left out of matching and mask losses; with `None` every pixel counts.
    """

    class_labels: list[Tensor]
    labels: Tensor
    ignore_value: int | None

    def per_frame(self) -> "ClipTargets":
        """Split every clip into its frames. A class absent from a frame keeps its, then empty, mask there."""
        num_frames = self.labels.shape[1]
        return ClipTargets(
            class_labels=[labels for labels in self.class_labels for _ in range(num_frames)],
            labels=self.labels.flatten(0, 1)[:, None],
            ignore_value=self.ignore_value,
        )

    @property
    def most_targets(self) -> int:
        """The largest number of targets of any entry."""
        return max(map(len, self.class_labels))

    def class_table(self, filling: int) -> Tensor:
        """The classes of all entries, those with fewer targets filled up: `(entries, most_targets)`."""
        table = np.full((len(self.class_labels), self.most_targets), filling)
        for row, classes in zip(table, self.class_labels, strict=True):
            row[: len(classes)] = classes
        return torch.from_numpy(table).to(self.labels.device, non_blocking=True)

    def maps(self, class_table: Tensor, size: tuple[int, int]) -> TargetMaps:
        """The targets' masks, for comparison with mask logits of a size."""
        classes = class_table[:, None].expand(-1, self.labels.shape[1], -1).flatten(0, 1).contiguous()
        return TargetMaps(self.labels.flatten(0, 1), classes, size, self.ignore_value)


def clip_targets(labels: Tensor, num_labels: int, ignore_value: int, exclude_ignored: bool) -> ClipTargets:
    """Find the classes of every clip `(batch, num_frames, height, width)`.

    With `exclude_ignored`, pixels of the `ignore_value` are left out of the mask losses instead of being background.
    """
    counts = count_classes(labels, num_labels, ignore_value)
    return ClipTargets(
        class_labels=[torch.from_numpy(np.flatnonzero(clip_counts)) for clip_counts in counts.numpy()],
        labels=labels.long(),
        ignore_value=ignore_value if exclude_ignored else None,
    )


def count_classes(labels: Tensor, num_labels: int, ignore_value: int) -> Tensor:
    """Count the pixels of every class in each clip `(batch, num_frames, h, w)`: `(batch, num_labels)`, on the CPU."""
    if 0 <= ignore_value < num_labels:
        raise ValueError(
            f"`ignore_value` must not be one of the {num_labels} class indices. Got {ignore_value}. "
            "Choose another in the configuration, such as -100, and as `ignore_index` of the video processor."
        )
    labels = labels.long()  # narrower integers may not hold the two extra bins below
    ignored = labels == ignore_value
    out_of_range = (labels < 0) | (labels >= num_labels)
    # One histogram per clip, with two more bins for invalid and ignored pixels, read in a single transfer.
    # (`bincount` would wait for the device to learn how many bins there are.)
    bins = labels.masked_fill(out_of_range, num_labels).masked_fill_(ignored, num_labels + 1).flatten(1)
    histogram = bins.new_zeros(len(labels), num_labels + 2).scatter_add_(1, bins, torch.ones_like(bins)).cpu().numpy()
    if histogram[:, num_labels].any():
        wrong = int(labels[out_of_range & ~ignored][0])
        raise ValueError(
            f"`labels` must hold class indices 0 to {num_labels - 1}, or {ignore_value} for no class. Got {wrong}. "
            "Raw dataset ids are reduced by the video processor (`do_reduce_labels=True`)."
        )
    return torch.from_numpy(histogram[:, :num_labels])


def loss_counts_of(num_targets: Tensor, settings: LossSettings, matching_rounds: int) -> Tensor:
    """Number of targets, and class weights of all queries together: the divisors of a batch's loss terms, in float64.

    Known before any prediction, additive over clips. Of N queries a clip with n targets matches min(n, N) in the first
    round and min(n, N - n) in the second; a matched query weighs 1 in the class term, any other `no_object_weight`.
    """
    targets = num_targets.numpy().astype(np.float64)
    primary = np.minimum(targets, settings.num_queries)
    secondary = np.minimum(targets, settings.num_queries - primary) if matching_rounds == 2 else 0 * primary
    matched = primary + secondary
    class_weights = matched + settings.no_object_weight * (settings.num_queries - matched)
    return torch.from_numpy(np.stack([targets.sum(), class_weights.sum()]))


def averaged_over_processes(counts: Tensor) -> Tensor:
    """Counts of a batch as their mean over the processes, since those then average their gradients."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(counts)
        counts = counts / torch.distributed.get_world_size()
    return counts
