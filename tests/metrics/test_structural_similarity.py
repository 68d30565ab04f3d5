# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import numpy as np
import pytest

from goldens import manifest, tensors
from transformers_themask.metrics.structural_similarity import structural_similarity

FIXTURES = Path(__file__).parents[1] / "fixtures" / "mvc"
# What scikit-image was called with, by the name of its result; the one for floats is about their type.
SETTINGS = {
    "u8_default_dr255_win7": {},
    "dr123_win7": {"data_range": 123},
    "float_dr255_win7": {},
    "win11_uniform_dr255": {"window": 11},
    "global_eq7_dr255": {"window": None},
}


def naive_similarity(first, second, data_range, window):
    """Window by window, with NumPy's own statistics."""
    values = []
    for row in range(first.shape[0] - window + 1):
        for column in range(first.shape[1] - window + 1):
            x, y = (image[row : row + window, column : column + window].ravel() for image in (first, second))
            (x_variance, covariance), (_, y_variance) = np.cov(x, y)
            a, b = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
            numerator = (2 * x.mean() * y.mean() + a) * (2 * covariance + b)
            values.append(numerator / ((x.mean() ** 2 + y.mean() ** 2 + a) * (x_variance + y_variance + b)))
    return np.mean(values)


@pytest.mark.parametrize("setting", SETTINGS)
def test_equals_scikit_image(setting):
    recorded = tensors("aggregation", FIXTURES)
    dtype = np.float64 if setting.startswith("float") else np.uint8
    for index, pair in enumerate(manifest(FIXTURES)["aggregation"]["pairs"]):
        for case, scores in pair.items():
            carried = recorded[f"warped.{case}.{index}"].numpy().astype(dtype)
            labels = recorded[f"labels.{case[0]}"][index + 1].numpy().astype(dtype)
            score = structural_similarity(carried, labels, **SETTINGS[setting])
            assert score == pytest.approx(scores[setting], abs=1e-6), case


@pytest.mark.parametrize(("dtype", "data_range"), [(np.uint8, 255), (np.int32, 60), (np.float32, 1.0)])
@pytest.mark.parametrize("window", [3, 7])
def test_equals_a_loop_over_all_windows(dtype, data_range, window):
    rng = np.random.default_rng(0)
    first, second = (rng.random((2, 9, 12)) * data_range).astype(dtype)
    expected = naive_similarity(first.astype(float), second.astype(float), data_range, window)
    assert structural_similarity(first, second, data_range, window) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("window", [None, 3, 7])
def test_equal_images_score_one_and_others_less(window):
    first, second = np.random.default_rng(1).integers(0, 256, (2, 7, 20), dtype=np.uint8)
    assert structural_similarity(first, first, window=window) == 1.0
    score = structural_similarity(first, second, window=window)
    assert score < 0.9 and score == structural_similarity(second, first, window=window)
    assert structural_similarity(first, 255 - first, window=window) < -0.5


@pytest.mark.parametrize(
    ("first", "second", "options", "message"),
    [
        ((8, 8), (8, 9), {}, r"must have one shape \(height, width\)\. Got \(8, 8\) and \(8, 9\)"),
        ((8, 8, 3), (8, 8, 3), {}, r"must have one shape \(height, width\)\. Got \(8, 8, 3\)"),
        ((0, 8), (0, 8), {"window": None}, r"must have one shape \(height, width\)\. Got \(0, 8\)"),
        ((6, 9), (6, 9), {}, "must be at least as large as the window, 7x7. Got 6x9"),
        ((8, 8), (8, 8), {"window": 4}, "`window` must be an odd number from 3. Got 4"),
        ((8, 8), (8, 8), {"window": 1}, "`window` must be an odd number from 3. Got 1"),
    ],
)
def test_images_that_cannot_be_compared_are_rejected(first, second, options, message):
    with pytest.raises(ValueError, match=message):
        structural_similarity(np.zeros(first), np.zeros(second), **options)
