# SPDX-License-Identifier: Apache-2.0
"""Masked video consistency: which patches are hidden, and what the second pass adds to loss, gradients and memory."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.measuring import peak_memory
from goldens import json_file, tensors
from trained_models import TRAINED_MODELS
from transformers_themask.models.step_context import StepContext
from transformers_themask.training import trainer as trainer_module
from transformers_themask.training.masked_consistency import draw_patches, hide_patches, running_statistics_kept
from transformers_themask.training.trainer import VSSTrainer

FIXTURES = Path(__file__).parents[1] / "fixtures" / "mvc"
CASES = ["even", "odd", "half", "vspw", "r0", "r1"]


def settings_of(case):
    return json_file("manifest", FIXTURES)["patch_mask"][case]


def generator(seed):
    return torch.Generator().manual_seed(seed)


def without_randomness(name):
    """A tiny model without dropout and drop path."""
    model = TRAINED_MODELS[name].build(has_dropout=False)
    for module in model.modules():
        if isinstance(getattr(module, "drop_prob", None), float):
            module.drop_prob = 0.0
    return model


@pytest.fixture
def same_points(monkeypatch):
    """The points of a clip are the same in every pass and at every step."""
    monkeypatch.setattr(VSSTrainer, "_generator", lambda self, sample_id, *purpose: generator(sample_id))


@pytest.fixture
def gradients_of(clips, training_arguments, processor):
    """The gradients of a model's first step, and what is logged."""

    def run(model, frame_offsets=(0,), **fields):
        recorded = {}

        class Recorder(trainer_module.LearningCurveCallback):
            def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
                recorded.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

        args = training_arguments(max_steps=1, max_grad_norm=0.0, **fields)
        trainer = VSSTrainer(model, args, processor, train_dataset=clips(frame_offsets))
        trainer.add_callback(Recorder())
        trainer.train()
        (entry,) = (entry for entry in trainer.state.log_history if "loss" in entry)
        return recorded, entry

    return run


@pytest.mark.parametrize("case", CASES)
def test_the_recorded_numbers_give_the_recorded_masks(case):
    recorded, ratio = tensors("patch_mask", FIXTURES), settings_of(case)["ratio"]
    numbers, expected = recorded[f"{case}.u"], recorded[f"{case}.mask"].bool()
    frames = torch.randn(expected.shape[0], 1, 3, *expected.shape[-2:])
    masked, is_visible = hide_patches(frames, numbers, ratio)
    assert torch.equal(is_visible, expected)
    assert torch.equal(masked, frames * expected[:, :, None])


@pytest.mark.parametrize("case", CASES)
def test_a_frame_is_divided_into_as_many_patches_as_in_the_recordings(case):
    recorded, patch_size = tensors("patch_mask", FIXTURES), settings_of(case)["block"]
    size = recorded[f"{case}.mask"].shape[-2:]
    assert draw_patches((2, *size), patch_size, 1).shape == (2, *recorded[f"{case}.u"].shape[-2:])


def test_patch_numbers_are_above_zero_and_at_most_one(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: torch.zeros(*shape))
    assert draw_patches((1, 20, 20), 10, 1).unique().tolist() == [1.0]


def test_patches_larger_than_the_frame_are_the_frame():
    assert draw_patches((1, 20, 40), 100, 1).shape == (1, 1, 1)


@pytest.mark.parametrize(
    ("tube_length", "expected"), [(1, [0, 1, 2, 3, 4]), (2, [0, 0, 1, 1, 2]), (5, [0] * 5), (7, [0] * 5), (0, [0] * 5)]
)
def test_frames_of_a_tube_hide_the_same(tube_length, expected):
    numbers = draw_patches((5, 32, 64), 8, tube_length, generator(0))
    alike = [[torch.equal(one, other) for other in numbers] for one in numbers]
    assert alike == [[one == other for other in expected] for one in expected]


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.7, 1.0])
def test_the_share_of_hidden_patches_is_the_ratio(ratio):
    numbers = draw_patches((16, 400, 400), 16, 1, generator(1))
    frames = torch.ones(1, 16, 1, 25, 25)
    _, is_visible = hide_patches(frames, numbers[None], ratio)
    deviation = math.sqrt(ratio * (1 - ratio) / numbers.numel())  # of the mean of independent draws
    assert (~is_visible).float().mean().item() == pytest.approx(ratio, abs=4 * deviation)


def test_a_number_equal_to_the_ratio_hides_its_patch():
    _, is_visible = hide_patches(torch.ones(1, 1, 1, 1, 3), torch.tensor([0.25, 0.5, 0.75]).view(1, 1, 1, 3), 0.5)
    assert is_visible.flatten().tolist() == [False, False, True]


def test_hidden_pixels_do_not_reach_the_model():
    frames = torch.randn(2, 3, 3, 32, 48)
    numbers = torch.stack([draw_patches((3, 32, 48), 8, 1, generator(seed)) for seed in range(2)])
    masked, is_visible = hide_patches(frames, numbers, 0.7)
    assert masked.masked_select(~is_visible[:, :, None]).count_nonzero() == 0
    others = torch.where(is_visible[:, :, None], frames, float("nan"))
    assert torch.equal(hide_patches(others, numbers, 0.7)[0], masked)


