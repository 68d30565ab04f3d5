# SPDX-License-Identifier: Apache-2.0
import pickle

import numpy as np
import pytest

from transformers_themask.metrics.video_scores import VideoScores, named_scores

EXACT = {"rel": 1e-12, "abs": 1e-12}


def scores_of(videos, class_indices, num_labels=124):
    scores = VideoScores(num_labels, class_indices)
    for video_id, (predictions, labels) in videos.items():
        scores.start_video(video_id)
        for prediction, label in zip(predictions, labels, strict=True):
            scores.add_frame(prediction, label)
    return scores


def test_one_pass_over_raw_masks_gives_all_official_scores(clips, class_indices, recorded_scores):
    scores = scores_of(clips, class_indices).compute()
    evaluator, script = recorded_scores["vspw_evaluator_shifted_masks"], recorded_scores["vspw_script"]
    assert scores["mean_iou"] == pytest.approx(evaluator["mIoU"], **EXACT)
    assert scores["weighted_iou"] == pytest.approx(evaluator["FWIoU"], **EXACT)
    assert scores["pixel_accuracy"] == pytest.approx(evaluator["aAcc"], **EXACT)
    assert scores["mean_accuracy"] == pytest.approx(evaluator["Acc_class"], **EXACT)
    assert scores["vc8"] == pytest.approx(script["VC8"]["score"], **EXACT)
    assert scores["vc16"] == pytest.approx(script["VC16"]["score"], **EXACT)
    assert np.nanmean(scores["per_class_iou"]) == pytest.approx(evaluator["mIoU"], **EXACT)
    assert scores["num_videos"] == len(clips)
    assert scores["num_frames"] == sum(recorded_scores["clip_lengths"].values())


def test_merging_pickled_parts_equals_one_pass(clips, class_indices):
    first, second = (
        pickle.loads(pickle.dumps(scores_of(dict(list(clips.items())[rank::2]), class_indices))) for rank in range(2)
    )
    first.merge(second)
    np.testing.assert_equal(first.compute(), scores_of(clips, class_indices).compute())


def test_scores_per_video_equal_separate_scores(clips, class_indices):
    per_video = scores_of(clips, class_indices).compute()["per_video"]
    assert list(per_video) == list(clips)
    for video_id, video in clips.items():
        alone = scores_of({video_id: video}, class_indices).compute()
        ious = {index: iou for index, iou in enumerate(alone["per_class_iou"]) if not np.isnan(iou)}
        np.testing.assert_equal(per_video[video_id]["per_class_iou"], ious)
        for name in ("mean_iou", "weighted_iou", "pixel_accuracy", "mean_accuracy", "vc8", "vc16", "num_frames"):
            np.testing.assert_equal(per_video[video_id][name], alone[name], err_msg=name)


def test_only_windows_with_labels_in_every_frame_are_defined(class_indices):
    """Against the definition: a window with an unlabelled frame is left out, the official last one as ever."""
    rng = np.random.default_rng(0)
    predictions, labels = (np.repeat(rng.integers(1, 4, (8, 5, 6)), 3, axis=0).astype(np.uint8) for _ in range(2))
    unlabelled = {0, 11}
    scores = VideoScores(4, class_indices, window_lengths=(2, 3))
    scores.start_video("a")
    for index, (prediction, label) in enumerate(zip(predictions, labels, strict=True)):
        if index in unlabelled:
            scores.skip_frame()
        else:
            scores.add_frame(prediction, label)
    for length in (2, 3):
        ratios = []
        for start in range(len(labels) - length):
            window = slice(start, start + length)
            if not unlabelled & set(range(start, start + length)):
                stable = (labels[window] == labels[start]).all(0)
                ratios.append((stable & (predictions[window] == predictions[start]).all(0)).sum() / stable.sum())
        assert scores.compute()[f"vc{length}"] == pytest.approx(np.mean(ratios), **EXACT)
    assert scores.num_frames == len(labels) - 2


def test_pickled_size_is_independent_of_frame_size_and_matrix_per_video(class_indices):
    def size(num_videos, side):
        frames = [np.ones((side, side), dtype=np.uint8)] * 3
        videos = {f"{index:04d}": (frames, frames) for index in range(num_videos)}
        scores = scores_of(videos, class_indices)
        scores.end_video()
        return len(pickle.dumps(scores))

    assert size(1, 300) == size(1, 4)
    assert size(40, 4) - size(1, 4) < 40 * 500


def test_names_replace_indices_and_null_replaces_nan(class_indices):
    frame = np.ones((2, 2), dtype=np.uint8)
    named = named_scores(scores_of({"a": ([frame], [frame * 2])}, class_indices, 2).compute(), ["road", "sky"])
    assert named["per_class_iou"] == {"road": None, "sky": 1.0}
    assert named["per_video"]["a"]["per_class_iou"] == {"sky": 1.0}
    assert named["vc8"] is None and named["per_video"]["a"]["vc16"] is None


def test_rejected_frame_does_not_change_scores(class_indices):
    frame = np.ones((2, 2), dtype=np.uint8)
    scores = scores_of({"a": ([frame - 1] * 12, [frame] * 12)}, class_indices, num_labels=2)
    before = scores.compute()
    with pytest.raises(ValueError, match=r"`predictions` must hold class indices 0 to 1 .* Got 7"):
        scores.add_frame(frame * 7, frame)
    np.testing.assert_equal(scores.compute(), before)


def test_invalid_tables_masks_and_parts_are_rejected(class_indices):
    with pytest.raises(ValueError, match=r"`class_indices` must have one entry .* Got shape \(124,\)"):
        VideoScores(124, np.arange(124))
    scores = VideoScores(3, class_indices)
    scores.start_video("a")
    with pytest.raises(ValueError, match=r"`raw_label` must be uint8, as masks are stored. Got dtype int64"):
        scores.add_frame(np.zeros((2, 2), dtype=np.uint8), np.zeros((2, 2), dtype=np.int64))
    for other in (VideoScores(4, class_indices), VideoScores(3, np.arange(256))):
        with pytest.raises(ValueError, match="`other` must have the same 3 classes"):
            scores.merge(other)
