# SPDX-License-Identifier: Apache-2.0
"""Two-round Hungarian matching of queries to the classes of a clip (THE-Mask, section 3.2, Eq. 1 and 2).

Its costs need the masks of all queries at a few points, and the losses after it whole masks of a few queries: a
[`Level`] gives both, and no more.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .point_sampling import as_float32, clamped, in_float32, joined, map_size, sample_points

# Smaller than float32 resolves in a cost, larger than the rounding errors of the assignment.
TIE_BREAKER = 1e-10


class LevelPrediction(NamedTuple):
    """One layer: classes `(entries, num_queries, num_labels + 1)`, masks `(entries, frames, num_queries, h, w)`."""

    class_logits: Tensor
    mask_logits: Tensor


class Level(Protocol):
    """All predictions of one level of queries, with masks as products or as tensors."""

    @property
    def class_logits(self) -> Tensor:
        """Classes `(layers, entries, num_queries, num_labels + 1)`."""

    @property
    def num_frames(self) -> int:
        """Number of frames of an entry."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the masks."""

    def read(self, frames: slice, points: Tensor) -> tuple[Tensor, Tensor]:
        """The input of `logits_at` for frames of all entries at points `(frames, num_points, 2)`."""

    def logits_at(self, read: tuple[Tensor, Tensor], layers: slice, frames: slice) -> Tensor:
        """Mask logits there, `(frames, layers * num_queries, num_points)`."""

    def masks_of(self, queries: Tensor) -> Tensor:
        """Mask logits of queries `(layers, entries, rows)`, unresized: `(layers, entries, rows, num_frames, h, w)`."""

    def split(self, entries_at_once: int) -> Sequence["Level"]:
        """Split into groups of a few entries."""


class EmbeddedLevel(NamedTuple):
    """Predictions of all layers of one level whose masks are products, computed for the queries that need one only.

    `mask_embeddings` `(layers, entries, num_frames or 1, num_queries, channels)`; `mask_features`
    `(entries, num_frames, channels, height, width)`, shared by the layers.
    """

    class_logits: Tensor
    mask_embeddings: Tensor
    mask_features: Tensor

    def per_frame(self) -> "EmbeddedLevel":
        """Make every frame an entry; classes `(layers, entries, num_frames, …)` become those of the frames."""
        return EmbeddedLevel(
            self.class_logits.flatten(1, 2),
            self.mask_embeddings.flatten(1, 2)[:, :, None],
            self.mask_features.flatten(0, 1)[:, None],
        )

    @property
    def num_frames(self) -> int:
        """See [`Level`]."""
        return self.mask_features.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """See [`Level`]."""
        return map_size(self.mask_features)

    def read(self, frames: slice, points: Tensor) -> tuple[Tensor, Tensor]:
        """See [`Level`]: mask features there, and the embeddings `(frames, layers, num_queries, channels)`."""
        embeddings = in_float32(self.mask_embeddings).expand(-1, -1, self.num_frames, -1, -1).flatten(1, 2)[:, frames]
        features = sample_points(in_float32(self.mask_features.flatten(0, 1)[frames]), points)
        return features, embeddings.transpose(0, 1).contiguous()

    def logits_at(self, read: tuple[Tensor, Tensor], layers: slice, frames: slice) -> Tensor:
        """See [`Level`]."""
        features, embeddings = read
        return clamped(embeddings[:, layers].flatten(1, 2) @ features)

    def masks_of(self, queries: Tensor) -> Tensor:
        """See [`Level`]."""
        embeddings = in_float32(self.mask_embeddings)
        num_sets, channels = embeddings.shape[2], embeddings.shape[-1]
        chosen = embeddings.gather(3, queries[:, :, None, :, None].expand(-1, -1, num_sets, -1, channels))
        # The rows of all layers in one product: each would else have a gradient of the size of the features.
        chosen = chosen.permute(1, 2, 0, 3, 4).flatten(2, 3).expand(-1, self.num_frames, -1, -1)
        masks = chosen @ in_float32(self.mask_features).flatten(3)
        masks = masks.unflatten(-1, self.size).unflatten(2, (queries.shape[0], queries.shape[2]))
        return masks.permute(2, 0, 3, 1, 4, 5)

    def split(self, entries_at_once: int) -> Sequence["EmbeddedLevel"]:
        """See [`Level`]."""
        parts = (
            self.class_logits.split(entries_at_once, dim=1),
            self.mask_embeddings.split(entries_at_once, dim=1),
            self.mask_features.split(entries_at_once),
        )
        return [EmbeddedLevel(*part) for part in zip(*parts, strict=True)]


