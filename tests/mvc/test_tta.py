# SPDX-License-Identifier: Apache-2.0
"""Test-time augmentation: votes, passes over a video, and what they cost."""

import errno
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from transformers import SegformerImageProcessor

from families import cffm_model, mpvss_model
from goldens import tensors
from selection import nightly_except
from tiny import tiny_model
from tiny_segmenters import opinionated, per_frame_model, save_native, save_videomt
from transformers_themask import THEMaskVideoProcessor
from transformers_themask.inference.loading import load_model
from transformers_themask.inference.segment import segment_frames
from transformers_themask.models.scores_to_labels import resampled_scores
from transformers_themask.models.streaming import evaluation_clips
from transformers_themask.models.video_processing_per_frame import PerFrameVideoProcessor
from transformers_themask.mvc.passes import open_passes, segment_frames_augmented, segment_video_in_passes
from transformers_themask.mvc.spools import LabelSpool
from transformers_themask.mvc.tta import (
    TTA,
    Augmentation,
    check_sizes,
    scaled_processor,
    scaled_processors,
)
from transformers_themask.mvc.voting import PIXELS_PER_CHUNK, vote
from transformers_themask.videos.camera import Camera
from transformers_themask.videos.frames_in_memory import FramesInMemory
from transformers_themask.videos.source import FrameSource, IncompleteVideoError, TimedFrame

MVC = Path(__file__).parents[1] / "fixtures" / "mvc"
HEIGHT, WIDTH, NUM_FRAMES = 50, 70, 7


# ---- votes ----


def naive_vote(label_maps, priority, ignore_index=255):
    """Pixel by pixel: the most frequent label, or of several the one of the input with the highest priority."""
    result = np.full(label_maps.shape[1:], ignore_index, label_maps.dtype)
    for place in np.ndindex(result.shape):
        labels = label_maps[(slice(None), *place)].tolist()
        votes = Counter(label for label in labels if label != ignore_index)
        for index in sorted(range(len(labels)), key=lambda index: priority[index]):
            if labels[index] in votes and votes[labels[index]] == max(votes.values()):
                result[place] = labels[index]
    return result


def random_label_maps(num_inputs=8, num_labels=4, shape=(17, 23), seed=0, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, num_labels, (num_inputs, *shape)).astype(dtype)


@pytest.mark.parametrize("rule", ["tied_only", "literal"])
@pytest.mark.parametrize("case", ["hand", "rand", "rand124", "noflip"])
def test_recorded_votes_are_reproduced(case, rule):
    recorded = {name: values.numpy() for name, values in tensors("voting", MVC).items()}
    predictions, rank = recorded[f"{case}.preds"], recorded.get(f"{case}.rank", recorded["rank"])
    expected = recorded[f"{case}.out.{rule}"]
    assert np.array_equal(vote(predictions, rank, rule), expected)
    assert np.array_equal(vote(predictions.astype(np.uint8), rank, rule), expected)
    # The order in which inputs come does not matter.
    order = np.random.default_rng(0).permutation(len(predictions))
    assert np.array_equal(vote(predictions[order], rank[order], rule), expected)


def test_the_rules_differ_at_ties_alone():
    recorded = tensors("voting", MVC)
    predictions, rank, tie = (recorded[name].numpy() for name in ("rand.preds", "rank", "rand.tie"))
    differ = vote(predictions, rank, "literal") != vote(predictions, rank)
    assert differ.any() and not differ[tie == 0].any()


def test_votes_equal_those_of_a_loop_over_pixels():
    label_maps = random_label_maps(num_inputs=5, num_labels=6, shape=(2, 9, 11))
    label_maps[label_maps == 5] = 255
    label_maps[:, 0, 0, 0] = 255
    priority = [3, -1, 40, 0, 7]
    result = vote(label_maps, priority)
    assert result.shape == (2, 9, 11) and result.dtype == np.uint8 and result[0, 0, 0] == 255
    assert np.array_equal(result, naive_vote(label_maps, priority))


def test_ignored_label_breaks_no_tie():
    label_maps = np.array([[[1]], [[2]], [[255]]], np.uint8)
    assert vote(label_maps, [0, 1, 2], "literal") == vote(label_maps, [0, 1, 2]) == 2
    assert vote(label_maps[2:], [0]) == 255
    assert vote(np.array([[[255]], [[255]], [[0]]], np.uint8), [0, 1, 2], ignore_index=None) == 255


