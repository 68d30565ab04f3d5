# SPDX-License-Identifier: Apache-2.0
"""Video consistency (VC): of the pixels whose label stays the same over n frames, the share whose prediction does.

Load it with `evaluate.load("path/to/video_consistency.py")`. Defined by Miao et al., "VSPW", CVPR 2021; the defaults
follow the official script: raw label ids with void as any other id, windows pooled over all videos, without the last
one of each. Predictions are not compared with labels: a constant wrong one scores 1.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, fields
from itertools import chain
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from .video_metric import VideoMetric, as_ids

Windows = Literal["official", "all"]
Average = Literal["window", "video"]


class VideoWindows:
    """The windows of one video, frame by frame, in one pass for every window length.

    Two maps hold for how many steps the label, and the label together with the prediction, have not changed: a window
    of n frames ends at a frame where a run has n - 1 steps.
    """

    def __init__(self, window_lengths: Sequence[int], require_correct: bool) -> None:
        self.require_correct = require_correct
        # One ratio per window so far, NaN where no pixel keeps its label or a frame has none.
        self.ratios: dict[int, list[float]] = {length: [] for length in window_lengths}
        self._num_frames = self._num_labelled_in_a_row = 0
        self._longest_run = max(window_lengths) - 1
        self._last_prediction = self._last_label = self._label_runs = self._joint_runs = np.empty(0)

    def add_frame(self, prediction: ArrayLike, label: ArrayLike) -> None:
        """Add the next frame: two arrays of ids of shape `(height, width)`."""
        prediction, label = as_ids("prediction", prediction), as_ids("label", label)
        expected_shape = self._last_label.shape if self._last_label.ndim == 2 else label.shape
        for name, ids in (("prediction", prediction), ("label", label)):
            if ids.ndim != 2 or ids.shape != expected_shape:
                raise ValueError(
                    f"`{name}` must be (height, width), the same for predictions and labels of all frames of a "
                    f"video. Got shape {ids.shape}, expected {expected_shape}; resize the predictions to the label "
                    "size."
                )
        if self._num_labelled_in_a_row == 0:
            self._label_runs, self._joint_runs = np.zeros((2, *label.shape), np.min_scalar_type(self._longest_run))
        else:
            is_same_label = label == self._last_label
            self._extend_runs(self._label_runs, is_same_label)
            self._extend_runs(self._joint_runs, is_same_label & (prediction == self._last_prediction))
        # Copies, because a caller may decode the next frame into the same buffer.
        self._last_prediction, self._last_label = prediction.copy(), label.copy()
        self._num_labelled_in_a_row += 1
        self._end_windows()

    def skip_frame(self) -> None:
        """Add the next frame, which has no labels: every window that contains it is undefined."""
        self._num_labelled_in_a_row = 0
        self._end_windows()

    def _end_windows(self) -> None:
        self._num_frames += 1
        for length, ratios in self.ratios.items():
            if self._num_frames >= length:
                ratios.append(self._ratio(length) if self._num_labelled_in_a_row >= length else math.nan)

    def _extend_runs(self, runs: np.ndarray, is_unchanged: np.ndarray) -> None:
        """Update in place the number of steps, up to the longest run, for which each pixel has not changed."""
        np.minimum(runs, self._longest_run - 1, out=runs)
        runs += 1
        runs *= is_unchanged

    def _ratio(self, length: int) -> float:
        """Consistency of the window of `length` frames that ends at the last frame."""
        num_stable = np.count_nonzero(self._label_runs >= length - 1)
        is_consistent = self._joint_runs >= length - 1
        if self.require_correct:
            # Neither id changes inside the window, so being right in its last frame is being right in all of them.
            is_consistent &= self._last_prediction == self._last_label
        return np.count_nonzero(is_consistent) / num_stable if num_stable else math.nan


def video_consistency_windows(
    predictions: ArrayLike,
    labels: ArrayLike,
    window: int,
    windows: Windows = "official",
    require_correct: bool = False,
) -> np.ndarray:
    """Consistency of every window of `window` frames of one video, NaN where no pixel keeps its label.

    `predictions` and `labels` are `(num_frames, height, width)`; the options are those of [`VideoConsistency`].
    """
    scores = VideoConsistency((window,), windows=windows, require_correct=require_correct)
    scores.add_video("video", predictions, labels)
    return np.array(scores.window_ratios(window, "video"), dtype=np.float64)


@dataclass(eq=False)
class VideoConsistency:
    """Streaming video consistency of a data set; keeps one number per window and four maps of the size of a frame.

    Args:
        window_lengths: Frames per window, n.
        windows: `"official"` counts the first C - n windows of a video of C frames, as the VSPW script does, so that a
            video of n frames has none; `"all"` the C - n + 1 of the paper.
        average: `"window"` is the mean over the windows of all videos, as in the VSPW script; `"video"` the mean over
            videos of each video's mean, as papers describe it.
        require_correct: Whether a prediction must also equal the label, in the same ids, as the printed formula reads.
        require_every_length: Whether a video that has no window of some length is dropped for all lengths, as in the
            CFFM script (which in addition takes reduced labels).
        pool_lengths: Whether each score also pools the windows of the lengths before it, as in the DVIS++ and VidEoMT
            scripts: the VC16 they print contains VC8's windows.
    """

    window_lengths: Sequence[int] = (8, 16)
    _: KW_ONLY
    windows: Windows = "official"
    average: Average = "window"
    require_correct: bool = False
    require_every_length: bool = False
    pool_lengths: bool = False

    def __post_init__(self):
        for name, choices in (("windows", get_args(Windows)), ("average", get_args(Average))):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {choices}. Got {getattr(self, name)!r}.")
        lengths = self.window_lengths
        if not lengths or min(lengths) < 2 or len(set(lengths)) != len(lengths):
            raise ValueError(f"`window_lengths` must be distinct integers of at least 2. Got {lengths}.")
        self.window_lengths = tuple(lengths)
        self.reset()

    def reset(self) -> None:
        """Remove all videos."""
        self._ratios: dict[str, dict[int, list[float]]] = {}
        self._video: VideoWindows | None = None

    @property
    def num_videos(self) -> int:
        """Number of videos started, the short ones included."""
        return len(self._ratios)

    def start_video(self, video_id: str) -> None:
        """Start a video; the frames added next are its frames, in order."""
        if video_id in self._ratios:
            raise ValueError(f"`video_id` must be new. Got {video_id!r} again; add each video once, in one run.")
        self._video = VideoWindows(self.window_lengths, self.require_correct)
        self._ratios[video_id] = self._video.ratios

    def add_frame(self, prediction: ArrayLike, label: ArrayLike) -> None:
        """Add the next frame of the current video: two integer arrays of shape `(height, width)`."""
        if self._video is None:
            raise ValueError("`start_video` must be called before `add_frame`.")
        self._video.add_frame(prediction, label)

    def skip_frame(self) -> None:
        """Add the next frame of the current video, which has no labels."""
        if self._video is None:
            raise ValueError("`start_video` must be called before `skip_frame`.")
        self._video.skip_frame()

    def end_video(self) -> None:
        """Finish the current video and free its buffers."""
        self._video = None

    def add_video(self, video_id: str, predictions: ArrayLike, labels: ArrayLike) -> None:
        """Add a whole video: two integer arrays of shape `(num_frames, height, width)`."""
        predictions, labels = as_ids("predictions", predictions), as_ids("labels", labels)
        if labels.ndim != 3 or predictions.shape != labels.shape:
            raise ValueError(
                "`predictions` and `labels` must both have shape (num_frames, height, width). Got "
                f"{predictions.shape} and {labels.shape}; add a frame axis for a single frame."
            )
        self.start_video(video_id)
        for prediction, label in zip(predictions, labels, strict=True):
            self.add_frame(prediction, label)

    def merge(self, other: "VideoConsistency") -> None:
        """Add the videos of `other`, which was built with the same arguments, for example in another process."""
        if asdict(other) != asdict(self):
            raise ValueError(f"`other` must have the options {asdict(self)}. Got {asdict(other)}; build both alike.")
        shared_videos = sorted(self._ratios.keys() & other._ratios.keys())
        if shared_videos:
            raise ValueError(
                f"`other` must hold other videos. Got {shared_videos[0]!r} in both; give each video to one process."
            )
        self._ratios.update(other._ratios)

    def window_ratios(self, length: int, video_id: str) -> list[float]:
        """Consistency of each counted window of `length` frames of a video, NaN where undefined."""
        ratios = self._ratios[video_id][length]
        return ratios[:-1] if self.windows == "official" else list(ratios)

    def compute(self, video_ids: Sequence[str] | None = None) -> dict[str, float]:
        """Scores of the videos added so far, or some of them: `vc8`, `vc16` (one for each window length).

        Windows in which no pixel keeps its label, or a frame has no labels, are undefined and left out; a score
        without any defined window is NaN.
        """
        lengths = self.window_lengths
        if video_ids is None:
            video_ids = list(self._ratios)
            if self.require_every_length:
                video_ids = [video for video in video_ids if all(self.window_ratios(n, video) for n in lengths)]
        return {f"vc{length}": self._score(length, video_ids) for length in lengths}

    def _score(self, length: int, video_ids: Sequence[str]) -> float:
        pooled_lengths: Sequence[int] = (length,)
        if self.pool_lengths:
            pooled_lengths = self.window_lengths[: self.window_lengths.index(length) + 1]
        per_video = [
            list(chain.from_iterable(self.window_ratios(pooled, video_id) for pooled in pooled_lengths))
            for video_id in video_ids
        ]
        if self.average == "video":
            return _mean_of_defined(_mean_of_defined(ratios) for ratios in per_video)
        return _mean_of_defined(chain.from_iterable(per_video))


def _mean_of_defined(values: Iterable[float]) -> float:
    """Mean of the values that are not NaN, NaN without any; exact summation makes it independent of the order."""
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan


class VideoConsistencyMetric(VideoMetric):
    """Video consistency VC_n: of the pixels whose label stays the same over n frames, the share whose prediction does.

    Args:
        predictions: one integer array `(num_frames, height, width)` per video, of any ids.
        references: raw label ids of the same shapes. With reduced labels the void ids 0 and 255 become one, as in the
            CFFM script.

    Given to `evaluate.load`: the arguments of `VideoConsistency`.

    Returns:
        `dict`: one score for each window length, named `vc8`, `vc16`. The attribute `scores` is the accumulator, whose
        `merge` joins the videos of several processes.
    """

    def __init__(self, **kwargs: Any) -> None:
        names = [option.name for option in fields(VideoConsistency) if option.name in kwargs]
        self.scores = VideoConsistency(**{name: kwargs.pop(name) for name in names})
        super().__init__(**kwargs)

    def count(self, prediction: ArrayLike, reference: ArrayLike) -> None:
        """Count one video."""
        self.scores.add_video(str(self.scores.num_videos), prediction, reference)

    def finish(self) -> dict[str, Any]:
        """Score all videos that were counted, and remove them."""
        scores = self.scores.compute()
        self.scores.reset()
        return scores
