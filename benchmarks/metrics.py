# SPDX-License-Identifier: Apache-2.0
"""Row 15: video consistency and confusion matrix, ours and the loops of the official scripts."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from transformers_themask.metrics.video_consistency import VideoConsistency
from transformers_themask.metrics.video_mean_iou import confusion_matrix

from .measuring import Bound, Case, Setting, faster
from .models import NUM_LABELS
from .post_processing import target_size

WINDOWS = (8, 16)
NUM_FRAMES, QUICK_FRAMES = 40, 18
VOID = 255


def metric_cases(setting: Setting) -> Iterator[Case]:
    """Row 15: both on one video."""
    predictions, labels = blocky_video(setting)

    def our_consistency() -> list[float]:
        scores = VideoConsistency(WINDOWS)
        scores.add_video("video", predictions, labels)
        return list(scores.compute().values())

    def official_consistency() -> list[float]:
        return [float(np.nanmean(official_windows(predictions, labels, length))) for length in WINDOWS]

    def confusion(matrix: Callable[..., np.ndarray]) -> np.ndarray:
        return np.sum([matrix(*frame, NUM_LABELS) for frame in zip(predictions, labels, strict=True)], axis=0)

    confusions = (partial(confusion, official_matrix), partial(confusion, confusion_matrix))
    identical = Bound("identical", 1, at_least=True)
    for name, baseline, ours, bound in (
        ("VC8 and VC16", official_consistency, our_consistency, faster(2, 2.4)),
        ("mIoU", *confusions, faster(1.2, 1.4)),
    ):
        found = {"identical": float(np.array_equal(baseline(), ours()))}
        yield Case(name, baseline, ours, (bound, identical), found, measures=("time",))


def blocky_video(setting: Setting) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and labels `(num_frames, height, width)` uint8 of squares, some of which change with each frame."""
    rng = np.random.default_rng(0)
    num_frames = QUICK_FRAMES if setting.quick else NUM_FRAMES
    height, width = target_size(setting)
    shape = (-(-height // 8), -(-width // 8))
    videos = []
    for _ in range(2):
        cells = rng.integers(0, NUM_LABELS, shape, dtype=np.uint8)
        frames = []
        for _ in range(num_frames):
            changed = rng.random(shape) < 0.02
            cells = np.where(changed, rng.integers(0, NUM_LABELS, shape, dtype=np.uint8), cells)
            frames.append(cells.repeat(8, 0).repeat(8, 1)[:height, :width])
        videos.append(np.stack(frames))
    predictions, labels = videos
    labels = np.where(predictions % 3 == 0, predictions, labels)  # some are correct
    labels[:, : height // 8] = VOID
    return predictions, labels


def official_windows(predictions: np.ndarray, labels: np.ndarray, length: int) -> list[float]:
    """Consistency of every window but the last, each compared frame by frame with its first."""
    ratios = []
    for start in range(len(labels) - length):
        stable = np.ones(labels.shape[1:], dtype=bool)
        constant = np.ones(labels.shape[1:], dtype=bool)
        for frame in range(start + 1, start + length):
            stable &= labels[start] == labels[frame]
            constant &= predictions[start] == predictions[frame]
        ratios.append((stable & constant).sum() / stable.sum())
    return ratios


def official_matrix(prediction: np.ndarray, label: np.ndarray, num_labels: int) -> np.ndarray:
    """Confusion matrix of one frame: counted pixels as int64, then a histogram of pairs."""
    counted = (label >= 0) & (label < num_labels)
    pairs = num_labels * label[counted].astype(int) + prediction[counted]
    return np.bincount(pairs, minlength=num_labels**2).reshape(num_labels, num_labels)
