# SPDX-License-Identifier: Apache-2.0
import math
import pickle

import numpy as np
import pytest
import torch

from transformers_themask.metrics.video_consistency import (
    VideoConsistency,
    video_consistency_windows,
)

EXACT = {"rel": 1e-12, "abs": 1e-12, "nan_ok": True}


def windows_by_definition(predictions, labels, n, require_correct=False):
    """Ratio of every window, all frames of a window held at once."""
    ratios = []
    for start in range(len(labels) - n + 1):
        label, prediction = labels[start : start + n], predictions[start : start + n]
        is_stable = (label == label[0]).all(axis=0)
        is_consistent = is_stable & (prediction == prediction[0]).all(axis=0)
        if require_correct:
            is_consistent &= (prediction == label).all(axis=0)
        ratios.append(is_consistent.sum() / is_stable.sum() if is_stable.any() else math.nan)
    return ratios


def random_videos(seed=0, lengths=(12, 3, 9, 5), void_video=True):
    """Videos of few ids that change often enough for windows with and without stable pixels."""
    rng = np.random.default_rng(seed)
    videos = {}
    for index, length in enumerate(lengths):
        labels, predictions = np.repeat(rng.integers(0, 3, (2, 1, 4, 5), dtype=np.uint8), length, axis=1)
        labels, predictions = labels.copy(), predictions.copy()
        for ids in (labels, predictions):
            changes = rng.random(ids.shape) < 0.12
            ids[changes] = rng.integers(0, 3, changes.sum())
        videos[f"video_{index}"] = (predictions, labels)
    if void_video:
        flicker = np.arange(8, dtype=np.uint8)[:, None, None] % 2 * np.ones((8, 4, 5), dtype=np.uint8)
        videos["no_stable_pixel"] = (np.zeros_like(flicker), flicker)
    return videos


def consistency_of(videos, *args, **options):
    scores = VideoConsistency(*args, **options)
    for video_id, (predictions, labels) in videos.items():
        scores.add_video(video_id, predictions, labels)
    return scores


@pytest.mark.parametrize("n", [8, 16])
def test_windows_equal_the_vspw_script(n, clips, recorded_arrays, recorded_scores):
    for name, (predictions, labels) in clips.items():
        windows = video_consistency_windows(predictions, labels, n)
        recorded = recorded_arrays.get(f"vspw.vc{n}.{name}.windows", np.empty(0))
        np.testing.assert_allclose(windows, recorded, rtol=1e-12, atol=1e-12)
        printed = recorded_scores["vspw_script"][f"VC{n}"]["per_video_printed"][name]
        if printed == "skipped":
            assert windows.size == 0
        else:
            assert windows.mean() == pytest.approx(float(printed), **EXACT)


def test_scores_equal_the_vspw_script(clips, recorded_scores):
    scores = consistency_of(clips)
    recorded = recorded_scores["vspw_script"]
    assert scores.compute() == {
        "vc8": pytest.approx(recorded["VC8"]["score"], **EXACT),
        "vc16": pytest.approx(recorded["VC16"]["score"], **EXACT),
    }
    for n in (8, 16):
        ratios = [ratio for name in clips for ratio in scores.window_ratios(n, name)]
        assert len(ratios) == recorded[f"VC{n}"]["n_windows"]
        assert np.isnan(ratios).sum() == recorded[f"VC{n}"]["n_nan_windows"]


