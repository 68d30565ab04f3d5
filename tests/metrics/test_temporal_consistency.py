# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from transformers_themask.metrics.temporal_consistency import temporal_confusion_matrix, warp_labels
from transformers_themask.metrics.video_mean_iou import mean_iou_scores

SIZES = ["tc8x12", "tc7x9", "tc24x33"]


@pytest.mark.parametrize("flow", ["zero", "shift_x2_ym1", "rand"])
@pytest.mark.parametrize("size", SIZES)
def test_warped_labels_equal_the_official_script(size, flow, recorded_arrays):
    warped = warp_labels(recorded_arrays[f"{size}.next_pred"], recorded_arrays[f"{size}.{flow}.flow"])
    np.testing.assert_array_equal(warped, recorded_arrays[f"{size}.{flow}.warped"])


@pytest.mark.parametrize("size", SIZES)
def test_zero_flow_loses_the_border_of_even_sizes_like_the_official_script(size, recorded_arrays, recorded_scores):
    labels = recorded_arrays[f"{size}.next_pred"]
    warped = warp_labels(labels, np.zeros((2, *labels.shape), dtype=np.float32))
    recorded = recorded_scores["tc"][size]
    assert np.count_nonzero(warped != labels) == recorded["zero_flow_pixels_changed"]
    assert np.count_nonzero((warped == 0) & (labels != 0)) == recorded["zero_flow_pixels_set_to_0"]


def test_score_over_two_videos_equals_the_official_script(recorded_arrays, recorded_scores):
    matrix = sum(
        temporal_confusion_matrix(recorded_arrays[f"tc_seq{i}.pred"], recorded_arrays[f"tc_seq{i}.flow"], 6)
        for i in range(2)
    )
    np.testing.assert_array_equal(matrix, recorded_arrays["tc_seq.confusion_6x6"])
    score = mean_iou_scores(matrix)["mean_iou"]
    assert score == pytest.approx(recorded_scores["tc"]["TC_two_sequences"], rel=1e-12)


def test_flow_of_another_shape_is_rejected():
    labels = np.zeros((2, 3, 4), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"`flow` must have shape \(2, 3, 4\) .* Got \(3, 4, 2\)"):
        warp_labels(labels[0], np.zeros((3, 4, 2)))
    with pytest.raises(ValueError, match=r"`flows` must have one entry .*, 1\. Got 2"):
        temporal_confusion_matrix(labels, np.zeros((2, 2, 3, 4)), 2)
