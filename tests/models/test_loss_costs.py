# SPDX-License-Identifier: Apache-2.0
"""What matching and loss cost beside Transformers': arithmetic, operations, waits for the device and memory."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

from benchmarks.loss import official_second_round
from benchmarks.measuring import HostTracker, OperationCounter, peak_memory
from point_samplers import layer_by_layer
from selection import pairwise
from tiny import random_clips, tiny_config, tiny_model
from tolerances import assert_equal_up_to_rounding
from transformers_themask.models import query_loss
from transformers_themask.models.label_counts import clip_targets
from transformers_themask.models.matching import (
    Assignment,
    EmbeddedLevel,
    LevelPrediction,
    MaskLevel,
    masks_of_rows,
    match_rows,
)
from transformers_themask.models.modeling_themask import loss_settings
from transformers_themask.models.point_sampling import uniform_points
from transformers_themask.models.query_loss import HierarchicalLoss

WEIGHTS = {"loss_cross_entropy": 2.0, "loss_mask": 5.0, "loss_dice": 5.0}


@pytest.fixture
def on_gpu(monkeypatch):
    """Work in chunks of the size that is chosen elsewhere than on a CPU."""
    monkeypatch.setattr(query_loss, "CHUNK_SIZES", {})


def label_maps(batch_size, num_targets, num_frames=1, size=(96, 96)):
    """Squares of 16 pixels of `num_targets` classes, all of them in every clip."""
    cells = torch.arange(size[0] // 16 * (size[1] // 16)).view(size[0] // 16, size[1] // 16) % num_targets
    clips = torch.stack([cells.roll(clip, -1) for clip in range(batch_size * num_frames)])
    labels = clips.repeat_interleave(16, -2).repeat_interleave(16, -1)
    return labels.unflatten(0, (batch_size, num_frames))


def embedded_level(config, entries, num_frames=1, num_layers=10, size=(24, 24), sets=1, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (
        (num_layers, entries, config.num_queries, config.num_labels + 1),
        (num_layers, entries, sets, config.num_queries, config.mask_feature_size),
        (entries, num_frames, config.mask_feature_size, *size),
    )
    return EmbeddedLevel(*(torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes))


def masks_of(level):
    """The same level with all its masks."""
    masks = torch.einsum(
        "letqc,etchw->letqhw",
        level.mask_embeddings.expand(-1, -1, level.mask_features.shape[1], -1, -1),
        level.mask_features,
    )
    return [LevelPrediction(*layer) for layer in zip(level.class_logits, masks, strict=True)]


def costly_config(**fields):
    """The paper's proportions on maps of 24 x 24: as many points per cell, all layers and queries."""
    return tiny_config(num_queries=100, num_labels=12, mask_feature_size=64, train_num_points=502, **fields)


def our_loss(config, level, labels, rounds=2):
    return sum(
        term.sum()
        for term in HierarchicalLoss(loss_settings(config), uniform_points)(level, [], labels, rounds).terms.values()
    )


def transformers_loss(config, level, labels):
    """As Transformers' Mask2Former has it, from the same embeddings."""
    fields = {"num_queries": config.num_queries, "train_num_points": config.train_num_points}
    label_names = {index: str(index) for index in range(config.num_labels)}
    criterion = Mask2FormerLoss(Mask2FormerConfig(**fields, id2label=label_names), WEIGHTS)
    predictions = [
        {
            "masks_queries_logits": torch.einsum("bqc,bchw->bqhw", embeddings[:, 0], level.mask_features[:, 0]),
            "class_queries_logits": classes,
        }
        for classes, embeddings in zip(level.class_logits, level.mask_embeddings, strict=True)
    ]
    class_labels = [clip.unique() for clip in labels]
    masks = [
        (clip == classes[:, None, None]).float() for clip, classes in zip(labels[:, 0], class_labels, strict=True)
    ]
    terms = criterion(
        **predictions[-1], mask_labels=masks, class_labels=class_labels, auxiliary_predictions=predictions[:-1]
    )
    return sum(next(WEIGHTS[key] for key in WEIGHTS if name.startswith(key)) * term for name, term in terms.items())


# ---- cost ----


