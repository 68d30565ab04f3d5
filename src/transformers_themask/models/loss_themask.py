# SPDX-License-Identifier: Apache-2.0
"""The hierarchical loss of THE-Mask (section 3.2, Eq. 3–6), with deep supervision at video and frame level.

Names: a *level* is one set of queries (`"video"`: one per clip, `"frame"`: one per frame); a *layer* is one of the
predictions before the first and after each decoder layer; *primary* and *secondary* are the groups of the two matching
rounds. Everything runs in float32.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .configuration_themask import THEMaskConfig
from .matching import Assignment, pairwise_costs, two_round_assignment
from .point_sampling import PointSampler, sample_points, select_uncertain

# float16 holds nothing larger; an overflowed logit counts as this large, so that the loss stays finite.
LARGEST_LOGIT = 65504.0


class LevelPrediction(NamedTuple):
    """Predictions of one level and layer for `entries` clips (or single frames) of `num_frames` frames.

    `class_logits` are `(entries, num_queries, num_labels + 1)`, `mask_logits`
    `(entries, num_frames, num_queries, height, width)`.
    """

    class_logits: Tensor
    mask_logits: Tensor


class DeferredPrediction(NamedTuple):
    """A [`LevelPrediction`] that makes its mask logits anew at each access instead of holding them."""

    class_logits: Tensor
    make_mask_logits: Callable[[], Tensor]

    @property
    def mask_logits(self) -> Tensor:
        """As in [`LevelPrediction`]."""
        return self.make_mask_logits()


Predictions = Sequence[LevelPrediction | DeferredPrediction]


class ClipTargets(NamedTuple):
    """What the labels of a batch of clips (or single frames) ask for.

    Attributes:
        class_labels (`list[torch.Tensor]`): Per entry the classes present, ascending: `(num_targets,)`.
        mask_labels (`list[torch.Tensor]`): Per entry their boolean masks: `(num_targets, num_frames, height, width)`.
        ignored (`torch.Tensor` of shape `(entries, num_frames, height, width)`, *optional*):
            `True` at pixels to leave out of matching and mask losses; `None` if every pixel counts.
    """

    class_labels: list[Tensor]
    mask_labels: list[Tensor]
    ignored: Tensor | None

    def per_frame(self) -> "ClipTargets":
        """Split every clip into its frames. A class absent from a frame keeps its, then empty, mask there."""
        num_frames = self.mask_labels[0].shape[1]
        return ClipTargets(
            class_labels=[labels for labels in self.class_labels for _ in range(num_frames)],
            mask_labels=[masks[:, frame : frame + 1] for masks in self.mask_labels for frame in range(num_frames)],
            ignored=None if self.ignored is None else self.ignored.flatten(0, 1)[:, None],
        )


def clip_targets(labels: Tensor, num_labels: int, ignore_value: int, exclude_ignored: bool) -> ClipTargets:
    """Split label maps into one binary mask per class and clip.

    Args:
        labels (`torch.Tensor` of shape `(batch, num_frames, height, width)`): Class indices; `ignore_value` for none.
        num_labels (`int`): Number of classes.
        ignore_value (`int`): The value that stands for no class.
        exclude_ignored (`bool`): Leave such pixels out of the mask losses instead of counting them as background.

    Raises:
        ValueError: If a label is neither a class index nor `ignore_value`, or `ignore_value` is a class index.
    """
    counts = count_classes(labels, num_labels, ignore_value)
    labels = labels.long()
    ignored = labels == ignore_value
    class_labels = [clip_counts.nonzero()[:, 0].to(labels.device) for clip_counts in counts]
    return ClipTargets(
        class_labels=class_labels,
        mask_labels=[clip == classes[:, None, None, None] for clip, classes in zip(labels, class_labels, strict=True)],
        ignored=ignored if exclude_ignored else None,
    )


def count_classes(labels: Tensor, num_labels: int, ignore_value: int) -> Tensor:
    """Count the pixels of every class in each clip.

    Args:
        labels (`torch.Tensor` of shape `(batch, num_frames, height, width)`): Class indices; `ignore_value` for none.
        num_labels (`int`): Number of classes.
        ignore_value (`int`): The value that stands for no class.

    Returns:
        `torch.Tensor` of shape `(batch, num_labels)` on the CPU.

    Raises:
        ValueError: If a label is neither a class index nor `ignore_value`, or `ignore_value` is a class index.
    """
    if 0 <= ignore_value < num_labels:
        raise ValueError(
            f"`ignore_value` must not be one of the {num_labels} class indices. Got {ignore_value}. "
            "Choose another in the configuration, such as -100, and as `ignore_index` of the video processor."
        )
    labels = labels.long()  # narrower integers may not hold the two extra bins below
    ignored = labels == ignore_value
    out_of_range = ~ignored & ((labels < 0) | (labels >= num_labels))
    # One histogram per clip, with two more bins for ignored and invalid pixels, read in a single transfer.
    bins = torch.where(ignored, num_labels, torch.where(out_of_range, num_labels + 1, labels)).flatten(1)
    offsets = torch.arange(len(labels), device=labels.device)[:, None] * (num_labels + 2)
    histogram = torch.bincount((bins + offsets).flatten(), minlength=len(labels) * (num_labels + 2))
    histogram = histogram.view(len(labels), num_labels + 2).cpu()
    if histogram[:, -1].any():
        wrong = int(labels[out_of_range][0])
        raise ValueError(
            f"`labels` must hold class indices 0 to {num_labels - 1}, or {ignore_value} for no class. Got {wrong}. "
            "Raw dataset ids are reduced by the video processor (`do_reduce_labels=True`)."
        )
    return histogram[:, :num_labels]


def loss_counts_of(num_targets: Tensor, config: THEMaskConfig, matching_rounds: int) -> Tensor:
    """What the loss terms of a batch are divided by: known before any prediction, additive over clips.

    Of N queries a clip with n targets matches min(n, N) in the first round and min(n, N - n) in the second; a matched
    query weighs 1 in the class term, any other `no_object_weight`.

    Args:
        num_targets (`torch.Tensor` of shape `(batch,)`): Number of classes in each clip.
        config ([`THEMaskConfig`]): Number of queries and weight of "no object".
        matching_rounds (`int`): 1 or 2.

    Returns:
        `torch.Tensor` of shape `(2,)`, float64: number of targets, and class weights of all queries together.
    """
    num_targets = num_targets.to(torch.float64)
    primary = num_targets.clamp(max=config.num_queries)
    secondary = torch.minimum(num_targets, config.num_queries - primary) if matching_rounds == 2 else 0 * primary
    matched = primary + secondary
    class_weights = matched + config.no_object_weight * (config.num_queries - matched)
    return torch.stack([num_targets.sum(), class_weights.sum()])


def averaged_over_processes(counts: Tensor) -> Tensor:
    """Counts of a batch as their mean over the processes, since those then average their gradients."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(counts)
        counts = counts / torch.distributed.get_world_size()
    return counts


