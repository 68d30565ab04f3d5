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
    """Mean structural similarity of two images `(height, width)` (Wang et al., 2004; MVC, eq. 7), -1 to 1.

    Means, variances and the covariance are taken in all square windows of `window` pixels, an odd number, in the
    image, the last two with Bessel's correction. With `window=None` the only window is the image, without correction,
    which is eq. 7 as it is written. `data_range` is the largest possible value minus the smallest.
    """
    if first.ndim != 2 or first.shape != second.shape or first.size == 0:
        raise ValueError(
            f"`first` and `second` must have one shape (height, width). Got {first.shape} and {second.shape}."
        )
    first, second = first.astype(np.float64), second.astype(np.float64)
    if window is None:
        return float(_similarities(first, second, data_range, np.mean, correction=1.0))
    if window < 3 or window % 2 == 0:
        raise ValueError(f"`window` must be an odd number from 3. Got {window}.")
    if min(first.shape) < window:
        raise ValueError(
            f"`first` and `second` must be at least as large as the window, {window}x{window}. Got "
            f"{first.shape[0]}x{first.shape[1]}."
        )
    average = partial(uniform_filter, size=window)
    similarities = _similarities(first, second, data_range, average, correction=window**2 / (window**2 - 1))
    # Windows around other pixels reach beyond the image.
    margin = window // 2
    return float(similarities[margin:-margin, margin:-margin].mean())


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
