# SPDX-License-Identifier: Apache-2.0
"""From class scores at stride 4 to label maps of any size, without ever holding all classes at full size."""

import torch
from torch import Tensor, nn

PIXELS_PER_CHUNK = 16384
CLASSES_PER_CHUNK = 16


def label_dtype(num_labels: int) -> torch.dtype:
    """The smallest of uint8 and int32 that holds every class index."""
    return torch.uint8 if num_labels <= 256 else torch.int32


def enlarged_argmax(scores: Tensor, size: tuple[int, int], steps: tuple[float, float]) -> Tensor:
    """Bilinear enlargement to `size` and the argmax over classes, exactly; `steps` are score cells per pixel.

    An enlarged pixel is a convex combination of its four neighbours. Where all four agree on the class, so does the
    pixel; only the rest, next to boundaries, is interpolated.
    """
    num_labels, rows, columns = scores.shape
    top, bottom, lower = neighbours(size[0], rows, steps[0], scores)
    left, right, righter = neighbours(size[1], columns, steps[1], scores)
    winners = scores.argmax(0).to(label_dtype(num_labels))
    # Columns first, while there are few rows; whole rows are then copied fast.
    left_winners = winners[:, left]
    sides_disagree = left_winners != winners[:, right]
    labels = left_winners.index_select(0, top)
    disagree = sides_disagree.index_select(0, top) | sides_disagree.index_select(0, bottom)
    disagree |= labels != left_winners.index_select(0, bottom)

    table = scores.flatten(1).T.contiguous()  # (cells, num_labels)
    mixed = (index.split(PIXELS_PER_CHUNK) for index in disagree.nonzero(as_tuple=True))
    for y, x in zip(*mixed, strict=True):
        upper, under = top.index_select(0, y) * columns, bottom.index_select(0, y) * columns
        first, second = left.index_select(0, x), right.index_select(0, x)
        corners = torch.stack([upper + first, upper + second, under + first, under + second], dim=1)
        down, across = lower.index_select(0, y), righter.index_select(0, x)
        weights = torch.stack(
            [(1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across], dim=1
        )
        blended = nn.functional.embedding_bag(corners, table, per_sample_weights=weights, mode="sum")
        labels[y, x] = blended.argmax(1).to(labels.dtype)
    return labels


def neighbours(length: int, cells: int, step: float, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each of `length` pixels the two cells around its centre and the weight of the second."""
    centres = ((torch.arange(length, device=like.device) + 0.5) * step - 0.5).clamp(0, cells - 1)
    first = centres.long()
    return first, (first + 1).clamp(max=cells - 1), (centres - first).to(like.dtype)


def resampled_scores(
    scores: Tensor, input_size: tuple[int, int], content_size: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """Resample class scores `(num_labels, height, width)` to a grid of `size` over the frame, ignoring the padding.

    The scores belong to a network input of `input_size`, whose upper left part of `content_size` shows the frame.
    """
    for axis in (0, 1):
        cells, content = scores.shape[axis + 1], content_size[axis]
        step = cells * content / input_size[axis] / size[axis]
        # Cells that show the frame and nothing else.
        whole = max(1, cells * content // input_size[axis])
        first, second, weight = neighbours(size[axis], whole, step, scores)
        weight = weight[:, None] if axis == 0 else weight
        scores = torch.lerp(scores.index_select(axis + 1, first), scores.index_select(axis + 1, second), weight)
    return scores


def twice_enlarged_argmax(
    scores: Tensor, input_size: tuple[int, int], content_size: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """The official order: enlarge to the network's input, cut its content out, resize to the target, then argmax.

    A running maximum over a few classes at a time keeps memory independent of their number. Arguments as in
    [`resampled_scores`].
    """
    best = torch.full(size, float("-inf"), device=scores.device, dtype=scores.dtype)
    labels = torch.zeros(size, device=scores.device, dtype=label_dtype(len(scores)))
    for first in range(0, len(scores), CLASSES_PER_CHUNK):
        chunk = scores[first : first + CLASSES_PER_CHUNK][None]
        chunk = nn.functional.interpolate(chunk, input_size, mode="bilinear", align_corners=False)
        chunk = chunk[..., : content_size[0], : content_size[1]]
        chunk = nn.functional.interpolate(chunk, size, mode="bilinear", align_corners=False)[0]
        highest, winner = chunk.max(0)
        better = highest > best
        best = torch.where(better, highest, best)
        labels = torch.where(better, (winner + first).to(labels.dtype), labels)
    return labels


def query_scores(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Class scores of frames: Σ over queries of class probability ("no object" left out) times mask probability.

    From class logits `(..., num_queries, num_labels + 1)` and mask logits `(..., num_queries, height, width)` to
    `(..., num_labels, height, width)`.
    """
    return torch.einsum("...qk,...qhw->...khw", class_logits.softmax(-1)[..., :-1], mask_logits.sigmoid())