class LossTerms(NamedTuple):
    """The loss of a batch, term by term.

    Attributes:
        terms (`dict[str, torch.Tensor]`): Per term a vector with one weighted value per layer; their sum is the loss.
        query_shares (`dict[str, torch.Tensor]`): `primary_query_share` and `secondary_query_share`, the share of the
            queries that received a target in the two rounds of the last layer.
    """

    terms: dict[str, Tensor]
    query_shares: dict[str, Tensor]


class HierarchicalLoss:
    """Matches queries to targets and sums the weighted terms of Eq. 6 over levels and layers.

    Args:
        config ([`THEMaskConfig`]): Weights and variants.
        point_sampler ([`PointSampler`]): Source of all random points.
        generator (`torch.Generator` or a sequence of them, *optional*): Passed on to the point sampler. With one per
            clip the points of a clip do not depend on the other clips of the batch.
        recompute (`bool`, *optional*, defaults to `False`): Keep nothing of a layer's loss for the backward pass but
            its points, and compute it a second time there. Saves memory with [`DeferredPrediction`]. The instance
            then serves one call.
    """

    def __init__(
        self,
        config: THEMaskConfig,
        point_sampler: PointSampler,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        recompute: bool = False,
    ):
        self.config = config
        self.point_sampler = point_sampler
        self.generator = generator
        self.recompute = recompute
        self._kept_points: dict[tuple[str, int], Tensor] = {}

    def __call__(
        self,
        video_predictions: Predictions,
        frame_predictions: Predictions,
        labels: Tensor,
        matching_rounds: int,
        loss_counts: Tensor | None = None,
    ) -> LossTerms:
        """Compute the weighted loss terms.

        Args:
            video_predictions (`Sequence[LevelPrediction | DeferredPrediction]`): One per layer, for `batch`
            clips; may be empty.
            frame_predictions (`Sequence[LevelPrediction | DeferredPrediction]`): One per layer, for
            `batch * num_frames` frames; may be empty.
            labels (`torch.Tensor` of shape `(batch, num_frames, height, width)`): Class indices.
            matching_rounds (`int`): 1 for the one-round loss of the warm-up, 2 for the hierarchical loss.
            loss_counts (`torch.Tensor` of shape `(2,)`, *optional*): Sum of [`loss_counts_of`] over all clips of the
            optimiser step, to which this batch then contributes its share. Defaults to the batch's own counts,
            averaged over the processes.

        Returns:
            [`LossTerms`] with `loss_class`, `loss_mask`, `loss_dice` and, with two rounds, `loss_secondary_mask` and
            `loss_secondary_dice`, with the prefix `frame_` for the frame level.

        Raises:
            ValueError: If a label is out of range.
        """
        config = self.config
        targets = clip_targets(labels, config.num_labels, config.ignore_value, config.ignored_pixels == "excluded")
        assignments = self.match(video_predictions, frame_predictions, targets, matching_rounds)
        num_frames = labels.shape[1]
        if loss_counts is None:
            num_targets = torch.tensor([len(classes) for classes in targets.class_labels], device=labels.device)
            loss_counts = averaged_over_processes(loss_counts_of(num_targets, config, matching_rounds))
        dtype = as_float32((video_predictions or frame_predictions)[0].class_logits).dtype
        divisors = loss_counts.to(labels.device, dtype).clamp(min=1)

        terms: dict[str, Tensor] = {}
        if video_predictions:
            terms |= self.level_terms("video", video_predictions, targets, assignments, matching_rounds, divisors)
        if frame_predictions:
            per_frame = [[pair for pair in layer for _ in range(num_frames)] for layer in assignments]
            frame_terms = self.level_terms(
                "frame", frame_predictions, targets.per_frame(), per_frame, matching_rounds, divisors * num_frames
            )
            # A single level carries the whole loss; beside video queries the frame level counts for a quarter.
            weight = config.frame_loss_weight if video_predictions else 1.0
            terms |= {f"frame_{name}": weight * value for name, value in frame_terms.items()}
        return LossTerms(terms, query_shares(assignments[-1], config.num_queries))

    # ---- matching -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def match(
        self,
        video_predictions: Predictions,
        frame_predictions: Predictions,
        targets: ClipTargets,
        matching_rounds: int,
    ) -> list[list[tuple[Assignment, Assignment]]]:
        """Assign queries to targets for every layer and clip; arguments as in `__call__`.

        Classes come from the video queries, masks from the frame queries where there are any, since those are what the
        attention of each frame refines. Only frame queries: classes are averaged over the frames. All cost matrices
        cross to the host in one copy.
        """
        num_clips = len(targets.class_labels)
        matrices: list[Tensor] = []
        for layer in range(max(len(video_predictions), len(frame_predictions))):
            classes = video_predictions[layer] if video_predictions else frame_predictions[layer]
            masks = frame_predictions[layer] if frame_predictions else video_predictions[layer]
            probabilities = as_float32(classes.class_logits).softmax(-1).unflatten(0, (num_clips, -1)).mean(1)
            mask_logits = as_float32(masks.mask_logits)
            mask_logits = mask_logits.unflatten(0, (num_clips, -1)).flatten(1, 2)  # (clips, frames, queries, h, w)
            points = self._draw("matching", layer, [1] * num_clips, self.config.train_num_points, mask_logits.device)
            for clip in range(num_clips):
                matrices += self._cost_matrices(clip, probabilities, mask_logits, targets, points)
        on_host = torch.cat([matrix.flatten() for matrix in matrices]).cpu().numpy()
        sizes = np.cumsum([matrix.numel() for matrix in matrices])[:-1]
        arrays = [part.reshape(m.shape) for part, m in zip(np.split(on_host, sizes), matrices, strict=True)]
        pairs = [
            two_round_assignment(first, second if matching_rounds == 2 else None)
            for first, second in zip(arrays[::2], arrays[1::2], strict=True)
        ]
        return [pairs[start : start + num_clips] for start in range(0, len(pairs), num_clips)]

    def _cost_matrices(
        self, clip: int, probabilities: Tensor, mask_logits: Tensor, targets: ClipTargets, points: Tensor
    ) -> tuple[Tensor, Tensor]:
        config = self.config
        masks = targets.mask_labels[clip].to(mask_logits.dtype)
        if len(masks) == 0:
            empty = mask_logits.new_empty((config.num_queries, 0))
            return empty, empty
        per_frame = points[clip : clip + 1].expand(mask_logits.shape[1], -1, -1)
        usable = point_usability(targets, clip, map_size(mask_logits), per_frame)
        costs = pairwise_costs(
            probabilities[clip],
            sample_points(mask_logits[clip], per_frame).transpose(0, 1).flatten(1),
            targets.class_labels[clip],
            sample_points(masks.transpose(0, 1), per_frame).transpose(0, 1).flatten(1),
            None if usable is None else usable.flatten().to(mask_logits.dtype),
        )
        full = (
            config.mask_weight * costs.mask_cost
            + config.class_weight * costs.class_cost
            + config.dice_weight * costs.dice_cost
        )
        mask_only = config.second_round_cost == "mask" or (
            config.second_round_cost == "auto" and config.num_frames == 1
        )
        second = costs.mask_cost if mask_only else full
        # A diverged (NaN) prediction is as bad a match as can be; the NaN loss itself then tells the user.
        return torch.nan_to_num(full, nan=LARGEST_LOGIT), torch.nan_to_num(second, nan=LARGEST_LOGIT)

    # ---- losses ---------------------------------------------------------------------------------------------------

    def level_terms(
        self,
        level: str,
        predictions: Predictions,
        targets: ClipTargets,
        assignments: Sequence[Sequence[tuple[Assignment, Assignment]]],
        matching_rounds: int,
        divisors: Tensor,
    ) -> dict[str, Tensor]:
        """Weighted terms of one level, a vector over layers each.

        Args:
            level (`str`): `"video"` or `"frame"`; names the points' kind.
            predictions (`Sequence[LevelPrediction | DeferredPrediction]`): One per layer.
            targets ([`ClipTargets`]): Targets of the level's entries.
            assignments (`Sequence[Sequence[tuple[Assignment, Assignment]]]`): Per layer and entry, primary and
            secondary.
            matching_rounds (`int`): Whether there is a secondary group.
            divisors (`torch.Tensor` of shape `(2,)`): What mask and class terms are divided by.
        """
        layers = []
        for layer, (prediction, pairs) in enumerate(zip(predictions, assignments, strict=True)):
            arguments = (level, layer, prediction, targets, pairs, matching_rounds, divisors)
            if self.recompute:  # all randomness is in the points, and these are kept
                terms = checkpoint(self._layer_terms, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                terms = self._layer_terms(*arguments)
            layers.append(terms)
        return {name: torch.stack([terms[name] for terms in layers]) for name in layers[0]}

    def _layer_terms(
        self,
        level: str,
        layer: int,
        prediction: LevelPrediction | DeferredPrediction,
        targets: ClipTargets,
        pairs: Sequence[tuple[Assignment, Assignment]],
        matching_rounds: int,
        divisors: Tensor,
    ) -> dict[str, Tensor]:
        """One layer of `level_terms`."""
        config = self.config
        num_masks, class_weights = divisors.unbind()
        mask_logits = prediction.mask_logits
        primary = MatchedRows.gather([first for first, _ in pairs], mask_logits, targets)
        secondary = MatchedRows.gather([second for _, second in pairs], mask_logits, targets)
        class_loss = self._class_loss(prediction.class_logits, (primary, secondary))
        mask, dice = self._sampled_mask_losses(f"{level}_primary", layer, primary, targets, num_masks)
        terms = {
            "loss_class": config.class_weight * class_loss / class_weights,
            "loss_mask": config.mask_weight * mask,
            "loss_dice": config.dice_weight * dice,
        }
        if matching_rounds == 2:
            mask, dice = self._secondary_losses(level, layer, secondary, targets, num_masks)
            terms |= {"loss_secondary_mask": mask, "loss_secondary_dice": dice}
        return terms

    def _class_loss(self, class_logits: Tensor, groups: tuple["MatchedRows", ...]) -> Tensor:
        """Cross-entropy of all queries: both groups towards their class, the rest towards "no object", summed."""
        logits = as_float32(class_logits)
        classes = torch.full(logits.shape[:2], self.config.num_labels, device=logits.device)
        for rows in groups:
            classes[rows.entries, rows.queries] = rows.classes
        weights = logits.new_ones(self.config.num_labels + 1)
        weights[-1] = self.config.no_object_weight
        return nn.functional.cross_entropy(logits.transpose(1, 2), classes, weights, reduction="sum")

    def _secondary_losses(
        self,
        level: str,
        layer: int,
        rows: "MatchedRows",
        targets: ClipTargets,
        num_masks: Tensor,
    ) -> tuple[Tensor, Tensor]:
        config = self.config
        if config.secondary_loss == "original":  # Table 4, "two round, original loss"
            mask, dice = self._sampled_mask_losses(f"{level}_secondary", layer, rows, targets, num_masks)
            return config.mask_weight * mask, config.dice_weight * dice
        if config.secondary_points == "dense":
            mask, dice = self._dense_soft_losses(rows, targets, num_masks)
        else:
            mask, dice = self._sampled_mask_losses(f"{level}_secondary", layer, rows, targets, num_masks, soft=True)
        weight = config.secondary_round_weight
        return weight * config.secondary_mask_weight * mask, weight * config.secondary_dice_weight * dice

    def _sampled_mask_losses(
        self,
        kind: str,
        layer: int,
        rows: "MatchedRows",
        targets: ClipTargets,
        num_masks: Tensor,
        soft: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy and dice at points, three quarters of them where the masks are uncertain."""
        logits, masks = rows.logits, rows.masks
        if len(logits) == 0:
            return logits.sum(), logits.sum()  # 0, connected to the masks as distributed training needs
        num_frames = logits.shape[1]
        logits, masks = logits.flatten(0, 1)[:, None], masks.flatten(0, 1)[:, None].to(logits.dtype)
        points = self._kept_points.get((kind, layer))
        if points is None:
            points = self._loss_points(kind, layer, logits.detach(), rows, targets)
            if self.recompute:
                self._kept_points[kind, layer] = points
        usable = rows.usability(targets, points)
        weights = None if usable is None else usable.to(logits.dtype)
        sampled = sample_points(logits, points)[:, 0]
        sampled_masks = sample_points(masks, points)[:, 0]
        if soft:
            sampled_masks = self._soft_mask(sampled.detach().sigmoid(), sampled_masks)
        counts = torch.ones_like(sampled) if weights is None else weights
        return weighted_mask_losses(sampled, sampled_masks * counts, counts, num_masks * num_frames)

    def _loss_points(self, kind: str, layer: int, logits: Tensor, rows: "MatchedRows", targets: ClipTargets) -> Tensor:
        config = self.config
        num_candidates = int(config.train_num_points * config.oversample_ratio)
        num_uncertain = int(config.train_num_points * config.importance_sample_ratio)
        num_uniform = config.train_num_points - num_uncertain
        num_rows = [count * targets.mask_labels[0].shape[1] for count in rows.per_entry]
        candidates = self._draw(f"{kind}_candidates", layer, num_rows, num_candidates, logits.device)
        usable = rows.usability(targets, candidates)
        uncertain = select_uncertain(sample_points(logits, candidates)[:, 0], candidates, num_uncertain, usable)
        if num_uniform == 0:
            return uncertain
        uniform = self._draw(f"{kind}_uniform", layer, num_rows, num_uniform, logits.device)
        return torch.cat([uncertain, uniform], dim=1)

    def _dense_soft_losses(
        self, rows: "MatchedRows", targets: ClipTargets, num_masks: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The soft loss over every pixel of the label map.

        The reference enlarges the logits to the label map by nearest neighbour, so prediction and loss are constant
        over the pixels of one logit, and the number of pixels of each kind under a logit says all. Nothing is
        enlarged.
        """
        if len(rows.logits) == 0:
            return rows.logits.sum(), rows.logits.sum()  # as above
        size = map_size(rows.logits)
        inside = count_pixels(rows.masks.to(rows.logits.dtype), size)
        if targets.ignored is None:
            counts = count_pixels(torch.ones_like(rows.masks[:1, :1], dtype=inside.dtype), size).expand_as(inside)
        else:
            counts = count_pixels((~targets.ignored[rows.entries]).to(inside.dtype), size)
        soft_masks = self._soft_mask(rows.logits.detach().sigmoid(), inside)
        num_frames = rows.logits.shape[1]
        logits, soft_masks, counts = (x.flatten(0, 1).flatten(1) for x in (rows.logits, soft_masks, counts))
        return weighted_mask_losses(logits, soft_masks, counts, num_masks * num_frames)

    def _soft_mask(self, scores: Tensor, masks: Tensor) -> Tensor:
        """Predicted mask ∘ label (Eq. 5); the released code thresholds the product at one half."""
        if self.config.secondary_target == "soft":
            return scores * masks
        if self.config.secondary_points == "sampled":
            return (scores * masks > 0.5).to(masks.dtype)
        return masks * (scores > 0.5)  # pixel counts: the label itself is 0 or 1, so only the score decides

    def _draw(self, kind: str, layer: int, num_rows: Sequence[int], num_points: int, device: torch.device) -> Tensor:
        """Draw points for rows ordered by entry, `num_rows` for each: `(rows, num_points, 2)`."""
        with device:  # so that the sampler's new tensors live where they are used
            if not isinstance(self.generator, Sequence):
                return self.point_sampler(kind, layer, (sum(num_rows), num_points, 2), self.generator).to(device)
            per_clip = np.reshape(num_rows, (len(self.generator), -1)).sum(1)
            parts = [
                self.point_sampler(kind, layer, (int(count), num_points, 2), generator)
                for count, generator in zip(per_clip, self.generator, strict=True)
            ]
            return torch.cat(parts).to(device)


class MatchedRows(NamedTuple):
    """The matched queries of one group, entry by entry, with what they predict and what they should.

    `entries`, `queries` and `classes` are `(rows,)`, `logits` `(rows, num_frames, h, w)` and `masks`
    `(rows, num_frames, height, width)` boolean; `per_entry` is the number of rows of each entry.
    """

    entries: Tensor
    queries: Tensor
    classes: Tensor
    logits: Tensor
    masks: Tensor
    per_entry: list[int]

    @classmethod
    def gather(cls, assignments: Sequence[Assignment], mask_logits: Tensor, targets: ClipTargets) -> "MatchedRows":
        """Collect the rows of one assignment per entry."""
        first_targets = np.cumsum([0, *(len(classes) for classes in targets.class_labels)])
        entries = np.concatenate([np.full(len(a.query_indices), entry) for entry, a in enumerate(assignments)])
        queries = np.concatenate([a.query_indices for a in assignments])
        chosen = np.concatenate(
            [first + a.target_indices for first, a in zip(first_targets, assignments, strict=False)]
        )
        index = torch.from_numpy(np.stack([entries, queries, chosen]).astype(np.int64))
        entries_, queries_, chosen_ = index.to(mask_logits.device)
        return cls(
            entries=entries_,
            queries=queries_,
            classes=torch.cat(targets.class_labels)[chosen_],
            logits=as_float32(mask_logits[entries_, :, queries_]),
            masks=torch.cat(targets.mask_labels)[chosen_],
            per_entry=[len(a.query_indices) for a in assignments],
        )

    def usability(self, targets: ClipTargets, points: Tensor) -> Tensor | None:
        """Boolean `(rows * frames, num_points)`, `False` where a point touches an ignored pixel (`None`: none)."""
        if targets.ignored is None:
            return None
        ignored = targets.ignored[self.entries].flatten(0, 1)[:, None]
        return ~touches_ignored(ignored, map_size(self.logits), points)[:, 0]


def query_shares(pairs: Sequence[tuple[Assignment, Assignment]], num_queries: int) -> dict[str, Tensor]:
    """The share of the queries of one layer that received a target, by round."""
    primary = np.mean([len(first.query_indices) for first, _ in pairs]) / num_queries
    secondary = np.mean([len(second.query_indices) for _, second in pairs]) / num_queries
    return {"primary_query_share": torch.tensor(primary), "secondary_query_share": torch.tensor(secondary)}


def as_float32(logits: Tensor) -> Tensor:
    """Bring logits to (at least) float32 and within float16's range, which also turns infinities finite."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).clamp(-LARGEST_LOGIT, LARGEST_LOGIT)


def map_size(maps: Tensor) -> tuple[int, int]:
    """Height and width of maps `(..., height, width)`."""
    return maps.shape[-2], maps.shape[-1]


def weighted_mask_losses(logits: Tensor, masks: Tensor, counts: Tensor, divisor: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and dice loss of mask logits that stand for `counts` pixels each.

    Args:
        logits (`torch.Tensor` of shape `(rows, cells)`): Mask logits.
        masks (`torch.Tensor` of shape `(rows, cells)`): Of those pixels, how many belong to the mask.
        counts (`torch.Tensor` of shape `(rows, cells)`): Pixels per cell; 0 takes a cell out.
        divisor (`torch.Tensor` of shape `()`): Number of masks the summed rows are divided by.

    Returns:
        Two scalars: per row the mean cross-entropy and `1 - (2·Σ s·m + 1) / (Σ s + Σ m + 1)`, summed and divided.
    """
    total = counts.sum(-1).clamp(min=1)
    cross_entropy = (counts * nn.functional.softplus(logits) - masks * logits).sum(-1) / total
    scores = logits.sigmoid()
    overlap = (scores * masks).sum(-1)
    dice = 1 - (2 * overlap + 1) / ((scores * counts).sum(-1) + masks.sum(-1) + 1)
    return cross_entropy.sum() / divisor, dice.sum() / divisor


def count_pixels(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Sum full-size maps over the pixels that nearest-neighbour enlarging of a `size` map would fill from each cell.

    Args:
        maps (`torch.Tensor` of shape `(..., height, width)`): Maps to sum.
        size (`tuple[int, int]`): Height and width of the small map.
    """

    def membership(full: int, small: int) -> Tensor:
        cells = torch.arange(small, device=maps.device, dtype=torch.float32)
        sources = nn.functional.interpolate(cells[None, None], full, mode="nearest")[0, 0].long()
        return nn.functional.one_hot(sources, small).to(maps.dtype)  # (full, small)

    (height, width), (rows, columns) = maps.shape[-2:], size
    return membership(height, rows).T @ maps @ membership(width, columns)


def touches_ignored(ignored: Tensor, logits_size: tuple[int, int], points: Tensor) -> Tensor:
    """Tell which points read anything of an ignored pixel, in the label map or in the mask logits.

    A logit is ignored if it has pixels and all of them are.

    Args:
        ignored (`torch.Tensor` of shape `(maps, 1, height, width)`): Boolean.
        logits_size (`tuple[int, int]`): Height and width of the mask logits.
        points (`torch.Tensor` of shape `(maps, num_points, 2)`): Coordinates in [0, 1].

    Returns:
        Boolean `(maps, 1, num_points)`.
    """
    full = ignored.to(points.dtype)
    used, unused = count_pixels(1 - full, logits_size), count_pixels(full, logits_size)
    whole_cells = ((used == 0) & (unused > 0)).to(points.dtype)
    return (sample_points(full, points) > 0) | (sample_points(whole_cells, points) > 0)


def point_usability(targets: ClipTargets, clip: int, logits_size: tuple[int, int], points: Tensor) -> Tensor | None:
    """Boolean `(num_frames, num_points)` for one clip's matching points; `None` if every pixel counts."""
    if targets.ignored is None:
        return None
    return ~touches_ignored(targets.ignored[clip][:, None], logits_size, points)[:, 0]
