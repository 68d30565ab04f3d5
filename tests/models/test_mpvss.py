# SPDX-License-Identifier: Apache-2.0
"""MPVSS by itself: streams, warps and flows written out frame by frame, its designs, schedule, loss and settings."""

import copy
import math
import re

import pytest
import torch
from torch.nn.functional import pad
from transformers import AutoConfig, AutoModel, Mask2FormerConfig, ResNetConfig, SwinConfig

from families import mpvss_model
from point_samplers import layer_by_layer
from tiny import random_clips, tiny_config, tiny_model
from tiny_segmenters import STAGES, SWIN, opinionated, save_native
from tolerances import assert_equal_up_to_rounding
from transformers_themask import MPVSSConfig, MPVSSForVideoSemanticSegmentation
from transformers_themask.export.graphs import named_tensors
from transformers_themask.models.configuration_mpvss import FLOWNETS_CHANNELS
from transformers_themask.models.key_frames_mpvss import unexplained_colors
from transformers_themask.models.motion_mpvss import FlowEstimator, warp
from transformers_themask.models.step_context import StepContext

NUM_FRAMES = 13
# Table 3 of the paper, which prints 40.08 for the shared flow that queries take part in: with a head that ours lacks.
MILLIONS = {
    "full": 40.08,
    "query_learned": 37.56,
    "query_random": 37.56,
    "query_for_pixel_flow": 38.97,
    "optical_flow": 38.68,
}


def pictures(num_frames, seed=0):
    """A video of unrelated pictures, of squares of 8 pixels: `(1, num_frames, 3, 64, 96)`."""
    cells = torch.randn(1, num_frames, 3, 8, 12, generator=torch.Generator().manual_seed(seed))
    return cells.repeat_interleave(8, dim=-2).repeat_interleave(8, dim=-1)


def assert_near(ours, expected, tolerance=1e-9):
    torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance)


def constants(model, *names):
    return (torch.tensor(getattr(model.config, name), dtype=model.dtype)[:, None, None] for name in names)


# ---- streams ----


@torch.no_grad()
def streamed(model, video):
    """The fields of all frames, and the state after each."""
    state, steps, states = model.initial_state(), [], []
    for frame in video.split(1, dim=1):
        outputs, state = model.streaming_step(frame.clone(), state)
        steps.append(outputs)
        states.append(state)
    return {name: torch.cat([step[name] for step in steps], dim=1) for name in steps[0]}, states


@torch.no_grad()
def pair_by_pair(model, video):
    """The fields of one video, every frame's from nothing but its key frame and itself."""
    interval, threshold = model.config.key_frame_interval, model.config.key_frame_threshold
    pair = copy.deepcopy(model)
    pair.config.key_frame_interval, pair.config.key_frame_threshold = 2, None
    key, frames = 0, []
    for index in range(video.shape[1]):
        outputs = pair(video[:, [key, index]])
        is_due, place = index in (0, key + interval), 1
        unexplained = outputs.unexplained[:, 1] * (not is_due)
        if is_due or (threshold is not None and unexplained > threshold):
            key, place, outputs = index, 0, pair(video[:, [index, index]])
        frames.append({name: value[:, place] for name, value in outputs.items()} | {"unexplained": unexplained})
    return {name: torch.stack([frame[name] for frame in frames], dim=1) for name in frames[0]}


def assert_same_fields(ours, expected):
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert_near(ours[name], value, 1e-5 if name == "unexplained" else 1e-9)  # that is computed in float32


