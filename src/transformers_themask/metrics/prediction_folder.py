# SPDX-License-Identifier: Apache-2.0
"""Scores of a folder of predicted label maps, `PREDICTIONS/<video>/<frame>.png`, without any model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from transformers.utils import logging

from transformers_themask.data.frame_checks import VOID_ID, id_out_of_range
from transformers_themask.data.images import read_mask
from transformers_themask.data.labelled_videos import LabelledVideos

from .video_scores import VideoScores

logger = logging.get_logger(__name__)

# Gain in pixel accuracy above which the other kind of ids is what the folder most likely holds.
CLEAR_GAIN = 0.2


def score_prediction_folder(
    predictions_dir: str | Path,
    videos: LabelledVideos,
    class_indices: ArrayLike,
    prediction_ids: Literal["reduced", "raw"] = "reduced",
    window_lengths: Sequence[int] = (8, 16),
    progress: bool = True,
) -> dict[str, Any]:
    """Scores (of [`VideoScores.compute`]) of a folder of label maps against the masks of a split, one frame at a time.

    `predictions_dir` holds `<video_id>/<stem of the frame's file>.png` for each frame with a mask, the layout that
    VSPW's scripts read. `class_indices` `(256,)` gives the class index of each raw label id, 255 for void. Predictions
    are class indices (`"reduced"`) or ids of the mask files (`"raw"`), void (255, or raw 0) only where the label is; a
    warning says if the other kind fits better. `ValueError` for another size or other ids, `OSError` if unreadable.
    """
    if prediction_ids not in ("reduced", "raw"):
        raise ValueError(f"`prediction_ids` must be 'reduced' or 'raw'. Got {prediction_ids!r}.")
    if not Path(predictions_dir).is_dir():
        raise FileNotFoundError(f"`predictions_dir` must be a folder of label maps. Got {predictions_dir}.")
    if not any(any(row["masks"]) for row in videos.rows):
        raise ValueError("`videos` must have at least one mask; check the split.")
    class_indices = np.asarray(class_indices)
    scores = VideoScores(videos.num_labels, class_indices, window_lengths)
    num_agreeing_otherwise = 0
    with logging.tqdm(total=videos.num_frames, desc="Scoring", unit="frame", disable=not progress) as bar:
        for row in videos.rows:
            scores.start_video(row["video_id"])
            for index, (frame, mask) in enumerate(zip(row["frames"], row["masks"], strict=True)):
                bar.update()
                raw_label = videos.read_mask(row, index)
                if raw_label is None:
                    scores.skip_frame()
                    continue
                prediction_path = Path(predictions_dir, row["video_id"], f"{Path(frame).stem}.png")
                prediction = _read_prediction(prediction_path, videos.root / mask, raw_label.shape)
                _check_prediction_ids(prediction, prediction_path, videos.num_labels, prediction_ids)
                label = class_indices[raw_label]
                other_reading = class_indices[prediction]
                if prediction_ids == "raw":
                    prediction, other_reading = other_reading, prediction
                _check_void(prediction, label, prediction_path, prediction_ids)
                scores.add_frame(prediction, raw_label)
                num_agreeing_otherwise += int(np.count_nonzero((other_reading == label) & (label != VOID_ID)))
    result = scores.compute()
    other_accuracy = num_agreeing_otherwise / max(1, scores.matrix.sum())
    if other_accuracy > result["pixel_accuracy"] + CLEAR_GAIN:
        other_ids = "raw" if prediction_ids == "reduced" else "reduced"
        logger.warning(
            f"Read as {prediction_ids} ids, {result['pixel_accuracy']:.0%} of the pixels agree; as {other_ids} ids "
            f"{other_accuracy:.0%} would: see `--prediction-ids`."
        )
    return result


def _read_prediction(path: Path, mask_path: Path, mask_shape: tuple[int, ...]) -> np.ndarray:
    """Read a prediction and check that it has the size of its mask."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} must exist, because {mask_path} is a labelled frame; name predictions <video>/<frame>.png."
        )
    prediction = read_mask(path)
    if prediction.shape != mask_shape:
        raise ValueError(
            f"{path} must have the size (height, width) {mask_shape} of its mask {mask_path}. Got "
            f"{prediction.shape}; resize with nearest sampling."
        )
    return prediction


def _check_prediction_ids(prediction: np.ndarray, path: Path, num_labels: int, prediction_ids: str) -> None:
    is_raw = prediction_ids == "raw"
    highest = num_labels if is_raw else num_labels - 1
    wrong = id_out_of_range(prediction, highest)
    if wrong is None:
        return
    remedy = "check the number of classes"
    if not is_raw and wrong == num_labels:  # the one id that raw maps have and reduced ones do not
        remedy = "if the ids are those of the mask files, pass `--prediction-ids raw`"
    raise ValueError(f"{path} must hold the {prediction_ids} ids 0 to {highest} or {VOID_ID}. Got {wrong}; {remedy}.")


def _check_void(prediction: np.ndarray, label: np.ndarray, path: Path, prediction_ids: str) -> None:
    num_missing = np.count_nonzero((prediction == VOID_ID) & (label != VOID_ID))
    if not num_missing:
        return
    void, remedy = f"{VOID_ID}", "predict one of the classes there"
    if prediction_ids == "raw":
        void, remedy = f"0 or {VOID_ID}", "if 0 is meant as the first class, pass `--prediction-ids reduced`"
    raise ValueError(
        f"{path} must hold a class wherever the mask does. Got {void} (void) at {num_missing} labelled pixels; "
        f"{remedy}."
    )
