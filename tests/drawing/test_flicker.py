# SPDX-License-Identifier: Apache-2.0
from itertools import pairwise

import numpy as np
import pytest
from matplotlib import colormaps

from transformers_themask.drawing.flicker import FlickerMap, flicker_bar
from transformers_themask.drawing.heat_map import draw_heat_map, heat_bar
from transformers_themask.drawing.legend import font_for


def random_maps(count=9, size=(5, 7)):
    return np.random.default_rng(0).integers(0, 3, (count, *size), dtype=np.uint8)


def updated(label_maps, **options):
    flicker = FlickerMap(**options)
    for label_map in label_maps:
        flicker.update(label_map)
    return flicker


@pytest.mark.parametrize("half_life", [1, 8, 2.5])
def test_change_rate_is_the_weighted_share_of_changes_with_the_given_half_life(half_life):
    label_maps = random_maps()
    rate = updated(label_maps, half_life=half_life).change_rate
    # The sum over all past steps, each with the weight that is left of it; the weights of an endless past add up to 1.
    weights = 0.5 ** (np.arange(len(label_maps) - 1)[::-1] / half_life) * (1 - 0.5 ** (1 / half_life))
    has_changed = label_maps[1:] != label_maps[:-1]
    assert np.allclose(rate, np.tensordot(weights, has_changed, axes=1), atol=1e-6)


def test_changed_shares_are_those_of_consecutive_frames_and_their_mean():
    label_maps = random_maps()
    shares = [(later != earlier).mean() for earlier, later in pairwise(label_maps)]
    flicker = updated(label_maps)
    assert flicker.last_changed_share == pytest.approx(shares[-1])
    assert flicker.mean_changed_share == pytest.approx(np.mean(shares))
    assert flicker.num_steps == len(shares)


def test_a_single_frame_has_changed_nothing_and_a_still_video_stays_cold():
    flicker = updated(random_maps(1))
    assert flicker.last_changed_share is None and flicker.mean_changed_share is None
    still = updated(random_maps(1).repeat(5, axis=0))
    assert still.mean_changed_share == 0 and not still.change_rate.any()
    frame = np.full((5, 7, 3), 200, dtype=np.uint8)
    assert np.array_equal(still.draw(frame), flicker.draw(frame))
    assert (still.draw(frame) < 100).all()


def test_pixels_that_flicker_more_are_drawn_hotter():
    label_maps = np.zeros((30, 1, 3), dtype=np.uint8)
    label_maps[::2, 0, 2] = 1
    label_maps[::8, 0, 1] = 1
    picture = updated(label_maps).draw(np.full((1, 3, 3), 90, dtype=np.uint8)).astype(int)
    never, seldom, always = picture[0].sum(axis=1)
    assert never < seldom < always
    hottest = 255 * np.array(colormaps["inferno"](1.0)[:3])
    assert np.abs(picture[0, 2] - hottest).max() <= 1


def test_flicker_of_large_label_maps_can_be_drawn_on_a_smaller_frame():
    label_maps = random_maps(size=(6, 8)).repeat(10, axis=1).repeat(10, axis=2)
    frame = np.zeros((6, 8, 3), dtype=np.uint8)
    large = updated(label_maps).draw(frame.repeat(10, axis=0).repeat(10, axis=1))
    small = updated(label_maps).draw(frame)
    assert np.abs(small.astype(int) - large[5::10, 5::10]).mean() < 25  # neighbours count a little
    assert np.array_equal(updated(label_maps[:, ::10, ::10]).draw(frame), large[5::10, 5::10])


def test_flicker_names_what_does_not_fit():
    with pytest.raises(ValueError, match=r"`half_life` must be positive. Got 0."):
        FlickerMap(half_life=0)
    flicker = FlickerMap()
    with pytest.raises(ValueError, match="before `draw`"):
        flicker.draw(np.zeros((2, 2, 3), dtype=np.uint8))
    flicker.update(np.zeros((2, 2), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"the one before, \(2, 2\). Got \(2, 3\)"):
        flicker.update(np.zeros((2, 3), dtype=np.uint8))


def test_heat_map_shows_the_grey_frame_at_zero_and_the_color_map_at_one():
    frame = np.array([[[200, 100, 50], [10, 250, 60], [0, 0, 0]]], dtype=np.uint8)
    luma = frame @ np.array([0.299, 0.587, 0.114])
    cold = draw_heat_map(frame, np.array([[0.0, -1.0, 0.0]])).astype(int)
    assert np.abs(cold - 0.4 * luma[..., None]).max() <= 4  # the color map's own black is not quite black
    assert (np.ptp(cold, axis=2) <= 4).all()
    half = draw_heat_map(frame, np.array([[0.0, 0.0, 0.5]]))[0, 2]
    assert np.abs(half - 255 * np.array(colormaps["inferno"](0.5)[:3])).max() <= 3
    with pytest.raises(ValueError, match=r"frame's size \(1, 3\). Got \(3, 1\)"):
        draw_heat_map(frame, np.zeros((3, 1)))


@pytest.mark.parametrize("width", [30, 640])
def test_heat_bar_shows_all_colors_in_order(width):
    bar = np.asarray(heat_bar("never", "always", width, font_for(360))).astype(int)
    assert bar.shape[1] == width
    middle = bar[len(bar) // 2]
    hottest = 255 * np.array(colormaps["inferno"](1.0)[:3])
    brightness = middle[np.ptp(middle, axis=1) > 8] @ np.array([0.299, 0.587, 0.114])
    assert np.abs(middle - hottest).sum(axis=1).min() <= 3
    assert len(brightness) >= 6 and (np.diff(brightness) > -1).all()


def test_flicker_bar_says_what_the_ends_mean():
    with_texts, alone = (np.asarray(flicker_bar(width, font_for(360))) for width in (640, 60))
    assert (with_texts[:, :120] > 200).all(axis=2).any() and (with_texts[:, -120:] > 200).all(axis=2).any()
    assert alone.shape[1] == 60
