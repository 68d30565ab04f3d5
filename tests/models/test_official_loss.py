# SPDX-License-Identifier: Apache-2.0
"""Matching, losses, heads and whole networks against tensors recorded from the official code.

Tolerances are those the recordings suggest: losses 1e-4 relative, gradients 1e-3 of the tensor's maximum, indices
exact.
"""

import pytest
import torch

from goldens import (
    FIXTURES,
    manifest,
    official_layer,
    official_loss_terms,
    one_frame_points,
    tensors,
    under,
    video_points,
    weights,
)
from point_samplers import layer_by_layer
from tiny import tiny_config
from transformers_themask import THEMaskVideoProcessor
from transformers_themask.conversion.checkpoints import convert_official_checkpoint
from transformers_themask.families.themask import convert_state_dict
from transformers_themask.models.label_counts import ClipTargets, loss_counts_of
from transformers_themask.models.matching import Assignment, LevelPrediction
from transformers_themask.models.modeling_themask import loss_settings
from transformers_themask.models.query_loss import HierarchicalLoss, as_level
from transformers_themask.models.step_context import StepContext

# Where the official matcher raises or, with everything tied, matches a query twice.
DEVIATIONS = ("more_than_half", "more_than_queries", "zero_targets", "all_tied")


def clip_targets_of(recorded, prefix=""):
    count = len({key.split(".")[0] for key in under(recorded, prefix)})
    class_labels = [recorded[f"{prefix}b{clip}.labels"] for clip in range(count)]
    masks = [recorded[f"{prefix}b{clip}.masks"].bool() for clip in range(count)]
    maps = [label_map(*clip) for clip in zip(class_labels, masks, strict=True)]
    return ClipTargets(class_labels, torch.stack(maps), ignore_value=None)


def label_map(class_labels, masks):
    """The label map that has these masks; 255 where there is none."""
    assert masks.sum(0).max() <= 1 if len(masks) else True
    labels = torch.full(masks.shape[1:], 255)
    for label, mask in zip(class_labels, masks, strict=True):
        labels[mask] = label
    return labels


def matched(name, case):
    """Our assignments for a recorded matching case, and the recording."""
    facts = manifest()[f"{name}.safetensors"]
    recorded = under(tensors(name), f"{case}.")
    num_frames = 1 if name == "matcher_1f" else 2
    config = tiny_config(
        num_frames=num_frames, num_queries=facts["cases"][case]["num_queries"], num_labels=8, train_num_points=56
    )
    targets = clip_targets_of(recorded, "in.targets.")
    points = torch.cat([recorded[f"rand.b{clip}.point_coords"] for clip in range(len(targets.class_labels))])
    prediction = LevelPrediction(recorded["in.pred_logits"], recorded["in.pred_masks"].transpose(1, 2))
    criterion = HierarchicalLoss(loss_settings(config), lambda *_: points[None])
    return criterion, prediction, targets, recorded


@pytest.mark.parametrize("name", ["matcher_1f", "matcher_norm"])
@pytest.mark.parametrize("case", list(manifest()["matcher_1f.safetensors"]["cases"]))
def test_two_round_matching_reproduces_the_official_one(name, case):
    criterion, prediction, targets, recorded = matched(name, case)
    [pairs] = criterion.match([prediction], [], targets, matching_rounds=2)
    if case in DEVIATIONS and manifest()[f"{name}.safetensors"]["cases"][case]["official_error"]:
        num_queries, num_targets = prediction.class_logits.shape[1], len(targets.class_labels[0])
        primary, secondary = pairs[0]
        assert len(primary.query_indices) == min(num_targets, num_queries)
        assert len(secondary.query_indices) == min(num_targets, num_queries - len(primary.query_indices))
        assert not set(primary.query_indices) & set(secondary.query_indices)
        return
    for clip, rounds in enumerate(pairs):
        for number, assignment in enumerate(rounds, start=1):
            official = f"out.video.round{number}.b{clip}"
            assert assignment.query_indices.tolist() == recorded[f"{official}.query"].tolist()
            assert assignment.target_indices.tolist() == recorded[f"{official}.target"].tolist()