@pytest.mark.parametrize("threshold", [None, 0.02])
@pytest.mark.parametrize("interval", [1, 2, 5, 20])
@torch.no_grad()
def test_streams_batches_and_pairs_of_frames_equal_whole_clips(interval, threshold):
    model = opinionated(mpvss_model(key_frame_interval=interval, key_frame_threshold=threshold)).double()
    videos = [pictures(NUM_FRAMES, seed).double() for seed in range(2)]
    clip = model(pixel_values_videos=torch.cat(videos))
    stream, _ = streamed(model, torch.cat(videos))
    assert_same_fields(stream, dict(clip))
    assert_near(type(clip)(**stream).scores(), clip.scores())
    for number, video in enumerate(videos):
        own = {name: value[number : number + 1] for name, value in stream.items()}
        assert_same_fields(own, pair_by_pair(model, video))
    first, second = clip.is_key_frame
    is_regular = (clip.is_key_frame == (torch.arange(NUM_FRAMES) % interval == 0)).all()
    if threshold is None or interval == 1:
        assert is_regular
    else:  # each video has key frames of its own
        assert not is_regular and (first != second).any() and not first.all() and not second.all()


@pytest.mark.parametrize("threshold", [None, 0.02])
def test_state_size_does_not_grow_with_the_stream(threshold):
    model = opinionated(mpvss_model(key_frame_threshold=threshold))
    _, states = streamed(model, random_clips(2, 30, (32, 64))[0])
    early, late = (
        {name: (part.shape, part.untyped_storage().nbytes()) for name, part in named_tensors(state, "").items()}
        for state in (states[2], states[-1])
    )
    assert len(early) == 5 and early == late


# ---- against loops over pixels and Transformers' own segmenter ----


def fetch(rows, y, x):
    """Read a map, given as rows of numbers, between its pixels; outside, the border goes on."""
    y, x = min(max(y, 0.0), len(rows) - 1.0), min(max(x, 0.0), len(rows[0]) - 1.0)
    top, left = math.floor(y), math.floor(x)
    bottom, right = min(top + 1, len(rows) - 1), min(left + 1, len(rows[0]) - 1)
    above, below = (row[left] + (x - left) * (row[right] - row[left]) for row in (rows[top], rows[bottom]))
    return above + (y - top) * (below - above)


