# SPDX-License-Identifier: Apache-2.0
import colorsys

import numpy as np
import pytest
import torch

from transformers_themask.data import photometric
from transformers_themask.data.photometric import PhotometricDraw, distort_batch, draw_photometric

# OpenCV truncates in its vector code, which covers whole groups of 32 pixels of a row, and rounds in the rest of the
# row. We truncate everywhere, as it does in frames that are 480 wide; the recorded frames are 53 wide.
VECTOR_COLUMNS = 32


def distort_colors(frame, draw):
    """As the module's function, on arrays with the channels last."""
    channels_first = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)
    return photometric.distort_colors(channels_first, draw).permute(1, 2, 0).numpy()


def recorded_draws(log):
    """The draws of two frames from the recorded calls, in the official order."""
    values = iter([value for _, _, value in log])
    draws = []
    for _ in range(2):
        brightness = next(values) if next(values) else None
        contrast_first = bool(next(values))
        contrast = (next(values) if next(values) else None) if contrast_first else None
        saturation = next(values) if next(values) else None
        hue = next(values) if next(values) else None
        if not contrast_first:
            contrast = next(values) if next(values) else None
        draws.append(PhotometricDraw(brightness, contrast, contrast_first, saturation, hue))
    assert next(values, None) is None
    return draws


@pytest.mark.parametrize("case", [0, 1, 2, 3])
def test_distortion_equals_opencv_for_recorded_draws(official_tensors, official_cases, case):
    for index, draw in enumerate(recorded_draws(official_cases["photometric"]["draws"][case])):
        frame = official_tensors[f"in.frame{index}_bgr"][..., ::-1]
        expected = official_tensors[f"photo{case}.frame{index}"][..., ::-1].astype(int)
        difference = np.abs(distort_colors(frame, draw) - expected)
        in_vector = difference[:, :VECTOR_COLUMNS]
        assert in_vector.max() <= 1 and (in_vector > 0).sum() <= 5  # fused multiply-adds
        assert difference.max() <= 3  # saturation then hue: one step of rounding each, spread by the hue's levels


def test_empty_draw_is_a_no_op():
    frame = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert (distort_colors(frame, PhotometricDraw()) == frame).all()


def test_brightness_and_contrast_clip_and_truncate():
    frame = np.array([[[0, 100, 250]]], np.uint8)
    assert distort_colors(frame, PhotometricDraw(brightness=9.9)).tolist() == [[[9, 109, 255]]]
    assert distort_colors(frame, PhotometricDraw(brightness=-9.9)).tolist() == [[[0, 90, 240]]]
    assert distort_colors(frame, PhotometricDraw(contrast=1.019)).tolist() == [[[0, 101, 254]]]


def test_contrast_comes_before_or_after_the_colors():
    frame = np.array([[[200, 180, 20]]], np.uint8)
    first = distort_colors(frame, PhotometricDraw(contrast=1.5, saturation=0.5, contrast_first=True))
    last = distort_colors(frame, PhotometricDraw(contrast=1.5, saturation=0.5, contrast_first=False))
    assert first[0, 0, 2] == pytest.approx((255 + 30) / 2, abs=2)  # clipped to 255 before the colours are mixed
    assert last[0, 0, 2] == pytest.approx(1.5 * (200 + 20) / 2, abs=2)


def test_hue_and_saturation_agree_with_colorsys_up_to_their_quantisation():
    frame = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    distorted = distort_colors(frame, PhotometricDraw(saturation=0.8, hue=-11)).astype(int)
    for pixel, result in zip(frame.reshape(-1, 3), distorted.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
        expected = 255 * np.array(colorsys.hsv_to_rgb((hue - 11 / 180) % 1, 0.8 * saturation, value))
        # Two conversions round the hue by up to one step of two degrees together: 255 / 30 levels, plus truncation.
        assert np.abs(result - expected).max() <= 12


def test_every_rgb_value_rounds_like_integer_arithmetic():
    """The conversion in 12-bit fixed point, spelled out in integers for every third level."""
    levels = np.arange(0, 256, 3)
    red, green, blue = (axis.ravel() for axis in np.meshgrid(levels, levels, levels, indexing="ij"))
    value, low = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    spread = value - low
    by = lambda scale, of: np.where(of > 0, np.rint(scale * 4096 / np.maximum(of, 1)), 0).astype(np.int64)  # noqa: E731
    saturation = (spread * by(255, value) + 2048) >> 12
    sector = np.where(value == green, blue - red + 2 * spread, red - green + 4 * spread)
    hue = (np.where(value == red, green - blue, sector) * by(30, spread) + 2048) >> 12
    hue = np.where(hue < 0, hue + 180, hue)
    frame = torch.from_numpy(np.stack([red, green, blue]).astype(np.uint8))[..., None]
    for channel, expected in zip(photometric._rgb_to_hsv(frame), (hue, saturation, value), strict=True):
        assert (channel.ravel().numpy() == expected).all()


def test_batch_distortion_equals_frame_distortion():
    rng = np.random.default_rng(0)
    frames = torch.from_numpy(rng.integers(0, 256, (40, 3, 12, 16), dtype=np.uint8))
    draws = [draw_photometric(rng) for _ in frames]
    expected = torch.stack([photometric.distort_colors(*pair) for pair in zip(frames, draws, strict=True)])
    result = distort_batch(frames, torch.tensor([draw.as_row() for draw in draws]))
    assert (result.int() - expected.int()).abs().max() <= 1  # float32 on both sides, rounded in another order
    assert (result == expected).float().mean() > 0.999
    assert torch.equal(distort_batch(frames, torch.tensor([PhotometricDraw().as_row()] * 40)), frames)


def test_grey_stays_grey():
    frame = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    distorted = distort_colors(frame, PhotometricDraw(saturation=1.5, hue=17)).astype(int)
    assert np.abs(distorted - frame).max() <= 2  # one truncation per conversion


def test_draws_have_the_official_ranges_and_probabilities():
    rng = np.random.default_rng(0)
    draws = [draw_photometric(rng) for _ in range(4000)]
    for name, low, high in (
        ("brightness", -32, 32),
        ("contrast", 0.5, 1.5),
        ("saturation", 0.5, 1.5),
        ("hue", -18, 17),
    ):
        values = [getattr(draw, name) for draw in draws if getattr(draw, name) is not None]
        assert abs(len(values) / len(draws) - 0.5) < 0.04  # five standard deviations
        assert low <= min(values) < low + 0.02 * (high - low) and high - 0.02 * (high - low) < max(values) <= high
    assert abs(np.mean([draw.contrast_first for draw in draws]) - 0.5) < 0.04
