# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from transformers_themask.drawing.palettes import class_palette
from transformers_themask.drawing.visualization import (
    RecentClasses,
    colorize,
    draw_contours,
    draw_legend,
    overlay,
    shrunk_label_map,
    side_by_side,
)

VSPW_CLASSES = 124


def grey_frame(height=360, width=640, level=100):
    return np.full((height, width, 3), level, dtype=np.uint8)


def shown_colors(picture, palette):
    """Classes whose exact colour occurs in a picture."""
    return {index for index, color in enumerate(palette.tolist()) if (picture == color).all(axis=2).any()}


def test_colorize_paints_classes_in_their_colors_and_void_black():
    palette = class_palette(3)
    painted = colorize(np.array([[0, 2], [255, 1]], dtype=np.uint8), palette)
    assert painted.tolist() == [[palette[0].tolist(), palette[2].tolist()], [[0, 0, 0], palette[1].tolist()]]


def test_colorize_takes_255_for_a_class_where_there_are_so_many():
    palette = class_palette(300)
    assert np.array_equal(colorize(np.array([[255, 299]]), palette), palette[[[255, 299]]])


@pytest.mark.parametrize("wrong", [3, 254, -1])
def test_colorize_names_an_id_without_a_color(wrong):
    with pytest.raises(ValueError, match=f"class indices below 3 or 255 for void. Got {wrong}."):
        colorize(np.array([[0, wrong]]), class_palette(3))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_overlay_is_the_weighted_mean_of_frame_and_color(alpha):
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)
    label_map = rng.integers(0, 5, (9, 7), dtype=np.uint8)
    label_map[0] = 255
    palette = class_palette(5)
    picture = overlay(frame, label_map, palette, alpha)
    assert picture.dtype == np.uint8 and picture.shape == frame.shape
    for row, column in np.ndindex(label_map.shape):
        label = label_map[row, column]
        color = np.zeros(3) if label == 255 else palette[label].astype(float)
        expected = (1 - alpha) * frame[row, column] + alpha * color
        assert np.abs(picture[row, column] - expected).max() <= 0.5 + 1e-4


def test_overlay_names_what_does_not_fit():
    with pytest.raises(ValueError, match=r"`alpha` must be between 0 and 1. Got 1.5"):
        overlay(grey_frame(4, 4), np.zeros((4, 4), dtype=np.uint8), class_palette(1), alpha=1.5)
    with pytest.raises(ValueError, match=r"frame's size \(4, 4\). Got \(4, 5\)"):
        overlay(grey_frame(4, 4), np.zeros((4, 5), dtype=np.uint8), class_palette(1))


