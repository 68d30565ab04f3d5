# SPDX-License-Identifier: Apache-2.0
"""The loss at its edges and in all its variants, against loops written from the paper and against closed forms."""

from itertools import permutations

import numpy as np
import pytest
import torch

from naive_loss import naive_loss_terms
from point_samplers import layer_by_layer
from selection import pairwise
from tiny import random_clips, tiny_config, tiny_model
from transformers_themask.models.matching import LevelPrediction, two_round_assignment
from transformers_themask.models.modeling_themask import loss_settings
from transformers_themask.models.query_loss import HierarchicalLoss
from transformers_themask.models.step_context import StepContext

SECONDARY = ("loss_secondary_mask", "loss_secondary_dice")


def points_by_name(kind, layer, shape, generator):
    """Random points that depend on what they are for, but not on the order of the calls."""
    seeded = torch.Generator().manual_seed(sum(map(ord, kind)) + 1000 * layer)
    return torch.rand(shape, generator=seeded, dtype=torch.float64)


ANY_POINTS = layer_by_layer(points_by_name)


def label_maps(batch_size=2, num_frames=1, size=(32, 48), seed=0):
    """Blocky labels of classes 0 to 4; about a sixth of the pixels, in blocks that cut through cells, is ignored."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randint(0, 6, (batch_size, num_frames, 5, 7), generator=generator)
    cells[cells == 5] = 255
    return torch.nn.functional.interpolate(cells.float(), size, mode="nearest").long()


def predictions(config, entries, num_frames, num_layers=2, size=(8, 12), seed=0, scale=3.0, dtype=torch.float64):
    """Per layer a pair of leaves (class logits, mask logits)."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (entries, config.num_queries, config.num_labels + 1), (entries, num_frames, config.num_queries, *size)
    return [
        tuple((scale * torch.randn(shape, generator=generator)).to(dtype).requires_grad_() for shape in shapes)
        for _ in range(num_layers)
    ]


def levels(config, mode, batch_size, num_frames, **options):
    """Video-level and frame-level predictions as the model of this `mode` makes them."""
    video = predictions(config, batch_size, num_frames, **options) if mode != "frame" else []
    frame = predictions(config, batch_size * num_frames, 1, seed=1, **options) if mode != "video" else []
    return video, frame


def loss_terms(config, video, frame, labels, rounds=2, sampler=ANY_POINTS):
    wrapped = ([LevelPrediction(*layer) for layer in level] for level in (video, frame))
    return HierarchicalLoss(loss_settings(config), sampler)(*wrapped, labels, rounds).terms


def total(terms):
    return sum(term.sum() for term in terms.values())


def gradients(terms, video, frame):
    leaves = [leaf for layer in (*video, *frame) for leaf in layer]
    return torch.autograd.grad(total(terms), leaves)


VARIANTS = {
    "default": {},
    "mask_cost": {"second_round_cost": "mask"},
    "full_cost": {"second_round_cost": "full"},
    "original": {"secondary_loss": "original"},
    "soft_target": {"secondary_target": "soft"},
    "sampled": {"secondary_points": "sampled"},
    "sampled_soft_target": {"secondary_points": "sampled", "secondary_target": "soft"},
    "excluded": {"ignored_pixels": "excluded"},
    "excluded_sampled": {"ignored_pixels": "excluded", "secondary_points": "sampled"},
    "only_uncertain_points": {"importance_sample_ratio": 1.0},
    "only_uniform_points": {"importance_sample_ratio": 0.0, "oversample_ratio": 1.0},
    "weights": {
        "class_weight": 1.5,
        "mask_weight": 0.7,
        "dice_weight": 3.0,
        "secondary_mask_weight": 0.9,
        "secondary_dice_weight": 0.2,
        "secondary_round_weight": 0.6,
        "frame_loss_weight": 0.4,
        "no_object_weight": 0.3,
    },
}