@pytest.mark.parametrize(("num_targets", "rounds", "bound"), [(4, 2, 0.45), (8, 1, 0.45), (8, 2, 0.53)])
def test_a_step_takes_about_half_of_the_arithmetic(num_targets, rounds, bound):
    """The rest is the product of all queries and the points of the matching, a third of what all masks take."""
    config, labels = costly_config(), label_maps(2, num_targets)
    flops = []
    for loss in (
        lambda level: our_loss(config, level, labels, rounds),
        lambda level: transformers_loss(config, level, labels),
    ):
        with FlopCounterMode(display=False) as counter:
            loss(embedded_level(config, 2)).backward()
        flops.append(counter.get_total_flops())
    assert flops[0] <= bound * flops[1]


def test_a_gpu_is_given_few_operations_whose_number_does_not_grow_with_the_batch(on_gpu):
    config = costly_config()
    ours, theirs = [], []
    for batch_size in (2, 5):
        level, labels = embedded_level(config, batch_size), label_maps(batch_size, 6)
        for counts, loss in ((ours, our_loss), (theirs, transformers_loss)):
            with OperationCounter() as operations:
                loss(config, level, labels)
            counts.append(operations.count)
    assert ours[0] == ours[1] <= 0.15 * theirs[0]


@pairwise(
    chunk=["cpu", "elsewhere"],
    recompute=[False, True],
    fields=[
        {},
        {"decoder_layers": 6, "secondary_points": "sampled"},
        {"num_frames": 2},
        {"num_frames": 2, "ignored_pixels": "excluded"},
        {"num_frames": 2, "temporal_mode": "one_to_frame"},
    ],
    batch_size=[1, 3],
)
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")
def test_the_host_waits_twice_per_step(batch_size, fields, recompute, chunk, monkeypatch):
    if chunk == "elsewhere":
        monkeypatch.setattr(query_loss, "CHUNK_SIZES", {})
    model = tiny_model(**fields).train()
    if recompute:
        model.gradient_checkpointing_enable()
    frames, labels = random_clips(batch_size)
    with torch.no_grad(), HostTracker() as outside_of_the_loss:
        model(pixel_values_videos=frames)
    with HostTracker() as waits:
        model(pixel_values_videos=frames, labels=labels).loss.backward()
    assert waits.count - outside_of_the_loss.count <= 2


def our_second_round(config, logits, targets, maps):
    """The same of `logits` `(entries, 1, masks, h, w)`, of which mask `i` was given target `i`."""
    level = MaskLevel([LevelPrediction(logits, logits)])
    every, none = np.arange(logits.shape[2]), np.empty(0, dtype=np.int64)
    pairs = [[(Assignment(none, none), Assignment(every, every))] * len(logits)]
    rows = match_rows(pairs, targets.class_labels, 1, logits.shape[2], config.num_labels, logits.device)[1]
    (group,) = masks_of_rows(rows[1:], level)
    return HierarchicalLoss(loss_settings(config), uniform_points).dense_losses(group, maps).sum()


def test_the_second_round_equals_the_released_one_in_a_tenth_of_its_memory():
    """Sixteen masks of two images; forward and backward pass."""
    config = tiny_config(num_labels=8, num_queries=8)
    targets = clip_targets(label_maps(2, 8, size=(192, 192)), 8, 255, exclude_ignored=False)
    maps = targets.maps(targets.class_table(8), (48, 48))
    maps.pixels_under(torch.zeros(1).long(), torch.zeros(1).long(), torch.float32)  # once for all layers
    masks = maps.masks.flatten(0, 1)[:, None].float()
    logits = 3 * torch.randn(2, 1, 8, 48, 48, generator=torch.Generator().manual_seed(0))
    works, results = [], []
    for loss in (
        lambda leaf: our_second_round(config, leaf, targets, maps),
        lambda leaf: official_second_round(leaf.flatten(0, 2)[:, None], masks),
    ):
        leaf = logits.clone().requires_grad_()
        works.append(lambda loss=loss, leaf=leaf: torch.autograd.grad(loss(leaf), leaf))
        results.append((loss(leaf), *works[-1]()))
    for result, expected in zip(*results, strict=True):
        assert_equal_up_to_rounding(result, expected)
    ours, official = map(peak_memory, works)
    assert ours <= 0.1 * official


# ---- equality ----

VARIANTS = {
    "default": {},
    "sampled": {"secondary_points": "sampled"},
    "excluded": {"ignored_pixels": "excluded"},
    "few_queries": {"num_queries": 4},
}