class MaskLevel(NamedTuple):
    """Predictions of one level whose masks exist: one [`LevelPrediction`] per layer."""

    layers: Sequence[LevelPrediction]

    @property
    def class_logits(self) -> Tensor:
        """See [`Level`]."""
        return torch.stack([layer.class_logits for layer in self.layers])

    @property
    def num_frames(self) -> int:
        """See [`Level`]."""
        return self.layers[0].mask_logits.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """See [`Level`]."""
        return map_size(self.layers[0].mask_logits)

    def read(self, frames: slice, points: Tensor) -> tuple[Tensor, Tensor]:
        """See [`Level`]: the points, twice."""
        return points, points

    def logits_at(self, read: tuple[Tensor, Tensor], layers: slice, frames: slice) -> Tensor:
        """See [`Level`]."""
        masks = (layer.mask_logits.flatten(0, 1)[frames] for layer in self.layers[layers])
        return torch.cat([sample_points(as_float32(part), read[0]) for part in masks], dim=1)

    def masks_of(self, queries: Tensor) -> Tensor:
        """See [`Level`]."""
        entries = torch.arange(queries.shape[1], device=queries.device)[:, None]
        pairs = zip(self.layers, queries, strict=True)
        return in_float32(torch.stack([layer.mask_logits[entries, :, chosen] for layer, chosen in pairs]))

    def split(self, entries_at_once: int) -> Sequence["MaskLevel"]:
        """See [`Level`]."""
        layers = [
            [LevelPrediction(*part) for part in zip(*(x.split(entries_at_once) for x in layer), strict=True)]
            for layer in self.layers
        ]
        return [MaskLevel(part) for part in zip(*layers, strict=True)]


class Assignment(NamedTuple):
    """Matched pairs of one clip, ordered by query: two int64 arrays of equal length."""

    query_indices: np.ndarray
    target_indices: np.ndarray


def compare_at_points(point_logits: Tensor, point_targets: Tensor) -> Tensor:
    """Sums over points of every query's cross-entropy and overlap with every target, and of its scores.

    From logits `(batch, num_queries, num_points)` to `(batch, 2 * num_targets + 1, num_queries)`; sets of points add
    up. `point_targets` in [0, 1] are, last, the mask of all points that count; where a point is left out all are 0.
    """
    inside, whole = point_targets[:, :-1], point_targets[:, -1:]
    # Cross-entropy inside and outside the target is softplus(∓x) = log(1 + exp(-|x|)) + relu(∓x). Its other form,
    # softplus(x) minus x inside, needs one product less, but loses the small costs of good masks to cancellation.
    # (`softplus` itself takes three times as long.)
    common = whole @ point_logits.abs().neg_().exp_().log1p_().transpose(1, 2)
    missed = inside @ point_logits.neg().relu_().transpose(1, 2)
    wrong = (whole - inside) @ point_logits.relu().transpose(1, 2)
    overlap = point_targets @ point_logits.sigmoid().transpose(1, 2)
    return torch.cat([common + missed + wrong, overlap], dim=1)


