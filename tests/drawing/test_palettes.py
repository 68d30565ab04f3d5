# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from transformers_themask.drawing.palettes import (
    PALETTES,
    class_palette,
    colour_blind_palette,
    named_palette,
    oklab,
    simulated_colour_blindness,
    vspw_palette,
)

VSPW_CLASSES = 124


def smallest_distances(palette):
    """Smallest distance in Oklab between two colours: as seen, and with each kind of colour blindness."""
    colors = palette.astype(float)
    distances = []
    for seen in (colors, *simulated_colour_blindness(colors)):
        seen = oklab(seen)
        between = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
        distances.append(between[~np.eye(len(palette), dtype=bool)].min())
    return distances


def test_palette_colors_differ_clearly_and_stay_clear_of_black_and_white():
    palette = class_palette(VSPW_CLASSES).astype(int)
    all_colors = np.vstack([palette, [[0, 0, 0], [255, 255, 255]]])
    distance = np.abs(all_colors[:, None] - all_colors[None]).sum(axis=2)
    np.fill_diagonal(distance, 999)
    assert distance.min() >= 20


@pytest.mark.parametrize("name", PALETTES)
def test_palette_of_fewer_classes_is_the_beginning_of_a_longer_one(name):
    palette = named_palette(name, VSPW_CLASSES)
    assert palette.dtype == np.uint8 and palette.shape == (VSPW_CLASSES, 3)
    assert np.array_equal(named_palette(name, 11), palette[:11])
    assert np.array_equal(named_palette(name, 1), palette[:1])


@pytest.mark.parametrize(("name", "most"), [("default", 1024), ("vspw", 255), ("colour-blind", 1024)])
def test_palette_has_a_color_of_its_own_for_every_class_up_to_its_limit(name, most):
    assert len(np.unique(named_palette(name, most), axis=0)) == most
    for wrong in (0, most + 1):
        with pytest.raises(ValueError, match=f"between 1 and {most}. Got {wrong}."):
            named_palette(name, wrong)


def test_palettes_go_by_their_names():
    assert np.array_equal(named_palette("default", 30), class_palette(30))
    assert np.array_equal(named_palette("vspw", 30), vspw_palette(30))
    assert np.array_equal(named_palette("colour-blind", 30), colour_blind_palette(30))
    with pytest.raises(ValueError, match=r"must be one of default, vspw, colour-blind. Got 'rainbow'."):
        named_palette("rainbow", 3)


def test_vspw_palette_is_the_color_map_of_pascal_voc_by_raw_id():
    palette = vspw_palette(255)
    # The 20 classes of PASCAL VOC, whose ids begin at 1 too, as its development kit colours them.
    published = [
        (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128), (128, 128, 128),
        (64, 0, 0), (192, 0, 0), (64, 128, 0), (192, 128, 0), (64, 0, 128), (192, 0, 128), (64, 128, 128),
        (192, 128, 128), (0, 64, 0), (128, 64, 0), (0, 192, 0), (128, 192, 0), (0, 64, 128),
    ]  # fmt: skip
    assert palette[:20].tolist() == [list(color) for color in published]
    # The colour of "void" there, id 255.
    assert palette[254].tolist() == [224, 224, 192]


def test_simulated_colour_blindness_keeps_greys_and_merges_what_is_confused():
    greys = np.repeat(np.linspace(0, 255, 7)[:, None], 3, axis=1)
    assert np.abs(simulated_colour_blindness(greys) - greys).max() < 1
    red, green, blue, teal = np.array([(200, 90, 60), (120, 120, 60), (60, 60, 220), (0, 115, 150)], dtype=float)
    pairs = np.array([[red, green], [blue, teal]])
    as_seen = np.linalg.norm(np.diff(oklab(pairs), axis=1), axis=-1)[:, 0]
    protan, deutan, tritan = (
        np.linalg.norm(np.diff(oklab(simulated), axis=1), axis=-1)[:, 0]
        for simulated in simulated_colour_blindness(pairs)
    )
    # Red and green without red or green cones, blue and teal without blue ones.
    assert protan[0] < 0.6 * as_seen[0] and deutan[0] < 0.6 * as_seen[0] and tritan[0] > 0.8 * as_seen[0]


@pytest.mark.parametrize(("num_classes", "distance", "factor"), [(11, 0.109, 3), (20, 0.076, 2.5), (40, 0.049, 5)])
def test_colour_blind_palette_keeps_classes_apart_where_the_default_does_not(num_classes, distance, factor):
    safe, default = colour_blind_palette(num_classes), class_palette(num_classes)
    assert min(smallest_distances(safe)) > distance
    assert min(smallest_distances(safe)) > factor * min(smallest_distances(default))
    assert smallest_distances(safe)[0] > 1.3 * distance  # as seen with normal vision


def test_no_palette_keeps_all_classes_of_vspw_apart():
    """The limit that the documentation names."""
    assert 0.02 < min(smallest_distances(colour_blind_palette(VSPW_CLASSES))) < 0.03