@pairwise(variant=list(VARIANTS), mode=["video", "frame", "both"], rounds=[1, 2])
def test_every_variant_equals_plain_loops(variant, mode, rounds):
    num_frames = 1 if mode == "video" else 2
    config = tiny_config(num_queries=12, num_labels=5, num_frames=num_frames, train_num_points=16, **VARIANTS[variant])
    labels = label_maps(num_frames=num_frames)
    video, frame = levels(config, mode, 2, num_frames)
    ours = loss_terms(config, video, frame, labels, rounds)
    expected = naive_loss_terms(config, video, frame, labels, rounds, points_by_name)
    expected = {name: torch.stack(list(map(torch.as_tensor, values))) for name, values in expected.items()}
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-12, msg=lambda text, n=name: f"{n}: {text}")
    for our, naive in zip(gradients(ours, video, frame), gradients(expected, video, frame), strict=True):
        torch.testing.assert_close(our, naive, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [(32, 48), (37, 50), (100, 13), (6, 9), (8, 12)])
@pytest.mark.parametrize("ignored_pixels", ["negative", "excluded"])
def test_label_maps_of_any_size_equal_plain_loops(size, ignored_pixels):
    config = tiny_config(num_queries=12, num_labels=5, train_num_points=64, ignored_pixels=ignored_pixels)
    labels = label_maps(size=size)
    video, _ = levels(config, "video", 2, 1)
    ours = loss_terms(config, video, [], labels)
    expected = naive_loss_terms(config, video, [], labels, 2, points_by_name)
    for name, values in expected.items():
        torch.testing.assert_close(ours[name], torch.stack(values), rtol=1e-9, atol=1e-12)


def test_default_second_cost_depends_on_the_clip_length():
    """Mask cross-entropy alone for one frame, the full cost for more, as released."""
    labels = label_maps(batch_size=4, seed=3)
    for num_frames, same, other in ((1, "mask", "full"), (2, "full", "mask")):
        values = {}
        for cost in ("auto", "mask", "full"):
            config = tiny_config(num_queries=12, num_labels=5, num_frames=num_frames, second_round_cost=cost)
            values[cost] = total(loss_terms(config, levels(config, "video", 4, 1)[0], [], labels))
        assert values["auto"] == values[same] != values[other]


# ---- matching ----


def cheapest(cost, rows, targets):
    """The lowest total of all ways to give each of the fewer side its own partner of the other."""
    if len(rows) >= len(targets):
        return min(
            sum(cost[q, t] for q, t in zip(chosen, targets, strict=True))
            for chosen in permutations(rows, len(targets))
        )
    return min(
        sum(cost[q, t] for q, t in zip(rows, chosen, strict=True)) for chosen in permutations(targets, len(rows))
    )


@pytest.mark.parametrize(("num_queries", "num_targets"), [(6, 1), (6, 3), (6, 4), (5, 5), (4, 6), (3, 0)])
@pytest.mark.parametrize("shift", [0.0, -100.0, 100.0])
def test_both_rounds_are_the_cheapest_and_share_no_query(num_queries, num_targets, shift):
    rng = np.random.default_rng(0)
    first, second = (rng.normal(size=(num_queries, num_targets)) + shift for _ in range(2))
    primary, secondary = two_round_assignment(first, second)
    assert len(primary.query_indices) == min(num_targets, num_queries)
    assert len(secondary.query_indices) == min(num_targets, num_queries - len(primary.query_indices))
    assert not set(primary.query_indices) & set(secondary.query_indices)
    free = [query for query in range(num_queries) if query not in primary.query_indices]
    for cost, pairs, rows in ((first, primary, range(num_queries)), (second, secondary, free)):
        assert len(set(pairs.target_indices)) == len(pairs.target_indices)
        assert np.isclose(
            cost[pairs.query_indices, pairs.target_indices].sum(), cheapest(cost, rows, range(num_targets))
        )


def test_zero_costs_still_match_every_target_twice():
    primary, secondary = two_round_assignment(np.zeros((6, 3)), np.zeros((6, 3)))
    assert sorted(primary.target_indices) == sorted(secondary.target_indices) == [0, 1, 2]
    assert sorted([*primary.query_indices, *secondary.query_indices]) == list(range(6))


