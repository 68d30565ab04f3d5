# SPDX-License-Identifier: Apache-2.0
"""Selection of the result that is most consistent in time (MVC, eq. 5 to 7): stability, not accuracy."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from transformers_themask.data.frame_checks import VOID_ID
from transformers_themask.files.plain_names import inside
from transformers_themask.metrics.structural_similarity import structural_similarity
from transformers_themask.models.frame_arrays import rgb_array

from .label_folders import ResultVideo, frames_with_label_maps, label_files

# The paper gives none; these are the values of OpenCV's tutorial.
FARNEBACK: dict[str, Any] = {
    "pyr_scale": 0.5,
    "levels": 3,
    "winsize": 15,
    "iterations": 3,
    "poly_n": 5,
    "poly_sigma": 1.2,
    "flags": 0,
}
DIRECTIONS = ("forward", "backward")
# Class indices are compared as grey levels, as eq. 7 is written on the label maps.
SIMILARITY: dict[str, Any] = {"data_range": 255, "window": 7}


@dataclass(frozen=True)
class VideoChoice:
    """Which of several results supplies a video: the first of those with the highest temporal consistency."""

    video: str
    num_frames: int
    scores: list[float]
    chosen: int


def optical_flow(frame: np.ndarray, next_frame: np.ndarray) -> np.ndarray:
    """Motion `(height, width, 2)` in pixels, x first, from one frame to another, by Farneback's method (MVC, eq. 5).

    What `frame` shows at (x, y), `next_frame` shows at (x + flow[y, x, 0], y + flow[y, x, 1]).
    """
    cv2 = _opencv()
    if frame.shape != next_frame.shape:
        raise ValueError(f"All frames of a video must have one size. Got {next_frame.shape} after {frame.shape}.")
    grey, next_grey = (cv2.cvtColor(rgb_array(picture), cv2.COLOR_RGB2GRAY) for picture in (frame, next_frame))
    return cv2.calcOpticalFlowFarneback(grey, next_grey, None, **FARNEBACK)


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise ValueError(
            "OpenCV must be installed to estimate optical flow. Got no module `cv2`; "
            "`pip install transformers-themask[aggregation]` installs it."
        ) from error
    return cv2


def carry_labels(label_map: np.ndarray, flow: np.ndarray, direction: str = "forward") -> np.ndarray:
    """Carry the label map of frame t to frame t + 1, with nearest sampling and repeated borders (MVC, eq. 6).

    A `"forward"` flow, from t to t + 1, is that of eq. 5: pixel p takes the label at p - flow(p), as if the motion
    were the same there. With a `"backward"` one, from t + 1 to t, it takes the label at p + flow(p), which is exact.
    """
    _check_direction(direction)
    height, width = label_map.shape
    if flow.shape != (height, width, 2):
        raise ValueError(f"`flow` must have the shape {(height, width, 2)}, as the label map has. Got {flow.shape}.")
    motion = flow if direction == "backward" else -flow
    columns = np.arange(width, dtype=np.float32) + motion[..., 0]
    rows = np.arange(height, dtype=np.float32)[:, None] + motion[..., 1]
    return label_map[_nearest(rows, height), _nearest(columns, width)]


def _nearest(positions: np.ndarray, length: int) -> np.ndarray:
    return np.rint(positions).clip(0, length - 1).astype(np.intp)


def _check_direction(direction: str) -> None:
    if direction not in DIRECTIONS:
        raise ValueError(f"`direction` must be one of {', '.join(DIRECTIONS)}. Got {direction!r}.")


def temporal_consistency(
    frames: Iterable[np.ndarray], label_maps: Iterable[np.ndarray], direction: str = "forward"
) -> float:
    """How far the label maps of a video follow what its frames show (MVC, eq. 5 to 7).

    The mean over all pairs of neighbouring frames of the structural similarity between the label map of the first,
    carried to the second, and the label map of the second; 1 for a single frame. Void (255) does not count. (The
    metric TC of the VSPW script is another one: see `metrics/temporal_consistency.py`.)
    """
    return temporal_consistencies(_paired(frames, label_maps), direction)[0]


def _paired(
    frames: Iterable[np.ndarray], label_maps: Iterable[np.ndarray]
) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    for index, (frame, label_map) in enumerate(zip_longest(frames, label_maps)):
        if frame is None or label_map is None:
            missing = "frame" if frame is None else "label map"
            raise ValueError(f"`frames` and `label_maps` must be equally many. Got no {missing} {index}.")
        yield frame, [label_map]


def temporal_consistencies(
    frames_with_label_maps: Iterable[tuple[np.ndarray, Sequence[np.ndarray]]], direction: str = "forward"
) -> list[float]:
    """[`temporal_consistency`] of several results for one video, given each frame with its label map in every result.

    Each flow is estimated once; two frames at a time are in memory.
    """
    _check_direction(direction)
    sums, num_frames = np.zeros(0), 0
    earlier: tuple[np.ndarray, Sequence[np.ndarray]] | None = None
    for frame, label_maps in frames_with_label_maps:
        if earlier is None:
            sums = np.zeros(len(label_maps))
        else:
            sums += _similarities(*earlier, frame, label_maps, direction)
        earlier = frame, label_maps
        num_frames += 1
    if num_frames == 0:
        raise ValueError("A video must have at least one frame. Got none.")
    # A single frame contradicts nothing.
    return (sums / (num_frames - 1)).tolist() if num_frames > 1 else [1.0] * len(sums)


def _similarities(
    frame: np.ndarray,
    label_maps: Sequence[np.ndarray],
    next_frame: np.ndarray,
    next_label_maps: Sequence[np.ndarray],
    direction: str,
) -> list[float]:
    """For every result: how far its label map, carried to the next frame, resembles the one there."""
    ends = (frame, next_frame) if direction == "forward" else (next_frame, frame)
    flow = optical_flow(*ends)
    carried = [carry_labels(label_map, flow, direction) for label_map in label_maps]
    return [
        structural_similarity(*_without_void(*pair), **SIMILARITY)
        for pair in zip(carried, next_label_maps, strict=True)
    ]


def _without_void(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fill void pixels of one label map from the other, so that they do not count."""
    return np.where(first == VOID_ID, second, first), np.where(second == VOID_ID, first, second)


