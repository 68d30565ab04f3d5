# SPDX-License-Identifier: Apache-2.0
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from full_disk import full_disk
from transformers_themask.drawing.palettes import class_palette
from transformers_themask.sinks.sink import LabelledFrame
from transformers_themask.sinks.timeline import ClassTimeline

NAMES = ["sky", "road", "car_or_bus"]
TIMES = [Fraction(index**2 + 3, 10) for index in range(40)]


def frames(count=40, num_classes=3):
    label_maps = np.random.default_rng(0).integers(0, num_classes, (count, 6, 8), dtype=np.uint8)
    picture = np.zeros((6, 8, 3), dtype=np.uint8)
    return [LabelledFrame(index, TIMES[index], str(index), picture, label_maps[index]) for index in range(count)]


def filled(path, labelled_frames, names=NAMES, **options):
    timeline = ClassTimeline(path, names, class_palette(len(names)), **options)
    for frame in labelled_frames:
        timeline.write(frame)
    return timeline


def areas(timeline):
    """Name in the legend and colour of each area, from the bottom up."""
    (axes,) = timeline.figure().axes
    return [(area.get_label(), area.get_facecolor()[0, :3]) for area in axes.collections]


def test_every_frame_has_a_bin_of_its_own_while_there_are_enough(tmp_path):
    labelled_frames = frames()
    labelled_frames[3].label_map[0] = 255
    edges, shares = filled(tmp_path / "a.png", labelled_frames).shares()
    assert np.allclose(edges[:-1], [float(time) for time in TIMES])
    assert edges[-1] == pytest.approx(float(TIMES[-1] + (TIMES[-1] - TIMES[-2])))
    for row, frame in zip(shares, labelled_frames, strict=True):
        expected = [(frame.label_map == index).mean() for index in (0, 1, 2, 255)]
        assert np.allclose(row, expected)


@pytest.mark.parametrize(("count", "frames_per_bin"), [(8, 1), (9, 2), (16, 2), (17, 4), (40, 8)])
def test_bins_of_a_long_video_are_means_over_more_and_more_frames(tmp_path, count, frames_per_bin):
    labelled_frames = frames(count)
    edges, shares = filled(tmp_path / "a.png", labelled_frames, max_bins=8).shares()
    starts = range(0, count, frames_per_bin)
    assert len(shares) == len(starts) <= 8
    assert np.allclose(edges[:-1], [float(TIMES[start]) for start in starts])
    for row, start in zip(shares, starts, strict=True):
        group = np.stack([frame.label_map for frame in labelled_frames[start : start + frames_per_bin]])
        assert np.allclose(row, [(group == index).mean() for index in (0, 1, 2, 255)])


def test_areas_have_the_colors_of_their_classes_the_largest_at_the_bottom(tmp_path):
    labelled_frames = frames(4)
    for frame in labelled_frames:
        frame.label_map[:] = 2
        frame.label_map[:2] = 0
    palette = class_palette(3) / 255
    (first, first_color), (second, second_color) = areas(filled(tmp_path / "a.png", labelled_frames))
    assert (first, second) == ("car or bus  67 %", "sky  33 %")
    assert np.allclose(first_color, palette[2]) and np.allclose(second_color, palette[0])


def test_areas_reach_as_high_as_the_shares_below_them_add_up_to(tmp_path):
    timeline = filled(tmp_path / "a.png", frames(5))
    (axes,) = timeline.figure().axes
    _, shares = timeline.shares()
    order = np.argsort(-shares.sum(axis=0), kind="stable")[:3]
    tops = [area.get_paths()[0].vertices[:, 1].max() for area in axes.collections]
    # Each frame has as many pixels, so the highest point of an area is that of the sum of the shares up to it.
    assert np.allclose(tops, np.cumsum(shares[:, order], axis=1).max(axis=0))
    assert axes.get_xlim() == pytest.approx((float(TIMES[0]), 2 * float(TIMES[4]) - float(TIMES[3])))


def test_classes_beyond_twelve_become_one_grey_area_and_a_thirteenth_keeps_its_name(tmp_path):
    names = [f"class {index}" for index in range(20)]
    many = areas(filled(tmp_path / "a.png", frames(30, 20), names))
    assert len(many) == 13 and many[-1][0].startswith("8 other classes  ")
    assert np.ptp(many[-1][1]) == 0
    thirteen = areas(filled(tmp_path / "b.png", frames(30, 13), names))
    assert len(thirteen) == 13 and not any("other" in name for name, _ in thirteen)


def test_long_videos_are_measured_in_minutes(tmp_path):
    timeline = ClassTimeline(tmp_path / "a.png", NAMES, class_palette(3))
    for frame, time in zip(frames(3), (0, 300, 600), strict=True):
        timeline.write(LabelledFrame(frame.index, Fraction(time), "", frame.picture, frame.label_map))
    (axes,) = timeline.figure().axes
    assert axes.get_xlabel() == "time (min)" and axes.get_xlim() == (0, 15)


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_plot_appears_when_the_sink_is_closed(tmp_path, suffix):
    path = tmp_path / "new" / f"plot.{suffix}"
    timeline = filled(path, frames(1))
    assert not path.exists()
    timeline.close()
    timeline.abandon()
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    if suffix == "png":
        colors = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
        assert all((colors == color).all(axis=1).any() for color in class_palette(3))
    if suffix == "svg":
        again = tmp_path / "again.svg"
        filled(again, frames(1)).close()
        assert again.read_bytes() == path.read_bytes()
        assert "car or bus" in path.read_text()


def test_abandoned_or_empty_timeline_leaves_no_files(tmp_path):
    filled(tmp_path / "a.png", frames(2)).abandon()
    filled(tmp_path / "b.png", []).close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_full_disk_leaves_no_files(tmp_path, suffix):
    timeline = filled(tmp_path / f"a.{suffix}", frames(2))
    timeline.figure()  # what matplotlib keeps on the disk is there
    with full_disk(num_bytes=100):
        with pytest.raises(OSError):
            timeline.close()
        timeline.abandon()
    assert not list(tmp_path.iterdir())


def test_timeline_names_what_does_not_fit(tmp_path):
    with pytest.raises(
        ValueError, match=r"`path` must be a file whose name ends in .png or .svg or .pdf. Got .*a.mp4"
    ):
        ClassTimeline(tmp_path / "a.mp4", NAMES, class_palette(3))
    with pytest.raises(ValueError, match=r"`max_bins` must be an even number of at least 2. Got 3."):
        ClassTimeline(tmp_path / "a.png", NAMES, class_palette(3), max_bins=3)
    with pytest.raises(ValueError, match="before `shares`"):
        filled(tmp_path / "a.png", []).shares()
