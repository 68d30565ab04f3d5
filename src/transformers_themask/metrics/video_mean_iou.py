# SPDX-License-Identifier: Apache-2.0
"""Mean IoU of a video data set from one confusion matrix over all frames of all videos, never averaged per clip.

Load it with `evaluate.load("path/to/video_mean_iou.py", num_labels=124)`. Labels are class indices: 255 is ignored,
raw VSPW ids are reduced beforehand (0 to 255, k to k - 1). The defaults are those of the `Evaluator` with which the
VSPW, CFFM and THE-Mask papers report mIoU and weighted IoU.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from .video_metric import VideoMetric, as_ids

AbsentClasses = Literal["exclude", "count"]

LABEL_REMEDY = "Reduce raw labels (0 to 255, k to k - 1) and check the number of classes."
PREDICTION_REMEDY = "Predict one of the classes at every labelled pixel, in the same ids as the reduced labels."


def confusion_matrix(
    predictions: ArrayLike, labels: ArrayLike, num_labels: int, ignore_index: int = 255
) -> np.ndarray:
    """Count the pixels of every (label, prediction) pair of class indices: int64 `(num_labels, num_labels)`.

    Pixels with the label `ignore_index` are not counted and may have any prediction. The matrices of parts add up.
    """
    prediction_ids, label_ids = as_ids("predictions", predictions), as_ids("labels", labels)
    if prediction_ids.shape != label_ids.shape:
        raise ValueError(
            f"`predictions` must have the shape of `labels`, {label_ids.shape}. Got {prediction_ids.shape}; resize "
            "the predictions to the label size."
        )
    if label_ids.dtype == prediction_ids.dtype == np.uint8:
        matrix = _byte_confusion_matrix(prediction_ids, label_ids, num_labels, ignore_index)
        if matrix is not None:
            return matrix
    is_counted = label_ids != ignore_index
    prediction_ids, label_ids = prediction_ids[is_counted], label_ids[is_counted]
    # The official scripts silently drop such labels, or count such predictions in another cell.
    rule = f"must hold class indices 0 to {num_labels - 1}"
    _check_class_indices(label_ids, num_labels, f"`labels` {rule} or the ignored id {ignore_index}", LABEL_REMEDY)
    _check_class_indices(
        prediction_ids, num_labels, f"`predictions` {rule} wherever the label is counted", PREDICTION_REMEDY
    )
    pairs = label_ids.astype(np.int64) * num_labels + prediction_ids
    return np.bincount(pairs, minlength=num_labels**2).reshape(num_labels, num_labels)


def _check_class_indices(ids: np.ndarray, num_labels: int, rule: str, remedy: str) -> None:
    wrong = ids[(ids < 0) | (ids >= num_labels)]
    if wrong.size:
        raise ValueError(f"{rule}. Got {wrong.min() if wrong.min() < 0 else wrong.max()}. {remedy}")


def _byte_confusion_matrix(
    predictions: np.ndarray, labels: np.ndarray, num_labels: int, ignore_index: int
) -> np.ndarray | None:
    """Confusion matrix of 8-bit ids, or `None` if a counted id is not a class; all pairs are counted first."""
    pairs = labels.ravel().astype(np.uint16)
    pairs <<= 8
    pairs |= predictions.ravel()
    counts = np.bincount(pairs, minlength=1 << 16).reshape(256, 256)
    if 0 <= ignore_index < 256:
        counts[ignore_index] = 0
    matrix = np.zeros((num_labels, num_labels), dtype=np.int64)
    kept = counts[:num_labels, :num_labels]
    matrix[: len(kept), : len(kept)] = kept
    return matrix if matrix.sum() == counts.sum() else None


def _ratio(numerator: np.ndarray, denominator: np.ndarray, is_defined: np.ndarray) -> np.ndarray:
    """Divide where `is_defined`; NaN elsewhere."""
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=is_defined)


def _mean_of_defined(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def mean_iou_scores(matrix: np.ndarray, absent_classes: AbsentClasses = "exclude") -> dict[str, Any]:
    """Scores of the confusion matrix of a whole split: floats, and lists with one float per class.

    `"exclude"` leaves a class in no label out of the mean IoU, as the official `Evaluator` does; `"count"` gives it an
    IoU of 0 if predicted, as mmseg's `eval_metrics` and MPVSS do. `weighted_iou` is FWIoU, 0 when no pixel was
    counted, as in the `Evaluator`; `pixel_accuracy` is aAcc, `mean_accuracy` mAcc. What is left out is NaN.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"`matrix` must be square (labels, predictions). Got shape {matrix.shape}.")
    if absent_classes not in ("exclude", "count"):
        raise ValueError(f"`absent_classes` must be 'exclude' or 'count'. Got {absent_classes!r}.")
    correct, label_areas = np.diag(matrix), matrix.sum(axis=1)
    unions = label_areas + matrix.sum(axis=0) - correct
    num_pixels = int(matrix.sum())
    is_present = label_areas > 0
    per_class_iou = _ratio(correct, unions, unions > 0 if absent_classes == "count" else is_present)
    per_class_accuracy = _ratio(correct, label_areas, is_present)
    return {
        "mean_iou": _mean_of_defined(per_class_iou),
        "weighted_iou": float(label_areas[is_present] @ per_class_iou[is_present]) / max(num_pixels, 1),
        "pixel_accuracy": int(correct.sum()) / num_pixels if num_pixels else float("nan"),
        "mean_accuracy": _mean_of_defined(per_class_accuracy),
        "per_class_iou": per_class_iou.tolist(),
        "per_class_accuracy": per_class_accuracy.tolist(),
    }


class VideoMeanIou(VideoMetric):
    """Mean IoU, weighted IoU and accuracy of a video data set, from one confusion matrix over the whole split.

    Args:
        predictions: class indices 0 to `num_labels` - 1 of shape `(num_frames, height, width)` or `(height, width)`.
        references: arrays of the same shapes; `ignore_index` where a pixel is not counted.

    Given to `evaluate.load`:
        num_labels: number of classes.
        ignore_index: label id that is not counted, by default 255.
        absent_classes: `"exclude"` (the default) averages the IoU over the classes that occur in the labels, `"count"`
            over those that occur in the labels or the predictions.

    Returns:
        `dict`: `mean_iou`, `weighted_iou`, `pixel_accuracy`, `mean_accuracy`, `per_class_iou`, `per_class_accuracy`.
        The counts are the public attribute `matrix`, to be summed across processes.
    """

    def __init__(
        self, num_labels: int, ignore_index: int = 255, absent_classes: AbsentClasses = "exclude", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.num_labels, self.ignore_index, self.absent_classes = num_labels, ignore_index, absent_classes
        self.matrix = np.zeros((num_labels, num_labels), dtype=np.int64)

    def count(self, prediction: ArrayLike, reference: ArrayLike) -> None:
        """Count one video or one frame."""
        self.matrix += confusion_matrix(prediction, reference, self.num_labels, self.ignore_index)

    def finish(self) -> dict[str, Any]:
        """Score everything that was counted, and reset the counts."""
        scores = mean_iou_scores(self.matrix, self.absent_classes)
        self.matrix = np.zeros_like(self.matrix)
        return scores
