# SPDX-License-Identifier: Apache-2.0
"""Score a folder of predicted label maps, `PREDICTIONS/<video>/<frame>.png`, without any model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from transformers.utils import logging

from .video_scores import VideoScores

VOID = 255


def raw_id_table() -> np.ndarray:
    """Return the class index of every raw VSPW label id: 0 ("others") and 255 are void, k is class k - 1."""
    class_indices = np.arange(-1, 255)
    class_indices[[0, 255]] = VOID
    return class_indices.astype(np.uint8)


def score_prediction_folder(
    predictions_dir: str | Path,
    videos: Mapping[str, Sequence[str | Path]],
    num_labels: int,
    prediction_ids: Literal["reduced", "raw"] = "reduced",
    window_lengths: Sequence[int] = (8, 16),
    progress: bool = True,
) -> dict[str, Any]:
    """Compare the label maps of a folder with the masks of a split, one frame at a time.

    Args:
        predictions_dir (`str` or `Path`):
            Folder with one PNG per mask: `<video_id>/<stem of the mask file>.png`. Other files are ignored.
        videos (`Mapping[str, Sequence[str | Path]]`):
            The mask files of each video in frame order, with raw label ids (0 and 255 void, class k - 1 as k).
        num_labels (`int`):
            Number of classes.
        prediction_ids (`str`, *optional*, defaults to `"reduced"`):
            Ids of the predictions: `"reduced"` for class indices, with which `mean_iou` is computed, `"raw"` for the
            ids of the mask files. Void (255, or raw 0) may be predicted only where the label is void.
        window_lengths (`Sequence[int]`, *optional*, defaults to `(8, 16)`):
            Frames per window of the video consistency.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        `dict`: the scores of `VideoScores.compute`.
    """
    if prediction_ids not in ("reduced", "raw"):
        raise ValueError(f"`prediction_ids` must be 'reduced' or 'raw'. Got {prediction_ids!r}.")
    if not Path(predictions_dir).is_dir():
        raise FileNotFoundError(f"`predictions_dir` must be a folder of label maps. Got {predictions_dir}.")
    num_frames = sum(len(mask_paths) for mask_paths in videos.values())
    if num_frames == 0:
        raise ValueError("`videos` must name at least one mask. Got none; check the split.")
    class_indices = raw_id_table()
    scores = VideoScores(num_labels, class_indices, window_lengths)
    with logging.tqdm(total=num_frames, desc="Scoring", unit="frame", disable=not progress) as bar:
        for video_id, mask_paths in videos.items():
            scores.start_video(video_id)
            for mask_path in map(Path, mask_paths):
                raw_label = _read_label_map(mask_path)
                _check_mask_ids(raw_label, mask_path, num_labels)
                prediction_path = Path(predictions_dir, video_id, f"{mask_path.stem}.png")
                prediction = _read_prediction(prediction_path, mask_path, raw_label.shape)
                _check_prediction_ids(prediction, prediction_path, num_labels, prediction_ids)
                if prediction_ids == "raw":
                    prediction = class_indices[prediction]
                _check_void(prediction, class_indices[raw_label], prediction_path, prediction_ids)
                scores.add_frame(prediction, raw_label)
                bar.update()
    return scores.compute()


def _read_label_map(path: Path) -> np.ndarray:
    """Read the ids of a single-channel PNG."""
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "P"):
                raise ValueError(f"{path} must be a label map with one 8-bit channel. Got image mode {image.mode}.")
            return np.array(image)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} must be a label map. Got no such file; check the data folder.") from error
    except (OSError, SyntaxError) as error:  # Pillow reports a damaged PNG as either.
        raise OSError(f"{path} must be a readable PNG. Got: {error}. Write the file again.") from error


def _read_prediction(path: Path, mask_path: Path, mask_shape: tuple[int, ...]) -> np.ndarray:
    """Read a prediction and check that it has the size of its mask."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} must exist, because {mask_path} is a labelled frame. Got no such file; name predictions "
            "<video>/<frame>.png."
        )
    prediction = _read_label_map(path)
    if prediction.shape != mask_shape:
        raise ValueError(
            f"{path} must have the size (height, width) {mask_shape} of its mask {mask_path}. Got "
            f"{prediction.shape}; resize with nearest sampling."
        )
    return prediction


def _highest_id(ids: np.ndarray, limit: int) -> int | None:
    """Return the highest id above `limit` that is not void, or None."""
    is_wrong = (ids > limit) & (ids != VOID)
    return int(ids[is_wrong].max()) if is_wrong.any() else None


def _check_mask_ids(raw_label: np.ndarray, path: Path, num_labels: int) -> None:
    wrong = _highest_id(raw_label, num_labels)
    if wrong is not None:
        raise ValueError(
            f"{path} must hold the raw ids 0 to {num_labels} or {VOID}. Got {wrong}; check the mask and the number "
            "of classes."
        )


def _check_prediction_ids(prediction: np.ndarray, path: Path, num_labels: int, prediction_ids: str) -> None:
    is_raw = prediction_ids == "raw"
    highest = num_labels if is_raw else num_labels - 1
    wrong = _highest_id(prediction, highest)
    if wrong is None:
        return
    remedy = "check the number of classes"
    if not is_raw and wrong == num_labels:  # the one id that raw maps have and reduced ones do not
        remedy = "if the ids are those of the mask files, pass `--prediction-ids raw`"
    raise ValueError(f"{path} must hold the {prediction_ids} ids 0 to {highest} or {VOID}. Got {wrong}; {remedy}.")


def _check_void(prediction: np.ndarray, label: np.ndarray, path: Path, prediction_ids: str) -> None:
    num_missing = np.count_nonzero((prediction == VOID) & (label != VOID))
    if not num_missing:
        return
    void, remedy = f"{VOID}", "predict one of the classes there"
    if prediction_ids == "raw":
        void, remedy = f"0 or {VOID}", "if 0 is meant as the first class, pass `--prediction-ids reduced`"
    raise ValueError(
        f"{path} must hold a class wherever the mask does. Got {void} (void) at {num_missing} labelled pixels; "
        f"{remedy}."
    )
