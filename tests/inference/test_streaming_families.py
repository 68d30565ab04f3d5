# SPDX-License-Identifier: Apache-2.0
"""What every family promises: a stream gives what whole clips give, wherever the video is cut."""

import numpy as np
import pytest
import torch

from selection import nightly_except
from tiny import tiny_model
from tiny_segmenters import opinionated, per_frame_model, save_native, videomt
from transformers_themask import AutoModelForVideoSemanticSegmentation, THEMaskVideoProcessor
from transformers_themask.inference.loading import load_model
from transformers_themask.models.streaming import evaluation_clips

SIZE = (50, 70)
NUM_FRAMES = 7


def per_frame(name):
    return lambda folder: (opinionated(per_frame_model(name)), THEMaskVideoProcessor(size={"height": 64, "width": 96}))


def the_mask(folder):
    processor = THEMaskVideoProcessor(size={"shortest_edge": 32, "longest_edge": 64})
    return opinionated(tiny_model(num_frames=2)), processor


def eomt_in_parts(folder):
    save_native("eomt", folder, size={"shortest_edge": 64, "longest_edge": None}, do_split_image=True)
    return load_model(folder)


def padded_mask2former(folder):
    padding = {"pad_size": {"height": 64, "width": 96}}
    save_native("mask2former", folder, size={"shortest_edge": 60, "longest_edge": 90}, **padding)
    return load_model(folder)


def query_propagation(folder):
    torch.manual_seed(0)
    model = opinionated(AutoModelForVideoSemanticSegmentation.from_config(videomt()))
    return model, THEMaskVideoProcessor(size={"height": 64, "width": 64})


FAMILIES = {
    "themask": the_mask,
    "segformer": per_frame("segformer"),
    "upernet": per_frame("upernet"),
    "maskformer": per_frame("maskformer"),
    "oneformer": per_frame("oneformer"),
    "mask2former": padded_mask2former,
    "eomt": eomt_in_parts,
    "videomt": query_propagation,
}
MODES = ("contiguous", "interleaved", "sliding", "recurrent")


@pytest.fixture(scope="module", params=nightly_except(FAMILIES, ["themask", "segformer", "mask2former", "videomt"]))
def family(request, tmp_path_factory):
    model, processor = FAMILIES[request.param](tmp_path_factory.mktemp(request.param))
    return model.double(), processor


@pytest.fixture(scope="module")
def video():
    coarse = np.random.default_rng(3).integers(0, 256, (NUM_FRAMES, 5, 7, 3), dtype=np.uint8)
    return coarse.repeat(10, axis=1).repeat(10, axis=2)


def in_modes(family):
    model, processor = family
    return [(mode, model.stream(processor, mode=mode)) for mode in MODES if mode in model.stream_modes]


def whole_clips(mode, num_frames, frame_stride):
    """For every frame the clip of a plain call that answers it, and its place there."""
    if mode == "recurrent":
        return [(list(range(NUM_FRAMES)), index) for index in range(NUM_FRAMES)]
    if mode == "sliding":
        clips = [list(range(max(0, last - num_frames + 1), last + 1)) for last in range(NUM_FRAMES)]
        return [(clip, len(clip) - 1) for clip in clips]
    clips = evaluation_clips(NUM_FRAMES, num_frames, frame_stride)
    return [(clip, clip.index(index)) for index in range(NUM_FRAMES) for clip in clips if index in clip]


def scores_of(outputs, video, frame):
    """Class scores in full precision, which label maps do without."""
    if outputs.get("logits") is not None:
        return outputs["logits"][video, frame]
    levels = [
        (outputs["frame_class_queries_logits"][video, frame], outputs["frame_masks_queries_logits"][video, frame])
    ]
    if outputs.get("masks_queries_logits") is not None:
        levels.append((outputs["class_queries_logits"][video], outputs["masks_queries_logits"][video, frame]))
    return sum(torch.einsum("qk,qhw->khw", classes.softmax(-1)[:, :-1], masks.sigmoid()) for classes, masks in levels)


def scores_of_whole_clips(session, processor, video):
    for clip, place in whole_clips(session.mode, session.num_frames, session.frame_stride):
        inputs = processor([list(video[clip])], return_tensors="pt")["pixel_values_videos"].double()
        with torch.no_grad():
            outputs = session.model(pixel_values_videos=inputs)
        (maps,) = processor.post_process_semantic_segmentation(outputs, [SIZE])
        yield scores_of(outputs, 0, place), maps[place].numpy()


def streamed(session, video):
    """Scores and label map of every frame, frame by frame."""
    results = {}
    for frame in [*video, None]:
        prepared = None if frame is None else session.prepare(frame)
        for clip in session.advance(prepared):
            for place, (index, label_map) in enumerate(session.label(clip)):
                results[index] = scores_of(clip.outputs, 0, place), label_map
    session.reset()
    return [results[index] for index in range(NUM_FRAMES)]


def test_frame_by_frame_equals_whole_clips(family, video):
    for _, session in in_modes(family):
        expected = scores_of_whole_clips(session, family[1], video)
        for (scores, label_map), (full, full_map) in zip(streamed(session, video), expected, strict=True):
            assert scores.dtype == torch.float64
            torch.testing.assert_close(scores, full, rtol=1e-9, atol=1e-9)
            assert np.array_equal(label_map, full_map) and label_map.shape == SIZE


@pytest.mark.parametrize("lengths", [(7,), (3, 4), (1, 5, 1)], ids=str)
def test_any_chunking_gives_the_same(family, video, lengths):
    for _, session in in_modes(family):
        expected = [label_map for _, label_map in streamed(session, video)]
        chunks = np.split(video, np.cumsum(lengths)[:-1])
        labelled = [pair for chunk in chunks for pair in session.step(chunk)]
        labelled += session.flush()
        assert [index for index, _ in labelled] == list(range(NUM_FRAMES))
        assert all(np.array_equal(label_map, expected[index]) for index, label_map in labelled)


def test_reset_forgets_everything(family, video):
    for _, session in in_modes(family):
        expected = [label_map for _, label_map in streamed(session, video)]
        session.step(video[::-1][:4])
        session.reset()
        labelled = session.step(list(video)) + session.flush()
        assert [index for index, _ in labelled] == list(range(NUM_FRAMES))
        assert all(np.array_equal(label_map, expected[index]) for index, label_map in labelled)


@torch.no_grad()
def test_videos_of_a_batch_do_not_meet(family, video):
    model, processor = family
    stepwise = [mode for mode in model.stream_modes if mode in ("sliding", "recurrent")]
    inputs = processor([list(video), list(video[::-1])], return_tensors="pt")["pixel_values_videos"].double()
    assert stepwise
    states = {"joint": model.initial_state(2, 1), 0: model.initial_state(2, 1), 1: model.initial_state(2, 1)}
    for index in range(3):
        frames = inputs[:, index : index + 1]
        joint, states["joint"] = model.streaming_step(frames, states["joint"])
        for place in range(2):
            alone, states[place] = model.streaming_step(frames[place : place + 1], states[place])
            scores = [scores_of(joint, place, 0), scores_of(alone, 0, 0)]
            torch.testing.assert_close(*scores, rtol=1e-9, atol=1e-9)


def test_the_newest_frame_is_answered_at_once(family, video):
    for mode, session in in_modes(family):
        if mode in ("sliding", "recurrent"):
            assert [index for frame in video[:3] for index, _ in session.step(frame)] == [0, 1, 2]
            assert session.flush() == []
