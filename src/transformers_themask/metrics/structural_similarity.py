# SPDX-License-Identifier: Apache-2.0
"""Structural similarity (SSIM) of two images of one channel, with the defaults of scikit-image."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from scipy.ndimage import uniform_filter

# Weights of the constants that keep both fractions defined (Wang et al., 2004).
K1, K2 = 0.01, 0.03


def structural_similarity(
    first: np.ndarray, second: np.ndarray, data_range: float = 255.0, window: int | None = 7
) -> float:
    """Mean structural similarity of two images (Wang et al., 2004; MVC, eq. 7).

    Means, variances and the covariance are taken in square windows, all pixels alike, the last two with Bessel's
    correction; the result is the mean over all windows that lie within the image.

    `first` `(height, width)`: an image. `second` `(height, width)`: the other one. `data_range`: difference between
    the largest and the smallest possible value. `window`: side of the windows in pixels, an odd number. `None`: one
    window, the whole image, without correction, which is eq. 7 as it is written. Returns 1 for equal images and less
    for others, down to -1. Raises `ValueError` if the images differ in size or are smaller than the window, or
    `window` is even or below 3.
    """
    if first.ndim != 2 or first.shape != second.shape or first.size == 0:
        raise ValueError(
            f"`first` and `second` must have one shape (height, width). Got {first.shape} and {second.shape}."
        )
    first, second = first.astype(np.float64), second.astype(np.float64)
    if window is None:
        return float(_similarities(first, second, data_range, np.mean, correction=1.0))
    _check_window(window, first.shape)
    average = partial(uniform_filter, size=window)
    similarities = _similarities(first, second, data_range, average, correction=window**2 / (window**2 - 1))
    # Windows around other pixels reach beyond the image.
    margin = window // 2
    return float(similarities[margin:-margin, margin:-margin].mean())


def _check_window(window: int, shape: tuple[int, ...]) -> None:
    if window < 3 or window % 2 == 0:
        raise ValueError(f"`window` must be an odd number from 3. Got {window}.")
    if min(shape) < window:
        raise ValueError(
            f"`first` and `second` must be at least as large as the window, {window}x{window}. Got "
            f"{shape[0]}x{shape[1]}."
        )


def _similarities(
    first: np.ndarray, second: np.ndarray, data_range: float, average: Callable[[np.ndarray], Any], correction: float
) -> Any:
    """Similarity of every window; `correction` makes the variances unbiased."""
    mean, other_mean = average(first), average(second)
    variance = correction * (average(first * first) - mean * mean)
    other_variance = correction * (average(second * second) - other_mean * other_mean)
    covariance = correction * (average(first * second) - mean * other_mean)
    luminance_floor, contrast_floor = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    luminance = (2 * mean * other_mean + luminance_floor) / (mean * mean + other_mean * other_mean + luminance_floor)
    structure = (2 * covariance + contrast_floor) / (variance + other_variance + contrast_floor)
    return luminance * structure