def test_zero_weights_make_a_zero_loss_and_no_gradient():
    names = ("class", "mask", "dice", "secondary_mask", "secondary_dice")
    config = tiny_config(num_labels=5, **{f"{name}_weight": 0.0 for name in names})
    video, _ = levels(config, "video", 2, 1)
    terms = loss_terms(config, video, [], label_maps())
    assert total(terms) == 0 and not any(gradient.any() for gradient in gradients(terms, video, []))


# ---- numbers of targets ----


@pytest.mark.parametrize("ignored_pixels", ["negative", "excluded"])
@pytest.mark.parametrize("mode", ["video", "frame", "both"])
def test_a_batch_without_any_target_trains_no_object_only(mode, ignored_pixels):
    config = tiny_config(num_labels=5, num_frames=2, ignored_pixels=ignored_pixels)
    labels = torch.full((2, 2, 32, 48), 255)
    video, frame = levels(config, mode, 2, 2)
    terms = loss_terms(config, video, frame, labels)
    for name, values in terms.items():
        if not name.endswith("loss_class"):
            assert torch.equal(values, torch.zeros_like(values)), name
    for prefix, level in (("", video), ("frame_", frame)):
        weight = config.frame_loss_weight if prefix and video else 1.0
        for layer, (class_logits, _) in enumerate(level):
            expected = -weight * config.class_weight * class_logits.log_softmax(-1)[..., -1].mean()
            torch.testing.assert_close(terms[f"{prefix}loss_class"][layer], expected)
    mask_gradients = gradients(terms, video, frame)[1::2]  # connected, as DDP needs, but with nothing to learn
    assert not any(gradient.any() for gradient in mask_gradients)


def test_a_clip_without_targets_leaves_the_others_mask_losses_alone():
    config = tiny_config(num_labels=5, num_queries=12)
    labels = label_maps(batch_size=2)
    labels[1] = 255
    [(class_logits, mask_logits)], _ = levels(config, "video", 2, 1, num_layers=1)
    both = loss_terms(config, [(class_logits, mask_logits)], [], labels)
    alone = loss_terms(config, [(class_logits[:1], mask_logits[:1])], [], labels[:1])
    for name in ("loss_mask", "loss_dice", *SECONDARY):
        torch.testing.assert_close(both[name], alone[name])


@pytest.mark.parametrize("num_queries", [1, 2, 4, 5, 7])
def test_more_targets_than_queries_can_serve_equal_plain_loops(num_queries):
    """Round one serves min(n, N) of n targets, round two min(n, N - n); the divisor stays n."""
    config = tiny_config(num_queries=num_queries, num_labels=5, train_num_points=16)
    labels = label_maps(batch_size=2, seed=1)
    assert all(len(clip.unique()) - 1 > num_queries / 2 for clip in labels)
    video, _ = levels(config, "video", 2, 1)
    ours = loss_terms(config, video, [], labels)
    expected = naive_loss_terms(config, video, [], labels, 2, points_by_name)
    for name, values in expected.items():
        torch.testing.assert_close(ours[name], torch.stack(list(map(torch.as_tensor, values))).double())
    if num_queries <= 4:
        assert not any(ours[name].any() for name in SECONDARY)
    assert all(gradient.isfinite().all() for gradient in gradients(ours, video, []))


@pytest.mark.parametrize("labels", [torch.zeros(1, 1, 32, 48).long(), label_maps(1).clamp(max=1) * 255])
def test_a_data_set_of_one_class_equals_plain_loops(labels):
    config = tiny_config(num_labels=1, num_queries=3, train_num_points=16)
    video, _ = levels(config, "video", 1, 1)
    ours = loss_terms(config, video, [], labels)
    expected = naive_loss_terms(config, video, [], labels, 2, points_by_name)
    for name, values in expected.items():
        torch.testing.assert_close(ours[name], torch.stack(values))


def test_a_class_absent_from_a_frame_is_learnt_there_with_an_empty_mask():
    config = tiny_config(num_labels=5, num_frames=2, num_queries=4, train_num_points=16)
    labels = torch.zeros(1, 2, 32, 48).long()
    labels[:, 0, :16] = 3
    video, frame = levels(config, "both", 1, 2)
    ours = loss_terms(config, video, frame, labels)
    expected = naive_loss_terms(config, video, frame, labels, 2, points_by_name)
    for name, values in expected.items():
        torch.testing.assert_close(ours[name], torch.stack(values))