def both_levels(config, num_frames):
    """Video and frame queries of three clips, with targets of different numbers."""
    labels = label_maps(3, 5, num_frames, (64, 64))
    labels[1][labels[1] > 1] = 255
    labels[2, :, ::3] = 255
    options = {"num_layers": 3, "size": (16, 16), "dtype": torch.float64}
    video = embedded_level(config, 3, num_frames, **options)
    frame = embedded_level(config, 3 * num_frames, **options, seed=1)
    return video, frame, labels


@layer_by_layer
def points_by_name(kind, layer, shape, generator):
    """Random points that depend on what they are for only; those of the matching are shared by the layers."""
    seeded = torch.Generator().manual_seed(sum(map(ord, kind)) + 1000 * layer * (kind != "matching"))
    return torch.rand(shape, generator=seeded, dtype=torch.float64)


def terms_and_gradients(config, video, frame, labels, leaves, recompute=False, sampler=points_by_name):
    terms = HierarchicalLoss(loss_settings(config), sampler, recompute=recompute)(video, frame, labels, 2).terms
    return terms, torch.autograd.grad(sum(term.sum() for term in terms.values()), leaves)


def assert_same(ours, expected):
    assert ours[0].keys() == expected[0].keys()
    for name, value in expected[0].items():
        torch.testing.assert_close(ours[0][name], value, rtol=1e-10, atol=1e-12, msg=name)
    for gradient, value in zip(ours[1], expected[1], strict=True):
        torch.testing.assert_close(gradient, value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_embeddings_and_features_have_the_loss_of_their_masks(fields):
    config = tiny_config(num_frames=2, **fields)
    video, frame, labels = both_levels(config, 2)
    leaves = [*video, *frame]
    expected = terms_and_gradients(config, masks_of(video), masks_of(frame), labels, leaves)
    assert_same(terms_and_gradients(config, video, frame, labels, leaves), expected)


@pairwise(
    fields=list(VARIANTS.values()), chunk_size=[1, 3 * 64 * 64, 10 * 64 * 64, 40 * 64 * 64], recompute=[False, True]
)
def test_the_size_of_chunks_changes_nothing(fields, chunk_size, recompute, monkeypatch):
    config = tiny_config(num_frames=2, **fields)
    video, frame, labels = both_levels(config, 2)
    leaves = [*video, *frame]
    expected = terms_and_gradients(config, video, frame, labels, leaves)
    monkeypatch.setattr(query_loss, "CHUNK_SIZES", {"cpu": chunk_size})
    assert_same(terms_and_gradients(config, video, frame, labels, leaves, recompute), expected)


def test_one_layer_may_stand_for_all_when_they_are_matched():
    config = tiny_config(num_frames=2)
    video, frame, labels = both_levels(config, 2)
    leaves = [*video, *frame]

    def sampler(kind, layers, shape, generator, shares):
        points = points_by_name(kind, layers, shape, generator)
        return points[:1] if shares and kind == "matching" else points

    results = [
        terms_and_gradients(config, video, frame, labels, leaves, sampler=lambda *args, own=own: sampler(*args, own))
        for own in (False, True)
    ]
    assert_same(*results)


def test_by_default_all_layers_are_matched_at_the_same_points():
    assert uniform_points("matching", range(3), (3, 2, 5, 2), None).shape == (1, 2, 5, 2)
    assert uniform_points("video_primary_uniform", range(3), (3, 2, 5, 2), None).shape == (3, 2, 5, 2)


@pytest.mark.parametrize("kind", ["matching", "video_primary_candidates"])
def test_points_of_a_wrong_shape_are_rejected(kind):
    config = tiny_config()
    level, labels = embedded_level(config, 2, num_layers=2), label_maps(2, 3)

    def sampler(asked, layers, shape, generator):
        points = uniform_points(asked, layers, shape, generator)
        return points[:, :1] if asked == kind else points

    with pytest.raises(ValueError, match=rf"`point_sampler` must return points of shape \(\d, .*for '{kind}'\. Got"):
        HierarchicalLoss(loss_settings(config), sampler)(level, [], labels, 1)


def test_points_of_losses_are_never_shared(on_gpu):
    config = tiny_config()
    level, labels = embedded_level(config, 2, num_layers=2), label_maps(2, 3)
    criterion = HierarchicalLoss(
        loss_settings(config), lambda kind, layers, shape, generator: torch.rand(1, *shape[1:])
    )
    with pytest.raises(
        ValueError, match=r"for 'video_primary_candidates'.*Only for matching may one layer stand for all"
    ):
        criterion(level, [], labels, 1)
