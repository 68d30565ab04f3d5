# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from transformers_themask.metrics.video_mean_iou import confusion_matrix, mean_iou_scores

EXACT = {"rel": 1e-12, "abs": 1e-12, "nan_ok": True}
OFFICIAL_NAMES = {"aAcc": "pixel_accuracy", "Acc_class": "mean_accuracy", "mIoU": "mean_iou", "FWIoU": "weighted_iou"}
CASES = ["A_absent_classes", "B_noshift_ignore255", "C_one_image_all_void", "F_perfect", "G_all_void"]


def assert_official_scores(scores, recorded):
    for official_name, name in OFFICIAL_NAMES.items():
        assert scores[name] == pytest.approx(float(recorded[official_name]), **EXACT), name


@pytest.fixture
def case(request, recorded_arrays, recorded_scores, shifted):
    """Recorded case: its name, predictions, class index labels and official scores."""
    recorded = recorded_scores[request.param]
    labels = recorded_arrays[f"{request.param}.gt"]
    if recorded["reduce_zero_label"]:
        labels = shifted(labels)
    return request.param, recorded_arrays[f"{request.param}.pred"], labels, recorded


@pytest.mark.parametrize("case", CASES, indirect=True)
def test_confusion_matrix_and_areas_equal_the_official_counts(case, recorded_arrays):
    name, predictions, labels, recorded = case
    matrix = confusion_matrix(predictions, labels, recorded["num_classes"])
    np.testing.assert_array_equal(matrix, recorded_arrays[f"{name}.confusion"])
    np.testing.assert_array_equal(np.diag(matrix), recorded_arrays[f"{name}.intersect"])
    np.testing.assert_array_equal(matrix.sum(axis=1), recorded_arrays[f"{name}.label_area"])
    np.testing.assert_array_equal(matrix.sum(axis=0), recorded_arrays[f"{name}.pred_area"])


@pytest.mark.parametrize("case", CASES, indirect=True)
def test_default_scores_equal_the_official_evaluator(case):
    _, predictions, labels, recorded = case
    scores = mean_iou_scores(confusion_matrix(predictions, labels, recorded["num_classes"]))
    assert_official_scores(scores, recorded["Evaluator"])


@pytest.mark.parametrize("case", CASES, indirect=True)
def test_counting_absent_classes_equals_mmseg(case, recorded_arrays):
    name, predictions, labels, recorded = case
    matrix = confusion_matrix(predictions, labels, recorded["num_classes"])
    scores = mean_iou_scores(matrix, absent_classes="count")
    assert scores["mean_iou"] == pytest.approx(float(recorded["mIoU_nanmean"]), **EXACT)
    assert scores["mean_accuracy"] == pytest.approx(float(recorded["mAcc_nanmean"]), **EXACT)
    assert scores["pixel_accuracy"] == pytest.approx(float(recorded["aAcc"]), **EXACT)
    assert scores["per_class_iou"] == pytest.approx(recorded_arrays[f"{name}.iou"].tolist(), **EXACT)
    assert scores["per_class_accuracy"] == pytest.approx(recorded_arrays[f"{name}.acc"].tolist(), **EXACT)


@pytest.mark.parametrize("case", ["A_absent_classes"], indirect=True)
def test_scores_equal_the_mpvss_script(case, recorded_arrays):
    name, predictions, labels, recorded = case
    num_classes, official = recorded["num_classes"], recorded["MPVSS_d2_style"]
    matrix = confusion_matrix(predictions, labels, num_classes)
    by_prediction = recorded_arrays[f"{name}.mpvss_confusion_pred_by_gt"]
    np.testing.assert_array_equal(matrix.T, by_prediction[:num_classes, :num_classes])
    excluded, counted = mean_iou_scores(matrix), mean_iou_scores(matrix, absent_classes="count")
    assert counted["mean_iou"] == pytest.approx(official["mIoU"], **EXACT)
    assert counted["weighted_iou"] == pytest.approx(official["fwIoU"], **EXACT)
    assert excluded["mean_accuracy"] == pytest.approx(official["mACC"], **EXACT)
    assert excluded["pixel_accuracy"] == pytest.approx(official["pACC"], **EXACT)
    # Their table prints NaN for the classes that are in no label, as the default does.
    assert excluded["per_class_iou"] == pytest.approx([float(iou) for iou in official["per_class_IoU"]], **EXACT)


