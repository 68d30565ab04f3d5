# SPDX-License-Identifier: Apache-2.0
"""The hierarchical loss written as the paper and the released code state it: loops over clips, masks and points.

Slow and plain on purpose: an independent calculation for the tests of `query_loss`. Only the order in which random
points are asked for is shared with it.
"""

import math

import torch
from scipy.optimize import linear_sum_assignment
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate


def naive_loss_terms(config, video, frame, labels, rounds, sampler):
    """Terms as in `HierarchicalLoss`: `{name: [value per layer]}`.

    `video` and `frame` are lists over layers of `(class_logits, mask_logits)`: `(batch, queries, classes + 1)` and
    `(batch, frames, queries, h, w)`, and the same with `batch * frames` entries of one frame each.
    Either may be empty.
    """
    clips = [clip_masks(clip, config.ignore_value) for clip in labels]
    num_frames = labels.shape[1]
    terms = {}
    for layer in range(max(len(video), len(frame))):
        pairs = match_layer(config, video[layer : layer + 1], frame[layer : layer + 1], clips, rounds, layer, sampler)
        if video:
            add_level(terms, config, "video", 1.0, layer, video[layer], clips, pairs, rounds, sampler)
        if frame:
            frames = [
                (classes, masks[:, t : t + 1], ignored[t : t + 1])
                for classes, masks, ignored in clips
                for t in range(num_frames)
            ]
            per_frame = [pair for pair in pairs for _ in range(num_frames)]
            weight = config.frame_loss_weight if video else 1.0
            add_level(terms, config, "frame", weight, layer, frame[layer], frames, per_frame, rounds, sampler)
    return terms


def clip_masks(labels, ignore_value):
    """The classes of a clip, one mask `(frames, height, width)` each, and its ignored pixels."""
    classes = [int(value) for value in labels.unique() if value != ignore_value]
    masks = torch.stack([labels == value for value in classes]) if classes else labels.new_empty(0, *labels.shape)
    return classes, masks.double(), labels == ignore_value


def match_layer(config, video, frame, clips, rounds, layer, sampler):
    num_clips = len(clips)
    points = sampler("matching", layer, (num_clips, config.train_num_points, 2), None).double()
    pairs = []
    for clip, (classes, masks, ignored) in enumerate(clips):
        if not classes:
            pairs.append(([], []))
            continue
        class_logits, mask_logits = (x.detach() for x in (video or frame)[0])
        if video:
            probabilities = class_logits[clip].softmax(-1)
        else:
            probabilities = class_logits.unflatten(0, (num_clips, -1))[clip].softmax(-1).mean(0)
        if frame:
            mask_logits = frame[0][1].detach().flatten(0, 1).unflatten(0, (num_clips, -1))
        mask_logits = mask_logits[clip]  # (frames, queries, h, w)
        first = torch.zeros(mask_logits.shape[1], len(classes), dtype=torch.float64)
        second = torch.zeros_like(first)
        usable = torch.cat([usable_points(config, points[clip], x, mask_logits.shape[-2:]) for x in ignored])
        for query in range(mask_logits.shape[1]):
            logits = torch.cat([read(x, points[clip]) for x in mask_logits[:, query]])[usable]
            for target, label in enumerate(classes):
                truth = torch.cat([read(x, points[clip]) for x in masks[target]])[usable]
                cross_entropy = binary_cross_entropy_with_logits(logits, truth, reduction="sum") / max(len(truth), 1)
                costs = {
                    "mask": cross_entropy,
                    "full": config.mask_weight * cross_entropy
                    + config.dice_weight * dice(logits.sigmoid(), truth)
                    - config.class_weight * probabilities[query, label],
                }
                kind = config.second_round_cost
                kind = kind if kind != "auto" else "mask" if config.num_frames == 1 else "full"
                first[query, target], second[query, target] = costs["full"], costs[kind]
        pairs.append(two_rounds(first, second, rounds))
    return pairs


def two_rounds(first, second, rounds):
    primary = list(zip(*linear_sum_assignment(first.numpy()), strict=True))
    if rounds == 1:
        return primary, []
    free = [query for query in range(len(first)) if query not in {query for query, _ in primary}]
    rows, targets = linear_sum_assignment(second[free].numpy())
    return primary, [(free[row], target) for row, target in zip(rows, targets, strict=True)]


def add_level(terms, config, level, weight, layer, prediction, entries, pairs, rounds, sampler):
    """Append one layer's weighted terms of one level."""
    class_logits, mask_logits = prediction
    divisor = max(sum(len(classes) for classes, _, _ in entries), 1) * mask_logits.shape[1]
    values = {"loss_class": config.class_weight * class_loss(config, class_logits, entries, pairs)}
    groups = [[pair[group] for pair in pairs] for group in range(2)]
    mask, dice_ = point_losses(config, f"{level}_primary", layer, mask_logits, entries, groups[0], sampler, soft=False)
    values["loss_mask"] = config.mask_weight * mask / divisor
    values["loss_dice"] = config.dice_weight * dice_ / divisor
    if rounds == 2:
        if config.secondary_loss == "original" or config.secondary_points == "sampled":
            soft = config.secondary_loss == "soft"
            mask, dice_ = point_losses(
                config, f"{level}_secondary", layer, mask_logits, entries, groups[1], sampler, soft=soft
            )
        else:
            mask, dice_ = dense_losses(config, mask_logits, entries, groups[1])
        weights = config.mask_weight, config.dice_weight
        if config.secondary_loss == "soft":
            weights = config.secondary_mask_weight, config.secondary_dice_weight
            weights = tuple(config.secondary_round_weight * x for x in weights)
        values["loss_secondary_mask"] = weights[0] * mask / divisor
        values["loss_secondary_dice"] = weights[1] * dice_ / divisor
    prefix = "frame_" if level == "frame" else ""
    for name, value in values.items():
        terms.setdefault(prefix + name, []).append(weight * value)