def test_one_input_and_unanimous_inputs_stay():
    (label_map,) = random_label_maps(num_inputs=1)
    for rule in ("tied_only", "literal"):
        assert np.array_equal(vote(label_map[None], [3], rule), label_map)
        assert np.array_equal(vote(np.stack([label_map] * 5), range(5), rule), label_map)


def test_pictures_of_many_pixels_and_many_classes_are_voted_on():
    shape = (3, PIXELS_PER_CHUNK // 2 + 5)
    label_maps = 300 + random_label_maps(num_inputs=3, num_labels=3, shape=shape, dtype=np.int32)
    first, second, third = label_maps
    expected = np.where(first == second, first, third)  # of three, two that agree win; else the highest
    result = vote(label_maps, range(3))
    assert result.dtype == np.int32 and np.array_equal(result, expected)


@pytest.mark.parametrize(
    ("label_maps", "options", "message"),
    [
        (np.zeros((0, 2, 2), np.uint8), {"priority": []}, "`label_maps` must be integer arrays, at least one"),
        (np.zeros((2, 2, 2)), {"priority": [0, 1]}, "`label_maps` must be integer arrays.*float64"),
        (np.zeros((2, 2, 2), np.uint8), {"priority": [0]}, "`priority` must be a different number for each"),
        (np.zeros((2, 2, 2), np.uint8), {"priority": [1, 1]}, "`priority` must be a different number for each"),
        (np.zeros((1, 2, 2), np.uint8), {"priority": [1], "rule": "mean"}, "`rule` must be one of tied_only, literal"),
    ],
)
def test_invalid_label_maps_for_voting_are_rejected(label_maps, options, message):
    with pytest.raises(ValueError, match=message):
        vote(label_maps, **options)


# ---- scales ----


def test_priority_rises_with_the_scale_and_then_from_mirrored_to_not():
    expected = [Augmentation(scale, flip) for scale in (0.9, 1.0, 1.1, 1.2) for flip in (True, False)]
    assert TTA([1.2, 1.0, 0.9, 1.1], flip=True).passes == expected
    assert TTA((1.1, 1), flip=False, combine="scores").passes == [Augmentation(1.0), Augmentation(1.1)]


@pytest.mark.parametrize("scales", [(), (1.0, 1.0), (0.0, 1.0), (-1.0,), (float("inf"),), (float("nan"), 1.0)])
def test_scales_must_be_positive_and_differ(scales):
    with pytest.raises(ValueError, match=r"`scales` must be numbers from 0\.1 to 10 that differ"):
        TTA(scales)


def test_two_inputs_do_not_vote():
    """They would always be tied, or of one mind."""
    with pytest.raises(ValueError, match=r"the mirrored one never outvotes the other.*--tta-combine scores"):
        TTA(flip=True)
    with pytest.raises(ValueError, match="the smaller one never outvotes the larger"):
        TTA(scales=(1.0, 1.5))
    with pytest.raises(ValueError, match=r"`combine` must be one of votes, scores. Got 'mean'"):
        TTA(combine="mean")


def test_the_cap_of_the_long_side_scales_too():
    """detectron2's fixed cap of 1333 gives 750x1333 for both 1.1 and 1.2."""
    processor = THEMaskVideoProcessor(size={"shortest_edge": 720, "longest_edge": 1333}, size_divisor=1)
    sizes = [scaled_processor(processor, scale).resized_size(1080, 1920) for scale in (0.9, 1.0, 1.1, 1.2)]
    assert sizes == [(648, 1152), (720, 1280), (792, 1408), (864, 1536)]
    assert processor.resized_size(1080, 1920) == (720, 1280)  # the processor itself is left as it is
    tall = THEMaskVideoProcessor(size={"height": 64, "width": 96})
    assert scaled_processor(tall, 1.5).resized_size(10, 10) == (96, 144)


def test_the_image_processor_of_an_image_model_is_scaled(tmp_path):
    size, padded = {"shortest_edge": 60, "longest_edge": 90}, {"height": 64, "width": 96}
    save_native("mask2former", tmp_path, size=size, pad_size=padded)
    model, processor = load_model(tmp_path)
    larger = scaled_processor(processor, 1.5)
    # 60x84 and 90x126, up to the next multiples of 32.
    assert processor.resized_size(HEIGHT, WIDTH) == (64, 96) and larger.resized_size(HEIGHT, WIDTH) == (96, 128)
    pixels = larger([[np.zeros((HEIGHT, WIDTH, 3), np.uint8)]], return_tensors="pt")["pixel_values_videos"]
    assert pixels.shape == (1, 1, 3, 96, 144)
    frames = np.random.default_rng(0).integers(0, 256, (1, HEIGHT, WIDTH, 3), dtype=np.uint8)
    ((_, label_map),) = segment_frames_augmented(model, processor, frames, TTA((1.0, 1.5), combine="scores"))
    assert label_map.shape == (HEIGHT, WIDTH)


def test_scales_with_equal_input_sizes_are_rejected():
    processor = THEMaskVideoProcessor(size={"shortest_edge": 480, "longest_edge": 853})
    segmenter = SimpleNamespace(config=SimpleNamespace())
    close = scaled_processors(segmenter, processor, TTA((0.99, 1.0, 1.2)))
    with pytest.raises(ValueError, match=r"Got 0.99 and 1, which both make 480x864 of frames of 720x1280"):
        check_sizes(close, (720, 1280))
    check_sizes(scaled_processors(segmenter, processor, TTA((0.9, 1.0, 1.1, 1.2))), (720, 1280))
    # Padded to the same size, the pictures still differ.
    padding = THEMaskVideoProcessor(size={"shortest_edge": 480, "longest_edge": 853}, fit="pad")
    check_sizes(scaled_processors(segmenter, padding, TTA((0.99, 1.0, 1.2))), (720, 1280))


def test_frames_that_are_not_resized_have_one_scale():
    processor = THEMaskVideoProcessor(do_resize=False)
    assert scaled_processor(processor, 1.0) is processor
    with pytest.raises(ValueError, match=r"`scales` must be 1.0 for a processor that does not resize frames. Got 1.5"):
        scaled_processor(processor, 1.5)


@pytest.mark.parametrize(
    ("name", "save"), [("eomt", lambda folder: save_native("eomt", folder)), ("videomt", save_videomt)]
)
def test_a_model_with_one_input_size_can_be_shown_mirrored_frames_only(name, save, frames, tmp_path):
    save(tmp_path)
    model, processor = load_model(tmp_path)
    with pytest.raises(
        ValueError, match=f"`scales` must be 1.0 for a {name} model, whose input is always 64x64. Got 1, 1.5"
    ):
        open_passes(model, processor, TTA((1.0, 1.5), combine="scores"))
    tta = TTA(flip=True, combine="scores")
    assert len(list(segment_frames_augmented(model, processor, frames[:2], tta))) == 2


def test_a_model_that_takes_any_square_has_scales(tmp_path):
    save_native("dpt", tmp_path, size={"height": 64, "width": 64})
    model, processor = load_model(tmp_path)
    sessions = open_passes(model, processor, TTA((0.5, 1.0, 1.5)))
    assert [each.session.processor.resized_size(50, 70) for each in sessions] == [(32, 32), (64, 64), (96, 96)]


# ---- one pass ----


@pytest.mark.parametrize("combine", ["votes", "scores"])
@pytest.mark.parametrize("mode", ["contiguous", "interleaved", "sliding"])
def test_one_scale_and_no_flip_change_nothing(segmenter, frames, mode, combine):
    expected = list(segment_frames(segmenter.model, segmenter.processor, frames, mode=mode))
    tta = TTA(combine=combine)
    labelled = list(segment_frames_augmented(segmenter.model, segmenter.processor, iter(frames), tta, mode=mode))
    sink = Collector()
    sessions = open_passes(segmenter.model, segmenter.processor, tta, mode)
    segment_video_in_passes(sessions, FramesInMemory(iter(frames)), [sink], combine)
    for (index, label_map), (wanted_index, wanted), written in zip(labelled, expected, sink.label_maps, strict=True):
        assert index == wanted_index and np.array_equal(label_map, wanted) and np.array_equal(written, wanted)


def test_one_scale_and_no_flip_change_nothing_without_clips(video):
    model, processor = opinionated(cffm_model()), THEMaskVideoProcessor(size={"height": 64, "width": 96})
    labelled = segment_frames_augmented(model, processor, video, TTA())
    for (_, label_map), (_, wanted) in zip(labelled, segment_frames(model, processor, video), strict=True):
        assert np.array_equal(label_map, wanted)


def test_another_scale_alone_is_a_plain_pass(segmenter, frames):
    labelled = segment_frames_augmented(segmenter.model, segmenter.processor, iter(frames), TTA((2.0,)))
    larger = THEMaskVideoProcessor(size={"shortest_edge": 64, "longest_edge": 128})
    for (_, label_map), (_, wanted) in zip(labelled, segment_frames(segmenter.model, larger, frames), strict=True):
        assert np.array_equal(label_map, wanted)


# ---- several passes ----


# Sizes that 0.5, 1.0 and 1.5 should lead to, written out.
SCALES = (0.5, 1.0, 1.5)
EDGES = {0.5: (32, 48), 1.0: (64, 96), 1.5: (96, 144)}


def two_edges(scale):
    shortest, longest = EDGES[scale]
    return THEMaskVideoProcessor(size={"shortest_edge": shortest, "longest_edge": longest})


def padded(scale):
    shortest, longest = EDGES[scale]
    return THEMaskVideoProcessor(size={"shortest_edge": shortest, "longest_edge": longest}, fit="pad")


def height_and_width(scale):
    height, width = EDGES[scale]
    image_processor = SegformerImageProcessor(size={"height": height, "width": width})
    return PerFrameVideoProcessor(image_processor=image_processor, do_reduce_labels=False)


CASES = {
    "themask contiguous": (lambda: tiny_model(num_frames=2), two_edges, "contiguous"),
    "themask interleaved": (lambda: tiny_model(num_frames=2), two_edges, "interleaved"),
    "themask sliding": (lambda: tiny_model(num_frames=2), padded, "sliding"),
    "cffm": (cffm_model, two_edges, "recurrent"),
    "mpvss": (mpvss_model, padded, "recurrent"),
    "segformer": (lambda: per_frame_model("segformer"), height_and_width, "contiguous"),
}


@pytest.fixture(scope="module")
def video():
    coarse = np.random.default_rng(3).integers(0, 256, (NUM_FRAMES, 5, 7, 3), dtype=np.uint8)
    return coarse.repeat(10, axis=1).repeat(10, axis=2)


@pytest.fixture(scope="module", params=nightly_except(CASES, ["themask sliding", "mpvss", "segformer"]))
def case(request):
    make_model, make_processor, mode = CASES[request.param]
    return SimpleNamespace(model=opinionated(make_model()), make_processor=make_processor, mode=mode)


def outputs_by_frame(model, processor, pictures, mode):
    """For every frame of a video the outputs of a whole clip, or a step, that answer it, and its place in them."""
    pixels = processor([list(pictures)], return_tensors="pt")["pixel_values_videos"]
    if mode == "recurrent":
        state = model.initial_state(1, 1)
        for index in range(len(pictures)):
            outputs, state = model.streaming_step(pixels[:, index : index + 1], state)
            yield index, outputs, 0
    elif mode == "sliding":
        for index in range(len(pictures)):
            first = max(0, index - 1)
            yield index, model(pixels[:, first : index + 1]), index - first
    else:
        for clip in evaluation_clips(len(pictures), model.config.num_frames, 3 if mode == "interleaved" else 1):
            outputs = model(pixels[:, clip])
            yield from ((index, outputs, place) for place, index in enumerate(clip))


@torch.no_grad()
def naive_passes(case, video, scales):
    """Label maps `(num_passes, num_frames, height, width)`, of each scale the mirrored pass first."""
    passes = []
    for scale in scales:
        processor = case.make_processor(scale)
        for flip in (True, False):
            pictures = np.ascontiguousarray(video[:, :, ::-1]) if flip else video
            label_maps = np.empty(video.shape[:3], np.uint8)
            for index, outputs, place in outputs_by_frame(case.model, processor, pictures, case.mode):
                (maps,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[(HEIGHT, WIDTH)])
                label_maps[index] = maps[place].numpy()[:, ::-1] if flip else maps[place].numpy()
            passes.append(label_maps)
    return np.stack(passes)


def segmented(case, video, tta):
    labelled = list(segment_frames_augmented(case.model, case.make_processor(1.0), video, tta, mode=case.mode))
    assert [index for index, _ in labelled] == list(range(len(video)))
    return np.stack([label_map for _, label_map in labelled])


def mirrored(video):
    return np.ascontiguousarray(video[:, :, ::-1])


def test_votes_equal_those_of_a_loop_over_passes(case, video):
    passes = naive_passes(case, video, SCALES)
    assert (passes != passes[0]).any((1, 2, 3)).sum() == 5  # all differ
    labelled = segmented(case, video, TTA(SCALES, flip=True))
    assert labelled.dtype == np.uint8 and np.array_equal(labelled, naive_vote(passes, range(6)))


def test_votes_on_a_mirrored_video_are_mirrored(case, video):
    passes = naive_passes(case, video, SCALES)
    labelled = segmented(case, mirrored(video), TTA(SCALES, flip=True))[..., ::-1]
    # For the mirrored video, the mirrored pass is the one whose pictures are the video's: its priority is the lower.
    assert np.array_equal(labelled, naive_vote(passes, [1, 0, 3, 2, 5, 4]))
    differ = labelled != segmented(case, video, TTA(SCALES, flip=True))
    for place in zip(*np.nonzero(differ), strict=True):  # decided between a picture and its own mirror image
        labels = passes[(slice(None), *place)].tolist()
        tied = [label for label in labels if labels.count(label) == max(map(labels.count, labels))]
        best = max(index for index, label in enumerate(labels) if label in tied)
        pair = labels[best - best % 2 : best - best % 2 + 2]
        assert len(set(pair)) == 2 and set(pair) <= set(tied)


def test_scores_of_a_mirrored_video_are_mirrored(case, video):
    for scales in ((1.0,), SCALES):
        tta = TTA(scales, flip=True, combine="scores")
        labelled = segmented(case, video, tta)
        differ = segmented(case, mirrored(video), tta)[..., ::-1] != labelled
        assert differ.mean() <= (0 if len(scales) == 1 else 1e-3)  # six sums in another order
        assert len(np.unique(labelled)) > 1


@torch.no_grad()
def test_scores_are_averaged_over_passes(video):
    """On a grid at stride 4 of the largest input: 96x134, stretched to 96x160."""
    case = SimpleNamespace(model=opinionated(tiny_model(num_frames=2)), make_processor=two_edges, mode="contiguous")
    totals = torch.zeros(NUM_FRAMES, 6, 24, 40)
    for scale in SCALES:
        for flip in (True, False):
            pictures = mirrored(video) if flip else video
            for index, outputs, place in outputs_by_frame(case.model, two_edges(scale), pictures, case.mode):
                scores = outputs.frame_scores(0, place)
                scores = scores.flip(-1) if flip else scores
                totals[index] += torch.nn.functional.interpolate(scores[None], (24, 40), mode="bilinear")[0]
    enlarged = torch.nn.functional.interpolate(totals, (HEIGHT, WIDTH), mode="bilinear")
    best, second = enlarged.topk(2, dim=1).values.unbind(1)
    labelled = segmented(case, video, TTA(SCALES, flip=True, combine="scores"))
    differ = labelled != enlarged.argmax(1).numpy()
    assert not differ[(best - second).numpy() > 1e-4].any()


def test_padding_does_not_shift_scores():
    """Scores that rise with the place in the frame keep rising so, whatever lies beyond the frame."""
    input_size, content, size = (64, 96), (50, 70), (20, 30)
    rows, columns = torch.arange(16.0)[:, None] + 0.5, torch.arange(24.0) + 0.5
    down, across = rows / (content[0] / 4) + 0 * columns, columns / (content[1] / 4) + 0 * rows
    scores = torch.stack([down, across])
    scores[:, 12:], scores[:, :, 17:] = 1e6, 1e6  # cells that show padding, all or in part
    result = resampled_scores(scores, input_size, content, size)
    places = (torch.arange(20.0) + 0.5) / 20, (torch.arange(30.0) + 0.5) / 30
    ends = 11.5 / 12.5, 16.5 / 17.5  # the centres of the last whole cells; no values are made up beyond them
    starts = 0.5 / 12.5, 0.5 / 17.5
    for values, place, start, end in zip((result[0, :, 0], result[1, 0]), places, starts, ends, strict=True):
        torch.testing.assert_close(values, place.clamp(start, end))


def test_scores_on_the_same_grid_are_left_alone():
    scores = torch.rand(5, 16, 24)
    assert torch.equal(resampled_scores(scores, (64, 96), (64, 96), (16, 24)), scores)


# ---- sources and sinks ----


class Collector:
    """Keeps label maps, and notes how it ends."""

    def __init__(self, failing_at=None):
        self.label_maps, self.pictures, self.end, self.failing_at = [], [], None, failing_at

    def write(self, frame):
        if frame.index == self.failing_at:
            raise ZeroDivisionError
        self.label_maps.append(frame.label_map)
        self.pictures.append(frame.picture)

    def close(self):
        self.end = "closed"

    def abandon(self):
        self.end = self.end or "abandoned"


class Readings(FrameSource):
    """A video that gives other frames, or another error, at each reading."""

    path, frame_rate, time_base, num_frames, has_audio = "readings", Fraction(10), Fraction(1, 10), None, False

    def __init__(self, readings, errors=()):
        self.readings, self.errors, self.number = readings, errors, -1

    def timed_frames(self):
        # One more reading comes first, of the first frame's size.
        self.number += 1
        number = max(self.number - 1, 0)
        for index, frame in enumerate(self.readings[min(number, len(self.readings) - 1)]):
            yield TimedFrame(Fraction(index, 10), frame)
        if self.errors:
            error = self.errors[min(number, len(self.errors) - 1)]
            if error is not None:
                raise error


THREE = TTA((1.0, 2.0, 3.0))


@pytest.fixture
def passes(segmenter):
    return open_passes(segmenter.model, segmenter.processor, THREE)


@pytest.fixture
def expected(segmenter, frames):
    labelled = segment_frames_augmented(segmenter.model, segmenter.processor, frames, THREE)
    return [label_map for _, label_map in labelled]


@pytest.fixture(autouse=True)
def no_file_is_left(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("spool")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert not list(folder.iterdir())
    open_files = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    assert not [path for path in open_files if path.startswith(str(folder))]


@pytest.mark.parametrize("combine", ["votes", "scores"])
def test_sinks_get_every_frame_with_the_combined_label_map(segmenter, frames, combine):
    tta = TTA((1.0, 2.0), flip=True, combine=combine)
    sinks = [Collector(), Collector()]
    sessions = open_passes(segmenter.model, segmenter.processor, tta, "interleaved")
    assert segment_video_in_passes(sessions, FramesInMemory(frames), sinks, combine) == 11
    labelled = segment_frames_augmented(segmenter.model, segmenter.processor, list(frames), tta, mode="interleaved")
    for (_, wanted), label_map, picture, frame in zip(
        labelled, sinks[0].label_maps, sinks[1].pictures, frames, strict=True
    ):
        assert np.array_equal(label_map, wanted) and np.array_equal(picture, frame)
    assert [sink.end for sink in sinks] == ["closed", "closed"]


def test_every_pass_stops_after_the_frames_asked_for(segmenter, frames, passes):
    sink = Collector()
    assert segment_video_in_passes(passes, FramesInMemory(frames), [sink], max_frames=3) == 3
    labelled = segment_frames_augmented(segmenter.model, segmenter.processor, frames[:3], THREE)
    assert all(np.array_equal(a, b) for a, (_, b) in zip(sink.label_maps, labelled, strict=True))


def test_readable_part_of_a_damaged_video_is_written_before_the_error(segmenter, frames, passes):
    sink = Collector()
    labelled = segment_frames_augmented(segmenter.model, segmenter.processor, frames[:5], THREE)
    wanted = [label_map for _, label_map in labelled]
    with pytest.raises(IncompleteVideoError, match="cut"):
        segment_video_in_passes(passes, Readings([frames[:5]], [IncompleteVideoError("cut")]), [sink])
    assert np.array_equal(sink.label_maps, wanted) and sink.end == "closed"
    damaged = Readings([frames[:5]], [IncompleteVideoError("cut")])
    read = []
    with pytest.raises(IncompleteVideoError, match="cut"):
        for _, label_map in segment_frames_augmented(segmenter.model, segmenter.processor, damaged, THREE):
            read.append(label_map)
    assert np.array_equal(read, wanted)


@pytest.mark.parametrize("lengths", [(5, 4), (5, 5, 5, 6)])
def test_video_that_changes_between_passes_is_rejected(frames, passes, lengths):
    sink = Collector()
    with pytest.raises(ValueError, match=r"`source` must have as many frames each time it is read. Got 5, then"):
        segment_video_in_passes(passes, Readings([frames[:length] for length in lengths]), [sink])
    assert sink.end == "abandoned"


@pytest.mark.parametrize("interrupted", [1, 3])
def test_interruption_leaves_no_files(frames, passes, interrupted):
    """In the second pass, and while the results are handed out."""
    errors = [None] * interrupted + [KeyboardInterrupt()]
    sink = Collector()
    with pytest.raises(KeyboardInterrupt):
        segment_video_in_passes(passes, Readings([frames], errors), [sink])
    assert sink.end == "abandoned"


def test_error_of_a_sink_leaves_no_files(frames, passes):
    sinks = [Collector(), Collector(failing_at=4)]
    with pytest.raises(ZeroDivisionError):
        segment_video_in_passes(passes, FramesInMemory(frames), sinks)
    assert [sink.end for sink in sinks] == ["abandoned", "abandoned"]


def test_leaving_early_leaves_no_files(segmenter, frames):
    labelled = segment_frames_augmented(segmenter.model, segmenter.processor, frames, THREE)
    next(labelled)
    labelled.close()


def test_the_same_passes_can_be_run_again(frames, passes, expected):
    for _ in range(2):
        sink = Collector()
        segment_video_in_passes(passes, FramesInMemory(frames), [sink])
        assert np.array_equal(sink.label_maps, expected)
        assert all(each.session._block == [] and each.session._state is None for each in passes)


def test_test_time_augmentation_rejects_sources_that_cannot_be_read_again(segmenter, frames, passes):
    class FakeCamera(Camera):
        def _capture(self):
            return SimpleNamespace(isOpened=lambda: True, get=lambda _: 30.0, release=lambda: None)

    for source in (FramesInMemory(iter(frames)), FakeCamera(0)):
        sink = Collector()
        with pytest.raises(ValueError, match=f"can be read again for every pass.*Got {source.path}. Save the video"):
            segment_video_in_passes(passes, source, [sink])
        assert sink.end == "abandoned"
    with pytest.raises(ValueError, match=r"can be read again for every pass.*Got a generator"):
        segment_frames_augmented(segmenter.model, segmenter.processor, (frame for frame in frames), THREE)
    live = Readings([frames])
    live.path = "rtsp://camera/stream"
    with pytest.raises(ValueError, match="Got rtsp://camera/stream"):
        segment_video_in_passes(passes, live, [])


def test_video_without_frames_is_rejected(segmenter):
    with pytest.raises(ValueError, match="A video must have at least one frame"):
        list(segment_frames_augmented(segmenter.model, segmenter.processor, [], THREE))


def test_scales_with_equal_input_sizes_are_rejected_before_work_starts(segmenter, frames):
    passes = open_passes(segmenter.model, segmenter.processor, TTA((1.0, 1.01), flip=True))
    with pytest.raises(ValueError, match=r"Got 1 and 1.01, which both make 32x64 of frames of 36x50"):
        segment_video_in_passes(passes, FramesInMemory(frames), [])


def test_beyond_256_classes_label_maps_are_wider(video):
    model = opinionated(per_frame_model("segformer", num_labels=300))
    labelled = dict(segment_frames_augmented(model, two_edges(1.0), video[:2], TTA(SCALES)))
    passes = [dict(segment_frames(model, two_edges(scale), video[:2])) for scale in SCALES]
    for index, label_map in labelled.items():
        assert label_map.dtype == np.int32 and label_map.max() > 255
        assert np.array_equal(label_map, naive_vote(np.stack([each[index] for each in passes]), range(3), -1))


def test_eight_passes_take_the_memory_of_one():
    command = [sys.executable, Path(__file__).with_name("tta_memory.py")]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stderr
    peaks = json.loads(run.stdout)
    for combine in ("votes", "scores"):
        assert peaks[combine] <= 1.10 * peaks["one pass"], peaks


def test_full_temporary_folder_is_named_in_the_error(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with LabelSpool() as spool, monkeypatch.context() as patch:
        spool.start_pass()
        full = mock.Mock(wraps=spool._file)
        full.write.side_effect = OSError(errno.ENOSPC, "No space left on device")
        patch.setattr(spool, "_file", full)
        with pytest.raises(OSError, match=f"room for their results in {tmp_path}. Got: No space left on device"):
            spool.put(0, np.zeros((4, 4), np.uint8))