def mask_costs(sums: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Costs of cross-entropy and of dice from sums of [`compare_at_points`] and sums of its `point_targets`."""
    num_targets = sizes.shape[-1] - 1
    cross_entropy, overlap, scores = sums.split([num_targets, num_targets, 1], dim=-2)
    targets, whole = sizes[..., None].split([num_targets, 1], dim=-2)
    return cross_entropy / whole.clamp(min=1), dice_loss(overlap, scores + targets)


def dice_loss(overlap: Tensor, sizes: Tensor) -> Tensor:
    """`1 - (2 * overlap + 1) / (sizes + 1)`, in fewer operations; `sizes` are those of both masks together."""
    return sizes.sub(overlap, alpha=2) / (sizes + 1)


def two_round_assignment(
    cost_matrix: np.ndarray, second_cost_matrix: np.ndarray | None
) -> tuple[Assignment, Assignment]:
    """Match every target to one primary query and, where queries remain, to one secondary query.

    With N queries and n targets the rounds assign min(n, N) and min(n, N - n) pairs; the released code fails beyond n
    = N / 2. Without the second cost matrix `(num_queries, num_targets)` the second round is empty.
    """
    primary = Assignment(*assign(cost_matrix))
    nothing = np.empty(0, dtype=np.int64)
    if second_cost_matrix is None:
        return primary, Assignment(nothing, nothing)
    free_queries = np.setdiff1d(np.arange(len(cost_matrix)), primary.query_indices)
    rows, target_indices = assign(second_cost_matrix[free_queries])
    return primary, Assignment(free_queries[rows], target_indices)


def assign(cost_matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Matched queries, ascending, and their targets: a linear assignment `(num_queries, num_targets)`.

    Ties are broken by position: targets so small that no point hits them have equal columns, between which rounding
    errors would choose, and the result would depend on the number of processes.
    """
    positions = np.outer(*(np.arange(1, length + 1) for length in cost_matrix.shape))
    return linear_sum_assignment(cost_matrix.astype(np.float64) + TIE_BREAKER * positions)


class MatchedRows(NamedTuple):
    """The matched queries of one group in all layers, entry by entry, and their targets.

    `queries` are `(layers, entries, most_rows)`, padded with zeros for entries with fewer rows; `places` `(rows,)` are
    the indices of the rows among `entries * most_rows`. `targets` are indices within the entry, `(layers, rows)`,
    `frames` indices among the frames of all entries, `(rows, num_frames)`; `per_entry` is the number of rows of each
    entry.
    """

    per_entry: list[int]
    queries: Tensor
    targets: Tensor
    places: Tensor
    frames: Tensor

    def part(self, entries: slice) -> "MatchedRows":
        """The rows of some entries."""
        if entries == slice(0, len(self.per_entry)):
            return self
        first, per_entry = sum(self.per_entry[: entries.start]), self.per_entry[entries]
        rows = slice(first, first + sum(per_entry))
        most_rows = self.queries.shape[2] if len(set(per_entry)) > 1 else per_entry[0]
        return MatchedRows(
            per_entry,
            self.queries[:, entries, :most_rows],
            self.targets[:, rows],
            self.places[rows] - entries.start * most_rows,
            self.frames[rows],
        )

    def without_filling(self, masks: Tensor) -> Tensor:
        """Masks `(layers, rows, …)` out of those of `queries`, `(layers, entries, most_rows, …)`."""
        masks = masks.flatten(1, 2)
        return masks if len(set(self.per_entry)) == 1 else masks.index_select(1, self.places)


def match_rows(
    assignments: Sequence[Sequence[tuple[Assignment, Assignment]]],
    class_labels: Sequence[Tensor],
    num_frames: int,
    num_queries: int,
    num_labels: int,
    device: torch.device,
) -> tuple[Tensor, list[MatchedRows]]:
    """The target class of every query `(layers, entries, num_queries)`, and the rows of both groups; one copy."""
    num_layers, num_entries = len(assignments), len(class_labels)
    wanted = np.full((num_layers, num_entries, num_queries), num_labels)
    arrays: list[np.ndarray] = [wanted]
    counts = []
    for group in range(2):
        per_entry = [len(pair[group].query_indices) for pair in assignments[0]]
        targets = np.zeros((num_layers, sum(per_entry)), dtype=np.int64)
        queries = np.zeros((num_layers, num_entries, max(per_entry)), dtype=np.int64)
        for layer, pairs in enumerate(assignments):
            targets[layer] = np.concatenate([pair[group].target_indices for pair in pairs])
            for entry, pair in enumerate(pairs):
                chosen, _ = pair[group]
                queries[layer, entry, : len(chosen)] = chosen
                wanted[layer, entry, chosen] = class_labels[entry].numpy()[pair[group].target_indices]
        entries = np.repeat(np.arange(num_entries), per_entry)
        places = np.flatnonzero(np.arange(queries.shape[2]) < np.array(per_entry)[:, None])
        arrays += [queries, targets, places, entries[:, None] * num_frames + np.arange(num_frames)]
        counts.append(per_entry)
    packed = torch.from_numpy(np.concatenate([array.ravel() for array in arrays]).astype(np.int64))
    parts = packed.to(device, non_blocking=True).split([array.size for array in arrays])
    wanted_classes, *rows = (part.view(array.shape) for part, array in zip(parts, arrays, strict=True))
    return wanted_classes, [MatchedRows(counts[0], *rows[:4]), MatchedRows(counts[1], *rows[4:])]


class MaskedRows(NamedTuple):
    """Matched rows of some entries with their masks `logits`, `(layers, rows, num_frames, h, w)`."""

    rows: MatchedRows
    logits: Tensor

    def split(self, layers_at_once: int) -> list["MaskedRows"]:
        """Split into groups of a few layers."""
        pairs = zip(self.rows.targets.split(layers_at_once), self.logits.split(layers_at_once), strict=True)
        return [MaskedRows(self.rows._replace(targets=targets), logits) for targets, logits in pairs]

    def frames(self) -> Tensor:
        """For every mask, layer by layer, the number of its frame among those of all entries."""
        return self.rows.frames.expand(self.logits.shape[:3]).flatten()

    def targets(self) -> Tensor:
        """For every mask, layer by layer, the number of its target."""
        return self.rows.targets[..., None].expand(self.logits.shape[:3]).flatten()

    def nothing(self) -> Tensor:
        """Zeros `(2, layers)`, connected to the masks, of which there are none, as distributed training needs."""
        return self.logits.flatten(1).sum(1).expand(2, -1)


def masks_of_rows(groups: Sequence[MatchedRows], level: Level) -> list[MaskedRows]:
    """The masks of the rows of all groups."""
    queries = [rows.queries for rows in groups]
    masks = level.masks_of(joined(queries, dim=2)).split([each.shape[2] for each in queries], dim=2)
    return [MaskedRows(rows, rows.without_filling(own)) for rows, own in zip(groups, masks, strict=True)]
