# SPDX-License-Identifier: Apache-2.0
"""MPVSS against tensors recorded from the official code: whole clips, a training step.

Tolerances as recorded: 1e-4 for flows and masks, relative 1e-4 for losses. Of warped masks it is 1e-4 of the largest
logit: flows agree to 3e-5 places, and from one place to the next masks change by up to 40; in float64 the model is as
far from the recording. Warped with the recorded flow, masks are equal.
"""

import pytest
import torch

from goldens import FIXTURES, RecordedPoints, json_file, manifest, tensors, under
from transformers_themask import MPVSSForVideoSemanticSegmentation, THEMaskVideoProcessor
from transformers_themask.conversion.checkpoints import convert_official_checkpoint
from transformers_themask.families.mpvss import config_from_state_dict, convert_state_dict
from transformers_themask.models.motion_mpvss import warp
from transformers_themask.models.scores_to_labels import query_scores
from transformers_themask.models.step_context import StepContext
from transformers_themask.training.parameter_groups import parameter_groups

FOLDER = FIXTURES.parent / "mpvss"
# Head counts leave no trace in a checkpoint.
HEADS = {"segmenter_config": {"num_attention_heads": 4}, "motion_attention_heads": 4}


def assert_near(ours, official, tolerance=1e-4):
    torch.testing.assert_close(ours, official, rtol=0, atol=tolerance)


def assert_warped(ours, official):
    assert_near(ours, official, 1e-4 * max(1.0, official.abs().max().item()))


def official_model(folder, **overrides):
    state_dict = tensors("tiny_weights", folder)
    config = config_from_state_dict(state_dict, **{**HEADS, **overrides})
    model, report = convert_official_checkpoint(state_dict, config)
    assert report.unknown == [] and report.missing == []
    return model


def processor():
    return THEMaskVideoProcessor(do_resize=False, fit="pad")


def pixel_values(frames):
    """Frames `(batch, num_frames, 3, height, width)` as the processor normalises and pads them."""
    return processor()(list(frames), return_tensors="pt")["pixel_values_videos"]


def official_scores(outputs, picture_size, output_size):
    """The release's scores of one frame: masks are enlarged, then scored, and the scores without padding resized."""
    masks = torch.nn.functional.interpolate(
        outputs.frame_masks_queries_logits[0], scale_factor=4, mode="bilinear", align_corners=False
    )
    scores = query_scores(outputs.frame_class_queries_logits[0], masks)[..., : picture_size[0], : picture_size[1]]
    return torch.nn.functional.interpolate(scores, output_size, mode="bilinear", align_corners=False)[0]


def assert_same_labels(labels, official, scores):
    """Labels are compared where the two highest scores are not nearly equal."""
    first, second = scores.topk(2, dim=0).values
    decided = first - second > 1e-4
    assert decided.float().mean() > 0.99
    assert torch.equal(labels[decided].long(), official[decided].long())


def compare_frame(outputs, official, picture_size, output_size):
    scores = official_scores(outputs, picture_size, output_size)
    assert_near(scores, official["sem_seg"])
    (labels,) = processor().post_process_semantic_segmentation(
        outputs, target_sizes=[picture_size], enlarge_masks=True
    )
    if picture_size == output_size:
        assert_same_labels(labels[0], official["label_map"], official["sem_seg"])
    assert_same_labels(scores.argmax(0), official["label_map"], official["sem_seg"])


@pytest.mark.parametrize("name", ["tiny_clip_k4", pytest.param("tiny_clip_resize_2keys", marks=pytest.mark.golden)])
@torch.no_grad()
def test_stream_equals_the_released_one(request, name):
    folder = request.getfixturevalue("golden_dir") / "mpvss" if "resize" in name else FOLDER
    entries, facts = tensors(name, folder), manifest(folder)["fixtures"][name]
    is_key = facts["pattern"]
    model = official_model(folder, key_frame_interval=[*is_key, True].index(True, 1))
    frames, picture_size = pixel_values(entries["in.frames"][None]), tuple(entries["in.frames"].shape[-2:])
    state = model.initial_state()
    for index, frame in enumerate(frames.split(1, dim=1)):
        official = under(entries, f"f{index}.")
        outputs, state = model.streaming_step(frame, state)
        assert outputs.is_key_frame.tolist() == [[is_key[index]]]
        if is_key[index]:
            keys = model._segment(frame, all_predictions=True)
            for layer, (classes, masks) in enumerate(keys.predictions):
                assert_near(classes[:, 0], official["key.class_logits"][layer])
                assert_near(masks[:, 0], official["key.mask_logits"][layer])
            assert_near(keys.queries[:, 0], official["key.query_out"].transpose(0, 1))
        else:
            assert_near(outputs.flows[0, 0], official["final_flow"])
            assert_warped(outputs.frame_masks_queries_logits[:, 0], official["warped_mask_logits"])
        compare_frame(outputs, official, picture_size, tuple(facts["hw"]))


@pytest.mark.golden
@torch.no_grad()
def test_the_release_blanks_what_its_output_does_not_reach(golden_dir):
    folder, name = golden_dir / "mpvss", "tiny_clip_upscaled"
    entries, size = tensors(name, folder), tuple(manifest(folder)["fixtures"][name]["hw"])
    model, frames = official_model(folder), pixel_values(entries["in.frames"][None])
    outputs = model(frames, official_zeroing=size)
    assert_near(outputs.flows[0, 1], entries["f1.final_flow"])
    assert_warped(outputs.frame_masks_queries_logits[:, 1], entries["f1.warped_mask_logits"])
    outputs.frame_masks_queries_logits = outputs.frame_masks_queries_logits[:, 1:]
    outputs.frame_class_queries_logits = outputs.frame_class_queries_logits[:, 1:]
    compare_frame(outputs, under(entries, "f1."), tuple(entries["in.frames"].shape[-2:]), size)
    assert not torch.allclose(model(frames).flows[0, 1], entries["f1.final_flow"], atol=1e-4)