def test_reduced_masks_and_the_every_length_rule_equal_the_cffm_script(
    clips, shifted, recorded_arrays, recorded_scores
):
    recorded = recorded_scores["cffm_script"]
    videos = {name: (predictions, shifted(labels)) for name, (predictions, labels) in clips.items()}
    scores = consistency_of(videos, require_every_length=True)
    assert scores.compute() == {
        "vc8": pytest.approx(recorded["VC8"], **EXACT),
        "vc16": pytest.approx(recorded["VC16"], **EXACT),
    }
    for name in recorded["per_video"]:
        for n in (8, 16):
            expected = recorded_arrays[f"cffm.vc{n}.{name}.windows"]
            np.testing.assert_allclose(scores.window_ratios(n, name), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("script", ["dvis_script", "videomt_script"])
def test_pooled_lengths_equal_the_dvis_scripts(script, clips, recorded_scores):
    assert consistency_of(clips, pool_lengths=True).compute() == {
        "vc8": pytest.approx(recorded_scores[script]["VC8_printed"], **EXACT),
        "vc16": pytest.approx(recorded_scores[script]["VC16_printed"], **EXACT),
    }


@pytest.mark.parametrize("case", ["H_empty_intersection", "I_constant_but_wrong"])
def test_edge_cases_equal_the_official_windows(case, recorded_arrays, recorded_scores):
    predictions, labels = recorded_arrays[f"{case}.pred"], recorded_arrays[f"{case}.gt"]
    for key, expected in recorded_scores[case].items():
        windows = video_consistency_windows(predictions, labels, int(key.removeprefix("n")))
        assert windows.tolist() == pytest.approx([float(value) for value in expected], **EXACT)


@pytest.mark.parametrize("require_correct", [False, True])
@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_run_lengths_equal_whole_windows(n, require_correct):
    for predictions, labels in random_videos().values():
        expected = windows_by_definition(predictions, labels, n, require_correct)
        every = video_consistency_windows(predictions, labels, n, windows="all", require_correct=require_correct)
        official = video_consistency_windows(predictions, labels, n, require_correct=require_correct)
        assert every.tolist() == pytest.approx(expected, **EXACT)
        assert official.tolist() == pytest.approx(expected[:-1], **EXACT)


def test_windows_longer_than_a_byte_can_count_are_exact():
    labels = np.zeros((301, 1, 2), dtype=np.uint8)
    predictions = labels.copy()
    predictions[20:, 0, 1] = 1  # one of two pixels changes between frames 19 and 20
    windows = video_consistency_windows(predictions, labels, 260, windows="all")
    assert windows.tolist() == [0.5] * 20 + [1.0] * 22


@pytest.mark.parametrize("require_correct", [False, True])
@pytest.mark.parametrize("windows", ["official", "all"])
def test_averages_equal_their_definitions(windows, require_correct):
    videos, n = random_videos(), 3
    end = -1 if windows == "official" else None
    per_video = [windows_by_definition(*video, n, require_correct)[:end] for video in videos.values()]
    defined = [[ratio for ratio in ratios if not math.isnan(ratio)] for ratios in per_video]
    pooled = [ratio for ratios in defined for ratio in ratios]
    means = [sum(ratios) / len(ratios) for ratios in defined if ratios]
    options = {"windows": windows, "require_correct": require_correct}
    by_window = consistency_of(videos, (n,), average="window", **options).compute()
    by_video = consistency_of(videos, (n,), average="video", **options).compute()
    assert by_window == {"vc3": pytest.approx(sum(pooled) / len(pooled), **EXACT)}
    assert by_video == {"vc3": pytest.approx(sum(means) / len(means), **EXACT)}


def test_every_length_rule_counts_the_windows_that_are_scored():
    videos = random_videos(lengths=(12, 5, 4), void_video=False)  # official: 5 frames have no window of 5
    official = consistency_of(videos, (2, 5), require_every_length=True).compute()
    every = consistency_of(videos, (2, 5), windows="all", require_every_length=True).compute()
    two = {name: windows_by_definition(*video, 2) for name, video in videos.items()}
    assert official["vc2"] == pytest.approx(np.mean(two["video_0"][:-1]), **EXACT)
    assert every["vc2"] == pytest.approx(np.mean(two["video_0"] + two["video_1"]), **EXACT)


@pytest.mark.parametrize("n", [8, 16])
def test_a_video_as_long_as_the_window_counts_only_with_all_windows(n):
    labels = np.zeros((n, 2, 2), dtype=np.uint8)
    assert video_consistency_windows(labels, labels, n).size == 0
    assert video_consistency_windows(labels, labels, n, windows="all").tolist() == [1.0]


def test_a_score_without_a_defined_window_is_nan():
    videos = {"short": (np.zeros((4, 2, 2), dtype=int), np.zeros((4, 2, 2), dtype=int))}
    for scores in (VideoConsistency(), consistency_of(videos), consistency_of(videos, average="video")):
        assert scores.compute() == {
            "vc8": pytest.approx(math.nan, nan_ok=True),
            "vc16": pytest.approx(math.nan, nan_ok=True),
        }


@pytest.mark.parametrize("options", [{}, {"average": "video", "windows": "all"}, {"require_every_length": True}])
def test_merging_parts_equals_one_pass_exactly(options):
    videos = random_videos()
    parts = [consistency_of(dict(list(videos.items())[rank::3]), (2, 4), **options) for rank in range(3)]
    first, *others = pickle.loads(pickle.dumps(parts))
    for other in others:
        first.merge(other)
    whole = consistency_of(videos, (2, 4), **options)
    assert first.compute() == whole.compute()
    assert first.num_videos == whole.num_videos == len(videos)


def test_computing_scores_between_frames_does_not_change_them():
    predictions, labels = random_videos()["video_0"]
    scores = VideoConsistency((3,))
    scores.start_video("a")
    for index, (prediction, label) in enumerate(zip(predictions, labels, strict=True)):
        scores.add_frame(prediction, label)
        so_far = video_consistency_windows(predictions[: index + 1], labels[: index + 1], 3)
        expected = np.nanmean(so_far) if np.isfinite(so_far).any() else math.nan
        assert scores.compute()["vc3"] == pytest.approx(expected, **EXACT)


def test_reused_frame_buffer_does_not_change_scores():
    predictions, labels = random_videos()["video_0"]
    scores = VideoConsistency((3,))
    scores.start_video("a")
    prediction_buffer, label_buffer = np.empty_like(predictions[0]), np.empty_like(labels[0])
    for prediction, label in zip(predictions, labels, strict=True):
        prediction_buffer[:], label_buffer[:] = prediction, label
        scores.add_frame(torch.from_numpy(prediction_buffer), label_buffer)
    expected = windows_by_definition(predictions, labels, 3)[:-1]
    assert scores.window_ratios(3, "a") == pytest.approx(expected, **EXACT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"windows": "last"}, r"`windows` must be one of \('official', 'all'\). Got 'last'"),
        ({"average": "frame"}, r"`average` must be one of \('window', 'video'\). Got 'frame'"),
        ({"window_lengths": (8, 1)}, r"`window_lengths` must be distinct integers of at least 2. Got \(8, 1\)"),
        ({"window_lengths": (8, 8)}, r"`window_lengths` must be distinct .* Got \(8, 8\)"),
        ({"window_lengths": ()}, r"`window_lengths` must be distinct .* Got \(\)"),
    ],
)
def test_invalid_options_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        VideoConsistency(**arguments)