def warped_pixel_by_pixel(mask, flow, corrected):
    """`warp` of one mask `(height, width)` with a flow `(2, flow_height, flow_width)`."""
    (height, width), factor = mask.shape, mask.shape[1] // flow.shape[2]
    rows, (across, down) = mask.tolist(), flow.tolist()
    result = torch.zeros_like(mask)
    for y, x in ((y, x) for y in range(height) for x in range(width)):
        place = ((y + 0.5) / factor - 0.5, (x + 0.5) / factor - 0.5)
        at_y, at_x = y + factor * fetch(down, *place), x + factor * fetch(across, *place)
        if not corrected:  # the release reads too far up and left, at the end by a pixel
            at_y, at_x = at_y * (height - 1) / height, at_x * (width - 1) / width
        result[y, x] = fetch(rows, at_y, at_x)
    return result


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_warp_equals_a_loop_over_pixels(factor, corrected):
    generator = torch.Generator().manual_seed(0)
    masks = torch.randn(3, 1, 8, 12, generator=generator, dtype=torch.float64)
    flows = torch.randn(3, 2, 8 // factor, 12 // factor, generator=generator, dtype=torch.float64)
    flows *= torch.tensor([0.3, 2.0, 30.0])[:, None, None, None]  # a little, some, and out of the picture
    for mask, flow, result in zip(masks, flows, warp(masks, flows, corrected), strict=True):
        assert_near(result[0], warped_pixel_by_pixel(mask[0], flow, corrected))


@pytest.mark.parametrize("flow", [(0.0, 0.0), (-2.0, 0.0), (1.0, 3.0), (0.5, -1.5)], ids=str)
def test_a_corrected_warp_moves_masks_by_a_constant_flow(flow):
    """At half the size, so that masks move by twice as much; without flow they stay."""
    masks = torch.randn(1, 4, 16, 24, generator=torch.Generator().manual_seed(0))
    ours = warp(masks, torch.tensor(flow)[None, :, None, None].expand(1, 2, 8, 12), corrected=True)
    rows, columns = torch.arange(16) + int(2 * flow[1]), torch.arange(24) + int(2 * flow[0])
    is_inside = ((rows >= 0) & (rows < 16))[:, None] & (columns >= 0) & (columns < 24)
    expected = masks[:, :, rows.clamp(0, 15)][..., columns.clamp(0, 23)]
    assert_equal_up_to_rounding(ours[..., is_inside], expected[..., is_inside])


@torch.no_grad()
def test_a_clip_is_mask2former_and_one_flow_and_warp_after_another(tmp_path):
    segmenter = save_native("mask2former", tmp_path)
    tiny = {name: value for name, value in mpvss_model().config.to_dict().items() if name.startswith("motion_")}
    config = MPVSSConfig(segmenter_config=segmenter.config, key_frame_interval=3, **tiny)
    model, report = MPVSSForVideoSemanticSegmentation.from_pretrained(
        tmp_path, config=config, output_loading_info=True
    )
    assert set(report["missing_keys"]) == {name for name in model.state_dict() if name.startswith("flow.")}
    assert not report["unexpected_keys"] and not report["mismatched_keys"]
    opinionated(model.flow)
    model, segmenter, video = model.eval().double(), segmenter.double(), random_clips(2, 5)[0].double()
    outputs = model(pixel_values_videos=video)
    mean, std, flow_mean = constants(model, "image_mean", "image_std", "flow_image_mean")
    for number, index in ((number, index) for number in range(2) for index in range(5)):
        key_frame = video[number, index - index % 3]
        expected = segmenter(pixel_values=key_frame[None])
        masks, flows = expected.masks_queries_logits[0], torch.zeros(8, 2, 8, 12, dtype=torch.float64)
        if index % 3:
            inside = segmenter.model(pixel_values=key_frame[None], output_hidden_states=True)
            queries = inside.transformer_decoder_intermediate_states[-1].view(1, 8, 32)
            both = torch.cat([frame * std + mean - flow_mean for frame in (video[number, index], key_frame)])
            flows = model.flow(both.view(1, 6, 32, 2, 48, 2).mean((3, 5)), queries).fused[0]
            pairs = zip(masks, flows, strict=True)
            masks = torch.stack([warped_pixel_by_pixel(mask, flow, corrected=False) for mask, flow in pairs])
            assert flows.std() > 0.1
        assert_near(outputs.frame_class_queries_logits[number, index], expected.class_queries_logits[0], 1e-6)
        assert_near(outputs.frame_masks_queries_logits[number, index], masks, 1e-6)
        assert_near(outputs.flows[number, index], flows, 1e-6)


# ---- new models and designs ----


@torch.no_grad()
def test_identity_flow_init_copies_the_key_frames_masks():
    model = mpvss_model(flow_init="identity", corrected_warp=True)
    outputs = model(pixel_values_videos=random_clips(1, 4)[0])
    masks = outputs.frame_masks_queries_logits
    assert not outputs.flows.any()
    assert_equal_up_to_rounding(masks, masks[:, :1].expand_as(masks))


def test_a_new_flow_is_one_place_and_only_its_fusion_learns_at_first():
    model = mpvss_model().train()
    outputs = model(*random_clips(2, 2))
    assert (outputs.flows[:, 1] == 1).all()
    outputs.loss.backward()
    learning = {name for name, part in model.flow.named_parameters() if part.grad is not None and part.grad.any()}
    assert learning == {"fusion.weight", "fusion.bias"}


@pytest.mark.parametrize("design", MILLIONS)
@torch.no_grad()
def test_designs_have_the_papers_parameters_and_depend_on_the_key_frames_queries_or_not(design):
    with torch.device("meta"):
        widths = {"decoder_channels": FLOWNETS_CHANNELS} if design == "optical_flow" else {}
        flow = FlowEstimator(256, 100, design, **widths)
    assert sum(part.numel() for part in flow.parameters()) / 1e6 == pytest.approx(MILLIONS[design], abs=0.0075)
    flow, generator = opinionated(mpvss_model(propagation=design).flow), torch.Generator().manual_seed(0)
    frames, queries = (torch.randn(*shape, generator=generator) for shape in ((1, 6, 32, 48), (2, 1, 8, 32)))
    first, second = (flow(frames, each).fused for each in queries)
    assert first.shape == (1, 1 if design in ("optical_flow", "query_for_pixel_flow") else 8, 2, 8, 12)
    assert torch.equal(first, second) == (design in ("query_random", "optical_flow"))


@pytest.mark.parametrize("design", [*MILLIONS, "copy"])
def test_every_design_learns_and_is_saved(design, tmp_path):
    model, (frames, labels) = opinionated(mpvss_model(propagation=design)).train(), random_clips(2, 2)
    model(pixel_values_videos=frames, labels=labels).loss.backward()
    trained = {name: part for name, part in model.named_parameters() if part.requires_grad}
    assert [name for name, part in trained.items() if part.grad is None or not part.grad.any()] == []
    model.eval().save_pretrained(tmp_path)
    loaded = MPVSSForVideoSemanticSegmentation.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        ours, again = (each.double()(pixel_values_videos=frames.double()) for each in (model, loaded))
    assert loaded.config.propagation == design
    assert_same_fields(again, dict(ours))
    masks = ours.frame_masks_queries_logits
    assert torch.equal(masks[:, 1], masks[:, 0]) == (design == "copy")
    assert any(name.startswith("flow.") for name in model.state_dict()) == (design != "copy") == ("flows" in ours)


# ---- training ----

BACKBONES = {
    "resnet_with_batch_norms": lambda: ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic", out_features=STAGES
    ),
    "swin_with_drop_path": lambda: SwinConfig(**{**SWIN, "drop_path_rate": 0.9}, out_features=STAGES),
}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_step_changes_the_flow_and_two_heads_and_nothing_else(backbone):
    model = opinionated(mpvss_model(segmenter={"backbone_config": BACKBONES[backbone]()})).train()
    assert model.training and all(module.training for module in model.flow.modules())
    assert not any(module.training for module in model.segmenter.modules())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(*random_clips(2, 2)).loss.backward()
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    parts = ("flow.", "segmenter.class_predictor.", "segmenter.model.transformer_module.decoder.mask_predictor.")
    assert changed == {name for name in before if name.startswith(parts)}
    assert changed == {name for name, part in model.named_parameters() if part.requires_grad}