@pytest.fixture
def training_step(golden_dir):
    """The recorded step's tensors, a model and its inputs; points come from the recording."""
    folder = golden_dir / "mpvss"
    entries = tensors("tiny_train_b2_64x64", folder)
    # The recorded points are those that were chosen, so that there is nothing left to choose.
    loss = {"train_num_points": 96, "oversample_ratio": 1.0, "importance_sample_ratio": 1.0}
    model = official_model(folder, segmenter_config={**HEADS["segmenter_config"], **loss}).train()
    samples = [under(entries, f"in.sample{index}.") for index in range(2)]
    frames = pixel_values(torch.stack([torch.stack([s["ref_image"], s["image"]]) for s in samples]))
    labels = torch.stack([s["label"] for s in samples])[:, None].expand(-1, 2, -1, -1)
    draws = {}
    for layer in range(5):
        recorded = under(entries, f"layer{layer}.")
        draws["matching", layer] = torch.stack([recorded[f"sample{index}.match_points"] for index in range(2)])
        draws["video_primary_candidates", layer] = recorded["loss_points"]
    return entries, model, frames, labels, RecordedPoints(draws)


@pytest.mark.golden
def test_losses_gradients_and_a_step_equal_the_released_ones(golden_dir, training_step):
    entries, model, frames, labels, points = training_step
    with torch.no_grad():
        keys = model._segment(frames[:, :1], all_predictions=True)
        warped, flows = model._propagate(keys, frames[:, 1:])
        assert_near(flows[:, 0], entries["final_flow"])
        for layer, (classes, masks) in enumerate(keys.predictions):
            assert_near(classes[:, 0], entries[f"layer{layer}.class_logits"])
            assert_warped(masks[:, 0], entries[f"layer{layer}.key_masks"])
            assert_warped(warped[layer][:, 0], entries[f"layer{layer}.warped_masks"])
            moved = warp(
                entries[f"layer{layer}.key_masks"].flatten(0, 1)[:, None], entries["final_flow"].flatten(0, 1)
            )
            assert_near(moved.view_as(masks[:, 0]), entries[f"layer{layer}.warped_masks"], 1e-5)

    outputs = model(frames, labels, StepContext(point_sampler=points))
    assert not points.draws
    torch.testing.assert_close(outputs.loss, entries["loss_total"][0], rtol=1e-4, atol=0)
    for ours, official in {"loss_class": "loss_ce", "loss_mask": "loss_mask", "loss_dice": "loss_dice"}.items():
        total = sum(value for name, value in under(entries, "loss.").items() if name.startswith(official))
        torch.testing.assert_close(outputs.loss_terms[ours], total[0], rtol=1e-4, atol=0)

    outputs.loss.backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    names = dict.fromkeys(
        manifest(golden_dir / "mpvss")["fixtures"]["tiny_train_b2_64x64"]["trainable"], torch.ones(1)
    )
    assert trained.keys() == convert_state_dict(names)[0].keys()
    gradients = convert_state_dict(under(entries, "grad."))[0]
    for name, gradient in gradients.items():
        # Another vector width than the recording's changes these sums over all points and pixels by 3e-4.
        tolerance = 5e-4 * max(1.0, gradient.abs().max().item())
        torch.testing.assert_close(trained[name].grad, gradient, rtol=0, atol=tolerance, msg=name)
        # What rounding leaves of a gradient, AdamW would take for a step.
        trained[name].grad = gradient

    optimizer = torch.optim.AdamW(parameter_groups(model, 5e-5, 0.05, 0.1, "all"))
    torch.nn.utils.clip_grad_norm_(trained.values(), 0.01)
    optimizer.step()
    for name, weight in convert_state_dict(under(entries, "after_step."))[0].items():
        torch.testing.assert_close(trained[name].detach(), weight, rtol=0, atol=1e-6, msg=name)


@pytest.mark.golden
@pytest.mark.parametrize("backbone", ["R50", "Swin-T"])
def test_published_names_and_sizes_fill_a_model(golden_dir, backbone):
    folder = golden_dir / "mpvss"
    with torch.device("meta"):
        state_dict = {
            name: torch.empty(shape) for name, shape in json_file(f"official_keys_{backbone}", folder).items()
        }
        model = MPVSSForVideoSemanticSegmentation(config_from_state_dict(state_dict))
    converted, _ = convert_state_dict(state_dict)
    wanted = {name: entry.shape for name, entry in model.state_dict().items()}
    assert {name: entry.shape for name, entry in converted.items()} == wanted
    # A norm of Transformers' Swin, which its backbone does not use.
    unused = [entry for name, entry in model.named_parameters() if ".swin.layernorm." in name]
    millions = json_file("params_flops", folder)["params_millions"][backbone]
    parameters = list(model.parameters())
    count = sum(parameter.numel() for parameter in parameters) - sum(entry.numel() for entry in unused)
    assert count / 1e6 == pytest.approx(millions["total_M"], abs=1e-9)
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    assert trained / 1e6 == pytest.approx(millions["trainable_M"], abs=1e-9)
