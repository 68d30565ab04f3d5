# SPDX-License-Identifier: Apache-2.0
"""A stream gives what whole clips give."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tiny import random_clips, tiny_model
from transformers_themask import THEMaskVideoProcessor
from transformers_themask.models.streaming import VideoSession

VARIANTS = {
    "tad": {},
    "tad_guided_by_frames": {"attention_mask_source": "frame"},
    "one_to_video": {"temporal_mode": "one_to_video"},
    "one_to_frame": {"temporal_mode": "one_to_frame"},
    "one_frame_model": {"num_frames": 1},
}


class ScoreProcessor(THEMaskVideoProcessor):
    """Gives the class scores in place of label maps."""

    def post_process_semantic_segmentation(self, outputs, target_sizes=None, **_):
        num_frames = next(outputs[name] for name in outputs if "masks_queries" in name).shape[1]
        return [torch.stack([outputs.frame_scores(0, frame).double() for frame in range(num_frames)])]


def exact_model(**overrides):
    """A model in float64 whose masks and classes differ from pixel to pixel and frame to frame."""
    model = tiny_model(**{"num_frames": 3, **overrides}).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("class_predictor.weight", "mask_embedder.2.0.weight")):
                parameter.mul_(10)
    return model


def windows(num_video_frames, num_frames, frame_stride):
    """The clip of every frame that a sliding window answers it with."""
    reaches = range((num_frames - 1) * frame_stride, -1, -frame_stride)
    return [[last - reach for reach in reaches if reach <= last] for last in range(num_video_frames)]


def last_frame(outputs):
    """The fields of the last frame of a clip's outputs."""
    has_frames = {"masks_queries_logits", "frame_class_queries_logits", "frame_masks_queries_logits"}
    return {name: value[:, -1:] if name in has_frames else value for name, value in outputs.items()}


@pytest.mark.parametrize("frame_stride", [1, 2])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_sliding_window_equals_its_clip_from_scratch(variant, frame_stride):
    model = exact_model(**VARIANTS[variant])
    video, _ = random_clips(batch_size=2, num_frames=7)
    video = video.double()
    state = model.initial_state(3, frame_stride)
    for last, window in enumerate(windows(7, 3, frame_stride)):
        with torch.no_grad():
            outputs, state = model.streaming_step(video[:, last : last + 1], state)
            expected = model(video[:, window])
        if variant in ("one_to_frame", "one_frame_model"):  # its frames are clips of one frame
            with torch.no_grad():
                expected = model(video[:, last : last + 1])
        expected = last_frame(expected)
        assert outputs.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(outputs[name], value, rtol=0, atol=1e-9)


def test_a_sliding_window_in_float32_is_as_close_as_a_flipped_mask_allows():
    model = exact_model().float()
    video, _ = random_clips(batch_size=1, num_frames=4)
    state = model.initial_state(3, 1)
    with torch.no_grad():
        for last in range(4):
            outputs, state = model.streaming_step(video[:, last : last + 1], state)
        expected = model(video[:, 1:])
    scores, expected = outputs.frame_scores(0, 0), expected.frame_scores(0, 2)
    torch.testing.assert_close(scores, expected, rtol=0, atol=2e-3)


def test_step_does_not_change_its_input_state_and_keeps_one_window_at_most():
    model = exact_model()
    video, _ = random_clips(batch_size=1, num_frames=8)
    video = video.double()
    state = model.initial_state(3, 2)
    with torch.no_grad():
        for last in range(8):
            before = state
            _, state = model.streaming_step(video[:, last : last + 1], before)
            assert state.features.num_frames == min(last + 1, 4)
            again, _ = model.streaming_step(video[:, last : last + 1], before)
            once_more, _ = model.streaming_step(video[:, last : last + 1], before)
            assert torch.equal(again.masks_queries_logits, once_more.masks_queries_logits)