# ---- extreme numbers ----


@pairwise(
    dtype=[torch.bfloat16, torch.float16, torch.float32],
    variant=["default", "original", "sampled", "excluded", "soft_target"],
    mode=["video", "both"],
)
def test_huge_logits_have_a_finite_loss_and_gradients(dtype, variant, mode):
    config = tiny_config(num_labels=5, num_frames=2, num_queries=12, **VARIANTS[variant])
    labels = label_maps(num_frames=2)
    video, frame = levels(config, mode, 2, 2, scale=3e4, dtype=dtype)  # float16 overflows
    terms = loss_terms(config, video, frame, labels)
    assert total(terms).isfinite() and total(terms) > 0
    assert all(gradient.isfinite().all() for gradient in gradients(terms, video, frame))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_moderate_half_precision_logits_have_their_exact_loss(dtype):
    """Everything is computed in float32: only the rounding of the logits themselves is lost."""
    config = tiny_config(num_labels=5, num_queries=12)
    labels = label_maps()
    video, _ = levels(config, "video", 2, 1, dtype=dtype)
    exact = [tuple(leaf.double() for leaf in layer) for layer in video]
    ours, expected = loss_terms(config, video, [], labels), loss_terms(config, exact, [], labels)
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value.float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_infinite_logits_count_as_the_largest_half(dtype):
    config = tiny_config(num_labels=5, num_queries=12)
    labels = label_maps()
    [(class_logits, mask_logits)], _ = levels(config, "video", 2, 1, num_layers=1, dtype=dtype)
    with torch.no_grad():
        mask_logits[0, 0, ::2], mask_logits[1, 0, 1::2] = float("inf"), -float("inf")
        class_logits[0, 0], class_logits[1, :, 2] = float("inf"), -float("inf")
    terms = loss_terms(config, [(class_logits, mask_logits)], [], labels)
    clamped = [tuple(leaf.detach().float().clamp(-65504, 65504) for leaf in (class_logits, mask_logits))]
    assert total(terms).isfinite()
    torch.testing.assert_close(total(terms), total(loss_terms(config, clamped, [], labels)))
    assert all(gradient.isfinite().all() for gradient in gradients(terms, [(class_logits, mask_logits)], []))


def test_a_diverged_network_shows_as_a_nan_loss_not_as_a_matching_error():
    config = tiny_config(num_labels=5, num_queries=12)
    [(class_logits, mask_logits)], _ = levels(config, "video", 2, 1, num_layers=1)
    terms = loss_terms(config, [(class_logits * float("nan"), mask_logits * float("nan"))], [], label_maps())
    assert total(terms).isnan()


# ---- ignored pixels ----


@pairwise(
    seed=range(4),
    variant=[{}, {"secondary_points": "sampled"}, {"secondary_loss": "original"}],
    mode=["video", "both"],
)
def test_excluded_pixels_influence_neither_loss_nor_gradient(mode, variant, seed):
    config = tiny_config(num_labels=5, num_frames=2, num_queries=12, ignored_pixels="excluded", **variant)
    labels = label_maps(num_frames=2, seed=seed)
    labels[1, 1] = 255  # a frame with nothing else
    blind = torch.nn.functional.avg_pool2d((labels == 255).double(), 4) == 1  # logits that stand for ignored pixels
    assert blind[0].any() and not blind[0].all()
    masks_of = {"video": blind[:, :, None], "frame": blind.flatten(0, 1)[:, None, None]}

    def terms_and_gradients(disturbance):
        video, frame = levels(config, mode, 2, 2)
        with torch.no_grad():
            for name, level in (("video", video), ("frame", frame)):
                for _, mask_logits in level:
                    mask_logits += disturbance * torch.randn_like(mask_logits) * masks_of[name]
        torch.manual_seed(seed)
        terms = loss_terms(
            config, video, frame, labels, sampler=lambda kind, layers, shape, generator: torch.rand(shape)
        )
        return terms, gradients(terms, video, frame), (video, frame)

    terms, slopes, (video, frame) = terms_and_gradients(0.0)
    disturbed, disturbed_slopes, _ = terms_and_gradients(1e3)
    for name, value in terms.items():
        assert torch.equal(value, disturbed[name]), name
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(slopes, disturbed_slopes, strict=True))
    kinds = ["video"] * len(video) + ["frame"] * len(frame)
    for kind, slope in zip(kinds, slopes[1::2], strict=True):
        assert slope.any() and not slope[masks_of[kind].expand_as(slope)].any()


