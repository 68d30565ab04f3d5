# SPDX-License-Identifier: Apache-2.0
"""Activation checkpointing: the same numbers from less memory."""

import pytest
import torch

from benchmarks.training_memory import training_step_peaks
from tiny import TINY_MIT, random_clips, tiny_model
from transformers_themask import MiTConfig
from transformers_themask.models.step_context import StepContext

MODELS = {
    "one_frame": {"num_frames": 1},
    "video_frame": {"num_frames": 4},
    "one_to_frame": {"num_frames": 4, "temporal_mode": "one_to_frame"},
    "one_to_video": {"num_frames": 4, "temporal_mode": "one_to_video"},
    "sampled_secondary_points": {"num_frames": 2, "secondary_points": "sampled", "ignored_pixels": "excluded"},
}
# Narrow, but as deep as the paper's model: what is saved per layer grows with the depth, what lies between does not.
DEEP = {
    "backbone_config": MiTConfig(**{**TINY_MIT, "depths": (2, 2, 2, 2)}),
    "encoder_layers": 6,
    "decoder_layers": 10,
    "encoder_feedforward_dim": 128,
    "dim_feedforward": 256,
    "num_queries": 20,
}

pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")  # their new names are 5.23's


def training_step(model, checkpointing):
    """Outputs and gradients of one step, all random parts from one seed."""
    if checkpointing:
        model.gradient_checkpointing_enable()
    frames, labels = random_clips(num_frames=model.config.num_frames, size=(64, 64))
    torch.manual_seed(0)
    outputs = model(pixel_values_videos=frames.double(), labels=labels, output_auxiliary_logits=True)
    outputs.loss.backward()
    return outputs, {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("is_frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("fields", MODELS.values(), ids=MODELS)
def test_outputs_and_gradients_do_not_change_with_dropout_and_drop_path_on(fields, is_frozen):
    results = []
    for checkpointing in (False, True):
        backbone = MiTConfig(**TINY_MIT, drop_path_rate=0.5)
        model = tiny_model(**fields, dropout=0.2, aggregator_dropout=0.2, backbone_config=backbone).double().train()
        if is_frozen:
            model.freeze_pixel_level()
        results.append(training_step(model, checkpointing))
    (expected, expected_gradients), (outputs, gradients) = results
    for name, value in expected.items():
        torch.testing.assert_close(outputs[name], value, rtol=0, atol=0, msg=name)
    for name, gradient in expected_gradients.items():
        assert (gradient is None) == (is_frozen and "pixel_level_module" in name)
        torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("per_clip", [False, True], ids=["one_generator", "one_per_clip"])
def test_the_backward_pass_draws_no_points(per_clip):
    """What it computes again meets the points of the forward pass, and the next step finds the same generator."""
    results = []
    for checkpointing in (False, True):
        model = tiny_model(num_frames=2).double().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        frames, labels = random_clips()
        generators = [torch.Generator().manual_seed(seed) for seed in range(len(frames) if per_clip else 1)]
        points = generators if per_clip else generators[0]
        loss = model(
            pixel_values_videos=frames.double(), labels=labels, context=StepContext(point_generator=points)
        ).loss
        loss.backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        results.append([loss, *gradients, *(generator.get_state() for generator in generators)])
    for expected, value in zip(*results, strict=True):
        torch.testing.assert_close(value, expected, rtol=0, atol=0)


def test_masks_are_made_again_in_the_precision_of_the_forward_pass():
    results = []
    for checkpointing in (False, True):
        model = tiny_model(num_frames=2).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        frames, labels = random_clips()
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(pixel_values_videos=frames, labels=labels)
        outputs.loss.backward()
        assert outputs.masks_queries_logits.dtype == torch.bfloat16
        results.append([outputs.loss, *(parameter.grad for parameter in model.parameters())])
    for expected, value in zip(*results, strict=True):
        torch.testing.assert_close(value, expected, rtol=0, atol=0)


def test_every_repeated_layer_is_a_checkpoint():
    model = tiny_model(num_frames=2)
    model.gradient_checkpointing_enable()
    repeated = [
        *(block for stage in model.model.pixel_level_module.encoder.segformer.stages for block in stage.blocks),
        *model.model.pixel_level_module.decoder.encoder.layers,
        *model.model.transformer_module.decoder.layers,
    ]
    assert len(repeated) == 4 + 1 + 2 and all(layer.gradient_checkpointing for layer in repeated)


@pytest.mark.parametrize("is_frozen", [False, True], ids=["trained", "frozen"])
def test_peak_memory_of_a_training_step_falls_by_two_fifths(is_frozen):
    """As the allocator counts it, hence the same on every machine; `benchmarks training-memory` has larger ones."""
    model = tiny_model(num_frames=4, **DEEP)
    if is_frozen:  # the second stage, in which four-frame models are trained
        model.freeze_pixel_level()
    frames, labels = random_clips(batch_size=1, num_frames=4, size=(128, 128))
    plain, checkpointed = training_step_peaks(model, frames, labels)
    assert checkpointed <= 0.6 * plain
