# SPDX-License-Identifier: Apache-2.0
"""The loss of queries: Mask2Former's in one matching round, THE-Mask's hierarchical loss (section 3.2) in two.

Names: a *level* is one set of queries (`"video"`: one per clip, `"frame"`: one per frame); an *entry* of a level is
what one set sees, a clip or a frame; a *layer* is one of the predictions before the first and after each decoder
layer; *primary* and *secondary* are the groups of the two matching rounds. Everything runs in float32.

How many queries of an entry are matched depends on its targets alone, so that all layers have equally many. Whatever
is computed for several layers or entries at once therefore has two leading axes for them. The host waits for the
device twice: for the classes of the clips, and for the matching costs of all layers.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .label_counts import ClipTargets, averaged_over_processes, clip_targets, loss_counts_of
from .loss_settings import LossSettings
from .matching import (
    Assignment,
    EmbeddedLevel,
    Level,
    LevelPrediction,
    MaskedRows,
    MaskLevel,
    MatchedRows,
    compare_at_points,
    mask_costs,
    masks_of_rows,
    match_rows,
    two_round_assignment,
)
from .point_sampling import (
    LARGEST_LOGIT,
    PointSampler,
    TargetMaps,
    as_float32,
    clamped,
    in_float32,
    joined,
    sample_points,
    select_uncertain,
)

# How many numbers are worked on at once: on a CPU as many as its cache holds, elsewhere so many that few operations
# are launched for a step.
CHUNK_SIZES = {"cpu": 2**19}
CHUNK_SIZE_ELSEWHERE = 2**27


Predictions = EmbeddedLevel | Sequence[LevelPrediction]

# Per prediction layer and clip the pairs of the first and of the second round.
Assignments = Sequence[Sequence[tuple[Assignment, Assignment]]]


def as_level(predictions: Predictions) -> Level:
    """Predictions of a level, seen through the interface that the two kinds share."""
    return predictions if isinstance(predictions, EmbeddedLevel) else MaskLevel(predictions)


class LossTerms(NamedTuple):
    """Weighted loss terms, a vector over layers each, and the shares of the queries that received a target."""

    terms: dict[str, Tensor]
    query_shares: dict[str, Tensor]


class HierarchicalLoss:
    """Matches queries to targets and sums the weighted terms of Eq. 6 over levels and layers.

    With one generator per clip the points of a clip do not depend on the rest of the batch. With `recompute` the
    backward pass computes mask losses a second time from their points, masks included, which saves memory.
    """

    def __init__(
        self,
        settings: LossSettings,
        point_sampler: PointSampler,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        recompute: bool = False,
    ):
        self.settings = settings
        self.point_sampler = point_sampler
        self.generator = generator
        self.recompute = recompute

    def __call__(
        self,
        video_predictions: Predictions,
        frame_predictions: Predictions,
        labels: Tensor,
        matching_rounds: int,
        loss_counts: Tensor | None = None,
        assignments: Assignments | None = None,
    ) -> LossTerms:
        """Compute the weighted loss terms, those of the frame level with the prefix `frame_`.

        A level without queries is an empty sequence; the frame level has `batch * num_frames` entries. One matching
        round is the loss of the warm-up. `loss_counts` are the sum of [`loss_counts_of`] over the clips of the
        optimiser step, of which this batch contributes its share; by default the batch's own, averaged over the
        processes.
        """
        settings = self.settings
        exclude_ignored = settings.ignored_pixels == "excluded"
        targets = clip_targets(labels, settings.num_labels, settings.ignore_value, exclude_ignored)
        if assignments is None:
            assignments = self.match(video_predictions, frame_predictions, targets, matching_rounds)
        num_frames = labels.shape[1]
        if loss_counts is None:
            num_targets = torch.tensor([len(classes) for classes in targets.class_labels])
            own_counts = loss_counts_of(num_targets, settings, matching_rounds)
            loss_counts = averaged_over_processes(own_counts.to(labels.device, non_blocking=True))
        dtype = in_float32(as_level(video_predictions or frame_predictions).class_logits[:0]).dtype
        divisors = loss_counts.to(labels.device, dtype, non_blocking=True).clamp(min=1)

        terms: dict[str, Tensor] = {}
        if video_predictions:
            terms |= self.level_terms("video", video_predictions, targets, assignments, matching_rounds, divisors)
        if frame_predictions:
            per_frame = [[pair for pair in layer for _ in range(num_frames)] for layer in assignments]
            frame_terms = self.level_terms(
                "frame", frame_predictions, targets.per_frame(), per_frame, matching_rounds, divisors * num_frames
            )
            # A single level carries the whole loss; beside video queries the frame level counts for a quarter.
            weight = settings.frame_loss_weight if video_predictions else 1.0
            terms |= {f"frame_{name}": weight * value for name, value in frame_terms.items()}
        return LossTerms(terms, query_shares(assignments[-1], settings.num_queries))

    # ---- matching -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def match(
        self,
        video_predictions: Predictions,
        frame_predictions: Predictions,
        targets: ClipTargets,
        matching_rounds: int,
    ) -> Assignments:
        """Assign queries to targets for every layer and clip; arguments as in `__call__`.

        Classes come from the video queries, masks from the frame queries where there are any, since those are what the
        attention of each frame refines. Only frame queries: classes are averaged over the frames. All cost matrices
        cross to the host in one copy.
        """
        classes = as_level(video_predictions or frame_predictions).class_logits
        probabilities = as_float32(classes).softmax(-1).unflatten(1, (len(targets.class_labels), -1)).mean(2)
        costs = self._cost_matrices(probabilities, as_level(frame_predictions or video_predictions), targets)
        on_host = costs.cpu().numpy()
        num_targets = [len(labels) for labels in targets.class_labels]
        return [
            [
                two_round_assignment(
                    on_host[0, layer, clip, :, :count],
                    on_host[-1, layer, clip, :, :count] if matching_rounds == 2 else None,
                )
                for clip, count in enumerate(num_targets)
            ]
            for layer in range(on_host.shape[1])
        ]

    def _cost_matrices(self, probabilities: Tensor, level: Level, targets: ClipTargets) -> Tensor:
        """Costs `(rounds, layers, clips, num_queries, most_targets)`, one round standing for two if they are alike."""
        settings = self.settings
        num_layers, num_clips, num_queries = probabilities.shape[:3]
        if targets.most_targets == 0:
            return probabilities.new_empty(1, num_layers, num_clips, num_queries, 0)
        classes = targets.class_table(filling=settings.num_labels)
        points = self._draw("matching", range(num_layers), [1] * num_clips, settings.train_num_points, probabilities)
        pairs = [
            self._mask_costs(level, layers, of_layers, targets, classes)
            for layers, of_layers in zip(slices(0, num_layers, num_layers // len(points)), points, strict=True)
        ]
        mask_cost, dice_cost = (joined(parts) for parts in zip(*pairs, strict=True))
        class_cost = -probabilities.gather(-1, classes[:, None].expand(num_layers, -1, num_queries, -1))
        full = settings.mask_weight * mask_cost + settings.class_weight * class_cost + settings.dice_weight * dice_cost
        mask_only = settings.second_round_cost == "mask"
        # A diverged (NaN) prediction is as bad a match as can be; the NaN loss itself then tells the user.
        return torch.nan_to_num(torch.stack([full, mask_cost] if mask_only else [full]), nan=LARGEST_LOGIT)

    def _mask_costs(
        self, level: Level, layers: slice, points: Tensor, targets: ClipTargets, classes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Costs of cross-entropy and dice, each `(layers, clips, num_queries, targets)`, of layers sharing points."""
        num_clips, num_frames = targets.labels.shape[:2]
        num_layers = layers.stop - layers.start
        points = points[:, None].expand(-1, num_frames, -1, -1).flatten(0, 1)
        maps = targets.maps(classes, level.size)
        indices = torch.arange(len(points), device=points.device)
        values = self.settings.num_queries * points.shape[1]
        layers_at_once, frames_at_once = chunk_lengths(num_layers, len(points), values, points.device)
        sums, sizes = [], []
        for frames in slices(0, len(points), frames_at_once):
            usable = maps.usable(indices[frames], points[frames])
            truth = sample_points(maps.masks[frames].to(points.dtype), points[frames])
            whole = torch.ones_like(truth[:, :1]) if usable is None else usable[:, None].to(truth.dtype)
            truth = torch.cat([truth if usable is None else truth * whole, whole], dim=1)
            read = level.read(frames, points[frames])
            compared = [
                compare_at_points(level.logits_at(read, part, frames), truth)
                for part in slices(layers.start, layers.stop, layers_at_once)
            ]
            sums.append(joined(compared, dim=2))
            sizes.append(truth.sum(-1))
        of_clips = [joined(x).unflatten(0, (num_clips, num_frames)).sum(1) for x in (sums, sizes)]
        mask_cost, dice_cost = (x.unflatten(2, (num_layers, -1)).permute(2, 0, 3, 1) for x in mask_costs(*of_clips))
        return mask_cost, dice_cost

    # ---- losses ---------------------------------------------------------------------------------------------------

    def level_terms(
        self,
        name: str,
        predictions: Predictions,
        targets: ClipTargets,
        assignments: Assignments,
        matching_rounds: int,
        divisors: Tensor,
    ) -> dict[str, Tensor]:
        """Weighted terms of one level (`"video"` or `"frame"`), a vector over layers each."""
        settings, level = self.settings, as_level(predictions)
        num_masks, class_weights = divisors.unbind()
        classes, groups = match_rows(
            assignments,
            targets.class_labels,
            level.num_frames,
            settings.num_queries,
            settings.num_labels,
            divisors.device,
        )
        class_loss = self._class_loss(level.class_logits, classes)
        terms = {"loss_class": settings.class_weight * class_loss / class_weights}
        maps = targets.maps(targets.class_table(settings.num_labels), level.size)
        num_entries, most_rows = groups[0].queries.shape[1:]
        values = max(most_rows, 1) * level.num_frames * max(self._num_candidates, maps.labels[0].numel())
        at_once = chunk_lengths(len(assignments), num_entries, values, divisors.device)
        rows = [
            [group.part(entries) for group in groups[:matching_rounds]]
            for entries in slices(0, num_entries, at_once[1])
        ]
        parts = list(zip(rows, level.split(at_once[1]), strict=True))
        losses = self._mask_losses(name, parts, maps, at_once[0]) / (num_masks * level.num_frames)
        for prefix, of_group, factors in zip(("loss_", "loss_secondary_"), losses, self._mask_factors(), strict=False):
            terms |= {f"{prefix}mask": factors[0] * of_group[0], f"{prefix}dice": factors[1] * of_group[1]}
        return terms

    def _mask_factors(self) -> Sequence[tuple[float, float]]:
        """Weights of cross-entropy and dice in both groups."""
        settings = self.settings
        primary = (settings.mask_weight, settings.dice_weight)
        if settings.secondary_loss == "original":  # Table 4, "two round, original loss"
            return primary, primary
        weight = settings.secondary_round_weight
        return primary, (weight * settings.secondary_mask_weight, weight * settings.secondary_dice_weight)

    def _class_loss(self, class_logits: Tensor, classes: Tensor) -> Tensor:
        """Cross-entropy of all queries: both groups towards their class, the rest towards "no object"; per layer."""
        logits = as_float32(class_logits).flatten(1, 2).transpose(1, 2)
        weights = logits.new_ones(self.settings.num_labels + 1)
        weights[-1] = self.settings.no_object_weight
        return nn.functional.cross_entropy(logits, classes.flatten(1), weights, reduction="none").sum(1)

    def _mask_losses(
        self, name: str, parts: Sequence[tuple[list[MatchedRows], Level]], maps: TargetMaps, layers_at_once: int
    ) -> Tensor:
        """Sums of cross-entropy and dice of the masks of all parts: `(groups, 2, layers)`."""
        if self.recompute:
            with torch.no_grad():
                points = self._loss_points(name, [masks_of_rows(*part) for part in parts], maps, layers_at_once)
            losses = [
                self._once_more(self._unmasked_part_losses, *part, of_part, maps, layers_at_once)
                for part, of_part in zip(parts, points, strict=True)
            ]
        else:
            masked = [masks_of_rows(*part) for part in parts]
            points = self._loss_points(name, masked, maps, layers_at_once)
            pairs = zip(masked, points, strict=True)
            losses = [self._part_losses(*pair, maps, layers_at_once) for pair in pairs]
        return sum(losses[1:], start=losses[0])

    def _once_more(self, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """Call a function, with `recompute` so that the backward pass calls it again."""
        if not self.recompute:
            return function(*arguments)
        # All randomness is in the points, and these are kept.
        return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)

    def _unmasked_part_losses(
        self, rows: list[MatchedRows], level: Level, points: list[Tensor], maps: TargetMaps, layers_at_once: int
    ) -> Tensor:
        return self._part_losses(masks_of_rows(rows, level), points, maps, layers_at_once)

    def _part_losses(
        self, groups: list[MaskedRows], points: list[Tensor], maps: TargetMaps, layers_at_once: int
    ) -> Tensor:
        """Sums of cross-entropy and dice `(groups, 2, layers)`."""
        chunks = zip(*(group.split(layers_at_once) for group in groups), strict=True)
        points_of_chunks = zip(*(of_group.split(layers_at_once) for of_group in points), strict=True)
        losses = [
            self._once_more(self._chunk_losses, chunk, of_chunk, maps)
            for chunk, of_chunk in zip(chunks, points_of_chunks, strict=True)
        ]
        return joined(losses, dim=2)

    def _chunk_losses(self, groups: Sequence[MaskedRows], points: Sequence[Tensor], maps: TargetMaps) -> Tensor:
        """The same of a few layers; a group without points takes every pixel."""
        is_soft = (False, self.settings.secondary_loss == "soft")
        losses = []
        for index, group in enumerate(groups):
            if group.logits.numel() == 0:
                losses.append(group.nothing())
            elif index < len(points):
                losses.append(self._sampled_losses(group, points[index], maps, is_soft[index]))
            else:
                losses.append(self.dense_losses(group, maps))
        return torch.stack(losses)

    def _sampled_losses(self, group: MaskedRows, points: Tensor, maps: TargetMaps, soft: bool) -> Tensor:
        """Cross-entropy and dice at points `(layers, rows * num_frames, num_points, 2)`: `(2, layers)`."""
        shape, points = points.shape[:3], points.flatten(0, 1)
        frames = group.frames()
        sampled = sample_points(clamped(group.logits.flatten(0, 2)[:, None]), points).view(shape)
        masks = sample_points(maps.masks[frames, group.targets()][:, None].to(points.dtype), points).view(shape)
        usable = maps.usable(frames, points)
        counts = None if usable is None else usable.to(masks.dtype).view(shape)
        if soft:
            masks = self._soft_mask(sampled.detach().sigmoid(), masks)
        return mask_losses(sampled, masks if counts is None else masks * counts, counts)

    def dense_losses(self, group: MaskedRows, maps: TargetMaps) -> Tensor:
        """The soft loss over every pixel of the label map: cross-entropy and dice, `(2, layers)`.

        The reference enlarges the logits to the label map by nearest neighbour: the number of pixels under a logit
        says all.
        """
        logits = clamped(group.logits.flatten(3).flatten(1, 2))
        masks, counts = maps.pixels_under(group.frames(), group.targets(), logits.dtype)
        masks = self._soft_mask(logits.detach().sigmoid(), masks.view(logits.shape))
        return mask_losses(logits, masks, counts.view(logits.shape))

    def _soft_mask(self, scores: Tensor, masks: Tensor) -> Tensor:
        """Predicted mask ∘ label (Eq. 5); the released code thresholds the product at one half."""
        if self.settings.secondary_target == "soft":
            return scores * masks
        if self.settings.secondary_points == "sampled":
            return (scores * masks > 0.5).to(masks.dtype)
        return masks * (scores > 0.5)  # pixel counts: the label itself is 0 or 1, so only the score decides

    # ---- points ---------------------------------------------------------------------------------------------------

    @property
    def _num_candidates(self) -> int:
        return int(self.settings.train_num_points * self.settings.oversample_ratio)

    @property
    def _num_uncertain(self) -> int:
        return int(self.settings.train_num_points * self.settings.importance_sample_ratio)

    @torch.no_grad()
    def _loss_points(
        self, name: str, parts: Sequence[list[MaskedRows]], maps: TargetMaps, layers_at_once: int
    ) -> list[list[Tensor]]:
        """Per part the points of each group that has some, `(layers, rows * num_frames, num_points, 2)`."""
        is_dense = self.settings.secondary_loss == "soft" and self.settings.secondary_points == "dense"
        groups = list(zip(*parts, strict=True))[: 1 if is_dense else 2]
        chosen: list[list[list[Tensor]]] = [[] for _ in groups]
        runs = slices(0, len(groups[0][0].logits), layers_at_once)
        split = [zip(*(part.split(layers_at_once) for part in group), strict=True) for group in groups]
        for drawn, *of_groups in zip(self._draws(name, groups, runs), *split, strict=True):
            for own, of_group, (candidates, uniform) in zip(chosen, of_groups, drawn, strict=True):
                own.append(self._most_uncertain(of_group, candidates, uniform, maps))
        points = [[joined(pieces) for pieces in zip(*own, strict=True)] for own in chosen]
        return [list(of_part) for of_part in zip(*points, strict=True)]

    def _draws(
        self, name: str, groups: Sequence[Sequence[MaskedRows]], runs: Sequence[slice]
    ) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """For one run of layers after the other the candidates and uniform points of each group, whatever the runs.

        A CPU draws layer by layer, to hold few points at once; elsewhere all are drawn together, with few launches.
        """
        kinds = (f"{name}_primary", f"{name}_secondary")

        def draw(layers: range) -> list[tuple[Tensor, Tensor]]:
            return [self._draw_for_loss(kind, layers, group) for kind, group in zip(kinds, groups, strict=False)]

        if groups[0][0].logits.device.type in CHUNK_SIZES:
            for run in runs:
                of_layers = zip(*(draw(range(layer, layer + 1)) for layer in range(run.start, run.stop)), strict=True)
                both = [zip(*of_group, strict=True) for of_group in of_layers]
                yield [(joined(candidates), joined(uniform)) for candidates, uniform in both]
        else:
            drawn = draw(range(runs[-1].stop))
            for run in runs:
                yield [(candidates[run], uniform[run]) for candidates, uniform in drawn]

    def _most_uncertain(
        self, parts: Sequence[MaskedRows], candidates: Tensor, uniform: Tensor, maps: TargetMaps
    ) -> list[Tensor]:
        """Points of each part: the candidates where its masks are most uncertain, and the uniform ones."""
        lengths = [part.logits.shape[1] * part.logits.shape[2] for part in parts]
        points = []
        for part, own, rest in zip(parts, candidates.split(lengths, 1), uniform.split(lengths, 1), strict=True):
            kept = own[:, :, : self._num_uncertain]
            if own.numel() > 0:
                places = own.flatten(0, 1)
                logits = sample_points(clamped(part.logits.flatten(0, 2)[:, None]), places)[:, 0]
                usable = maps.usable(part.frames(), places)
                kept = select_uncertain(logits, places, self._num_uncertain, usable).view(kept.shape)
            points.append(torch.cat([kept, rest], dim=2))
        return points

    def _draw_for_loss(self, kind: str, layers: range, parts: Sequence[MaskedRows]) -> tuple[Tensor, Tensor]:
        """Candidates for uncertain points, and uniform points, `(layers, rows * num_frames, points, 2)`."""
        num_frames = parts[0].logits.shape[2]
        num_rows = [count * num_frames for part in parts for count in part.rows.per_entry]
        num_uniform = self.settings.train_num_points - self._num_uncertain
        candidates, uniform = (
            self._draw(f"{kind}_{purpose}", layers, num_rows, count, parts[0].logits)
            for purpose, count in (("candidates", self._num_candidates), ("uniform", num_uniform))
        )
        return candidates, uniform

    def _draw(self, kind: str, layers: range, num_rows: Sequence[int], num_points: int, like: Tensor) -> Tensor:
        """Draw points for rows ordered by entry, `num_rows` for each: `(layers, rows, num_points, 2)`."""
        if sum(num_rows) * num_points == 0:
            return like.new_empty(len(layers), sum(num_rows), num_points, 2)
        generators = self.generator if isinstance(self.generator, Sequence) else [self.generator]
        per_generator = np.reshape(num_rows, (len(generators), -1)).sum(1).tolist()
        with like.device:  # so that the sampler's new tensors live where they are used
            drawn = []
            for count, generator in zip(per_generator, generators, strict=True):
                shape = (len(layers), count, num_points, 2)
                points = self.point_sampler(kind, layers, shape, generator)
                if points.shape != shape and (kind != "matching" or points.shape != (1, *shape[1:])):
                    raise ValueError(
                        f"`point_sampler` must return points of shape {shape} for {kind!r}. "
                        f"Got {tuple(points.shape)}. Only for matching may one layer stand for all."
                    )
                drawn.append(points)
            return joined(drawn, dim=1).to(like, non_blocking=True)