def select_by_consistency(
    frames_with_label_maps: Iterable[tuple[np.ndarray, Sequence[np.ndarray]]], direction: str = "forward"
) -> tuple[int, list[float]]:
    """Index of the result most consistent in time (MVC, section 2.3), the first of several such, and all scores."""
    scores = temporal_consistencies(frames_with_label_maps, direction)
    return int(np.argmax(scores)), scores


def aggregate_video(
    video: ResultVideo,
    folders: Sequence[Path],
    output: Path,
    direction: str = "forward",
    on_frame: Callable[[], object] = lambda: None,
) -> VideoChoice:
    """Copy the label maps of one video to `output` from the folder whose label maps are most consistent in time.

    Raises an `OSError` or `ValueError` where label maps are missing or do not fit, see [`frames_with_label_maps`].
    """
    label_maps = _with_classes(frames_with_label_maps(video, folders, on_frame), video, folders)
    chosen, scores = select_by_consistency(label_maps, direction)
    files = label_files(folders[chosen] / video.name)
    folder = inside(output, output / video.name)
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copyfile(file, folder / file.name)
    return VideoChoice(video.name, len(files), scores, chosen)


def _with_classes(
    frames: Iterable[tuple[np.ndarray, list[np.ndarray]]], video: ResultVideo, folders: Sequence[Path]
) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """The same frames; a `ValueError` for a label map of unknown classes, or of void alone, which contradicts none."""
    for index, (frame, label_maps) in enumerate(frames):
        for folder, label_map in zip(folders, label_maps, strict=True):
            known = label_map[label_map != VOID_ID]
            highest = int(known.max()) if known.size else None
            if highest is None or (video.num_labels is not None and highest >= video.num_labels):
                most = "" if video.num_labels is None else f" from 0 to {video.num_labels - 1}"
                raise ValueError(
                    f"{video.label_path(folder, index)} must hold class indices{most}. Got "
                    f"{'void alone' if highest is None else highest}."
                )
        yield frame, label_maps


def consistency_settings(direction: str) -> dict[str, Any]:
    """Settings and versions that the scores depend on."""
    packages = ("transformers-themask", "transformers", "torch", "numpy", "scipy")
    return {
        "flow": {"method": "Farneback", "direction": direction, **FARNEBACK},
        "structural_similarity": SIMILARITY,
        "versions": {"opencv": _opencv().__version__, **{name: version(name) for name in packages}},
    }
