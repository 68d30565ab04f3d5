# SPDX-License-Identifier: Apache-2.0
"""Temporal consistency (TC): how well the prediction of each frame agrees with the warped prediction of the next.

The flow is given: the VSPW script estimates it with RAFT, which is not part of this package.
"""

import numpy as np
import torch
from torch.nn import functional

from .video_mean_iou import confusion_matrix


def warp_labels(next_labels: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Labels `(height, width)` of the next frame at the places of this one, uint8, as the official script takes them.

    `flow` `(2, height, width)` is the motion in pixels, x first. The script normalises for `align_corners=True` and
    samples with `align_corners=False`, at column x * width / (width - 1) - 0.5: zero flow loses the last row or column
    of an even size. Outside the frame the label is 0, which is a class. Both are kept, because published numbers
    contain them.
    """
    height, width = next_labels.shape
    if flow.shape != (2, height, width):
        raise ValueError(f"`flow` must have shape {(2, height, width)} (x and y, height, width). Got {flow.shape}.")
    columns = torch.arange(width, dtype=torch.float32) + torch.as_tensor(flow[0], dtype=torch.float32)
    rows = torch.arange(height, dtype=torch.float32)[:, None] + torch.as_tensor(flow[1], dtype=torch.float32)
    grid = torch.stack((2 * columns / max(width - 1, 1) - 1, 2 * rows / max(height - 1, 1) - 1), dim=-1)
    image = torch.as_tensor(next_labels, dtype=torch.float32)[None, None]
    warped = functional.grid_sample(image, grid[None], mode="nearest", padding_mode="zeros", align_corners=False)
    return warped[0, 0].to(torch.uint8).numpy()


def temporal_confusion_matrix(predictions: np.ndarray, flows: np.ndarray, num_labels: int) -> np.ndarray:
    """Counts of predictions (rows) and warped predictions of the next frames (columns), `(num_labels, num_labels)`.

    TC is the `mean_iou` of their sum over the videos (in the official script the first 100 of the validation list).
    `flows` `(num_frames - 1, 2, height, width)` are in pixels, x first.
    """
    if len(flows) != len(predictions) - 1:
        raise ValueError(
            f"`flows` must have one entry per pair of neighbouring frames, {len(predictions) - 1}. Got {len(flows)}."
        )
    matrix = np.zeros((num_labels, num_labels), dtype=np.int64)
    for prediction, next_prediction, flow in zip(predictions[:-1], predictions[1:], flows, strict=True):
        matrix += confusion_matrix(warp_labels(next_prediction, flow), prediction, num_labels)
    return matrix
