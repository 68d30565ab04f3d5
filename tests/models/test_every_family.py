# SPDX-License-Identifier: Apache-2.0
"""Contract tests: the same for the tiny models of every registered family."""

import copy

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

from families import FAMILIES, every_family, family_clips
from hidden_package import load_without_the_package
from selection import nightly_except
from tiny import random_clips
from tiny_segmenters import opinionated
from transformers_themask import AutoModelForVideoSemanticSegmentation, VideoSegmentationProcessor
from transformers_themask.models.step_context import StepContext

AUTO_CLASSES = (AutoModel, AutoModelForVideoSemanticSegmentation)
STEPWISE = ("sliding", "recurrent")
STREAM_LENGTH = 20


@torch.no_grad()
def scores_of(model, frames):
    return model(pixel_values_videos=frames).scores()


def calm(model):
    """The same model without dropout and drop path, with weights that have opinions, in float64."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
        elif "DropPath" in type(module).__name__:
            module.drop_prob = 0.0
    return opinionated(model).double()


# ---- files ----


@pytest.fixture(scope="module", params=FAMILIES)
def saved(request, tmp_path_factory):
    """A model, the folder with it and its processor, and clips."""
    model, folder = FAMILIES[request.param](), tmp_path_factory.mktemp(request.param)
    for part in (model, VideoSegmentationProcessor(size={"height": 64, "width": 96})):
        part.save_pretrained(folder)
    return model, folder, family_clips(model)


def test_saved_model_loads_with_every_auto_class(saved):
    model, folder, (frames, _) = saved
    for auto_class in AUTO_CLASSES:
        loaded = auto_class.from_pretrained(folder)
        assert type(loaded) is type(model) and not loaded.training
        assert torch.equal(scores_of(loaded, frames), scores_of(model, frames))


def test_configuration_survives_a_round_trip(saved):
    model, folder, _ = saved
    config = AutoConfig.from_pretrained(folder)
    assert type(config) is type(model.config)
    assert type(config).from_dict(config.to_dict()).to_dict() == config.to_dict()
    assert (config.num_labels, config.num_frames) == (model.config.num_labels, model.config.num_frames)


@pytest.mark.slow
def test_saved_folder_loads_as_remote_code_without_the_package(saved, tmp_path):
    model, folder, (frames, labels) = saved
    _, results = load_without_the_package(folder, tmp_path, frames, labels)
    with torch.no_grad():
        outputs = model(pixel_values_videos=frames)
    for name, value in outputs.items():
        assert torch.equal(results[name], value), name
    assert results["loss"].isfinite()
    again = AutoModel.from_pretrained(tmp_path / "again")
    assert type(again) is type(model) and torch.equal(scores_of(again, frames), scores_of(model, frames))


def test_weights_load_in_half_precision(saved):
    model, folder, (frames, _) = saved
    loaded = AutoModelForVideoSemanticSegmentation.from_pretrained(folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert_near_in_bfloat16(scores_of(loaded, frames.bfloat16()), scores_of(model, frames))


# ---- invariance ----


@every_family
def test_batch_items_are_independent(family):
    model = calm(FAMILIES[family]())
    frames, _ = family_clips(model, batch_size=3)
    together, order = scores_of(model, frames), [2, 0, 1]
    alone = torch.cat([scores_of(model, frames[clip : clip + 1]) for clip in range(3)])
    torch.testing.assert_close(alone, together, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(scores_of(model, frames[order]), together[order], rtol=1e-9, atol=1e-9)


def assert_near_in_bfloat16(scores, expected):
    """Within a few units of the last place, some ten operations deep."""
    tolerance = 6 * torch.finfo(torch.bfloat16).eps * expected.abs().max().item()
    torch.testing.assert_close(scores.float(), expected, rtol=0, atol=tolerance)


@every_family
def test_autocast_stays_close_to_float32(family):
    model = FAMILIES[family]()
    frames, labels = family_clips(model)
    expected = scores_of(model, frames)
    with torch.autocast("cpu", torch.bfloat16):
        assert_near_in_bfloat16(scores_of(model, frames), expected)
        loss = model(pixel_values_videos=frames, labels=labels).loss
    assert loss.dtype == torch.float32 and loss.isfinite()


@pytest.mark.parametrize("family", nightly_except(FAMILIES, ["themask_video_frame"]))
def test_compiled_model_equals_the_eager_one(family):
    model = FAMILIES[family]()
    frames, _ = family_clips(model)
    expected = scores_of(model, frames)  # first, as Transformers prepares its backbones for recording then
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(scores_of(compiled, frames), expected, rtol=1e-5, atol=1e-5)


# ---- training ----


def gradients_of(model, frames, labels, **options):
    """The loss of clips, whose random points depend on the clip alone, and its gradients added to the model's."""
    loss = model(pixel_values_videos=frames, labels=labels, **options).loss
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same_step(ours, expected, tolerance):
    torch.testing.assert_close(ours[0], expected[0], rtol=tolerance, atol=tolerance)
    assert ours[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(ours[1][name], gradient, rtol=tolerance, atol=tolerance, msg=name)


@every_family
def test_every_parameter_gets_a_gradient(family):
    model = calm(FAMILIES[family]()).train()
    _, gradients = gradients_of(model, *family_clips(model))
    wanted = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert wanted and [name for name in wanted if gradients[name] is None or not gradients[name].any()] == []


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")
@every_family
def test_gradient_checkpointing_is_exact(family):
    steps = []
    for checkpointing in (False, True):
        model = FAMILIES[family]().train()  # with its dropout and drop path
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        torch.manual_seed(0)
        steps.append(gradients_of(model, *family_clips(model)))
    assert_same_step(*steps, tolerance=0)


@every_family
def test_losses_of_a_split_batch_add_up_to_its_loss(family):
    whole = calm(FAMILIES[family]())  # in evaluation mode: batch norms would see the parts
    split = copy.deepcopy(whole)
    frames, labels = family_clips(whole, batch_size=3)
    labels[0, :, :40] = 255  # so that the parts differ in what they are divided by

    def step(model, parts):
        counts = torch.stack([model.loss_counts(labels[part]) for part in parts]).sum(0)
        for part in parts:
            points = [torch.Generator().manual_seed(clip) for clip in part]
            loss, gradients = gradients_of(
                model, frames[part], labels[part], context=StepContext(counts, point_generator=points)
            )
            yield loss, gradients

    (expected,) = step(whole, [[0, 1, 2]])
    shares = list(step(split, [[0], [1, 2]]))
    assert_same_step((sum(loss for loss, _ in shares), shares[-1][1]), expected, tolerance=1e-6)


# ---- streams ----


class ScoreProcessor(VideoSegmentationProcessor):
    """Returns class scores in place of label maps, to compare them exactly."""

    def post_process_semantic_segmentation(self, outputs, target_sizes=None, **_):
        return list(outputs.scores())


@pytest.fixture(scope="module")
def video():
    coarse = np.random.default_rng(3).integers(0, 256, (STREAM_LENGTH, 4, 6, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


def sessions_of(family):
    model = opinionated(FAMILIES[family]())
    processor = ScoreProcessor(size={"height": 32, "width": 64})
    return [model.stream(processor, mode) for mode in STEPWISE if mode in model.stream_modes]


@every_family
def test_session_equals_the_models_own_steps(family, video):
    (session,) = sessions_of(family)
    model = session.model
    state = model.initial_state(session.num_frames, session.frame_stride)
    for index, picture in enumerate(video):
        prepared = session.prepare(picture)
        (clip,) = session.advance(prepared)
        with torch.no_grad():
            outputs, state = model.clip_step(prepared.pixel_values_videos, state)
        assert clip.frame_indices == [index]
        assert torch.equal(clip.outputs.scores(), outputs.scores())


@every_family
def test_stream_is_independent_of_chunks_and_earlier_videos(family, video):
    (session,) = sessions_of(family)
    expected = [pair for picture in video for pair in session.step(picture)]
    assert [index for index, _ in expected] == list(range(STREAM_LENGTH)) and session.flush() == []
    assert not np.array_equal(expected[0][1], expected[-1][1])
    for lengths in ((20,), (1, 12, 7)):
        session.step(video[::-1][:11])
        session.reset()
        labelled = [pair for chunk in np.split(video, np.cumsum(lengths)[:-1]) for pair in session.step(chunk)]
        for (index, scores), (expected_index, expected_scores) in zip(labelled, expected, strict=True):
            assert index == expected_index and np.array_equal(scores, expected_scores)


@every_family
@torch.no_grad()
def test_step_does_not_change_its_input_state(family):
    model = opinionated(FAMILIES[family]())
    frames, _ = random_clips(1, 12, (32, 64))
    state = model.initial_state(3, 1)
    for frame in frames.split(1, dim=1):
        before = state
        outputs, state = model.clip_step(frame, before)
        again, _ = model.clip_step(frame, before)
        assert torch.equal(again.scores(), outputs.scores())


# ---- bad input ----


def wrong_inputs(frames, labels):
    """Invalid replacements of these inputs, each with a part of its error message."""
    return [
        ({"pixel_values_videos": None}, "`pixel_values_videos` must be a tensor. Got a NoneType"),
        ({"pixel_values_videos": frames[0]}, "`pixel_values_videos` must have 5 dimensions"),
        ({"pixel_values_videos": frames[..., None]}, "`pixel_values_videos` must have 5 dimensions"),
        ({"pixel_values_videos": frames[:, :, :1]}, "(batch, num_frames, 3, height, width)"),
        ({"pixel_values_videos": frames[:, :0]}, "must hold at least one frame"),
        (
            {"pixel_values_videos": frames.to(torch.uint8)},
            "`pixel_values_videos` must be floating-point",
        ),
        ({"pixel_values": frames}, "`forward` must be given arguments it knows. Got pixel_values"),
        ({"labels": labels.numpy()}, "`labels` must be a tensor. Got a ndarray"),
        ({"labels": labels[0]}, "`labels` must have 4 dimensions"),
        ({"labels": labels.repeat(2, 1, 1, 1)}, "`labels` must have 4 dimensions"),
        ({"labels": labels.repeat(1, 2, 1, 1)}, "`labels` must have 4 dimensions"),
        ({"labels": labels[..., :0]}, "`labels` must have 4 dimensions"),
        ({"labels": labels.float()}, "`labels` must be integers, class indices. Got torch.float32"),
        ({"labels": labels > 2}, "`labels` must be integers, class indices. Got torch.bool"),
        ({"labels": torch.full_like(labels, 6)}, "`labels` must hold class indices 0 to 5"),
    ]


@every_family
def test_invalid_input_is_rejected_with_one_line(family):
    model = FAMILIES[family]()
    frames, labels = family_clips(model, batch_size=1)
    for changed, message in wrong_inputs(frames, labels):
        with pytest.raises(ValueError) as raised:
            model(**{"pixel_values_videos": frames, "labels": labels, **changed})
        assert message in str(raised.value) and "\n" not in str(raised.value)