def query_shares(pairs: Sequence[tuple[Assignment, Assignment]], num_queries: int) -> dict[str, Tensor]:
    """The share of the queries of one layer that received a target, by round."""
    primary = np.mean([len(first.query_indices) for first, _ in pairs]) / num_queries
    secondary = np.mean([len(second.query_indices) for _, second in pairs]) / num_queries
    return {"primary_query_share": torch.tensor(primary), "secondary_query_share": torch.tensor(secondary)}


def chunk_lengths(num_layers: int, num_others: int, values: int, device: torch.device) -> tuple[int, int]:
    """Number of layers, and of frames or entries, of `values` numbers each to process at once."""
    most = max(CHUNK_SIZES.get(device.type, CHUNK_SIZE_ELSEWHERE) // values, 1)
    others = min(most, num_others)
    return min(max(most // others, 1), num_layers), others


def slices(start: int, stop: int, length: int) -> list[slice]:
    """Cut a range into pieces of a length."""
    return [slice(first, min(first + length, stop)) for first in range(start, stop, length)]


def mask_losses(logits: Tensor, masks: Tensor, counts: Tensor | None) -> Tensor:
    """Cross-entropy and dice loss of mask logits `(layers, rows, cells)`, summed per layer: `(2, layers)`.

    A logit stands for `counts` pixels, by default one, of which `masks` belong to the mask; dice is
    `1 - (2·Σ s·m + 1) / (Σ s + Σ m + 1)`.
    """
    scores = logits.sigmoid()
    if counts is None:
        cross_entropy = nn.functional.binary_cross_entropy_with_logits(logits, masks, reduction="none").mean(-1)
        sizes = (scores + masks).sum(-1)
    else:
        sums = (counts * nn.functional.softplus(logits)).addcmul(masks, logits, value=-1).sum(-1)
        cross_entropy = sums / counts.sum(-1).clamp(min=1)
        sizes = torch.addcmul(masks, scores, counts).sum(-1)
    # Not as `dice_loss` has it, whose gradient loses digits to cancellation.
    dice = 1 - (2 * (scores * masks).sum(-1) + 1) / (sizes + 1)
    return torch.stack([cross_entropy, dice]).sum(-1)
