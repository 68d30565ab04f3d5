# SPDX-License-Identifier: Apache-2.0
"""Half precision stays close to float32; the compiled decoder equals the eager one."""

import pytest
import torch

from point_samplers import layer_by_layer
from selection import nightly_except, pairwise
from tiny import TINY_MIT, random_clips, tiny_model
from transformers_themask import MiTConfig, THEMaskForVideoSemanticSegmentation
from transformers_themask.models.step_context import StepContext

MODELS = {
    "one_frame": {"num_frames": 1},
    "video_frame": {"num_frames": 2},
    "one_to_frame": {"num_frames": 2, "temporal_mode": "one_to_frame"},
    "one_to_video": {"num_frames": 2, "temporal_mode": "one_to_video"},
}
every_model = pytest.mark.parametrize("fields", MODELS.values(), ids=MODELS)
LOGITS = (
    "class_queries_logits",
    "masks_queries_logits",
    "frame_class_queries_logits",
    "frame_masks_queries_logits",
)


def calm_model(**fields):
    calm = {"backbone_config": MiTConfig(**TINY_MIT, drop_path_rate=0.0), "aggregator_dropout": 0.0}
    return tiny_model(**calm, **fields)


@layer_by_layer
def fixed_points(kind, layer, shape, generator):
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(map(ord, kind)) + 1000 * layer))


def step(model, dtype=torch.float32):
    """Outputs and all gradients, as one vector, of one training step."""
    frames, labels = random_clips()
    model.train().zero_grad()
    outputs = model(
        pixel_values_videos=frames.to(dtype), labels=labels, context=StepContext(point_sampler=fixed_points)
    )
    outputs.loss.backward()
    return outputs, torch.cat([parameter.grad.float().flatten() for parameter in model.parameters()])


@pairwise(fields=list(MODELS.values()), dtype=[torch.bfloat16, torch.float16], how=["autocast", "weights"])
def test_half_precision_is_close_to_float32(fields, dtype, how):
    """Within a few units of the last place: 2^-8 in bfloat16, 2^-11 in float16, some ten operations deep."""
    precision = torch.finfo(dtype).eps
    model = calm_model(**fields)
    expected, expected_gradient = step(model)
    if how == "weights":
        outputs, gradient = step(model.to(dtype), dtype)
    else:
        with torch.autocast("cpu", dtype):
            outputs, gradient = step(model)
    for name in expected.keys() & set(LOGITS):
        assert outputs[name].dtype == dtype
        largest = expected[name].abs().max().item()
        torch.testing.assert_close(outputs[name].float(), expected[name], rtol=0, atol=6 * precision * largest)
    assert outputs.loss.dtype == torch.float32
    torch.testing.assert_close(outputs.loss, expected.loss, rtol=2 * precision, atol=0)
    # A mask that flips at its threshold moves a few attention rows, so gradients agree in direction and length only.
    assert gradient.isfinite().all()
    assert torch.cosine_similarity(gradient, expected_gradient, dim=0) > 1 - 4 * precision
    assert abs(gradient.norm() / expected_gradient.norm() - 1) < 8 * precision


def test_weights_load_in_half_precision(tmp_path):
    calm_model(num_frames=2).save_pretrained(tmp_path)
    model = THEMaskForVideoSemanticSegmentation.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model(pixel_values_videos=random_clips()[0].bfloat16()).masks_queries_logits.dtype == torch.bfloat16


def pixel_level_outputs(model):
    frames, _ = random_clips()
    with torch.no_grad():
        feature_maps, mask_features = model.model.pixel_level_module(frames.flatten(0, 1))
    leaves = [x.clone().requires_grad_() for x in (*feature_maps, mask_features)]
    return leaves[:-1], leaves[-1]


def decode(module, feature_maps, mask_features):
    """All predictions of a decoder as one list of tensors, and the gradients of a weighted sum of them."""
    video, frame = module(feature_maps, mask_features, 2, True)
    tensors = [tensor for prediction in (*video, *frame) for tensor in prediction]
    value = sum((index + 1) * tensor.square().mean() for index, tensor in enumerate(tensors))
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return tensors, torch.autograd.grad(value, [*feature_maps, mask_features, *trained], allow_unused=True)


def assert_compiled_equals_eager(fields, training, backend):
    model = calm_model(**fields).train(training)
    module = model.model.transformer_module
    inputs = pixel_level_outputs(model)
    expected, expected_gradients = decode(module, *inputs)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    outputs, gradients = decode(compiled, *inputs)
    for ours, eager in zip((*outputs, *gradients), (*expected, *expected_gradients), strict=True):
        assert (ours is None) == (eager is None)
        if ours is not None:
            torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "training", [pytest.param(False, id="eval", marks=pytest.mark.nightly), pytest.param(True, id="train")]
)
@pytest.mark.parametrize("fields", nightly_except(MODELS.values(), [MODELS["video_frame"]]), ids=MODELS)
def test_compiled_decoder_equals_the_eager_one(fields, training):
    assert_compiled_equals_eager(fields, training, "aot_eager")


@pytest.mark.nightly
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@every_model
def test_decoder_compiled_to_machine_code_equals_the_eager_one(fields, training):
    """Needs a C++ compiler."""
    assert_compiled_equals_eager(fields, training, "inductor")


def test_whole_model_compiles_without_a_break_for_inference():
    model = calm_model(num_frames=2).eval()
    frames, _ = random_clips()
    torch._dynamo.reset()
    with torch.no_grad():
        expected = model(pixel_values_videos=frames)
        outputs = torch.compile(model, fullgraph=True, backend="eager")(pixel_values_videos=frames)
    for name in LOGITS:
        torch.testing.assert_close(outputs[name], expected[name], rtol=1e-5, atol=1e-5)
