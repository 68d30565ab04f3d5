# SPDX-License-Identifier: Apache-2.0
"""What cannot be computed is refused in one sentence: the argument, its value and the remedy."""

import re

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from tiny import tiny_config, tiny_model
from transformers_themask import THEMaskConfig, THEMaskForVideoSemanticSegmentation
from transformers_themask.models.step_context import StepContext


@pytest.fixture(scope="module")
def model():
    return tiny_model(num_frames=2)


def assert_refused(call, *parts):
    """The message is one that holds all `parts`, in this order."""
    with pytest.raises(ValueError, match=re.compile(".*".join(map(re.escape, parts)), re.DOTALL)):
        call()


@pytest.mark.parametrize("shape", [(3, 64, 96), (2, 3, 64, 96), (1, 2, 3, 64, 96, 1)])
def test_frames_of_the_wrong_rank_are_rejected(model, shape):
    assert_refused(
        lambda: model(pixel_values_videos=torch.zeros(shape)),
        "`pixel_values_videos` must have 5 dimensions (batch, num_frames, 3, height, width).",
        f"Got shape {shape}",
        "add a batch and a frame axis",
    )


@pytest.mark.parametrize("channels", [0, 1, 4])
def test_frames_without_three_channels_are_rejected(model, channels):
    shape = (1, 2, channels, 64, 96)
    assert_refused(
        lambda: model(pixel_values_videos=torch.zeros(shape)), "num_frames, 3, height", f"Got shape {shape}"
    )


@pytest.mark.parametrize("size", [(64, 95), (60, 96), (0, 96), (31, 31)])
def test_frame_size_must_be_a_multiple_of_32(model, size):
    shape = (1, 2, 3, *size)
    assert_refused(
        lambda: model(pixel_values_videos=torch.zeros(shape)),
        "height and width multiples of 32",
        f"Got shape {shape}",
        "video processor resizes or pads",
    )


@pytest.mark.parametrize("shape", [(1, 0, 3, 64, 96), (0, 2, 3, 64, 96)])
def test_clip_without_frames_is_rejected(model, shape):
    assert_refused(
        lambda: model(pixel_values_videos=torch.zeros(shape)), "must hold at least one", f"Got shape {shape}"
    )