@pytest.mark.parametrize("size", [(64, 64), (16, 16), (8, 8), (12, 12), (5, 7)])
def test_without_ignored_pixels_excluding_them_changes_nothing(size):
    """Also for labels smaller than the logits, where some logits have no pixel of their own."""
    frames = torch.randn(1, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    labels = label_maps(1, 2, size).clamp(max=4)
    losses = [
        tiny_model(num_frames=2, ignored_pixels=ignored)(
            pixel_values_videos=frames,
            labels=labels,
            context=StepContext(point_sampler=layer_by_layer(lambda *args: points_by_name(*args).float())),
        ).loss
        for ignored in ("negative", "excluded")
    ]
    torch.testing.assert_close(*losses)


def test_ignored_pixels_are_background_by_default():
    """As released: a label map of one class and ignored pixels is that of the class and any other region."""
    config = tiny_config(num_labels=5, num_queries=12)
    labels = torch.full((1, 1, 32, 48), 255)
    labels[..., :20] = 2
    video, _ = levels(config, "video", 1, 1)
    ours = loss_terms(config, video, [], labels)
    expected = naive_loss_terms(config, video, [], labels, 2, points_by_name)
    torch.testing.assert_close(total(ours), sum(sum(values) for values in expected.values()))
    excluded = tiny_config(num_labels=5, num_queries=12, ignored_pixels="excluded")
    assert total(loss_terms(excluded, video, [], labels)) != total(ours)


def test_the_ignored_value_is_configurable():
    labels = label_maps()
    video, _ = levels(tiny_config(num_labels=5), "video", 2, 1)
    usual = loss_terms(tiny_config(num_labels=5), video, [], labels)
    other = loss_terms(tiny_config(num_labels=5, ignore_value=-1), video, [], torch.where(labels == 255, -1, labels))
    assert torch.equal(total(usual), total(other))


@pytest.mark.parametrize("num_labels", [5, 255])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_of_any_integer_type_are_the_same_labels(dtype, num_labels):
    config, labels = tiny_config(num_labels=num_labels), label_maps()
    video, _ = levels(config, "video", 2, 1)
    assert torch.equal(
        total(loss_terms(config, video, [], labels.to(dtype))), total(loss_terms(config, video, [], labels))
    )


@pytest.mark.parametrize("wrong", [5, 254, -1, 256])
def test_a_label_out_of_range_is_named(wrong):
    config = tiny_config(num_labels=5)
    labels = label_maps()
    labels[1, 0, 3, 4] = wrong
    message = rf"`labels` must hold class indices 0 to 4, or 255 for no class\. Got {wrong}\. .*do_reduce_labels"
    with pytest.raises(ValueError, match=message):
        loss_terms(config, levels(config, "video", 2, 1)[0], [], labels)


# ---- the model's loss ----


@pytest.mark.parametrize("fields", [{"num_frames": 1}, {"num_frames": 2}], ids=["one_frame", "video"])
def test_named_terms_sum_to_the_loss(fields):
    model = tiny_model(**fields).double()
    frames, labels = random_clips()
    options = {
        "pixel_values_videos": frames.double(),
        "labels": labels,
        "context": StepContext(point_sampler=ANY_POINTS),
    }
    outputs, by_layer = model(**options), model(**options, output_layer_loss_terms=True)
    prefixes = [""] if fields["num_frames"] == 1 else ["", "frame_"]
    names = {prefix + name for prefix in prefixes for name in ("loss_class", "loss_mask", "loss_dice", *SECONDARY)}
    assert outputs.loss_terms.keys() == names
    torch.testing.assert_close(sum(outputs.loss_terms.values()), outputs.loss.detach())
    for name, values in by_layer.loss_terms.items():
        assert values.shape == (model.config.decoder_layers,)
        torch.testing.assert_close(values.sum().detach(), outputs.loss_terms[name])


def test_warm_up_is_the_one_round_loss():
    frames, labels = random_clips()
    options = {
        "pixel_values_videos": frames.double(),
        "labels": labels,
        "context": StepContext(point_sampler=ANY_POINTS),
    }
    two_rounds = tiny_model(num_frames=2).double()
    one_round = tiny_model(num_frames=2, matching_rounds=1).double()
    warm_up = two_rounds(**{**options, "context": StepContext(matching_rounds=1, point_sampler=ANY_POINTS)})
    assert torch.equal(warm_up.loss, one_round(**options).loss)
    assert not [name for name in warm_up.loss_terms if "secondary" in name]
    assert torch.equal(
        one_round(**{**options, "context": StepContext(matching_rounds=2, point_sampler=ANY_POINTS)}).loss,
        two_rounds(**options).loss,
    )


def test_labels_of_another_size_than_the_frames_are_taken():
    model = tiny_model().double()
    frames, labels = random_clips()
    small = torch.nn.functional.interpolate(labels.double(), (33, 47), mode="nearest").long()
    outputs = model(pixel_values_videos=frames.double(), labels=small, context=StepContext(point_sampler=ANY_POINTS))
    assert outputs.loss.isfinite()


def test_a_seeded_generator_repeats_the_points():
    model = tiny_model()
    frames, labels = random_clips()

    def loss(seed):
        generator = torch.Generator().manual_seed(seed)
        return model(pixel_values_videos=frames, labels=labels, context=StepContext(point_generator=generator)).loss

    assert loss(0) == loss(0) != loss(1)


@pytest.mark.parametrize("source", ["video", "frame"])
def test_attention_is_restricted_by_the_configured_masks(source):
    """Eq. 8 takes the frame queries' masks, the released code the video queries'."""
    model = tiny_model(num_frames=2, attention_mask_source=source, decoder_layers=5).double()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    allowed = []
    for layer in model.model.transformer_module.decoder.layers:
        layer.register_forward_pre_hook(lambda _, arguments: allowed.append(arguments[3]))
    with torch.no_grad():
        outputs = model(pixel_values_videos=random_clips()[0].double(), output_auxiliary_logits=True)
    name = "masks_queries_logits" if source == "video" else "frame_masks_queries_logits"
    for layer, predictions_before in enumerate(outputs.auxiliary_logits):
        scale = 2 ** (3 - layer % 3)  # 1/32, 1/16, 1/8, of maps at 1/4
        masks = predictions_before[name].flatten(0, 1)  # (batch * frames, queries, h, w)
        size = (masks.shape[-2] // scale, masks.shape[-1] // scale)
        logits = torch.nn.functional.interpolate(masks, size, mode="bilinear", align_corners=False).flatten(2)
        inside = logits.sigmoid() >= 0.5
        inside[~inside.any(-1)] = True
        clear = logits.abs() > 1e-9
        assert torch.equal(allowed[layer][clear], inside[clear])
        assert not inside.all()


def test_ties_do_not_depend_on_rounding():
    """Two targets that no point hits look alike, and what decides must not be the last bit of a cost."""
    generator = np.random.default_rng(0)
    costs = generator.random((6, 4))
    costs[:, 3] = costs[:, 1]
    for scale in (0.0, 1e-15):
        noisy = costs + scale * generator.standard_normal(costs.shape)
        for rounds in two_round_assignment(noisy, noisy), two_round_assignment(costs, costs):
            assert [part.tolist() for pair in rounds for part in pair] == [
                part.tolist() for pair in two_round_assignment(costs, costs) for part in pair
            ]
    one_row = np.full((1, 3), 0.5)
    assert two_round_assignment(one_row, None)[0].target_indices.tolist() == [0]
    assert two_round_assignment(one_row + np.array([[1e-16, 0, 0]]), None)[0].target_indices.tolist() == [0]