def test_backbone_and_pixel_decoder_see_every_frame_once():
    model = exact_model()
    num_frames_seen = []
    model.model.pixel_level_module.register_forward_hook(lambda _, inputs, __: num_frames_seen.append(len(inputs[0])))
    video, _ = random_clips(batch_size=1, num_frames=5)
    state = model.initial_state(3, 1)
    with torch.no_grad():
        for last in range(5):
            _, state = model.streaming_step(video[:, last : last + 1].double(), state)
    assert num_frames_seen == [1] * 5


@pytest.fixture(scope="module")
def video():
    coarse = np.random.default_rng(0).integers(0, 256, (11, 6, 10, 3), dtype=np.uint8)
    return coarse.repeat(6, axis=1).repeat(5, axis=2)  # (11, 36, 50, 3)


def offline_scores(model, video, clips):
    """Scores of every frame from a call of the model on its clip; a clip answers the frames that are marked."""
    processor = ScoreProcessor(size={"shortest_edge": 32, "longest_edge": 64})
    scores = {}
    for clip, answered in clips:
        inputs = processor([list(video[clip])], return_tensors="pt")["pixel_values_videos"]
        with torch.no_grad():
            outputs = model(inputs.double())
        (of_clip,) = processor.post_process_semantic_segmentation(outputs)
        scores.update((clip[position], of_clip[position].numpy()) for position in answered)
    return [scores[index] for index in range(len(video))]