@pytest.mark.parametrize("shape", [(2, 64, 96), (2, 2, 1, 64, 96), (1, 2, 64, 96), (2, 3, 64, 96), (2, 1, 64, 96)])
def test_labels_of_another_shape_are_rejected(model, shape):
    frames = torch.zeros(2, 2, 3, 64, 96)
    assert_refused(
        lambda: model(pixel_values_videos=frames, labels=torch.zeros(shape).long()),
        "`labels` must have 4 dimensions (batch, num_frames, height, width)",
        "(2, 2, 3, 64, 96)",
        f"Got shape {shape}",
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_labels_must_be_integers(model, dtype):
    frames, labels = torch.zeros(1, 2, 3, 64, 96), torch.ones(1, 2, 64, 96, dtype=dtype)
    assert_refused(
        lambda: model(pixel_values_videos=frames, labels=labels), "`labels` must be integers", f"Got {dtype}"
    )


def test_raw_labels_are_rejected(model):
    frames, labels = torch.zeros(1, 2, 3, 64, 96), torch.full((1, 2, 64, 96), 6)
    assert_refused(
        lambda: model(pixel_values_videos=frames, labels=labels),
        "`labels` must hold class indices 0 to 5, or 255 for no class. Got 6.",
        "`do_reduce_labels=True`",
    )


@pytest.mark.parametrize(
    "unknown", [{"pixel_values": None}, {"mask_labels": []}, {"return_dict": False}, {"num_items_in_batch": 1}]
)
def test_unknown_argument_is_rejected(model, unknown):
    frames = torch.zeros(1, 2, 3, 64, 96)
    assert_refused(lambda: model(frames, **unknown), f"Got {next(iter(unknown))}.", "go in as `pixel_values_videos`")


def test_unknown_arguments_are_named_together(model):
    frames = torch.zeros(1, 2, 3, 64, 96)
    assert_refused(lambda: model(frames, pixel_values=frames, mask=0), "Got mask, pixel_values.")


@pytest.mark.parametrize("rounds", [0, 3, "2"])
def test_invalid_matching_rounds_are_rejected(rounds):
    assert_refused(
        lambda: StepContext(matching_rounds=rounds),
        f"`matching_rounds` must be 1 or 2. Got {rounds}",
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_frames": 0}, "`num_frames` must be at least 1. Got 0."),
        ({"num_queries": 0}, "`num_queries` must be at least 1. Got 0."),
        ({"num_attention_heads": 0}, "`num_attention_heads` must be at least 1. Got 0."),
        ({"hidden_dim": 0}, "`hidden_dim` must be at least 1. Got 0."),
        ({"mask_feature_size": 0}, "`mask_feature_size` must be at least 1. Got 0."),
        ({"decoder_layers": 1}, "`decoder_layers` must be at least 2. Got 1."),
        ({"encoder_layers": 0}, "`encoder_layers` must be at least 1. Got 0."),
        ({"train_num_points": 0}, "`train_num_points` must be at least 1. Got 0."),
        ({"matching_rounds": 3}, "`matching_rounds` must be 1 or 2. Got 3."),
        ({"oversample_ratio": 0.5}, "`oversample_ratio` must be at least 1. Got 0.5."),
        ({"importance_sample_ratio": 1.5}, "`importance_sample_ratio` must lie in [0, 1]. Got 1.5."),
        ({"feature_size": 48}, "`feature_size` must be a multiple of 32, for the pixel decoder's GroupNorm. Got 48."),
        ({"hidden_dim": 36, "num_attention_heads": 8}, "`hidden_dim` must be a multiple of `num_attention_heads` (8)"),
        ({"hidden_dim": 34, "num_attention_heads": 2}, "`hidden_dim` must be a multiple of 4"),
        ({"pre_norm": True}, "`pre_norm` must be False. Got True."),
        ({"activation_function": "gelu"}, "`activation_function` must be 'relu'. Got 'gelu'."),
        ({"common_stride": 8}, "`common_stride` must be 4. Got 8."),
        ({"feature_strides": [8, 16, 32]}, "`feature_strides` must be (4, 8, 16, 32). Got (8, 16, 32)."),
        ({"num_labels": 0}, "`num_labels` must be at least 1. Got 0."),
        ({"mask_weight": -1.0}, "`mask_weight` must be at least 0. Got -1.0."),
        ({"aggregator_dropout": 2.0}, "`aggregator_dropout` must lie in [0, 1]. Got 2.0."),
        ({"dropout": -1}, "`dropout` must lie in [0, 1]. Got -1."),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_invalid_config_is_rejected(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny_config(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temporal_mode": "clip"}, "'video_frame', 'one_to_frame', 'one_to_video'"),
        ({"second_round_cost": "dice"}, "'auto', 'mask', 'full'"),
        ({"num_frames": "2"}, "'num_frames' expected int, got str"),
    ],
)
def test_config_fields_of_the_wrong_type_are_rejected(fields, message):
    with pytest.raises(StrictDataclassError, match=re.escape(message)):
        tiny_config(**fields)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_frames": 0}, "`num_frames` must be at least 1"),
        ({"backbone": "mit-b2"}, "`backbone` must be given to a new"),
    ],
)
def test_overrides_of_a_checkpoint_are_checked(tmp_path, overrides, message):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        THEMaskForVideoSemanticSegmentation.from_pretrained(tmp_path, **overrides)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"pixel_values_videos": None}, "`pixel_values_videos` must be a tensor. Got a NoneType"),
        (
            {"pixel_values_videos": np.zeros((1, 1, 3, 32, 32))},
            "`pixel_values_videos` must be a tensor. Got a ndarray",
        ),
        ({"pixel_values_videos": torch.zeros(1, 1, 3, 32, 32, dtype=torch.uint8)}, "must be floating-point"),
        (
            {"pixel_values_videos": torch.zeros(1, 1, 3, 32, 32), "labels": "road"},
            "`labels` must be a tensor. Got a str",
        ),
        (
            {"pixel_values_videos": torch.zeros(1, 1, 3, 32, 32), "labels": torch.zeros(1, 1, 0, 0).long()},
            "`labels` must have 4 dimensions",
        ),
    ],
)
def test_inputs_other_than_clips_are_rejected(model, inputs, message):
    assert_refused(lambda: model(**inputs), message)


def test_ignore_index_must_not_be_a_class():
    frames, labels = torch.zeros(1, 1, 3, 64, 64), torch.zeros(1, 1, 64, 64).long()
    assert_refused(
        lambda: tiny_model(ignore_value=3)(pixel_values_videos=frames, labels=labels),
        "`ignore_value` must not be one of the 6 class indices. Got 3.",
    )


def test_configuration_is_checked_when_loaded(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"matching_rounds": 2', '"matching_rounds": 5'))
    with pytest.raises(Exception, match=r"`matching_rounds` must be 1 or 2\. Got 5\."):
        THEMaskConfig.from_pretrained(tmp_path)
