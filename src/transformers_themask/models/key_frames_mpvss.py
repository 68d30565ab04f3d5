# SPDX-License-Identifier: Apache-2.0
"""Detection of frames that the propagated masks of a key frame do not explain, such as after a scene cut.

The paper's key frames come at fixed intervals. After a cut between two of them, the colours under the masks differ
from those on the key frame; comparing them costs two products of masks and colours.
"""

import torch
from torch import Tensor, nn

# Below any variance of normalised colours that a picture has.
TINY = 1e-6


def unexplained_colors(
    key: Tensor, key_masks: Tensor, current: Tensor, masks: Tensor, class_logits: Tensor
) -> tuple[Tensor, Tensor]:
    """The share of two frames' colour variance left when every segment has its mean colour on the key frame.

    Frames are normalised `(batch, 3, height, width)`, zero where padded; mask logits
    `(batch, num_queries, mask_height, mask_width)` have a size that divides theirs. Where segments overlap, a pixel
    belongs to them in proportion to their masks, each times the probability that its query stands for a class at all.
    The result, `(batch,)` for the later and for the key frames, is the mean squared difference over the larger
    variance: 0 if all is explained, 1 for a frame's mean colour.
    """
    stands_for_a_class = 1 - class_logits.float().softmax(-1)[..., -1:]
    stride = key.shape[-1] // masks.shape[-1]

    def colors_and_weights(frame: Tensor) -> tuple[Tensor, Tensor]:
        weights = (frame != 0).any(1, keepdim=True).float()
        weights = nn.functional.avg_pool2d(weights, stride).flatten(2)
        sums = nn.functional.avg_pool2d(frame.float(), stride).flatten(2)
        return (sums / weights.clamp(min=TINY)).transpose(1, 2), weights.transpose(1, 2)

    def shares_of(masks: Tensor) -> Tensor:
        shares = masks.float().sigmoid().flatten(2) * stands_for_a_class
        return shares / shares.sum(1, keepdim=True).clamp(min=TINY)

    key_colors, key_weights = colors_and_weights(key)  # (batch, places, 3) and (batch, places, 1)
    key_shares = shares_of(key_masks)
    areas = key_shares @ key_weights
    segment_colors = key_shares @ (key_colors * key_weights) / areas.clamp(min=TINY)

    def variance(colors: Tensor, weights: Tensor) -> Tensor:
        total = weights.sum(1, keepdim=True).clamp(min=TINY)
        mean = (colors * weights).sum(1, keepdim=True) / total
        return ((colors - mean).square() * weights / total).sum((1, 2))

    def left(colors: Tensor, weights: Tensor, shares: Tensor) -> Tensor:
        total = weights.sum(1, keepdim=True).clamp(min=TINY)
        return ((colors - shares.transpose(1, 2) @ segment_colors).square() * weights / total).sum((1, 2))

    later = colors_and_weights(current)
    unit = torch.maximum(variance(*later), variance(key_colors, key_weights)).clamp(min=TINY)
    return left(*later, shares_of(masks)) / unit, left(key_colors, key_weights, key_shares) / unit