@layer_by_layer
def fixed_points(kind, layer, shape, generator):
    """The same random points for every mask."""
    return torch.rand(shape[1:], generator=torch.Generator().manual_seed(layer)).expand(shape)


@pytest.mark.parametrize("num_frames", [2, 3])
def test_the_loss_is_that_of_the_later_frames_as_pictures_of_one_batch(num_frames):
    model, frames = opinionated(mpvss_model(propagation="copy")).double(), random_clips(2, 1)[0].double()
    labels, repeated = random_clips(2, num_frames)[1], frames.repeat(1, num_frames, 1, 1, 1)
    later = labels[:, 1:].flatten(0, 1)[:, None]
    same = frames.repeat_interleave(num_frames - 1, dim=0)
    segmenter = tiny_model(matching_rounds=1).double()
    segmenter.load_state_dict(model.segmenter.state_dict())
    expected = segmenter(same, later, StepContext(point_sampler=fixed_points))
    for of_key_frame in (labels[:, :1], torch.full_like(labels[:, :1], 255)):
        outputs = model(
            repeated, torch.cat([of_key_frame, labels[:, 1:]], dim=1), StepContext(point_sampler=fixed_points)
        )
        for ours, theirs in ((outputs.loss, expected.loss), (outputs.loss_terms, expected.loss_terms)):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)
    numbers = [len(set(picture.unique().tolist()) - {255}) for picture in later]
    weights = sum(number + 0.1 * (8 - number) for number in numbers)
    assert model.loss_counts(labels).tolist() == pytest.approx([sum(numbers), weights])


def test_the_losses_of_two_later_frames_are_shares():
    """With their flows, which come from each frame and the key frame alone."""
    model, (frames, labels) = opinionated(mpvss_model()).double(), random_clips(1, 3)
    frames = frames.double()
    options = {"context": StepContext(model.loss_counts(labels), point_sampler=fixed_points)}
    shares = [model(frames[:, pair], labels[:, pair], **options).loss for pair in ([0, 1], [0, 2])]
    whole = model(frames, labels, StepContext(point_sampler=fixed_points))
    torch.testing.assert_close(whole.loss, sum(shares), rtol=1e-9, atol=0)
    assert_equal_up_to_rounding(whole.flows, model(frames).flows)  # of the last layer's queries, as without labels


