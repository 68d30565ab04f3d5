# SPDX-License-Identifier: Apache-2.0
import logging

import numpy as np
import pytest
from PIL import Image

from transformers_themask.data.file_checks import check_files
from transformers_themask.data.images import DamagedFileError
from transformers_themask.data.labelled_videos import LabelledVideos
from transformers_themask.data.sources import load_videos

NUM_FRAMES = 8  # in the two training videos of 5 and 3


@pytest.fixture
def check(vspw_root):
    def run(**options):
        check_files(load_videos(vspw_root, "train"), **options)

    return run


@pytest.fixture
def video(vspw_root):
    return vspw_root / "data" / "a"


def test_valid_split_passes(check, capfd):
    check()
    assert capfd.readouterr().err == ""
    check(progress=True)
    assert f"{NUM_FRAMES}/{NUM_FRAMES}" in capfd.readouterr().err


def test_mask_of_wrong_size_or_mode_is_rejected(check, video):
    path = video / "mask" / "00000009.png"
    Image.fromarray(np.ones((24, 30), np.uint8)).save(path)
    with pytest.raises(ValueError, match=r"a/mask/00000009.png must have its frame's size .*Got \(24, 30\)"):
        check()
    Image.new("RGB", (32, 24)).save(path)
    with pytest.raises(ValueError, match=r"a/mask/00000009.png must be an 8-bit single-channel image"):
        check()


def test_broken_frame_or_one_of_another_size_is_rejected(check, video):
    path = video / "origin" / "00000009.jpg"
    Image.new("RGB", (40, 24)).save(path)
    with pytest.raises(ValueError, match=r"one size .*Got \(24, 40\) for .*09.jpg after \(24, 32\) for .*07.jpg"):
        check()
    path.write_bytes(b"junk")
    with pytest.raises(OSError, match=r"a/origin/00000009.jpg must be readable"):
        check()


@pytest.mark.parametrize("name", ["00000007", "00000011"])
def test_ids_are_checked_in_the_first_and_the_last_mask(check, video, name):
    Image.fromarray(np.full((24, 32), 9, np.uint8)).save(video / "mask" / f"{name}.png")
    with pytest.raises(ValueError, match=rf"a/mask/{name}.png must hold raw ids from 0 to 2 .*Got 9"):
        check()


def test_large_split_is_checked_by_a_random_sample(check, vspw_root):
    for path in vspw_root.glob("data/[ab]/origin/*"):
        path.write_bytes(b"junk")  # any frame that is opened raises
    check(max_frames=0)

    def first_opened(seed):
        with pytest.raises(OSError, match="must be readable") as error:
            check(max_frames=1, seed=seed)
        return str(error.value)

    assert first_opened(0) == first_opened(0)
    assert len({first_opened(seed) for seed in range(60)}) == NUM_FRAMES


def test_a_damaged_file_is_an_error_or_a_warning(check, video, caplog, monkeypatch):
    (video / "origin" / "00000009.jpg").write_bytes(b"junk")
    with pytest.raises(DamagedFileError, match=r"09.jpg must be readable.*themask data check.*skip.txt"):
        check()
    monkeypatch.setattr(logging.getLogger("transformers_themask"), "propagate", True)
    check(allow_damaged=True)
    assert "09.jpg must be readable" in caplog.text and "Clips that need it are replaced by others" in caplog.text
    (video / "origin" / "00000010.jpg").unlink()
    (video / "origin" / "00000010.jpg").mkdir()
    with pytest.raises(OSError, match=r"10.jpg must be readable.*directory"):  # not damaged: no run goes on
        (video / "origin" / "00000009.jpg").write_bytes((video / "origin" / "00000008.jpg").read_bytes())
        check(allow_damaged=True)


def test_unlabelled_frames_are_skipped_and_ids_mapped(vspw_root):
    frames = [f"data/a/origin/{name:08d}.jpg" for name in (7, 8, 9)]
    masks = ["", "data/a/mask/00000008.png", ""]
    row = {"video_id": "a", "num_frames": 3, "frames": frames, "masks": masks}
    id_map = np.full(256, 254, np.uint8)
    id_map[[1, 2]] = 2, 1
    videos = LabelledVideos([row], vspw_root, ["left", "right"], id_map)
    check_files(videos)
    assert videos.read_mask(row, 0) is None and videos.mask_size(row, 0) is None
    assert np.array_equal(videos.read_mask(row, 1), np.broadcast_to(np.repeat([2, 1], 16), (24, 32)))
    Image.fromarray(np.full((24, 32), 7, np.uint8)).save(vspw_root / masks[1])
    with pytest.raises(ValueError, match=r"08.png must hold values that stand for one of the 2 classes .* Got 7"):
        check_files(videos)