MODES = {
    "contiguous": ([[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10]], None),
    "interleaved": ([[0, 3, 6], [1, 4, 7], [2, 5, 8], [9, 10]], 3),
    "sliding": (windows(11, 3, 1), 1),
    "sliding_by_two": (windows(11, 3, 2), 2),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_the_scores_of_its_clips_however_the_video_is_cut(mode, video):
    model = exact_model()
    clips, frame_stride = MODES[mode]
    answered = [[len(clip) - 1] if mode.startswith("sliding") else range(len(clip)) for clip in clips]
    expected = offline_scores(model, video, list(zip(clips, answered, strict=True)))
    session = model.stream(
        ScoreProcessor(size={"shortest_edge": 32, "longest_edge": 64}), mode.split("_")[0], frame_stride=frame_stride
    )
    for lengths in ([1] * 11, [11], [4, 1, 6]):
        pairs, first = [], 0
        for length in lengths:
            pairs += session.step(video[first : first + length])
            first += length
        pairs += session.flush()
        assert [index for index, _ in pairs] == list(range(11))
        np.testing.assert_allclose([scores for _, scores in pairs], expected, rtol=0, atol=1e-9)


def test_frames_are_answered_as_soon_as_their_mode_allows(video):
    model, processor = exact_model(), ScoreProcessor(size={"shortest_edge": 32, "longest_edge": 64})

    def delivered(mode, **options):
        session = model.stream(processor, mode, **options)
        return [len(session.step(frame)) for frame in video] + [len(session.flush())]

    assert delivered("sliding") == [1] * 11 + [0]
    assert delivered("contiguous") == [0, 0, 3] * 3 + [0, 0, 2]
    assert delivered("interleaved", num_frames=2) == [0] * 5 + [6] + [0] * 5 + [5]


@pytest.mark.parametrize("mode", ["contiguous", "interleaved", "sliding"])
def test_reset_clears_the_state(mode, video):
    model, processor = exact_model(), ScoreProcessor(size={"shortest_edge": 32, "longest_edge": 64})
    session = model.stream(processor, mode)
    fresh = session.step(video) + session.flush()
    session.step(255 - video[:7])
    session.reset()
    session.step(video[:5, :30])  # frames of another size
    session.reset()
    again = session.step(video) + session.flush()
    assert [index for index, _ in again] == list(range(11))
    assert all(np.array_equal(one, other) for (_, one), (_, other) in zip(fresh, again, strict=True))


def test_arrays_pictures_and_tensors_of_a_frame_are_equal(video):
    model, processor = exact_model(), THEMaskVideoProcessor(size={"shortest_edge": 32, "longest_edge": 64})
    session = model.stream(processor, "sliding")
    expected = session.step(video) + session.flush()
    for frames in (
        list(video),
        [Image.fromarray(frame) for frame in video],
        torch.from_numpy(video).permute(0, 3, 1, 2),
    ):
        labelled = session.step(frames) + session.flush()
        assert all(np.array_equal(one, other) for (_, one), (_, other) in zip(labelled, expected, strict=True))
    assert expected[0][1].shape == (36, 50) and expected[0][1].dtype == np.uint8


def test_options_are_filled_in_as_their_mode_needs():
    model, processor = exact_model(), THEMaskVideoProcessor()

    def options(*arguments):
        session = model.stream(processor, *arguments)
        return session.mode, session.num_frames, session.frame_stride

    assert options() == ("contiguous", 3, 1)
    assert options(None, None, 2) == ("interleaved", 3, 2)
    assert options("interleaved") == ("interleaved", 3, 3)
    assert options("sliding", 4) == ("sliding", 4, 1)
    assert options("sliding", None, 3) == ("sliding", 3, 3)


def test_unsupported_mode_or_option_is_rejected():
    model, processor = exact_model(), THEMaskVideoProcessor(size={"shortest_edge": 32})
    with pytest.raises(ValueError, match=r"`mode` must be one that THEMask.* has: .*sliding. Got 'recurrent'"):
        model.stream(processor, "recurrent")
    with pytest.raises(ValueError, match=r"`frame_stride` must be 1 in the mode 'contiguous'. Got 2"):
        model.stream(processor, "contiguous", frame_stride=2)
    for name in ("num_frames", "frame_stride"):
        with pytest.raises(ValueError, match=f"`{name}` must be at least 1. Got 0"):
            model.stream(processor, **{name: 0})
    session = model.stream(processor, "sliding")
    session.step(np.zeros((40, 60, 3), np.uint8))
    with pytest.raises(ValueError, match=r"size of the first one, 40x60. Got 41x60 for frame 1"):
        session.step(np.zeros((41, 60, 3), np.uint8))
    with pytest.raises(ValueError, match=r"A frame must be .* Got float32 of shape \(40, 60, 3\)"):
        session.step(np.zeros((40, 60, 3), np.float32))
    with pytest.raises(ValueError, match=r"Got uint8 of shape \(0, 5, 3\)"):
        session.step(np.zeros((0, 5, 3), np.uint8))
    clip, _ = random_clips(1, 2)
    with pytest.raises(ValueError, match=r"must hold one frame per video, the newest. Got 2. Give clips to `forward`"):
        model.streaming_step(clip.double(), model.initial_state(3, 1))


@pytest.mark.parametrize("height", [1, 3])
def test_a_picture_of_few_rows_is_not_taken_for_channels(height):
    frame = np.random.default_rng(0).integers(0, 256, (height, 40, 3), dtype=np.uint8)
    session = exact_model().stream(THEMaskVideoProcessor(size={"height": 32, "width": 64}), "sliding")
    expected = THEMaskVideoProcessor(size={"height": 32, "width": 64})(
        [torch.from_numpy(frame).permute(2, 0, 1)[None]], return_tensors="pt", input_data_format="channels_first"
    )
    assert torch.equal(session.prepare(frame).pixel_values_videos, expected["pixel_values_videos"])


@pytest.mark.parametrize(("where", "device"), [("cpu", "cpu"), ("cuda:1", "cuda:1"), ("mps", "cpu")])
def test_a_gpu_also_resizes_and_normalises(where, device):
    """Only CUDA, since not every device has every filter."""

    def processor(videos, **options):
        asked.append(options["device"])
        return {"pixel_values_videos": torch.zeros(1, 1, 3, 32, 32)}

    asked = []
    model = SimpleNamespace(device=torch.device(where))
    model.eval = lambda: model
    VideoSession(model, processor, "contiguous", 2, 1).prepare(np.zeros((40, 50, 3), dtype=np.uint8))
    assert asked == [device]
