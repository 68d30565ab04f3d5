# SPDX-License-Identifier: Apache-2.0
"""VidEoMT with a state: the same model, whose answers no longer depend on where a video is cut."""

import pytest
import torch
from transformers import AutoModelForUniversalSegmentation

from tiny_segmenters import opinionated, save_videomt, videomt
from transformers_themask import AutoModelForVideoSemanticSegmentation

FIELDS = ("frame_class_queries_logits", "frame_masks_queries_logits")


def model_and_video(batch_size=2, num_frames=3):
    torch.manual_seed(0)
    model = opinionated(AutoModelForVideoSemanticSegmentation.from_config(videomt())).double()
    generator = torch.Generator().manual_seed(0)
    return model, torch.randn(batch_size, num_frames, 3, 64, 64, generator=generator, dtype=torch.float64)


def close(outputs, expected):
    for name in FIELDS:
        torch.testing.assert_close(outputs[name], expected[name], rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_clips_from_their_start_equal_transformers(tmp_path):
    native = save_videomt(tmp_path).double()
    model, loading = AutoModelForVideoSemanticSegmentation.from_pretrained(
        tmp_path, dtype=torch.float64, output_loading_info=True
    )
    assert not any(loading.values())
    _, videos = model_and_video()
    outputs = model(pixel_values_videos=videos)
    assert outputs.frame_masks_queries_logits.shape == (2, 3, 8, 16, 16)
    for video, classes, masks in zip(videos, *(outputs[name] for name in FIELDS), strict=True):
        expected = native(pixel_values_videos=video[None])
        torch.testing.assert_close(classes, expected.class_queries_logits, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(masks, expected.masks_queries_logits, rtol=1e-9, atol=1e-9)
    # Transformers lays the frames of several videos one after the other, the first ones first.
    joint = native(pixel_values_videos=videos).class_queries_logits
    torch.testing.assert_close(joint.unflatten(0, (3, 2)).transpose(0, 1), outputs[FIELDS[0]], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("lengths", [(1, 2), (2, 1), (1, 1, 1)])
@torch.no_grad()
def test_steps_equal_one_call(lengths):
    model, videos = model_and_video()
    state, parts = model.initial_state(), []
    for part in videos.split(lengths, dim=1):
        outputs, state = model.streaming_step(part, state)
        parts.append(outputs)
    close({name: torch.cat([part[name] for part in parts], dim=1) for name in FIELDS}, model(videos))


@torch.no_grad()
def test_earlier_frames_act_through_the_state_alone():
    model, videos = model_and_video()
    whole = model(videos)
    alone = model(videos[:, 2:])
    assert (whole.frame_masks_queries_logits[:, 2:] - alone.frame_masks_queries_logits).abs().max() > 1e-2
    _, state = model.streaming_step(videos[:, :1], model.initial_state())
    kept = state.queries.clone()
    first, _ = model.streaming_step(videos[:, 1:2], state)
    second, _ = model.streaming_step(videos[:, 1:2], state)
    assert torch.equal(state.queries, kept)
    close(first, second)


@torch.no_grad()
def test_batch_items_are_independent():
    model, videos = model_and_video()
    outputs = model(videos)
    for index in range(2):
        alone = model(videos[index : index + 1])
        close({name: outputs[name][index : index + 1] for name in FIELDS}, alone)


def test_saved_checkpoint_loads_in_transformers(tmp_path):
    model, videos = model_and_video(batch_size=1)
    model.save_pretrained(tmp_path)
    native = AutoModelForUniversalSegmentation.from_pretrained(tmp_path, dtype=torch.float64)
    assert type(native).__name__ == "VideomtForUniversalSegmentation"
    with torch.no_grad():
        expected = native(pixel_values_videos=videos)
        outputs = model(videos)
    torch.testing.assert_close(outputs[FIELDS[1]][0], expected.masks_queries_logits, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"pixel_values_videos": torch.zeros(1, 2, 3, 64, 96)},
            r"must have shape .*, 64\).* Got \(1, 2, 3, 64, 96\)",
        ),
        ({"pixel_values_videos": torch.zeros(2, 3, 64, 64)}, r"Got \(2, 3, 64, 64\)"),
        ({"pixel_values_videos": torch.zeros(1, 0, 3, 64, 64)}, "with at least one frame"),
        (
            {"pixel_values_videos": torch.zeros(1, 1, 3, 64, 64), "labels": torch.zeros(1, 1, 64, 64)},
            r"cannot be trained\. Got labels",
        ),
    ],
)
def test_invalid_input_is_rejected_with_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        model_and_video()[0](**arguments)
    assert "\n" not in str(error.value)