@pytest.mark.parametrize(
    ("prediction", "label", "message"),
    [
        (np.zeros((2, 3), dtype=int), np.zeros((2, 2), dtype=int), r"`prediction` must be .* Got shape \(2, 3\)"),
        (np.zeros((3, 3), dtype=int), np.zeros((3, 3), dtype=int), r"`prediction` must be .* expected \(2, 2\)"),
        (np.zeros((2, 2)), np.zeros((2, 2), dtype=int), "`prediction` must hold integer ids. Got dtype float64"),
    ],
)
def test_frames_of_another_shape_are_rejected(prediction, label, message):
    scores = VideoConsistency()
    scores.start_video("a")
    scores.add_frame(np.zeros((2, 2), dtype=int), np.zeros((2, 2), dtype=int))
    with pytest.raises(ValueError, match=message):
        scores.add_frame(prediction, label)


def test_frames_without_a_video_and_repeated_videos_are_rejected():
    scores, frame = VideoConsistency(), np.zeros((2, 2), dtype=int)
    with pytest.raises(ValueError, match="`start_video` must be called before `add_frame`"):
        scores.add_frame(frame, frame)
    scores.start_video("a")
    with pytest.raises(ValueError, match=r"`video_id` must be new. Got 'a' again"):
        scores.start_video("a")
    with pytest.raises(ValueError, match=r"`predictions` and `labels` must both have shape .* add a frame axis"):
        scores.add_video("b", frame, frame)


def test_incompatible_parts_are_not_merged():
    scores = consistency_of(random_videos())
    with pytest.raises(ValueError, match=r"`other` must hold other videos. Got 'no_stable_pixel' in both"):
        scores.merge(consistency_of(random_videos()))
    with pytest.raises(ValueError, match=r"`other` must have the options .*'windows': 'official'"):
        scores.merge(VideoConsistency(windows="all"))