@pytest.mark.parametrize("name", ["matcher_1f", "matcher_norm"])
@pytest.mark.parametrize("case", ["T1", "T2", "T4", "one_target", "negative_costs"])
def test_cost_matrices_reproduce_the_official_ones(name, case):
    criterion, prediction, targets, recorded = matched(name, case)
    costs = criterion._cost_matrices(prediction.class_logits.softmax(-1)[None], as_level([prediction]), targets)
    for clip, classes in enumerate(targets.class_labels):
        first, second = costs[0, 0, clip, :, : len(classes)], costs[-1, 0, clip, :, : len(classes)]
        torch.testing.assert_close(first, recorded[f"mid.b{clip}.C_first"], rtol=1e-4, atol=1e-5)
        # The official second matrix overwrites the matched rows by a huge number; ours leaves the rows out.
        free = torch.ones(len(second), dtype=torch.bool)
        free[recorded[f"mid.b{clip}.lsa1.query"]] = False
        torch.testing.assert_close(second[free], recorded[f"mid.b{clip}.C_second_masked"][free], rtol=1e-4, atol=1e-5)


def predictions_of(recorded, prefix, num_layers):
    predictions = []
    for layer in range(num_layers + 1):
        official = official_layer(layer, num_layers)
        logits = recorded[f"{prefix}{official}.pred_logits"].clone().requires_grad_()
        masks = recorded[f"{prefix}{official}.pred_masks"].clone().requires_grad_()
        predictions.append((logits, masks))
    return predictions, [LevelPrediction(logits, masks.transpose(1, 2)) for logits, masks in predictions]


def loss_weights(config):
    secondary = config.secondary_round_weight * torch.tensor(1.0)
    return {
        "loss_class": config.class_weight,
        "loss_mask": config.mask_weight,
        "loss_dice": config.dice_weight,
        "loss_secondary_mask": secondary * config.secondary_mask_weight,
        "loss_secondary_dice": secondary * config.secondary_dice_weight,
    }


def assert_terms_equal(ours, official, factors=None):
    assert set(ours) == set(official)
    for name, value in official.items():
        expected = value if factors is None else value * factors[name]
        torch.testing.assert_close(ours[name], expected, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


def assert_gradient(ours, official, msg=None):
    torch.testing.assert_close(ours, official, rtol=1e-3, atol=1e-3 * official.abs().max().item(), msg=msg)


@pytest.mark.parametrize("case", ["warmup_T1", "two_round_T1", "two_round_T2", "two_round_one_target"])
def test_one_frame_criterion_reproduces_the_official_one(case):
    facts = manifest()["criterion_1f.safetensors"]["cases"][case]
    recorded = under(tensors("criterion_1f"), f"{case}.")
    config = tiny_config(num_queries=10, train_num_points=40)
    leaves, predictions = predictions_of(recorded, "in.", num_layers=2)
    sampler = one_frame_points(recorded, "rand.", facts["B"], num_layers=2)
    rounds = 2 if facts["iter"] >= facts["warmup_iters"] else 1
    terms = HierarchicalLoss(loss_settings(config), sampler)(
        predictions, [], recorded["in.labels_map"][:, :, 0].long(), rounds
    ).terms
    assert_terms_equal(terms, official_loss_terms(recorded, "loss.", 2), loss_weights(config))
    assert not sampler.draws
    total = sum(term.sum() for term in terms.values())
    torch.testing.assert_close(total, recorded["loss_weighted_total"], rtol=1e-4, atol=0.0)
    total.backward()
    for layer, (logits, masks) in enumerate(leaves):
        official = official_layer(layer, 2)
        assert_gradient(logits.grad, recorded[f"grad.{official}.pred_logits"])
        assert_gradient(masks.grad, recorded[f"grad.{official}.pred_masks"])


@pytest.mark.parametrize("level", ["video", "frame"])
@pytest.mark.parametrize("case", ["T2", "T4"])
def test_video_criterion_reproduces_the_official_one(case, level):
    facts = manifest()["criterion_norm.safetensors"]["cases"][f"{case}.{level}"]
    recorded = under(tensors("criterion_norm"), f"{case}.")
    config = tiny_config(num_frames=2, num_queries=10, train_num_points=40)
    leaves, predictions = predictions_of(recorded, f"in.{level}.", num_layers=2)
    targets = clip_targets_of(recorded, f"in.targets_{level}.")
    entries = len(targets.class_labels)
    assignments = []
    for layer in range(3):
        prefix = f"in.indices_{level}.{official_layer(layer, 2)}."
        assignments.append(
            [
                tuple(
                    Assignment(*(recorded[f"{prefix}round{r}.b{entry}.{k}"].numpy() for k in ("query", "target")))
                    for r in (1, 2)
                )
                for entry in range(entries)
            ]
        )
    draws = iter([recorded[key] for key in sorted(k for k in recorded if k.startswith(f"{level}.rand."))])
    replay = {}
    for layer in (2, 0, 1):
        replay["candidates", layer], replay["uniform", layer] = next(draws), next(draws)
    sampler = layer_by_layer(lambda kind, layer, shape, generator: replay[kind.split("_")[-1], layer])
    divisors = loss_counts_of(
        torch.tensor([len(classes) for classes in targets.class_labels]), loss_settings(config), 2
    )
    criterion = HierarchicalLoss(loss_settings(config), sampler)
    terms = criterion.level_terms(level, predictions, targets, assignments, 2, divisors.float())
    assert_terms_equal(terms, official_loss_terms(recorded, f"{level}.loss.", 2), loss_weights(config))
    total = sum(term.sum() for term in terms.values())
    expected = recorded[f"{level}.loss_weighted_total_before_aux_weight"]
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=0.0)
    assert sum(facts["num_targets"]) == facts["num_masks"]
    total.backward()
    assert_gradient(leaves[2][0].grad, recorded[f"{level}.grad.final.pred_logits"])
    assert_gradient(leaves[2][1].grad, recorded[f"{level}.grad.final.pred_masks"])