@pytest.mark.parametrize(("height", "thickness"), [(40, 1), (360, 1), (720, 2)])
def test_contours_run_inside_every_region_along_its_borders(height, thickness):
    cells = np.random.default_rng(0).integers(0, 5, (5, 8), dtype=np.uint8)
    cells[0, 0] = 255
    label_map = cells.repeat(height // 5, axis=0).repeat(height // 5, axis=1)
    palette = class_palette(5)
    frame = grey_frame(*label_map.shape)
    picture = draw_contours(frame, label_map, palette)
    cross = np.zeros((2 * thickness + 1,) * 2, dtype=bool)
    cross[thickness] = cross[:, thickness] = True
    around = {"footprint": cross, "mode": "nearest"}
    is_contour = ndimage.maximum_filter(label_map, **around) != ndimage.minimum_filter(label_map, **around)
    expected = np.where(is_contour[..., None], colorize(label_map, palette), frame)
    assert np.array_equal(picture, expected)
    assert np.array_equal(frame, grey_frame(*label_map.shape))


@pytest.mark.parametrize(("height", "width"), [(360, 640), (720, 1280), (121, 640)])
def test_legend_shows_exactly_the_given_classes_inside_the_picture(height, width):
    palette = class_palette(VSPW_CLASSES)
    names = [f"class {index}" for index in range(VSPW_CLASSES)]
    frame = grey_frame(height, width)
    before = frame.copy()
    picture = draw_legend(frame, [4, 60, 7], names, palette)
    assert np.array_equal(frame, before)
    assert picture.shape == frame.shape and picture.dtype == np.uint8
    assert shown_colors(picture, palette) == {4, 7, 60}
    # Above the strip nothing changes, and the strip covers a third at most.
    assert np.array_equal(picture[: height * 2 // 3], frame[: height * 2 // 3])


def test_legend_text_grows_with_the_picture():
    def text_rows(height):
        picture = draw_legend(grey_frame(height, 2 * height), [0], ["Mg"], np.array([[255, 0, 0]], dtype=np.uint8))
        is_text = (picture.min(axis=2) > 200) & (np.arange(2 * height) > height // 16)
        return np.flatnonzero(is_text.any(axis=1)).size

    # A 14 pixel font's letters from ascender to descender take about 12 rows, twice the size twice as many.
    assert text_rows(360) >= 11
    assert text_rows(720) >= 1.5 * text_rows(360)


def test_legend_counts_the_classes_it_has_no_room_for():
    palette = class_palette(VSPW_CLASSES)
    names = [f"quite a long class name {index}" for index in range(VSPW_CLASSES)]
    picture = draw_legend(grey_frame(), range(VSPW_CLASSES), names, palette)
    shown = shown_colors(picture, palette)
    assert shown == set(range(len(shown))) and 5 < len(shown) < VSPW_CLASSES
    assert np.array_equal(picture[:240], grey_frame()[:240])


def test_legend_cuts_a_name_wider_than_the_picture_and_shows_underscores_as_spaces():
    palette = class_palette(2)
    name = "cupboard_or_showcase_or_storage_rack"
    picture = draw_legend(grey_frame(360, 120), [0, 1], [name, "sky"], palette)
    assert shown_colors(picture, palette) == {0, 1}
    # The name begins as it would in a wider picture, and ends before the edge.
    spaced = draw_legend(grey_frame(360, 120), [0, 1], [name.replace("_", " "), "sky"], palette)
    assert np.array_equal(picture, spaced)
    is_text = (picture.min(axis=2) > 200)[:, 30:]
    assert is_text.any() and not is_text[:, -4:].any()


@pytest.mark.parametrize(("height", "width"), [(640, 360), (1280, 720)])
def test_legend_of_a_portrait_picture_has_room_for_long_names(height, width):
    palette = class_palette(3)
    names = ["cupboard or showcase or storage rack", "traveling case or trolley case", "billboard or bulletin board"]
    picture = draw_legend(grey_frame(height, width), [0, 1, 2], names, palette)
    # None is cut off at the right.
    assert shown_colors(picture, palette) == {0, 1, 2}
    is_text = picture.min(axis=2) > 200
    assert not is_text[:, -width // 60 :].any()


def test_legend_fits_into_a_tiny_picture():
    picture = draw_legend(grey_frame(8, 10), [0, 1, 2], ["a", "b", "a name wider than all"], class_palette(3))
    assert picture.shape == (8, 10, 3)


def test_legend_names_void_and_leaves_a_picture_without_classes_alone():
    palette = class_palette(2)
    with_void = draw_legend(grey_frame(), [0, 255], ["sky", "road"], palette)
    assert shown_colors(with_void, np.array([[0, 0, 0]])) == {0}
    assert np.array_equal(draw_legend(grey_frame(), [], ["sky", "road"], palette), grey_frame())


def test_a_class_keeps_its_place_in_the_legend_for_a_while():
    recent = RecentClasses(hold_frames=2)
    maps = [np.full((2, 2), index, dtype=np.uint8) for index in range(3)]
    shown = [recent.update(maps[index]) for index in (2, 0, 0, 1, 0, 0, 0)]
    assert shown == [[2], [2, 0], [2, 0], [0, 1], [0, 1], [0, 1], [0]]


@pytest.mark.parametrize(("height", "width"), [(30, 40), (7, 11), (1, 1)])
def test_shrunk_label_map_takes_the_pixels_that_pillow_takes(height, width):
    label_map = np.random.default_rng(0).integers(0, 256, (30, 40), dtype=np.uint8)
    expected = Image.fromarray(label_map).resize((width, height), Image.Resampling.NEAREST)
    assert np.array_equal(shrunk_label_map(label_map, height, width), np.asarray(expected))
    assert shrunk_label_map(label_map.astype(np.int32) * 1000, height, width).max() <= 255000


def test_side_by_side_keeps_every_picture_and_their_order():
    pictures = [
        np.random.default_rng(seed).integers(0, 256, (90, 60 + 10 * seed, 3), dtype=np.uint8) for seed in (0, 1)
    ]
    panels = np.asarray(side_by_side([("frame", pictures[0]), ("truth", pictures[1])]))
    assert np.array_equal(panels[-90:, :60], pictures[0])
    assert np.array_equal(panels[-90:, -70:], pictures[1])
    title = panels[:-90]
    assert title.shape[0] >= 11 and (title[:, :60].max() > 200) and (title[:, -70:].max() > 200)


def test_side_by_side_cuts_a_title_wider_than_its_picture():
    pictures = [np.zeros((90, 100, 3), dtype=np.uint8)] * 2
    long, short = "a title that does not fit above such a narrow picture", "b"
    panels = np.asarray(side_by_side([(long, pictures[0]), (short, pictures[1])]))[:-90]
    assert np.array_equal(
        panels[:, 100:], np.asarray(side_by_side([(short, pictures[0]), (short, pictures[1])]))[:-90, 100:]
    )


def test_side_by_side_names_heights_that_differ():
    with pytest.raises(ValueError, match=r"one height. Got heights \[4, 5\]"):
        side_by_side([("a", grey_frame(4, 4)), ("b", grey_frame(5, 4))])
