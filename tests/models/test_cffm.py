# SPDX-License-Identifier: Apache-2.0
"""CFFM by itself: its attention written out token by token, its streams, its settings, its loss."""

import math
import re

import pytest
import torch
from torch import nn

from families import SMALL_WINDOWS, cffm_model
from goldens import FIXTURES, json_file
from tiny import TINY_MIT, random_clips
from tiny_segmenters import opinionated
from transformers_themask import CFFMConfig, CFFMForVideoSemanticSegmentation, MiTConfig
from transformers_themask.models.decoder_cffm import ContextPooling, CrossFrameAttention, FeatureFusion

NUM_FRAMES = 20
# What the paper prints (section 3.2), where the released code computes something else.
PRINTED = {
    "reference_receptive_fields": (49, 20, 6),
    "reference_pooling_kernels": (7, 4, 2),
    "target_pooling_kernel": 5,
    "neighborhood": 0,
}


def random_parameters(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.5
    return module


# ---- the head ----


def tokens_of_a_window(config, window, sizes):
    """What a window sees: of every token its map, its place there or none, and which bias it has.

    The bias of a neighbour is a number in the table of neighbours, that of any other token its row and column in the
    grid of its map.
    """
    side, reach, (row, column) = config.window_size, config.neighborhood, window
    height, width = sizes[0]
    inside = [(y, x) for y in range(side) for x in range(side)]
    for y, x in inside:
        yield 0, (side * row + y, side * column + x), (y, x)
    displaced = [
        (y + down, x + across)
        for down, across in ((reach, reach), (reach, -reach), (-reach, reach), (-reach, -reach))
        for y, x in inside
    ]
    for number, (y, x) in enumerate(place for place in displaced if place not in inside):
        yield 0, ((side * row + y) % height, (side * column + x) % width), number
    fields = (config.target_receptive_field, *config.reference_receptive_fields)
    cells = (config.target_pooling_kernel, *config.reference_pooling_kernels)
    for source, (field, cell) in enumerate(zip(fields, cells, strict=True), start=1):
        kernel, step = field // cell, sizes[source][0] * side // height
        for y, x in ((y, x) for y in range(kernel) for x in range(kernel)):
            place = (step * row - kernel // 2 + y, step * column - kernel // 2 + x)
            is_there = all(0 <= at < length for at, length in zip(place, sizes[source], strict=True))
            yield source, place if is_there else None, (y, x)


def bias_of(attention, head, query, source, bias):
    """One number of the tables of biases, for a query at a row and column of its window."""
    side, kernel = attention.window_size, attention.kernels[source]
    if isinstance(bias, int):
        return attention.neighbour_bias[head, side * query[0] + query[1], bias]
    down, across = (at - other + kernel - 1 for at, other in zip(query, bias, strict=True))
    return attention.position_biases[source][head, (side + kernel - 1) * down + across]


def written_out_attention(attention, config, maps):
    """`CrossFrameAttention` of one clip, by loops over windows, places, heads and tokens."""
    sizes = [tuple(one.shape[:2]) for one in maps]
    channels, heads, side = config.hidden_dim, config.num_attention_heads, config.window_size
    result = torch.zeros_like(maps[0])
    for row, column in ((y, x) for y in range(sizes[0][0] // side) for x in range(sizes[0][1] // side)):
        tokens = []
        for source, place, bias in tokens_of_a_window(config, (row, column), sizes):
            key = value = torch.zeros(channels, dtype=torch.float64)
            if place is not None:
                _, key, value = attention.qkv(maps[source][place]).chunk(3)
            tokens.append((source, bias, 0.0 if place is not None else -100.0, key, value))
        for query in ((y, x) for y in range(side) for x in range(side)):
            at = (side * row + query[0], side * column + query[1])
            asked = attention.qkv(maps[0][at])[:channels].chunk(heads)
            mined = []
            for head in range(heads):
                scores = [
                    asked[head] @ key.chunk(heads)[head] / math.sqrt(channels // heads)
                    + bias_of(attention, head, query, source, bias)
                    + mask
                    for source, bias, mask, key, _ in tokens
                ]
                values = torch.stack([value.chunk(heads)[head] for *_, value in tokens])
                mined.append(torch.stack(scores).softmax(0) @ values)
            result[at] = attention.proj(torch.cat(mined))
    return result


ORACLE = {
    # Of the sources, one token per window, two by two, and every place.
    "even": {"window_size": 4, "neighborhood": 2, "fields": (12, 10, 3), "cells": (4, 2, 1)},
    "odd": {"window_size": 3, "neighborhood": 1, "fields": (9, 10, 1), "cells": (3, 2, 1)},
    "printed": {"window_size": 3, "neighborhood": 0, "fields": (3, 3, 6), "cells": (1, 3, 2)},
}


@pytest.mark.parametrize("case", ORACLE)
@torch.no_grad()
def test_attention_is_what_loops_over_tokens_give(case):
    sizes = ORACLE[case]
    config = CFFMConfig(
        backbone_config=MiTConfig(**TINY_MIT),
        hidden_dim=4,
        num_attention_heads=2,
        reference_offsets=(-5, -1),
        window_size=sizes["window_size"],
        neighborhood=sizes["neighborhood"],
        target_receptive_field=sizes["fields"][0],
        target_pooling_kernel=sizes["cells"][0],
        reference_receptive_fields=sizes["fields"][1:],
        reference_pooling_kernels=sizes["cells"][1:],
    )
    attention = random_parameters(CrossFrameAttention(config).double())
    rows, columns = 2, 3
    lengths = [config.window_size, *(source.cells for source in config.context_sources)]
    generator = torch.Generator().manual_seed(1)
    maps = [
        torch.randn(2, rows * length, columns * length, config.hidden_dim, generator=generator, dtype=torch.float64)
        for length in lengths
    ]
    ours = attention(maps[0], maps[1:])
    for clip in range(2):
        expected = written_out_attention(attention, config, [one[clip] for one in maps])
        torch.testing.assert_close(ours[clip], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("window_size", "kernel", "map_side"), [(7, 7, 1), (7, 3, 2), (7, 2, 3), (4, 2, 2)])
@torch.no_grad()
def test_pooling_is_a_weighted_sum_of_the_cells_of_a_resized_frame(window_size, kernel, map_side):
    fields = {"target_receptive_field": kernel, "target_pooling_kernel": kernel}
    config = CFFMConfig(backbone_config=MiTConfig(**TINY_MIT), **fields)
    config.window_size = window_size
    pooling = random_parameters(ContextPooling(config.context_sources[0], window_size))
    frame = torch.randn(1, 2 * window_size, 3 * window_size, 5, generator=torch.Generator().manual_seed(0))
    size = (2 * map_side * kernel, 3 * map_side * kernel)
    smaller = nn.functional.interpolate(frame.movedim(-1, 1), size, mode="bilinear", align_corners=False)
    weight = pooling.projection.weight.view(1, 1, kernel, kernel)
    expected = nn.functional.conv2d(smaller.movedim(1, 0), weight, pooling.projection.bias, stride=kernel)
    torch.testing.assert_close(pooling(frame)[0], expected.movedim(0, -1)[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_fusion_is_that_of_segformer_in_another_order():
    fusion = random_parameters(FeatureFusion([3, 4, 5, 6], 8)).eval()
    fusion.batch_norm.running_mean.uniform_(-1, 1)
    fusion.batch_norm.running_var.uniform_(0.5, 2)
    generator = torch.Generator().manual_seed(0)
    maps = [
        torch.randn(2, channels, *size, generator=generator)
        for channels, size in ((3, (13, 18)), (4, (7, 9)), (5, (4, 5)), (6, (2, 3)))
    ]
    enlarged = []
    for projection, one in zip(fusion.projections, maps, strict=True):
        projected = projection(one.movedim(1, -1)).movedim(-1, 1)
        enlarged.append(nn.functional.interpolate(projected, (13, 18), mode="bilinear", align_corners=False))
    expected = fusion.batch_norm(fusion.convolution(torch.cat(enlarged[::-1], dim=1))).relu()
    torch.testing.assert_close(fusion(maps), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_reference_frames_stay_as_they_are_from_layer_to_layer():
    """Only the target is handed on: two layers are one after the other, both given the same references."""
    model = opinionated(cffm_model(**SMALL_WINDOWS))
    features = torch.randn(1, 3, 5, 8, 16, generator=torch.Generator().manual_seed(0))
    target, references = features[:, -1], features[:, :-1]
    mined = target
    for layer in model.head.layers:
        mined = layer(mined, references)
    both = torch.cat([target, mined], dim=-1).movedim(-1, 1)
    expected = nn.functional.interpolate(model.head.classifier(both), (10, 16), mode="bilinear", align_corners=False)
    torch.testing.assert_close(model.head.classify_targets(target, references, (10, 16)), expected)


# ---- streams ----


@torch.no_grad()
def streamed(model, video):
    state, logits = model.initial_state(), []
    for frame in video.split(1, dim=1):
        outputs, state = model.streaming_step(frame, state)
        logits.append(outputs.logits[:, 0])
    return logits


def official_indices():
    by_target = json_file("frame_indices", FIXTURES.parent / "cffm")["by_target"]
    return [by_target[str(target)] for target in range(NUM_FRAMES)]


def repeated_indices(offsets):
    return [[max(0, target + offset) for offset in (*offsets, 0)] for target in range(NUM_FRAMES)]


# Frames of a stream in general, and what they are answered from.
PROTOCOLS = {
    "official": ({}, official_indices()),
    "official_with_other_offsets": (
        SMALL_WINDOWS,
        [[target] if target < 2 else [target - 2, target - 1, target] for target in range(NUM_FRAMES)],
    ),
    "repeated": ({"first_frames": "repeated"}, repeated_indices((-9, -6, -3))),
    "repeated_with_other_offsets": (
        {**SMALL_WINDOWS, "reference_offsets": (-7, -2), "first_frames": "repeated"},
        repeated_indices((-7, -2)),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("protocol", PROTOCOLS)
@torch.no_grad()
def test_a_stream_gives_what_every_frames_clip_gives_from_scratch(protocol, dtype):
    fields, indices = PROTOCOLS[protocol]
    model = opinionated(cffm_model(**fields)).to(dtype)
    video = random_clips(2, NUM_FRAMES, (50, 70))[0].to(dtype)
    for logits, frames in zip(streamed(model, video), indices, strict=True):
        expected = model(pixel_values_videos=video[:, frames]).logits[:, -1]
        torch.testing.assert_close(logits, expected, rtol=0, atol=5e-6 if dtype == torch.float32 else 1e-9)


@torch.no_grad()
def test_videos_of_one_batch_may_have_begun_at_different_times():
    model = opinionated(cffm_model())
    video = random_clips(1, 7, (32, 64))[0]
    begun = model.initial_state()
    for frame in video[:, :5].split(1, dim=1):
        _, begun = model.streaming_step(frame, begun)
    _, fresh = model.streaming_step(video[:, 5:6], model.initial_state())
    states = type(begun)(*(torch.cat(parts) for parts in zip(begun, fresh, strict=True)))
    together, _ = model.streaming_step(video[:, 6:].repeat(2, 1, 1, 1, 1), states)
    for place, state in enumerate((begun, fresh)):
        alone, _ = model.streaming_step(video[:, 6:], state)
        torch.testing.assert_close(together.logits[place : place + 1], alone.logits, rtol=1e-5, atol=1e-5)


# ---- settings ----


@torch.no_grad()
def test_the_papers_own_receptive_fields():
    """Windows see 49 places of their own, 49 + 25 + 9 of the references and 49 of the target's surroundings."""
    model = cffm_model(**PRINTED)
    attention = model.head.layers[0].attention
    assert attention.neighbour_bias is None
    tokens, _ = attention.window_tokens(2, 3, torch.device("cpu"))
    assert tokens.shape == (6, 49 + 49 + 49 + 25 + 9)
    logits = model(pixel_values_videos=random_clips(1, 4)[0]).logits
    assert logits.shape == (1, 4, 6, 16, 24) and logits.isfinite().all()


@pytest.mark.parametrize("size", [(50, 70), (33, 95), (64, 65), (31, 200)], ids=str)
def test_frames_may_have_any_size(size):
    model = cffm_model().train()
    frames, labels = random_clips(2, 4, size)
    outputs = model(pixel_values_videos=frames, labels=labels)
    outputs.loss.backward()
    assert outputs.logits.shape[-2:] == tuple(math.ceil(length / 4) for length in size)
    assert outputs.loss.isfinite()


@pytest.mark.parametrize("offsets", [(-1,), (-3, -1), (-20, -5, -2, -1)], ids=str)
@torch.no_grad()
def test_any_number_of_references_at_any_offsets(offsets):
    model = opinionated(
        cffm_model(
            reference_offsets=offsets,
            reference_receptive_fields=(15,) * len(offsets),
            reference_pooling_kernels=(3,) * len(offsets),
        )
    )
    assert (model.config.num_frames, model.config.reach) == (len(offsets) + 1, -offsets[0])
    frames, _ = random_clips(1, len(offsets) + 1)
    logits = model(pixel_values_videos=frames).logits[:, -1]
    for reference in range(len(offsets)):  # each plays its part
        changed = frames.clone()
        changed[:, reference] = -changed[:, reference]
        assert not torch.allclose(model(pixel_values_videos=changed).logits[:, -1], logits, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reference_offsets": ()}, "`reference_offsets` must be negative, the earliest frame first. Got ()."),
        ({"reference_offsets": (-3, -6, -9)}, "the earliest frame first. Got (-3, -6, -9)."),
        ({"reference_offsets": (-3, -3, -1)}, "the earliest frame first. Got (-3, -3, -1)."),
        ({"reference_offsets": (-2, -1, 0)}, "`reference_offsets` must be negative"),
        ({"reference_offsets": (-2, -1)}, "`reference_receptive_fields` must have one entry per reference frame, 2."),
        ({"reference_pooling_kernels": (7, 3)}, "`reference_pooling_kernels` must have one entry per reference frame"),
        ({"target_receptive_field": 36}, "must be an odd number of pooling kernels"),
        ({"target_receptive_field": 42}, "Got 42 with kernels of 7."),
        ({"target_pooling_kernel": 0}, "each at most as large as the window (7). Got 35 with kernels of 0."),
        ({"reference_receptive_fields": (49, 15, 1)}, "Got 1 with kernels of 2."),
        ({"window_size": 5}, "each at most as large as the window (5). Got 35 with kernels of 7."),
        ({"mining_layers": 0}, "`mining_layers` must be at least 1. Got 0."),
        ({"hidden_dim": 0}, "`hidden_dim` must be at least 1. Got 0."),
        ({"num_attention_heads": 0}, "`num_attention_heads` must be at least 1. Got 0."),
        ({"mlp_ratio": 0}, "`mlp_ratio` must be at least 1. Got 0."),
        ({"num_labels": 0}, "`num_labels` must be at least 1. Got 0."),
        ({"auxiliary_loss_weight": -0.5}, "`auxiliary_loss_weight` must be at least 0. Got -0.5."),
        ({"neighborhood": -1}, "`neighborhood` must lie between 0 and `window_size` (7). Got -1."),
        ({"neighborhood": 8}, "`neighborhood` must lie between 0 and `window_size` (7). Got 8."),
        ({"classifier_dropout": 1.0}, "`classifier_dropout` must lie in [0, 1). Got 1.0."),
        ({"hidden_dim": 18}, "`hidden_dim` must be a multiple of `num_attention_heads` (4). Got 18."),
    ],
    ids=str,
)
def test_settings_of_no_network(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        cffm_model(**fields)


def test_overridden_settings_are_checked(tmp_path):
    cffm_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`neighborhood` must lie between 0 and"):
        CFFMForVideoSemanticSegmentation.from_pretrained(tmp_path, neighborhood=9)


def test_layers_default_to_those_of_the_published_models():
    numbers = {size: CFFMConfig(backbone=size).mining_layers for size in ("mit-b0", "mit-b1", "mit-b2", "mit-b5")}
    assert numbers == {"mit-b0": 1, "mit-b1": 2, "mit-b2": 2, "mit-b5": 4}
    assert CFFMConfig(backbone="mit-b5", mining_layers=3).mining_layers == 3


# ---- initial parameters ----


def is_default(parameter, fan_in):
    """Drawn evenly from PyTorch's bounds for a linear layer."""
    bound = 1 / math.sqrt(fan_in)
    values = parameter.detach().flatten()
    few = len(values) < 100
    return values.abs().max() <= bound and (few or abs(values.std() * math.sqrt(3) / bound - 1) < 0.15)


def test_new_parameters_start_as_in_the_official_code():
    model = cffm_model(hidden_dim=64, num_attention_heads=8)
    checked = set()

    def check(module, name, is_right):
        parameter = module.get_parameter(name)
        checked.add(id(parameter))
        assert is_right(parameter.detach()), (type(module).__name__, name)

    def is_normal(deviation):
        return lambda values: abs(values.std() / deviation - 1) < 0.15 and abs(values.mean()) < 0.15 * deviation

    for module in model.head.modules():
        if isinstance(module, FeatureFusion):
            check(module.convolution, "weight", is_normal(math.sqrt(2 / 64)))
        elif isinstance(module, ContextPooling):
            share = 1 / module.source.cell**2
            check(module.projection, "weight", lambda values, share=share: (values == share).all())
            check(module.projection, "bias", lambda values: (values == 0).all())
        elif isinstance(module, CrossFrameAttention):
            check(module, "position_biases.0", lambda values: (values == 0).all())
            check(module, "neighbour_bias", is_normal(0.02))
            for index in range(1, 5):
                check(module, f"position_biases.{index}", is_normal(0.02))
    for module in model.head.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and id(module.weight) not in checked:
            fan_in = module.weight[0].numel()
            check(module, "weight", lambda values, fan_in=fan_in: is_default(values, fan_in))
            check(module, "bias", lambda values, fan_in=fan_in: is_default(values, fan_in) and values.any())
        elif isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
            check(module, "weight", lambda values: (values == 1).all())
            check(module, "bias", lambda values: (values == 0).all())
    assert checked == {id(parameter) for parameter in model.head.parameters()}


def test_what_a_checkpoint_lacks_starts_by_the_same_rules(tmp_path):
    model = opinionated(cffm_model())
    del model.head.layers[1]
    model.save_pretrained(tmp_path)
    loaded = CFFMForVideoSemanticSegmentation.from_pretrained(tmp_path)
    kept, new = loaded.head.layers
    assert torch.equal(kept.fc1.weight, model.head.layers[0].fc1.weight)
    assert (new.attention.position_biases[0] == 0).all() and new.attention.position_biases[1].any()
    assert (new.poolings[0].projection.weight == 1 / 49).all()


# ---- loss ----


@pytest.mark.parametrize("ignored_pixels", ["counted", "excluded"])
@pytest.mark.parametrize("label_size", [(64, 96), (50, 70)], ids=str)
def test_the_loss_is_a_mean_over_all_pixels_or_over_labelled_ones(ignored_pixels, label_size):
    model = opinionated(cffm_model(ignored_pixels=ignored_pixels, auxiliary_loss_weight=0.4))
    frames, _ = random_clips(2, 4)
    _, labels = random_clips(2, 4, label_size)
    labels[0, :3] = 255  # so that the shares of labelled pixels differ
    outputs = model(pixel_values_videos=frames, labels=labels)
    assert torch.equal(outputs.logits[:, :3], outputs.auxiliary_logits[:, :3])

    def mean(logits, labels):
        enlarged = nn.functional.interpolate(logits, label_size, mode="bilinear", align_corners=False)
        log_likelihood = enlarged.log_softmax(1)
        is_labelled = labels != 255
        chosen = log_likelihood.gather(1, labels.where(is_labelled, 0)[:, None])[:, 0]
        number = is_labelled.sum() if ignored_pixels == "excluded" else labels.numel()
        return -(chosen * is_labelled).sum() / number

    main = mean(outputs.logits[:, -1], labels[:, -1])
    auxiliary = 0.4 * mean(outputs.auxiliary_logits.flatten(0, 1), labels.flatten(0, 1))
    torch.testing.assert_close(outputs.loss_terms["loss_main"], main.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(outputs.loss_terms["loss_auxiliary"], auxiliary.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(outputs.loss, main + auxiliary, rtol=1e-5, atol=0)


@pytest.mark.parametrize("ignored_pixels", ["counted", "excluded"])
def test_nothing_labelled_is_no_loss(ignored_pixels):
    model = cffm_model(ignored_pixels=ignored_pixels)
    frames, labels = random_clips(1, 4)
    loss = model(pixel_values_videos=frames, labels=torch.full_like(labels, 255)).loss
    loss.backward()
    assert loss == 0 and not any(parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("num_frames", [1, 2, 3, 5, 8])
def test_a_clip_of_another_length_is_labelled_frame_by_frame_and_not_learnt_from(num_frames):
    model = opinionated(cffm_model())
    frames, labels = random_clips(1, num_frames)
    with torch.no_grad():
        logits = model(pixel_values_videos=frames).logits
        for index in range(num_frames):
            alone = model(pixel_values_videos=frames[:, index : index + 1]).logits[:, 0]
            torch.testing.assert_close(logits[:, index], alone, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match=f"must hold the 4 frames of a clip to compute the loss. Got {num_frames}."):
        model(pixel_values_videos=frames, labels=labels)
