# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

FIXTURES = Path(__file__).parents[1] / "fixtures" / "data"


@pytest.fixture(scope="session")
def official_facts():
    return json.loads((FIXTURES / "data_facts.json").read_text())


@pytest.fixture(scope="session")
def official_tensors():
    return load_file(FIXTURES / "data_transforms.safetensors")


@pytest.fixture(scope="session")
def official_cases():
    return json.loads((FIXTURES / "data_transforms.json").read_text())["cases"]


@pytest.fixture
def vspw_root(tmp_path):
    """A folder in VSPW layout: video `a` of 5 frames (train), `b` of 3 (train), `c` of 4 (val), 2 classes.

    Every pixel of frame i of a video has red = 10 * i; masks are 1 on the left half and 2 on the right.
    """
    root = tmp_path / "vspw"
    for video, num_frames, suffix in (("a", 5, ".jpg"), ("b", 3, ".png"), ("c", 4, ".jpg")):
        (root / "data" / video / "origin").mkdir(parents=True)
        (root / "data" / video / "mask").mkdir()
        for index in range(num_frames):
            frame = np.zeros((24, 32, 3), np.uint8)
            frame[..., 0] = 10 * index
            frame[:, 16:, 1] = 200
            Image.fromarray(frame).save(root / "data" / video / "origin" / f"{7 + index:08d}{suffix}", quality=95)
            ids = np.where(frame[..., 1] > 0, np.uint8(2), np.uint8(1))
            Image.fromarray(ids).save(root / "data" / video / "mask" / f"{7 + index:08d}.png")
    (root / "train.txt").write_text("a\nb")  # no newline at the end
    (root / "val.txt").write_text("c\n")
    (root / "label_num_dic_final.json").write_text(json.dumps({"right": "2", "others": "0", "left": "1"}))
    return root


class PlainProcessor:
    """Stand-in for the video processor: halves the size when it resizes, scales to 0..1 + 1, reduces the labels."""

    do_reduce_labels = do_rescale = do_normalize = True
    rescale_factor, image_mean, image_std = 1 / 255, [-1.0] * 3, [1.0] * 3
    ignore_index = 255

    def reduce_labels(self, raw):
        return torch.where((raw == 0) | (raw == 255), 255, raw - 1)

    def __call__(self, videos, segmentation_maps, return_tensors):
        pixel_values = torch.from_numpy(videos[:, ::2, ::2]).permute(0, 3, 1, 2) / 255 + 1
        labels = self.reduce_labels(torch.from_numpy(segmentation_maps[:, ::2, ::2]).long())
        return {"pixel_values_videos": pixel_values[None], "labels": labels[None]}


@pytest.fixture
def plain_processor():
    return PlainProcessor()