def test_one_matrix_over_all_videos_equals_every_official_script(clips, shifted, recorded_arrays, recorded_scores):
    matrix = sum(confusion_matrix(predictions, shifted(labels), 124) for predictions, labels in clips.values())
    np.testing.assert_array_equal(matrix, recorded_arrays["vspw.confusion_shifted_masks"])
    np.testing.assert_array_equal(matrix, recorded_arrays["mmseg_all_clips.confusion"])
    for script in ("vspw_evaluator_shifted_masks", "dvis_script", "videomt_script"):
        assert_official_scores(mean_iou_scores(matrix), recorded_scores[script])
    assert_official_scores(mean_iou_scores(matrix), recorded_scores["mmseg_all_clips"]["Evaluator"])
    counted = mean_iou_scores(matrix, absent_classes="count")
    assert counted["mean_iou"] == pytest.approx(recorded_scores["mmseg_all_clips"]["mIoU_nanmean"], **EXACT)
    assert counted["per_class_iou"] == pytest.approx(recorded_arrays["mmseg_all_clips.iou"].tolist(), **EXACT)
    assert counted["per_class_accuracy"] == pytest.approx(recorded_arrays["mmseg_all_clips.acc"].tolist(), **EXACT)


def test_raw_masks_give_the_official_off_by_one_scores(clips, recorded_arrays, recorded_scores):
    # Id 124 is out of range for 124 classes; the official script drops it silently, here void has to be said.
    matrix = sum(
        confusion_matrix(predictions, np.where(labels == 124, 255, labels), 124)
        for predictions, labels in clips.values()
    )
    np.testing.assert_array_equal(matrix, recorded_arrays["vspw.confusion_raw_masks"])
    assert_official_scores(mean_iou_scores(matrix), recorded_scores["vspw_evaluator_raw_masks"])


def test_scores_without_short_videos_equal_the_cffm_script(clips, shifted, recorded_arrays, recorded_scores):
    official = recorded_scores["cffm_script"]
    matrices = {
        name: confusion_matrix(predictions, shifted(labels), 124)
        for name, (predictions, labels) in clips.items()
        if name not in official["skipped_videos"]
    }
    matrix = sum(matrices.values())
    np.testing.assert_array_equal(matrix, recorded_arrays["cffm.confusion"])
    assert_official_scores(mean_iou_scores(matrix), official)
    for name, of_video in official["per_video"].items():
        assert mean_iou_scores(matrices[name])["mean_iou"] == pytest.approx(of_video["mIoU_video"], **EXACT)


def test_scores_equal_the_themask_evaluation(recorded_themask_arrays, shifted):
    recorded = recorded_themask_arrays
    matrix = sum(confusion_matrix(recorded[f"pred.{i}"], shifted(recorded[f"gt_raw.{i}"]), 6) for i in range(3))
    np.testing.assert_array_equal(matrix, recorded["confusion_matrix"])
    excluded, counted = mean_iou_scores(matrix), mean_iou_scores(matrix, absent_classes="count")
    assert excluded["mean_iou"] == pytest.approx(recorded["evaluator.mIoU"].item(), **EXACT)
    assert excluded["weighted_iou"] == pytest.approx(recorded["evaluator.FWIoU"].item(), **EXACT)
    assert excluded["pixel_accuracy"] == pytest.approx(recorded["all_acc"].item(), rel=1e-7)  # recorded in float32
    assert counted["mean_iou"] == pytest.approx(recorded["table.mIoU_nanmean"].item(), **EXACT)
    assert counted["mean_accuracy"] == pytest.approx(recorded["table.mAcc_nanmean"].item(), **EXACT)
    assert counted["per_class_iou"] == pytest.approx(recorded["class_iou"].tolist(), **EXACT)
    assert counted["per_class_accuracy"] == pytest.approx(recorded["class_acc"].tolist(), **EXACT)