# ---- the schedule ----

LEFT, RIGHT, MORE = (torch.tensor(color)[:, None, None] for color in ([1.0, -0.5, 2.0], [-1.0, 0.5, 0.25], [0.3] * 3))


def halves(left, right, padding):
    return pad(torch.cat([left.expand(3, 32, 32), right.expand(3, 32, 32)], dim=-1), (0, padding, 0, padding))[None]


@pytest.mark.parametrize("padding", [0, 32])
def test_unexplained_colors_of_two_halves(padding):
    """Their variance is a quarter of the squared distance of the two colours. The third mask stands for nothing."""
    masks = torch.full((1, 3, 8 + padding // 4, 16 + padding // 4), -40.0)
    masks[:, 0, :, :8] = masks[:, 1, :, 8:] = masks[:, 2] = 40
    classes = torch.tensor([[[40.0, 0, 0], [0, 40.0, 0], [0, 0, 90.0]]])
    distance, more = (LEFT - RIGHT).square().sum(), MORE.square().sum()
    cases = {
        (LEFT, RIGHT): 0.0,
        (RIGHT, LEFT): 4.0,
        (LEFT + MORE, RIGHT + MORE): 4 * more / distance,
        (LEFT, RIGHT + MORE): 2 * more / max(distance, (LEFT - RIGHT - MORE).square().sum()),
        (LEFT, LEFT): 2.0,  # a flat picture has no variance: that of the key frame counts
    }
    key = halves(LEFT, RIGHT, padding)
    for colors, expected in cases.items():
        later, at_key = unexplained_colors(key, masks, halves(*colors, padding), masks, classes)
        assert_near(later, torch.as_tensor(expected).view(1), 1e-4)
        assert_near(at_key, torch.zeros(1), 1e-5)
    # Where every pixel belongs by 3/4 to one of the halves, segments have half the contrast, and a pixel half of that.
    overlapping = torch.where(masks > 0, 0.6, 0.2).logit()
    _, at_key = unexplained_colors(key, overlapping, key, overlapping, classes)
    assert_near(at_key, torch.full((1,), (1 - 0.5 * 0.5) ** 2), 1e-5)


def test_a_scene_cut_is_a_key_frame_at_once_and_a_still_picture_is_none():
    model = mpvss_model(flow_init="identity", corrected_warp=True, key_frame_threshold=0.02)
    opinionated(model.segmenter)
    first, second = pictures(2).split(1, dim=1)
    still, _ = streamed(model, first.repeat(1, 12, 1, 1, 1))
    assert still["is_key_frame"][0].nonzero().flatten().tolist() == [0, 5, 10]
    assert still["unexplained"].abs().max() < 1e-4
    cut, _ = streamed(model, torch.cat([first.repeat(1, 3, 1, 1, 1), second.repeat(1, 9, 1, 1, 1)], dim=1))
    assert cut["is_key_frame"][0].nonzero().flatten().tolist() == [0, 3, 8]
    assert (cut["unexplained"][0] > 0.02).nonzero().flatten().tolist() == [3]
    with torch.no_grad():
        expected = model(pixel_values_videos=second)
    assert torch.equal(cut["frame_masks_queries_logits"][:, 3:4], expected.frame_masks_queries_logits)


# ---- padding ----


@pytest.mark.parametrize("zeroing", [None, (40, 64), (480, 853)], ids=str)
@torch.no_grad()
def test_motion_encoder_input_is_zero_in_the_padding(zeroing):
    model, seen = mpvss_model(), []
    model.flow.encoder.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    frames = pad(random_clips(2, 2, (48, 80))[0], (0, 16, 0, 16))
    model(pixel_values_videos=frames, official_zeroing=zeroing)
    mean, std, flow_mean = constants(model, "image_mean", "image_std", "flow_image_mean")
    height, width = (min(pair) for pair in zip((48, 80), zeroing or (48, 80), strict=True))
    expected = (frames * std + mean - flow_mean)[:, [1, 0], :, :height, :width].flatten(1, 2)
    expected = torch.nn.functional.interpolate(expected, scale_factor=0.5, mode="bilinear")
    assert_near(seen[0], pad(expected, (0, 48 - width // 2, 0, 32 - height // 2)), 1e-5)


# ---- settings and bad input ----


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"segmenter_config": {"num_frames": 2}}, "of single frames, with `num_frames` 1. Got 2."),
        ({"key_frame_interval": 0}, "`key_frame_interval` must be at least 1. Got 0."),
        ({"key_frame_threshold": -0.1}, "`key_frame_threshold` must be a number of at least 0. Got -0.1."),
        ({"motion_layers": 0}, "`motion_layers` must be at least 1. Got 0."),
        ({"motion_feedforward_dim": 0}, "`motion_feedforward_dim` must be at least 1. Got 0."),
        ({"motion_attention_heads": 0}, "`motion_attention_heads` must be at least 1. Got 0."),
        ({"motion_attention_heads": 3}, "must divide the segmenter's `hidden_dim` (256). Got 3."),
        ({"motion_channels": (8, 8)}, "`motion_channels` must be 6 numbers of channels. Got (8, 8)."),
        ({"num_frames": 3}, "`num_frames` must be left out: a training clip has 2 frames"),
        ({"ignore_value": 7}, "`ignore_value` must be given as a field of `segmenter_config`. Got 7"),
        ({"num_labels": 256}, "must not be one of the 256 class indices. Got 255."),
        ({"key_frame_threshold": float("nan")}, "`key_frame_threshold` must be a number of at least 0. Got nan."),
        ({"segmenter_config": 3}, "`segmenter_config` must be that of a THE-Mask or a Mask2Former. Got 'int'."),
        ({"segmenter_config": {"model_type": "segformer"}}, "of a THE-Mask or a Mask2Former. Got 'segformer'."),
        ({"flow_image_mean": (0.1,)}, "`flow_image_mean` must be one number per colour. Got (0.1,)."),
        ({"image_std": (0.2, 0.0, 0.2)}, "`image_std` must be one positive number per colour. Got (0.2, 0.0, 0.2)."),
        ({"motion_decoder_channels": (8, 8, 8, 0)}, "must be 4 numbers of channels. Got (8, 8, 8, 0)."),
    ],
    ids=str,
)
def test_invalid_config_is_rejected(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        MPVSSConfig(**fields)


def test_invalid_input_is_rejected_with_one_line():
    model, (frames, labels) = mpvss_model(), random_clips(1, 2)
    adaptive = mpvss_model(key_frame_threshold=0.5)
    _, state = model.streaming_step(frames[:, :1], model.initial_state())
    for call, message in (
        (lambda: model(frames[:, :1], labels[:, :1]), "must hold a frame after the key frame to compute the loss"),
        (lambda: model(frames[..., :90], labels), "height and width multiples of 32. Got shape (1, 2, 3, 64, 90)."),
        (
            lambda: model.streaming_step(frames[:, 1:, ..., :32], state),
            "must have the shape of the state's key frames",
        ),
        (
            lambda: model.streaming_step(frames[:, 1:].repeat(2, 1, 1, 1, 1), state),
            "Got (2, 1, 3, 64, 96). Begin other",
        ),
        (lambda: adaptive(frames, official_zeroing=(32, 32)), "left out with a `key_frame_threshold`"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            call()


@pytest.mark.parametrize(
    "make", [tiny_config, lambda: Mask2FormerConfig(num_labels=6)], ids=["themask", "mask2former"]
)
def test_classes_reach_the_segmenter_and_configurations_survive_a_round_trip(make, tmp_path):
    assert MPVSSConfig(segmenter_config=make()).num_labels == 6
    named = MPVSSConfig(segmenter_config=make(), id2label={0: "road", 1: "sky"})
    numbered = MPVSSConfig(segmenter_config=make().to_dict(), num_labels=9, key_frame_threshold=0.5)
    for config, number in ((named, 2), (numbered, 9)):
        config.save_pretrained(tmp_path)
        for each in (config, AutoConfig.from_pretrained(tmp_path), MPVSSConfig.from_dict(config.to_dict())):
            assert {**each.to_dict(), "_name_or_path": ""} == {**config.to_dict(), "_name_or_path": ""}
            assert each.segmenter_config.model_type == "query_segmenter"
            assert each.id2label == each.segmenter_config.id2label
            assert each.num_labels == each.segmenter_config.num_labels == len(each.label2id) == number
    segmenter = make()
    assert MPVSSConfig(segmenter_config=segmenter, num_labels=9).num_labels == 9 and segmenter.num_labels == 6
    assert MPVSSConfig(segmenter_config=named.segmenter_config, num_labels=2).id2label == {0: "road", 1: "sky"}
    assert mpvss_model(num_labels=3)(random_clips(1, 2)[0]).frame_class_queries_logits.shape[-1] == 4


@pytest.mark.parametrize("propagation", ["full", "optical_flow"])
def test_flow_missing_from_a_checkpoint_is_initialised_like_a_new_one(propagation, tmp_path):
    fresh = mpvss_model(propagation=propagation)
    fresh.segmenter.save_pretrained(tmp_path)
    loaded = MPVSSForVideoSemanticSegmentation.from_pretrained(tmp_path, config=fresh.config)
    assert torch.equal(loaded.segmenter.class_predictor.weight, fresh.segmenter.class_predictor.weight)
    learning = {name for name, parameter in fresh.named_parameters() if parameter.requires_grad}
    fresh.save_pretrained(tmp_path / "whole")
    whole, _ = MPVSSForVideoSemanticSegmentation.from_pretrained(tmp_path / "whole", output_loading_info=True)
    for each in (loaded, whole, AutoModel.from_pretrained(tmp_path / "whole")):
        assert {name for name, parameter in each.named_parameters() if parameter.requires_grad} == learning
    for (name, ours), expected in zip(loaded.flow.named_parameters(), fresh.flow.parameters(), strict=True):
        if expected.numel() < 64:
            assert ours.abs().max() <= max(2 * expected.abs().max(), 0.6), name
        else:
            assert 0.7 * expected.std() <= ours.std() <= 1.4 * expected.std(), name


def test_nan_flow_gives_a_nan_loss():
    """And not in the end of the process, which torch's `grid_sample` has for its gradients."""
    model, (frames, labels) = mpvss_model(), random_clips(2, 2)
    with torch.no_grad():
        model.flow.fusion.bias.fill_(float("nan"))
    masks = torch.rand(2, 1, 8, 8, requires_grad=True)
    flow = torch.full((2, 2, 4, 4), float("nan"), requires_grad=True)
    warp(masks, flow).sum().backward()
    assert warp(masks, flow).isnan().all()
    loss = model(frames, labels).loss
    loss.backward()
    assert loss.isnan()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_places_are_exact_in_half_precision(dtype):
    """On maps with more columns than bfloat16 has whole numbers: a ramp that changes by one from place to place."""
    ramp = torch.arange(512, dtype=torch.float32).expand(1, 1, 4, 512)
    for autocast in (False, True):
        with torch.autocast("cpu", dtype, enabled=autocast):
            for moved in (0.0, 0.25):
                flow = torch.full((1, 2, 2, 256), moved / 2, dtype=dtype)
                warped = warp(ramp if autocast else ramp.to(dtype), flow, corrected=True)[..., 1:-1]
                expected = (ramp if autocast else ramp.to(dtype).float())[..., 1:-1] + moved
                # Of the result's own precision, half of a unit in its last place, and of float32 what is left.
                tolerance = 1e-3 if autocast else 512 * torch.finfo(dtype).eps
                torch.testing.assert_close(warped.float(), expected, rtol=0, atol=tolerance)
