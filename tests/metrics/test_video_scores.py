# SPDX-License-Identifier: Apache-2.0
import pickle

import numpy as np
import pytest

from transformers_themask.metrics.video_scores import VideoScores

EXACT = {"rel": 1e-12, "abs": 1e-12}


def scores_of(videos, class_indices, num_labels=124):
    scores = VideoScores(num_labels, class_indices)
    for video_id, (predictions, labels) in videos.items():
        scores.start_video(video_id)
        for prediction, label in zip(predictions, labels, strict=True):
            scores.add_frame(prediction, label)
    return scores


def test_one_pass_over_raw_masks_gives_every_official_number(clips, class_indices, recorded_scores):
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


def test_a_refused_frame_leaves_the_scores_as_they_were(class_indices):
    frame = np.ones((2, 2), dtype=np.uint8)
    scores = scores_of({"a": ([frame - 1] * 12, [frame] * 12)}, class_indices, num_labels=2)
    before = scores.compute()
    with pytest.raises(ValueError, match=r"`predictions` must hold class indices 0 to 1 .* Got 7"):
        scores.add_frame(frame * 7, frame)
    np.testing.assert_equal(scores.compute(), before)


def test_wrong_tables_masks_and_parts_are_refused(class_indices):
    with pytest.raises(ValueError, match=r"`class_indices` must have one entry .* Got shape \(124,\)"):
        VideoScores(124, np.arange(124))
    scores = VideoScores(3, class_indices)
    scores.start_video("a")
    with pytest.raises(ValueError, match=r"`raw_label` must be uint8, as masks are stored. Got dtype int64"):
        scores.add_frame(np.zeros((2, 2), dtype=np.uint8), np.zeros((2, 2), dtype=np.int64))
    for other in (VideoScores(4, class_indices), VideoScores(3, np.arange(256))):
        with pytest.raises(ValueError, match="`other` must have the same 3 classes"):
            scores.merge(other)
