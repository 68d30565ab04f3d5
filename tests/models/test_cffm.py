# SPDX-License-Identifier: Apache-2.0
"""CFFM by itself: its attention written out token by token, its streams, its settings, its loss."""

import math
import re
from fractions import Fraction

import pytest
import torch
from torch import nn

from families import SMALL_WINDOWS, cffm_model
from goldens import FIXTURES, json_file
from tiny import TINY_MIT, random_clips, tiny_model
from tiny_segmenters import opinionated
from tolerances import assert_equal_up_to_rounding
from transformers_themask import CFFMConfig, CFFMForVideoSemanticSegmentation, MiTConfig
from transformers_themask.models.configuration_cffm import ContextSource
from transformers_themask.models.decoder_cffm import (
    ContextPooling,
    CrossFrameAttention,
    CrossFrameMiningLayer,
    FeatureFusion,
    first_tokens,
)

NUM_FRAMES = 20
# What the paper prints (section 3.2), where the released code computes something else.
PRINTED = {
    "context_pooling": "plain",
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
        first = [step * number - kernel // 2 for number in window]
        if config.context_pooling == "plain":
            first = [most_centred(side * number, side, field, cell) for number in window]
        for y, x in ((y, x) for y in range(kernel) for x in range(kernel)):
            place = (first[0] + y, first[1] + x)
            is_there = all(0 <= at < length for at, length in zip(place, sizes[source], strict=True))
            yield source, place if is_there else None, (y, x)


def most_centred(start, side, field, cell):
    """Which cell a field of whole cells begins with, so that its middle is nearest to a window's; of two the later."""
    middle = Fraction(2 * start + side, 2)
    return min(range(-60, 60), key=lambda first: (abs(cell * first + Fraction(field, 2) - middle), -first))


def pooled_cell_by_cell(pooling, cell, frame):
    """`ContextPooling` without a resize, by loops over cells and places; beyond the frame there are zeros."""
    height, width, channels = frame.shape
    rows, columns = -(-height // cell), -(-width // cell)
    pooled = torch.zeros(rows, columns, channels, dtype=frame.dtype)
    for row, column in ((y, x) for y in range(rows) for x in range(columns)):
        pooled[row, column] = pooling.projection.bias
        for y, x in ((y, x) for y in range(cell) for x in range(cell)):
            place = (cell * row + y, cell * column + x)
            if place[0] < height and place[1] < width:
                pooled[row, column] += pooling.projection.weight[0, cell * y + x] * frame[place]
    return pooled


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
    "small": {"window_size": 3, "neighborhood": 0, "fields": (3, 3, 6), "cells": (1, 3, 2)},
}


@pytest.mark.parametrize("case", ORACLE)
@torch.no_grad()
def test_attention_equals_loops_over_tokens(case):
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


@pytest.mark.parametrize("size", [(10, 17), (3, 22), (14, 8)], ids=str)
@torch.no_grad()
def test_plain_pooling_and_attention_equal_loops_over_windows_and_cells(size):
    """The paper's sizes, on frames that are multiples of neither 7 nor 4 nor 5, and with one row of windows."""
    config = CFFMConfig(backbone_config=MiTConfig(**TINY_MIT), hidden_dim=4, num_attention_heads=1, **PRINTED)
    layer = random_parameters(CrossFrameMiningLayer(config).double(), seed=2)
    generator = torch.Generator().manual_seed(1)
    frames = torch.randn(4, *size, config.hidden_dim, generator=generator, dtype=torch.float64)
    cells = (config.target_pooling_kernel, *config.reference_pooling_kernels)
    pooled = []
    for pooling, cell, frame in zip(layer.poolings, cells, frames, strict=True):
        pooled.append(pooled_cell_by_cell(pooling, cell, frame))
        torch.testing.assert_close(pooling(frame[None])[0], pooled[-1], rtol=1e-9, atol=1e-9)
    padded = torch.zeros(*(-(-length // 7) * 7 for length in size), config.hidden_dim, dtype=torch.float64)
    padded[: size[0], : size[1]] = frames[0]
    ours = layer.attention(padded[None], [one[None] for one in pooled])[0]
    torch.testing.assert_close(ours, written_out_attention(layer.attention, config, [padded, *pooled]))

    def normed(frame):
        return nn.functional.layer_norm(
            frame, (config.hidden_dim,), layer.layernorm_before.weight, layer.layernorm_before.bias
        )

    # The layer pools what is normed and not yet padded to whole windows.
    contexts = []
    layer.attention.register_forward_pre_hook(lambda _, arguments: contexts.extend(arguments[1]))
    layer(frames[:1], frames[None, 1:])
    for context, pooling, cell, frame in zip(contexts, layer.poolings, cells, frames, strict=True):
        expected = pooled_cell_by_cell(pooling, cell, normed(frame))
        torch.testing.assert_close(context[0], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("window", [(7, 7), (8, 6), (9, 10), (10, 11)], ids=str)
def test_plain_receptive_fields_are_those_of_the_paper(window):
    """By the gradient of all tokens of a window: 35, 49, 20 and 6 places, around the window's as nearly as can be."""
    config = CFFMConfig(backbone_config=MiTConfig(**TINY_MIT), hidden_dim=8, **PRINTED)
    attention = CrossFrameAttention(config)
    poolings = [ContextPooling(source, config.window_size) for source in config.context_sources]
    frames = torch.ones(4, 140, 140, 1, requires_grad=True)
    maps = [pooling(frame[None]) for pooling, frame in zip(poolings, frames, strict=True)]
    sizes = [(one.shape[1], one.shape[2]) for one in maps]
    tokens, is_outside = attention.window_tokens(20, 20, sizes, torch.device("cpu"))
    number = 20 * window[0] + window[1]
    assert not is_outside[number].any()
    seen = torch.cat([torch.zeros(140 * 140, 1), *(one.flatten(0, 2) for one in maps)])
    seen[tokens[number]].sum().backward()
    for frame, field, cell in zip(frames.grad, (35, 49, 20, 6), (5, 7, 4, 2), strict=True):
        for axis in (0, 1):
            places = frame[..., 0].abs().sum(1 - axis).nonzero()[:, 0].tolist()
            first = cell * most_centred(7 * window[axis], 7, field, cell)
            assert places == list(range(first, first + field))


@pytest.mark.parametrize("window_size", [1, 3, 4, 7])
def test_plain_tokens_are_centred_on_windows_of_any_size(window_size):
    """Also where two choices are as near, which is so for every other window of seven with two tokens of three."""
    windows = torch.arange(9)
    for cell in range(1, 9):
        for kernel in range(1, 6):
            expected = [most_centred(window_size * number, window_size, kernel * cell, cell) for number in range(9)]
            source = ContextSource(kernel, cell, None)
            assert first_tokens(source, window_size, windows).tolist() == expected


@torch.no_grad()
def test_kernels_as_large_as_windows_are_pooled_alike_either_way():
    features = torch.randn(1, 10, 17, 16, generator=torch.Generator().manual_seed(0))
    references = torch.randn(1, 3, 10, 17, 16, generator=torch.Generator().manual_seed(1))
    fields = {"reference_receptive_fields": (49, 35, 7), "reference_pooling_kernels": (7, 7, 7)}
    first, second = (
        opinionated(cffm_model(context_pooling=pooling, **fields)).head.layers[0](features, references)
        for pooling in ("resized", "plain")
    )
    torch.testing.assert_close(first, second, rtol=0, atol=0)


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
    assert_equal_up_to_rounding(pooling(frame)[0], expected.movedim(0, -1)[0])


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
    assert_equal_up_to_rounding(fusion(maps), expected)


@torch.no_grad()
def test_layers_do_not_change_reference_frames():
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
    "printed": (PRINTED, official_indices()),
    "repeated": ({"first_frames": "repeated"}, repeated_indices((-9, -6, -3))),
    "repeated_with_other_offsets": (
        {**SMALL_WINDOWS, "reference_offsets": (-7, -2), "first_frames": "repeated"},
        repeated_indices((-7, -2)),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("protocol", PROTOCOLS)
@torch.no_grad()
def test_stream_equals_each_frames_clip_from_scratch(protocol, dtype):
    fields, indices = PROTOCOLS[protocol]
    model = opinionated(cffm_model(**fields)).to(dtype)
    video = random_clips(2, NUM_FRAMES, (50, 70))[0].to(dtype)
    for logits, frames in zip(streamed(model, video), indices, strict=True):
        expected = model(pixel_values_videos=video[:, frames]).logits[:, -1]
        assert_equal_up_to_rounding(logits, expected)


@torch.no_grad()
def test_batched_streams_may_have_different_lengths():
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
        assert_equal_up_to_rounding(together.logits[place : place + 1], alone.logits)


# ---- settings ----


@torch.no_grad()
def test_receptive_fields_of_the_paper():
    """Windows see 49 places of their own, 49 + 25 + 9 of the references and 49 of the target's surroundings."""
    model = cffm_model(**PRINTED)
    attention = model.head.layers[0].attention
    assert attention.neighbour_bias is None
    tokens, _ = attention.window_tokens(2, 3, [(3, 5), (2, 3), (4, 6), (7, 11)], torch.device("cpu"))
    assert tokens.shape == (6, 49 + 49 + 49 + 25 + 9)
    logits = model(pixel_values_videos=random_clips(1, 4)[0]).logits
    assert logits.shape == (1, 4, 6, 16, 24) and logits.isfinite().all()


@pytest.mark.parametrize("size", [(50, 70), (33, 95), (64, 65), (31, 200)], ids=str)
def test_loss_is_finite_for_frames_of_any_size(size):
    model = cffm_model().train()
    frames, labels = random_clips(2, 4, size)
    outputs = model(pixel_values_videos=frames, labels=labels)
    outputs.loss.backward()
    assert outputs.logits.shape[-2:] == tuple(math.ceil(length / 4) for length in size)
    assert outputs.loss.isfinite()


@pytest.mark.parametrize("offsets", [(-1,), (-3, -1), (-20, -5, -2, -1)], ids=str)
@torch.no_grad()
def test_every_reference_changes_the_logits_at_any_offsets(offsets):
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
        (
            {"target_receptive_field": 36},
            "must be a positive multiple of its pooling kernel. Got 36 with kernels of 7",
        ),
        ({"target_receptive_field": 42}, "must be an odd number of pooling kernels, each at most as large"),
        ({"target_pooling_kernel": 0}, "must be a positive multiple of its pooling kernel. Got 35 with kernels of 0."),
        ({"reference_receptive_fields": (49, 15, 1)}, "Got 1 with kernels of 2."),
        ({**PRINTED, "target_receptive_field": 36}, "Got 36 with kernels of 5."),
        ({**PRINTED, "target_receptive_field": 0}, "Got 0 with kernels of 5."),
        ({"window_size": 0}, "`window_size` must be at least 1. Got 0."),
        ({"window_size": -7}, "`window_size` must be at least 1. Got -7."),
        ({"window_size": 5}, "each at most as large as the window (5). Got 35 with kernels of 7."),
        ({"mining_layers": 0}, "`mining_layers` must be at least 1. Got 0."),
        ({"hidden_dim": 0}, "`hidden_dim` must be at least 1. Got 0."),
        ({"num_attention_heads": 0}, "`num_attention_heads` must be at least 1. Got 0."),
        ({"mlp_ratio": 0}, "`mlp_ratio` must be at least 1. Got 0."),
        ({"num_labels": 0}, "`num_labels` must be at least 1. Got 0."),
        ({"auxiliary_loss_weight": -0.5}, "`auxiliary_loss_weight` must be finite and at least 0. Got -0.5."),
        ({"auxiliary_loss_weight": math.nan}, "`auxiliary_loss_weight` must be finite and at least 0. Got nan."),
        ({"auxiliary_loss_weight": math.inf}, "`auxiliary_loss_weight` must be finite and at least 0. Got inf."),
        ({"ignore_value": 5}, "`ignore_value` must be no class index, of which there are 6. Got 5."),
        ({"ignore_value": 0}, "`ignore_value` must be no class index"),
        ({"num_labels": 256}, "`ignore_value` must be no class index, of which there are 256. Got 255."),
        ({"num_frames": 3}, "it is one more than there are `reference_offsets`. Got 3. Give `reference_offsets`"),
        ({"neighborhood": -1}, "`neighborhood` must lie between 0 and `window_size` (7). Got -1."),
        ({"neighborhood": 8}, "`neighborhood` must lie between 0 and `window_size` (7). Got 8."),
        ({"classifier_dropout": 1.0}, "`classifier_dropout` must lie in [0, 1). Got 1.0."),
        ({"hidden_dim": 18}, "`hidden_dim` must be a multiple of `num_attention_heads` (4). Got 18."),
    ],
    ids=str,
)
def test_invalid_config_is_rejected(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        cffm_model(**fields)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("neighborhood", 9, "`neighborhood` must lie between 0 and"),
        ("num_frames", 3, "`num_frames` must be left out"),
    ],
)
def test_overridden_config_fields_are_checked(tmp_path, name, value, message):
    cffm_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        CFFMForVideoSemanticSegmentation.from_pretrained(tmp_path, **{name: value})


@pytest.mark.parametrize("build", [cffm_model, tiny_model], ids=["cffm", "themask"])
def test_backbone_of_a_saved_model_cannot_be_replaced_by_name(tmp_path, build):
    model = build()
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"`backbone` must be given to a new configuration only. Got 'mit-b0' for an"):
        type(model).from_pretrained(tmp_path, backbone="mit-b0")


def test_context_pooling_and_every_other_choice_are_saved(tmp_path):
    model = cffm_model(**PRINTED, first_frames="repeated", ignore_value=-1)
    resized = cffm_model(**{**PRINTED, "context_pooling": "resized"})
    assert model.state_dict().keys() == resized.state_dict().keys()
    model.save_pretrained(tmp_path)
    loaded = CFFMForVideoSemanticSegmentation.from_pretrained(tmp_path).eval()
    assert (
        loaded.config.context_sources
        == model.config.context_sources
        == [(7, 5, None), (7, 7, None), (5, 4, None), (3, 2, None)]
    )
    frames, _ = random_clips(1, 4, (50, 70))
    with torch.no_grad():
        assert torch.equal(loaded(pixel_values_videos=frames).logits, model(pixel_values_videos=frames).logits)


@pytest.mark.parametrize("call", ["clip", "stream"])
@torch.no_grad()
def test_frames_too_small_for_the_backbone_are_rejected(call):
    """The MiT's keys come from kernels of 8 places at stride 4: from 29 pixels on there are 8 places."""
    model = cffm_model()

    def run(height, width):
        frames = torch.zeros(1, 1, 3, height, width)
        if call == "clip":
            return model(pixel_values_videos=frames.repeat(1, 4, 1, 1, 1))
        return model.streaming_step(frames, model.initial_state())[0]

    assert run(29, 29).logits.shape[-2:] == (8, 8)
    for size in ((28, 200), (200, 28), (1, 1)):
        with pytest.raises(ValueError, match=rf"height and width of at least 29 .* Got {size[0]}x{size[1]}"):
            run(*size)


@torch.no_grad()
def test_the_smallest_frames_follow_from_the_backbone():
    """Without reductions a map at stride 8 of one place is enough; with one at stride 16 there must be two places."""
    for reductions, smallest in (((1, 1, 1, 1), 5), ((1, 1, 2, 1), 17)):
        model = cffm_model(backbone_config=MiTConfig(**TINY_MIT, sr_ratios=reductions))
        assert model(pixel_values_videos=torch.zeros(1, 4, 3, smallest, smallest)).logits.isfinite().all()
        with pytest.raises(ValueError, match=f"of at least {smallest} for this backbone"):
            model(pixel_values_videos=torch.zeros(1, 4, 3, smallest - 1, 64))


@torch.no_grad()
def test_stream_rejects_a_changed_batch_or_frame_size():
    model = cffm_model()
    _, state = model.streaming_step(torch.zeros(2, 1, 3, 64, 96), model.initial_state())
    with pytest.raises(ValueError, match=r"2 with maps of 8x12 at stride 8. Got 2 with maps of 8x8. Begin another"):
        model.streaming_step(torch.zeros(2, 1, 3, 64, 64), state)
    with pytest.raises(ValueError, match=r"2 with maps of 8x12 at stride 8. Got 1 with maps of 8x12"):
        model.streaming_step(torch.zeros(1, 1, 3, 64, 96), state)


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


def test_parameters_missing_from_a_checkpoint_are_initialised_like_new_ones(tmp_path):
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
def test_loss_is_zero_without_labels(ignored_pixels):
    model = cffm_model(ignored_pixels=ignored_pixels)
    frames, labels = random_clips(1, 4)
    loss = model(pixel_values_videos=frames, labels=torch.full_like(labels, 255)).loss
    loss.backward()
    assert loss == 0 and not any(parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("num_frames", [1, 2, 3, 5, 8])
def test_clip_of_another_length_is_segmented_frame_by_frame_and_has_no_loss(num_frames):
    model = opinionated(cffm_model())
    frames, labels = random_clips(1, num_frames)
    with torch.no_grad():
        logits = model(pixel_values_videos=frames).logits
        for index in range(num_frames):
            alone = model(pixel_values_videos=frames[:, index : index + 1]).logits[:, 0]
            assert_equal_up_to_rounding(logits[:, index], alone)
    with pytest.raises(ValueError, match=f"must hold the 4 frames of a clip to compute the loss. Got {num_frames}."):
        model(pixel_values_videos=frames, labels=labels)