@pytest.mark.parametrize("name", TRAINED_MODELS)
def test_with_nothing_hidden_loss_and_gradients_are_one_plus_the_weight_times_the_plain_ones(
    name, gradients_of, same_points
):
    model, frame_offsets = without_randomness(name), TRAINED_MODELS[name].frame_offsets
    plain, logged = gradients_of(copy.deepcopy(model), frame_offsets)
    both, masked_logged = gradients_of(model, frame_offsets, consistency_weight=0.5, mask_ratio=0.0)
    assert masked_logged["consistency_loss"] == logged["loss"]
    assert masked_logged["loss"] == pytest.approx(1.5 * logged["loss"], rel=1e-6)
    assert plain.keys() == both.keys()
    for parameter, gradient in plain.items():
        torch.testing.assert_close(both[parameter], 1.5 * gradient, rtol=1e-5, atol=1e-7, msg=parameter)


def test_two_backward_passes_give_the_gradient_of_the_sum(gradients_of, clips, same_points, monkeypatch):
    model = without_randomness("themask_t2")
    seen = []

    def record(frames, numbers, ratio):
        masked, is_visible = hide_patches(frames, numbers, ratio)
        seen.append((frames.clone(), masked.clone()))
        return masked, is_visible

    monkeypatch.setattr(trainer_module, "hide_patches", record)
    joint = copy.deepcopy(model)
    gradients, logged = gradients_of(model, (-1, 0), consistency_weight=0.7, mask_patch_size=16, mask_ratio=0.5)
    ((frames, masked),) = seen
    batch = first_batch(clips((-1, 0)), frames)
    losses = []
    for pixel_values, weight in ((frames, 1.0), (masked, 0.7)):
        points = [generator(sample_id) for sample_id in batch["sample_ids"]]
        outputs = joint(pixel_values, labels=batch["labels"], context=StepContext(point_generator=points))
        losses.append(weight * outputs.loss)
    sum(losses).backward()
    assert logged["loss"] == pytest.approx(sum(losses).item(), rel=1e-5)
    for name, parameter in joint.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


def first_batch(dataset, frames):
    """The first batch of a run, which holds these frames, drawn once more."""
    sampler = trainer_module.ClipSampler(len(dataset), seed=42, clips_per_step=len(frames))
    collate = trainer_module.ClipCollator()
    indices = iter(sampler)
    batch = collate([dataset[next(indices)] for _ in frames])
    assert torch.equal(batch["pixel_values_videos"], frames)
    return batch


def test_hidden_patches_follow_from_seed_step_and_clip(clips, training_arguments, processor, monkeypatch):
    drawn = []

    def record(frames, numbers, ratio):
        drawn.append(numbers.clone())
        return hide_patches(frames, numbers, ratio)

    monkeypatch.setattr(trainer_module, "hide_patches", record)

    def run(**fields):
        drawn.clear()
        fields = {"max_steps": 3, "consistency_weight": 1.0, "mask_patch_size": 16, **fields}
        model = TRAINED_MODELS["segformer"].build()
        VSSTrainer(model, training_arguments(**fields), processor, train_dataset=clips()).train()
        return [numbers.clone() for numbers in drawn]

    first, again, other = run(), run(), run(seed=7)
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[0][0], first[0][1])
    # One clip at a time, as another accumulation or another number of processes has them.
    alone = run(per_device_train_batch_size=1, gradient_accumulation_steps=2)
    assert torch.equal(torch.cat(alone), torch.cat(first))


def test_frames_with_hidden_patches_leave_running_statistics_alone(clips, training_arguments, processor):
    def statistics_after(**fields):
        torch.manual_seed(0)
        model = TRAINED_MODELS["segformer"].build()
        VSSTrainer(model, training_arguments(max_steps=1, **fields), processor, train_dataset=clips()).train()
        return {name: buffer for name, buffer in model.named_buffers() if "batch_norm" in name}

    plain, masked = statistics_after(), statistics_after(consistency_weight=1.0, mask_patch_size=16)
    assert plain and plain.keys() == masked.keys()
    assert all(torch.equal(buffer, masked[name]) for name, buffer in plain.items())


def test_a_layer_normalises_by_its_batch_while_its_statistics_are_kept():
    layer, frozen = nn.BatchNorm2d(3), nn.BatchNorm2d(3).eval()
    values = torch.randn(4, 3, 5, 5) * 3 + 1
    expected, expected_frozen = copy.deepcopy(layer)(values), frozen(values)
    with running_statistics_kept(nn.ModuleList([layer, frozen])):
        assert torch.equal(layer(values), expected) and torch.equal(frozen(values), expected_frozen)
    assert layer.running_mean.count_nonzero() == 0 and layer.num_batches_tracked == 0
    layer(values)
    assert layer.num_batches_tracked == 1


def test_the_second_pass_needs_no_more_memory_than_a_further_batch(clips, training_arguments, processor):
    def peak(**fields):
        model = TRAINED_MODELS["themask_t2"].build()
        args = training_arguments(max_steps=1, per_device_train_batch_size=4, **fields)
        trainer = VSSTrainer(model, args, processor, train_dataset=clips((-1, 0)))
        return peak_memory(trainer.train)

    peak()  # what is made once
    frames = 4 * 2 * 3 * 64 * 64 * 4  # in bytes: 4 clips of 2 frames
    assert peak(consistency_weight=1.0, mask_patch_size=16) <= peak(gradient_accumulation_steps=2) + frames


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"consistency_weight": -1.0}, "`consistency_weight` must be at least 0. Got -1.0"),
        ({"mask_ratio": 1.5}, "`mask_ratio` must be at most 1. Got 1.5"),
        ({"mask_ratio": -0.1}, "`mask_ratio` must be at least 0. Got -0.1"),
        ({"mask_patch_size": 0}, "`mask_patch_size` must be at least 1. Got 0"),
        ({"mask_tube_length": -1}, "`mask_tube_length` must be at least 0. Got -1"),
    ],
)
def test_impossible_settings_are_rejected(fields, message, training_arguments):
    with pytest.raises(ValueError, match=message):
        training_arguments(**fields)
