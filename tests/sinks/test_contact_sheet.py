# SPDX-License-Identifier: Apache-2.0
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from full_disk import full_disk
from transformers_themask.drawing.palettes import class_palette
from transformers_themask.sinks.contact_sheet import ContactSheet
from transformers_themask.sinks.sink import LabelledFrame

PALETTE = class_palette(3)
NAMES = ["sky", "meadow", "stripes"]


def flat_frame(index, height=18, width=32, label=0):
    """A frame of one colour that tells its index, at as many seconds."""
    picture = np.full((height, width, 3), (255, index, 0), dtype=np.uint8)
    return LabelledFrame(index, Fraction(index), str(index), picture, np.full((height, width), label, dtype=np.uint8))


def write_sheet(path, frames, **options):
    sink = ContactSheet(path, NAMES, PALETTE, **options)
    for frame in frames:
        sink.write(frame)
        assert not path.exists()
    sink.close()
    sink.abandon()
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    return np.asarray(Image.open(path))


def shown_frames(sheet):
    """Which flat frames are on a sheet."""
    return np.unique(sheet[(sheet[..., 0] == 255) & (sheet[..., 2] == 0)][:, 1]).astype(int)


@pytest.mark.parametrize("num_frames", [1, 3, 4, 7, 8, 9, 63, 64, 100, 250])
def test_pictures_are_spread_evenly_from_the_first_frame_to_nearly_the_last(num_frames, tmp_path):
    frames = (flat_frame(index) for index in range(num_frames))
    sheet = write_sheet(tmp_path / "new" / "sheet.png", frames, num_pictures=4, alpha=0)
    shown = shown_frames(sheet)
    assert len(shown) == min(4, num_frames) and shown[0] == 0
    if num_frames > 4:
        distances = np.diff(shown)
        assert distances.max() <= 2 * distances.min() and num_frames - shown[-1] <= distances.max()


def test_memory_holds_less_than_twice_the_pictures(tmp_path):
    sink = ContactSheet(tmp_path / "sheet.png", NAMES, PALETTE, num_pictures=5)
    for index in range(200):
        sink.write(flat_frame(index))
        assert len(sink._thumbnails) < 10


def test_large_pictures_become_small_ones_in_the_colors_of_their_classes(tmp_path):
    labels = np.zeros((720, 1280), dtype=np.uint8)
    labels[:, 640:] = 2
    picture = np.full((720, 1280, 3), 200, dtype=np.uint8)
    frame = LabelledFrame(0, Fraction(0), "0", picture, labels)
    sheet = write_sheet(tmp_path / "sheet.png", [frame], alpha=0.5)
    thumbnail = sheet[12 : 12 + 180, 12 : 12 + 320]
    for half, label in ((thumbnail[:, :158], 0), (thumbnail[:, 162:], 2)):
        assert np.array_equal(half, np.broadcast_to((200 + PALETTE[label].astype(int) + 1) // 2, half.shape))


@pytest.mark.parametrize(("height", "width"), [(180, 320), (320, 180)])
def test_the_sheet_is_wider_than_high_and_names_the_classes_on_it(tmp_path, height, width):
    frames = [flat_frame(0, height, width, label=0), *(flat_frame(k, height, width, label=2) for k in range(1, 12))]
    sheet = write_sheet(tmp_path / "sheet.png", frames, alpha=0, num_pictures=12)
    assert 1 <= sheet.shape[1] / sheet.shape[0] <= 2.5
    legend = sheet[-40:]
    shown = [k for k, color in enumerate(PALETTE) if (legend == color).all(axis=2).any()]
    assert shown == [0, 2]
    # What covers most comes first.
    positions = [np.flatnonzero((legend == PALETTE[k]).all(axis=2).any(axis=0)).min() for k in (2, 0)]
    assert positions == sorted(positions)


def test_abandoned_sheet_leaves_no_files(tmp_path):
    sink = ContactSheet(tmp_path / "sheet.png", NAMES, PALETTE)
    sink.close()
    sink.write(flat_frame(0))
    sink.abandon()
    assert not list(tmp_path.iterdir())


def test_full_disk_leaves_no_files(tmp_path):
    sink = ContactSheet(tmp_path / "sheet.png", NAMES, PALETTE)
    sink.write(flat_frame(0))
    with full_disk(num_bytes=100), pytest.raises(OSError):
        sink.close()
    sink.abandon()
    assert not list(tmp_path.iterdir())


def test_a_sheet_names_what_it_cannot_be(tmp_path):
    with pytest.raises(ValueError, match=r"must be a file whose name ends in .png. Got .*a.jpg"):
        ContactSheet(tmp_path / "a.jpg", NAMES, PALETTE)
    with pytest.raises(ValueError, match=r"`num_pictures` must be at least 1. Got 0"):
        ContactSheet(tmp_path / "a.png", NAMES, PALETTE, num_pictures=0)
    with pytest.raises(ValueError, match=r"`alpha` must be between 0 and 1. Got 2"):
        ContactSheet(tmp_path / "a.png", NAMES, PALETTE, alpha=2)