def test_frame_targets_are_the_clips_classes_with_each_frames_masks():
    recorded = under(tensors("criterion_norm"), "T2.in.")
    ours = clip_targets_of(recorded, "targets_video.").per_frame()
    official = clip_targets_of(recorded, "targets_frame.")
    for index in range(4):
        assert torch.equal(ours.class_labels[index], official.class_labels[index])
        assert torch.equal(ours.labels[index], official.labels[index])


# ---- whole networks ----


def official_model(name, folder=FIXTURES):
    facts = manifest(folder)[f"{name}.safetensors"]["config"]
    head = facts["decode_head"]
    is_video = head["type"] == "THEMaskHead"
    decoder = head["transformer_decoder_cfg"]
    config = tiny_config(
        num_frames=2 if is_video else 1,
        num_queries=decoder["num_queries"],
        decoder_layers=decoder["dec_layers"] + 1,
        encoder_layers=head["pixel_decoder_cfg"]["transformer_enc_layers"],
        train_num_points=head["loss_cfg"]["train_num_points"],
        aggregator_dropout=0.0,
        backbone_config={
            "model_type": "mit",
            "hidden_sizes": facts["backbone_dims"]["embed_dims"],
            "num_attention_heads": facts["backbone_dims"]["num_heads"],
            "depths": facts["backbone_dims"]["depths"],
            "sr_ratios": facts["backbone_dims"]["sr_ratios"],
            "drop_path_rate": 0.0,
        },
    )
    return convert_official_checkpoint(weights(name, folder), config)


@pytest.mark.parametrize("name", ["segmentor_1f", "segmentor_video"])
def test_official_checkpoint_converts_without_a_gap(name):
    _, report = official_model(name)
    assert report.missing == [] and report.unknown == []
    expected = {"decode_head.conv_seg.weight", "decode_head.conv_seg.bias", "decode_head.criterion.empty_weight"}
    expected |= {key for key in weights(name) if ".reference_points." in key}
    assert set(report.dropped) == expected


@pytest.mark.parametrize("name", ["segmentor_1f", "segmentor_video"])
def test_network_reproduces_official_scores_and_labels(name):
    model, _ = official_model(name)
    recorded = tensors(name)
    facts = manifest()[f"{name}.safetensors"]["config"]
    with torch.no_grad():
        outputs = model(pixel_values_videos=recorded["in.img"][:1])
    processor = THEMaskVideoProcessor()
    [labels] = processor.post_process_semantic_segmentation(outputs, [facts["ori_hw"]], via_input_size=True)
    scores = recorded["test.scores_ori_size"]
    ranked = scores.sort(dim=1, descending=True).values
    clear = ranked[:, 0] - ranked[:, 1] > 1e-4
    assert clear.float().mean() > 0.99
    assert torch.equal(labels.long()[clear], recorded["test.pred"][clear])
    for frame, official in enumerate(recorded["test.scores_quarter"]):
        torch.testing.assert_close(outputs.frame_scores(0, frame), official, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["segmentor_1f", "segmentor_video"])
