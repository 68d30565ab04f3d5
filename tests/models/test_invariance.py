# SPDX-License-Identifier: Apache-2.0
"""What must not matter: batching, the order of clips and frames, clip length, attention kernel, checkpointing.

Equalities are tested in float64: in float32 the rounding of a mask logit near zero can flip an attention mask.
"""

import pytest
import torch

from point_samplers import layer_by_layer
from tiny import TINY_MIT, random_clips, tiny_model
from transformers_themask import MiTConfig, THEMaskVideoProcessor
from transformers_themask.models.step_context import StepContext

LOGITS = (
    "class_queries_logits",
    "masks_queries_logits",
    "frame_class_queries_logits",
    "frame_masks_queries_logits",
)
MODELS = {
    "one_frame": {"num_frames": 1},
    "video_frame": {"num_frames": 2},
    "one_to_frame": {"num_frames": 2, "temporal_mode": "one_to_frame"},
    "one_to_video": {"num_frames": 2, "temporal_mode": "one_to_video"},
}
every_model = pytest.mark.parametrize("fields", MODELS.values(), ids=MODELS)


def sharp_model(**fields):
    """In float64, without dropout, with weights far from their initial values, so that masks and attention vary."""
    calm = {"backbone_config": MiTConfig(**TINY_MIT, drop_path_rate=0.0), "aggregator_dropout": 0.0}
    model = tiny_model(**{**calm, **fields}).double()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def clips(batch_size=2, num_frames=2, seed=0):
    frames, labels = random_clips(batch_size, num_frames, seed=seed)
    return frames.double(), labels


def run(model, frames, **options):
    with torch.no_grad():
        return model(pixel_values_videos=frames, **options)


def assert_same(ours, expected, *, rows=slice(None), exact=False):
    assert ours.keys() & set(LOGITS) == expected.keys() & set(LOGITS)
    for name in ours.keys() & set(LOGITS):
        tolerance = 0 if exact else 1e-9
        torch.testing.assert_close(ours[name], expected[name][rows], rtol=tolerance, atol=tolerance, msg=name)