def class_loss(config, class_logits, entries, pairs):
    total, weights = 0.0, 0.0
    for entry, (classes, _, _) in enumerate(entries):
        wanted = {query: classes[target] for group in pairs[entry] for query, target in group}
        for query, logits in enumerate(class_logits[entry]):
            weight = 1.0 if query in wanted else config.no_object_weight
            total = total - weight * logits.log_softmax(-1)[wanted.get(query, config.num_labels)]
            weights += weight
    return total / weights


def rows_of(mask_logits, entries, group):
    """Every matched (mask, frame): its logits, its label and its ignored pixels."""
    for entry, (_, masks, ignored) in enumerate(entries):
        for query, target in sorted(group[entry]):
            for t in range(mask_logits.shape[1]):
                yield mask_logits[entry, t, query], masks[target, t], ignored[t]


def point_losses(config, kind, layer, mask_logits, entries, group, sampler, soft):
    rows = list(rows_of(mask_logits, entries, group))
    if not rows:
        return 0.0, 0.0
    num_uncertain = int(config.importance_sample_ratio * config.train_num_points)
    num_uniform = config.train_num_points - num_uncertain
    num_candidates = int(config.oversample_ratio * config.train_num_points)
    candidates = sampler(f"{kind}_candidates", layer, (len(rows), num_candidates, 2), None).double()
    uniform = torch.empty(len(rows), 0, 2)
    if num_uniform:
        uniform = sampler(f"{kind}_uniform", layer, (len(rows), num_uniform, 2), None).double()
    mask_loss, dice_loss = 0.0, 0.0
    for row, (logits, mask, ignored) in enumerate(rows):
        distance = read(logits.detach(), candidates[row]).abs()
        distance[~usable_points(config, candidates[row], ignored, logits.shape)] = math.inf
        chosen = candidates[row][distance.argsort()[:num_uncertain]]
        points = torch.cat([chosen, uniform[row]])
        points = points[usable_points(config, points, ignored, logits.shape)]
        at_points, truth = read(logits, points), read(mask, points)
        if soft:
            truth = soften(config, at_points.detach().sigmoid() * truth)
        mask_loss = mask_loss + binary_cross_entropy_with_logits(at_points, truth, reduction="sum") / max(
            len(truth), 1
        )
        dice_loss = dice_loss + dice(at_points.sigmoid(), truth)
    return mask_loss, dice_loss


def dense_losses(config, mask_logits, entries, group):
    mask_loss, dice_loss = 0.0, 0.0
    for logits, mask, ignored in rows_of(mask_logits, entries, group):
        enlarged = interpolate(logits[None, None], mask.shape, mode="nearest")[0, 0]
        counted = ~ignored if config.ignored_pixels == "excluded" else torch.ones_like(ignored)
        pixels, truth = enlarged[counted], mask[counted]
        truth = soften(config, pixels.detach().sigmoid() * truth)
        mask_loss = mask_loss + binary_cross_entropy_with_logits(pixels, truth, reduction="sum") / max(len(truth), 1)
        dice_loss = dice_loss + dice(pixels.sigmoid(), truth)
    return mask_loss, dice_loss


def soften(config, soft_mask):
    return soft_mask if config.secondary_target == "soft" else (soft_mask > 0.5).double()


def dice(scores, truth):
    return 1 - (2 * (scores * truth).sum() + 1) / (scores.sum() + truth.sum() + 1)


def corners(size, points):
    """The four pixels that bilinear reading of a map blends, as `(row, column, weight)`, some outside the map."""
    y, x = points[:, 1] * size[0] - 0.5, points[:, 0] * size[1] - 0.5
    for row in (y.floor(), y.floor() + 1):
        for column in (x.floor(), x.floor() + 1):
            yield row.long(), column.long(), (1 - (y - row).abs()) * (1 - (x - column).abs())


def read(values, points):
    """Bilinear reading of one map `(h, w)` at `(x, y)` in [0, 1], zero outside."""
    padded = torch.nn.functional.pad(values, (1, 1, 1, 1))
    return sum(weight * padded[row + 1, column + 1] for row, column, weight in corners(values.shape, points))


def usable_points(config, points, ignored, logits_size):
    """Which points read nothing of an ignored pixel, or of a logit whose pixels are all ignored."""
    if config.ignored_pixels == "negative":
        return torch.ones(len(points), dtype=torch.bool)
    rows, columns = (
        (torch.arange(full) * small / full).long() for full, small in zip(ignored.shape, logits_size, strict=True)
    )
    ignored_logits = torch.zeros(*logits_size, dtype=torch.bool)
    for row in range(logits_size[0]):
        for column in range(logits_size[1]):
            below = ignored[rows == row][:, columns == column]
            ignored_logits[row, column] = below.numel() > 0 and bool(below.all())
    touched = torch.zeros(len(points), dtype=torch.bool)
    for ignored_map in (ignored, ignored_logits):
        padded = torch.nn.functional.pad(ignored_map, (1, 1, 1, 1))
        for row, column, weight in corners(ignored_map.shape, points):
            touched |= padded[row + 1, column + 1] & (weight > 0)
    return ~touched