def test_scores_equal_a_loop_over_pixels():
    rng = np.random.default_rng(0)
    predictions, labels = rng.integers(0, 5, (3, 6, 7)), rng.integers(0, 4, (3, 6, 7))
    labels[rng.random(labels.shape) < 0.2] = 255
    pixels = [(p, g) for p, g in zip(predictions.ravel(), labels.ravel(), strict=True) if g != 255]
    ious = [
        sum(p == k == g for p, g in pixels) / sum(k in (p, g) for p, g in pixels) for k in range(4)
    ]  # class 4 is predicted but in no label
    accuracies = [sum(p == k == g for p, g in pixels) / sum(g == k for _, g in pixels) for k in range(4)]
    shares = [sum(g == k for _, g in pixels) / len(pixels) for k in range(4)]
    scores = mean_iou_scores(confusion_matrix(predictions, labels, 5))
    assert scores["per_class_iou"] == pytest.approx([*ious, float("nan")], **EXACT)
    assert scores["mean_iou"] == pytest.approx(sum(ious) / 4, **EXACT)
    assert scores["weighted_iou"] == pytest.approx(sum(s * i for s, i in zip(shares, ious, strict=True)), **EXACT)
    assert scores["mean_accuracy"] == pytest.approx(sum(accuracies) / 4, **EXACT)
    assert scores["pixel_accuracy"] == pytest.approx(sum(p == g for p, g in pixels) / len(pixels), **EXACT)
    counted = mean_iou_scores(confusion_matrix(predictions, labels, 5), absent_classes="count")
    assert counted["mean_iou"] == pytest.approx(sum(ious) / 5, **EXACT)


def test_predictions_on_ignored_pixels_change_nothing():
    labels = np.array([[0, 1, 255], [255, 2, 1]])
    predictions = np.array([[0, 2, 0], [0, 2, 1]])
    elsewhere = np.where(labels == 255, 77, predictions)
    np.testing.assert_array_equal(confusion_matrix(predictions, labels, 3), confusion_matrix(elsewhere, labels, 3))


def test_another_ignored_id_can_be_chosen():
    matrix = confusion_matrix(np.array([0, 1, 1]), np.array([0, -100, 1]), 2, ignore_index=-100)
    np.testing.assert_array_equal(matrix, [[1, 0], [0, 1]])


def test_all_integer_types_of_tensors_and_arrays_give_equal_counts():
    rng = np.random.default_rng(1)
    predictions, labels = rng.integers(0, 124, (2, 5, 6)), rng.integers(0, 124, (2, 5, 6))
    expected = confusion_matrix(predictions, labels, 124)
    np.testing.assert_array_equal(
        confusion_matrix(predictions.astype(np.uint8), labels.astype(np.uint8), 124), expected
    )
    tensors = torch.from_numpy(predictions).int(), torch.from_numpy(labels)
    np.testing.assert_array_equal(confusion_matrix(*tensors, 124), expected)


def test_no_counted_pixel_gives_nan_scores_and_a_weighted_iou_of_zero():
    scores = mean_iou_scores(np.zeros((2, 2), dtype=np.int64))
    assert np.isnan([scores["mean_iou"], scores["pixel_accuracy"], scores["mean_accuracy"]]).all()
    assert scores["weighted_iou"] == 0.0


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("D_quirk_label_eq_num_classes", r"`labels` must hold class indices 0 to 3 or .* 255\. Got 4\. Reduce raw"),
        ("E_quirk_pred_eq_num_classes", r"`predictions` must hold class indices 0 to 3 .* Got 4\. Predict one"),
    ],
    indirect=["case"],
)
def test_ids_miscounted_by_the_official_scripts_are_errors(case, message):
    _, predictions, labels, recorded = case
    with pytest.raises(ValueError, match=message):
        confusion_matrix(predictions, labels, recorded["num_classes"])


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        ([[0, 1]], [[0, -1]], "`labels` must hold class indices 0 to 1 .* Got -1"),
        ([[-2, 1]], [[0, 1]], "`predictions` must hold class indices 0 to 1 .* Got -2"),
        ([[255, 1]], [[0, 1]], "`predictions` must hold class indices 0 to 1 .* Got 255"),
        ([[0, 1]], [[0], [1]], r"`predictions` must have the shape of `labels`, \(2, 1\)\. Got \(1, 2\)"),
        ([[0.0, 1.0]], [[0, 1]], "`predictions` must hold integer ids. Got dtype float64"),
    ],
)
def test_invalid_ids_are_rejected(predictions, labels, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(predictions, labels, 2)


def test_invalid_matrix_or_option_is_rejected():
    with pytest.raises(ValueError, match=r"`matrix` must be square .* Got shape \(2, 3\)"):
        mean_iou_scores(np.zeros((2, 3), dtype=np.int64))
    with pytest.raises(ValueError, match=r"`absent_classes` must be 'exclude' or 'count'. Got 'zero'"):
        mean_iou_scores(np.zeros((2, 2), dtype=np.int64), absent_classes="zero")