def repeated_points(copies):
    """Random points that depend on kind and layer alone, the same for each of `copies` identical clips."""

    def sampler(kind, layer, shape, generator):
        seeded = torch.Generator().manual_seed(sum(map(ord, kind)) + 1000 * layer)
        once = torch.rand((shape[0] // copies, *shape[1:]), generator=seeded, dtype=torch.float64)
        return once.repeat(copies, 1, 1)

    return layer_by_layer(sampler)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@every_model
def test_batch_of_two_equals_two_batches_of_one(fields, training):
    model = sharp_model(**fields).train(training)
    frames, _ = clips(num_frames=3)
    together = run(model, frames)
    for clip in range(2):
        assert_same(run(model, frames[clip : clip + 1]), together, rows=slice(clip, clip + 1))


@every_model
def test_permuting_the_batch_permutes_the_outputs(fields):
    model = sharp_model(**fields)
    frames, _ = clips(batch_size=3)
    order = [2, 0, 1]
    assert_same(run(model, frames[order]), run(model, frames), rows=order)


@every_model
def test_training_mode_without_dropout_equals_evaluation_mode(fields):
    model = sharp_model(**fields)
    frames, labels = clips()
    options = {"labels": labels, "context": StepContext(point_sampler=repeated_points(1))}
    # With gradients, without which frames are encoded one by one in evaluation.
    evaluated, trained = model(frames, **options), model.train()(frames, **options)
    assert_same(trained, evaluated, exact=True)
    assert torch.equal(trained.loss, evaluated.loss)


@pytest.mark.parametrize("num_frames", [1, 3, 5])
@every_model
def test_clips_of_any_length_are_segmented_and_have_a_loss(fields, num_frames):
    model = sharp_model(**fields)
    frames, labels = clips(num_frames=num_frames)
    outputs = model(pixel_values_videos=frames, labels=labels)
    outputs.loss.backward()
    assert outputs.loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
    maps = THEMaskVideoProcessor().post_process_semantic_segmentation(outputs, [(50, 70), (64, 96)])
    assert [tuple(label_map.shape) for label_map in maps] == [(num_frames, 50, 70), (num_frames, 64, 96)]


@pytest.mark.parametrize("name", ["one_frame", "one_to_frame"])
def test_frames_decoded_alone_are_independent(name):
    model = sharp_model(**MODELS[name])
    frames, _ = clips(num_frames=3)
    together = run(model, frames)
    for frame in range(3):
        alone = run(model, frames[:, frame : frame + 1])
        level = "" if name == "one_frame" else "frame_"
        classes, masks = alone[f"{level}class_queries_logits"], alone[f"{level}masks_queries_logits"]
        classes = classes if level else classes[:, None]
        torch.testing.assert_close(together.frame_class_queries_logits[:, frame], classes[:, 0], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(together.frame_masks_queries_logits[:, frame], masks[:, 0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["video_frame", "one_to_video"])
def test_video_queries_see_every_frame(name):
    model = sharp_model(**MODELS[name])
    frames, _ = clips(batch_size=1, num_frames=3)
    changed = frames.clone()
    changed[:, 2] = torch.randn_like(changed[:, 2])
    before, after = run(model, frames), run(model, changed)
    assert not torch.allclose(before.class_queries_logits, after.class_queries_logits, atol=1e-3)
    # Not through a mix-up of batch and frames: the changed frame is a part of this clip only.
    both = run(model, torch.cat([frames, changed]))
    assert_same(before, both, rows=slice(0, 1))


def test_temporal_aggregation_follows_the_order_of_frames():
    model = sharp_model(num_frames=2)
    frames, _ = clips(num_frames=4)
    order = [2, 0, 3, 1]
    ours, expected = run(model, frames[:, order]), run(model, frames)
    torch.testing.assert_close(ours.class_queries_logits, expected.class_queries_logits, rtol=1e-9, atol=1e-9)
    for name in ("masks_queries_logits", "frame_class_queries_logits", "frame_masks_queries_logits"):
        torch.testing.assert_close(ours[name], expected[name][:, order], rtol=1e-9, atol=1e-9)


def test_temporal_aggregation_of_a_still_is_that_of_one_frame():
    """Softmax weights over equal frames average equal queries, so that a still has nothing to add."""
    model = sharp_model(num_frames=2)
    frames, _ = clips(num_frames=1)
    still, single = run(model, frames.repeat(1, 3, 1, 1, 1)), run(model, frames)
    torch.testing.assert_close(still.class_queries_logits, single.class_queries_logits, rtol=1e-9, atol=1e-9)
    for name in ("masks_queries_logits", "frame_class_queries_logits", "frame_masks_queries_logits"):
        torch.testing.assert_close(still[name], single[name].repeat_interleave(3, dim=1), rtol=1e-9, atol=1e-9)


@every_model
def test_fused_attention_equals_the_written_out_one(fields):
    model = sharp_model(**fields)
    frames, _ = clips()
    assert model.config._attn_implementation == "sdpa"
    fused = run(model, frames)
    # SegFormer's own written-out attention takes its softmax in float32, so its backbone stays as it is.
    model.set_attn_implementation({"": "eager", "backbone_config": "sdpa"})
    layer = model.model.transformer_module.decoder.layers[0]
    assert layer.cross_attn.config._attn_implementation == layer.self_attn.config._attn_implementation == "eager"
    assert_same(run(model, frames), fused)


@every_model
def test_auxiliary_logits_are_those_of_a_shorter_decoder(fields):
    model = sharp_model(**fields, decoder_layers=5)
    frames, _ = clips()
    outputs = run(model, frames, output_auxiliary_logits=True)
    assert_same(outputs, run(model, frames), exact=True)
    assert run(model, frames).auxiliary_logits is None and len(outputs.auxiliary_logits) == 4
    decoder = model.model.transformer_module.decoder
    layers = decoder.layers
    for length, expected in enumerate(outputs.auxiliary_logits):
        decoder.layers = layers[:length]
        assert_same(run(model, frames), expected, exact=True)


def test_auxiliary_logits_can_be_configured():
    assert run(sharp_model(output_auxiliary_logits=True), clips()[0]).auxiliary_logits is not None


@every_model
def test_two_equal_clips_have_the_loss_of_one(fields):
    """Every term is a mean over clips or is divided by the number of masks."""
    model = sharp_model(**fields).train()
    frames, labels = clips(batch_size=1)
    once = model(pixel_values_videos=frames, labels=labels, context=StepContext(point_sampler=repeated_points(1)))
    twice = model(
        pixel_values_videos=frames.repeat(2, 1, 1, 1, 1),
        labels=labels.repeat(2, 1, 1, 1),
        context=StepContext(point_sampler=repeated_points(2)),
    )
    assert once.loss_terms.keys() == twice.loss_terms.keys()
    for name, value in once.loss_terms.items():
        torch.testing.assert_close(twice.loss_terms[name], value, rtol=1e-9, atol=1e-12, msg=name)


def gradients_after(model, frames, labels):
    """Loss and gradients of one step with dropout, from a fixed seed."""
    model.zero_grad()
    torch.manual_seed(0)
    loss = model(pixel_values_videos=frames, labels=labels, context=StepContext(point_sampler=repeated_points(1))).loss
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def test_every_parameter_gets_a_gradient():
    """But for Swin-like constants and unused stages there are none that the loss does not reach."""
    for fields in MODELS.values():
        model = sharp_model(**fields).train()
        frames, labels = clips()
        _, gradients = gradients_after(model, frames, labels)
        idle = [name for name, gradient in gradients.items() if gradient is None or not gradient.any()]
        assert idle == []


def test_frozen_pixel_level_is_out_of_training():
    model = tiny_model(num_frames=2, backbone_config=MiTConfig(**TINY_MIT, drop_path_rate=0.9), aggregator_dropout=0.0)
    frames, labels = random_clips()
    pixel_level = model.model.pixel_level_module
    model.freeze_pixel_level()
    for mode in (False, True):
        model.train(mode)
        assert not any(module.training for module in pixel_level.modules())
        assert model.model.transformer_module.training == mode

    assert_same(run(model, frames), run(model.eval(), frames), exact=True)  # no drop path
    model.train()(pixel_values_videos=frames, labels=labels).loss.backward()
    assert not any(parameter.requires_grad for parameter in pixel_level.parameters())
    assert all(parameter.grad is None for parameter in pixel_level.parameters())
    others = [parameter for name, parameter in model.named_parameters() if "pixel_level_module" not in name]
    assert all(parameter.grad is not None for parameter in others)


def test_drop_path_and_aggregator_dropout_act_in_training_only():
    frames, _ = random_clips()
    for fields in (
        {"backbone_config": MiTConfig(**TINY_MIT, drop_path_rate=0.9), "aggregator_dropout": 0.0},
        {"backbone_config": MiTConfig(**TINY_MIT, drop_path_rate=0.0), "aggregator_dropout": 0.5},
        {"backbone_config": MiTConfig(**TINY_MIT, drop_path_rate=0.0), "aggregator_dropout": 0.0, "dropout": 0.5},
    ):
        model = tiny_model(num_frames=2, **fields)
        assert_same(run(model, frames), run(model, frames), exact=True)
        model.train()
        first, second = run(model, frames), run(model, frames)
        assert not torch.equal(first.class_queries_logits, second.class_queries_logits)


def test_model_keeps_no_state_between_calls():
    model = sharp_model(num_frames=2)
    frames, labels = clips()
    first = run(model, frames)
    run(model, clips(batch_size=1, num_frames=5, seed=1)[0])
    run(model, frames, labels=labels)
    assert_same(run(model, frames), first, exact=True)
    assert not [name for name, _ in model.named_buffers()]