def test_network_reproduces_official_losses_and_gradients(name):
    model, _ = official_model(name)
    model.train()
    recorded = tensors(name)
    labels = recorded["in.gt_semantic_seg"][:, :, 0].long()
    num_layers = len(model.model.transformer_module.decoder.layers)
    replay = one_frame_points if name == "segmentor_1f" else video_points
    sampler = replay(recorded, "train.rand.", len(labels), num_layers)
    outputs = model(
        pixel_values_videos=recorded["in.img"],
        labels=labels,
        context=StepContext(point_sampler=sampler),
        output_layer_loss_terms=True,
    )
    assert_terms_equal(outputs.loss_terms, official_loss_terms(recorded, "train.loss.decode.", num_layers))
    torch.testing.assert_close(outputs.loss, recorded["train.loss_total"], rtol=1e-4, atol=0.0)

    outputs.loss.backward()
    parameters = dict(model.named_parameters())
    squares = sum(parameter.grad.square().sum() for parameter in parameters.values())
    torch.testing.assert_close(squares.sqrt(), recorded["train.grad_total_norm"], rtol=1e-3, atol=0.0)
    official = under(recorded, "train.grad.")
    converted, _ = convert_state_dict(official)
    for key, gradient in converted.items():
        assert_gradient(parameters[key].grad, gradient, msg=lambda text, k=key: f"{k}: {text}")


@pytest.mark.golden
@pytest.mark.parametrize(
    ("name", "case"), [("head_1f", "warmup_B2"), ("head_1f", "two_round_B2"), ("head_video", "T2_B2")]
)
def test_heads_reproduce_official_losses_gradients_and_scores(golden_dir, name, case):
    folder = golden_dir / "themask"
    facts = manifest(folder)[f"{name}.safetensors"]
    recorded, head = under(tensors(name, folder), f"{case}."), facts["config"]
    is_video = name == "head_video"
    config = tiny_config(
        num_frames=2 if is_video else 1,
        num_queries=head["transformer_decoder_cfg"]["num_queries"],
        decoder_layers=head["transformer_decoder_cfg"]["dec_layers"] + 1,
        encoder_layers=head["pixel_decoder_cfg"]["transformer_enc_layers"],
        train_num_points=32,
        aggregator_dropout=0.0,
    )
    state_dict = {f"decode_head.{key}": value for key, value in weights(name, folder).items()}
    model, report = convert_official_checkpoint(state_dict, config)
    assert all("pixel_level_module.encoder" in key for key in report.missing)
    features = [recorded[f"in.res{stage}"] for stage in range(2, 6)]
    model.model.pixel_level_module.forward = lambda _: model.model.pixel_level_module.decoder(features)

    labels = recorded["in.gt_semantic_seg"][:, :, 0].long()
    num_layers = len(model.model.transformer_module.decoder.layers)
    sampler = (video_points if is_video else one_frame_points)(recorded, "rand.", len(labels), num_layers)
    frames = torch.zeros(*labels.shape[:2], 3, *labels.shape[2:])
    one_round = not is_video and facts["cases"][case]["iter"] < 30000
    outputs = model(
        pixel_values_videos=frames,
        labels=labels,
        context=StepContext(point_sampler=sampler, matching_rounds=1 if one_round else 2),
        output_layer_loss_terms=True,
    )
    assert_terms_equal(outputs.loss_terms, official_loss_terms(recorded, "loss.", num_layers))
    torch.testing.assert_close(outputs.loss, recorded["loss_total"], rtol=1e-4, atol=0.0)
    outputs.loss.backward()
    parameters = dict(model.named_parameters())
    converted, _ = convert_state_dict({f"decode_head.{k}": v for k, v in under(recorded, "grad.").items()})
    for key, gradient in converted.items():
        assert_gradient(parameters[key].grad, gradient, msg=lambda text, k=key: f"{k}: {text}")

    model.eval()
    with torch.no_grad():
        scored = model(pixel_values_videos=frames)
    for frame, official in enumerate(recorded["eval.scores"]):
        torch.testing.assert_close(scored.frame_scores(0, frame), official, rtol=1e-4, atol=1e-4)
