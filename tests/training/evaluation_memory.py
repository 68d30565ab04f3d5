# SPDX-License-Identifier: Apache-2.0
"""Print how many MiB of memory scoring takes on top of reading and segmenting the frames: `... [NUM_FRAMES]`.

The segmenter keeps nothing, so that what is measured is the evaluation's.
"""

import resource
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from transformers_themask.data.labelled_videos import LabelledVideos
from transformers_themask.inference.segment import segment_frames
from transformers_themask.models.streaming import StreamingMixin
from transformers_themask.training.evaluation import EvaluationVideos, evaluate_videos

NUM_LABELS, SIZE, NUM_VIDEOS, NUM_FILES = 124, (480, 853), 5, 8


class ColourSegmenter(StreamingMixin):
    """Model and video processor in one: a pixel's class is its red value."""

    config = SimpleNamespace(num_frames=2)
    device, dtype, ignore_index = torch.device("cpu"), torch.float32, 255

    def eval(self):
        return self

    def clip_step(self, pixel_values_videos, state):
        return pixel_values_videos, state

    def __call__(self, clips, **_):
        return {"pixel_values_videos": torch.from_numpy(np.array(clips))}

    def post_process_semantic_segmentation(self, frames, target_sizes):
        return [(frames[0, ..., 0] % NUM_LABELS).to(torch.uint8)]

    def reduce_labels(self, raw_ids):
        return torch.where(raw_ids % 255 == 0, 255, raw_ids - 1)


def write_videos(root: Path, num_frames: int) -> LabelledVideos:
    """Videos of a few files that come again and again: memory does not depend on what is in them."""
    rng = np.random.default_rng(0)
    cells = rng.integers(0, NUM_LABELS + 1, (12, 16), dtype=np.uint8)
    for index in range(NUM_FILES):
        cells[6:] = rng.integers(0, NUM_LABELS + 1, (6, 16), dtype=np.uint8)  # the upper half stays
        mask = np.kron(cells, np.ones((40, 54), np.uint8))[: SIZE[0], : SIZE[1]]
        Image.fromarray(mask).save(root / f"{index}.png")
        Image.fromarray(np.stack([mask] * 3, axis=-1)).save(root / f"{index}.jpg")
    length = num_frames // NUM_VIDEOS
    numbers = [index % NUM_FILES for index in range(length)]
    frames, masks = [f"{number}.jpg" for number in numbers], [f"{number}.png" for number in numbers]
    rows = [
        {"video_id": f"video {index}", "num_frames": length, "frames": frames, "masks": masks}
        for index in range(NUM_VIDEOS)
    ]
    return LabelledVideos(rows, root, [f"class {index}" for index in range(NUM_LABELS)])


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(num_frames: int = 1000) -> None:
    torch.set_num_threads(1)
    segmenter = ColourSegmenter()
    with tempfile.TemporaryDirectory() as folder:
        videos = EvaluationVideos(write_videos(Path(folder), num_frames), num_frames=2)
        labelled, row = videos.videos, videos.videos.rows[0]
        frames = (labelled.read_frame(row, index) for index in range(row["num_frames"]))
        for index, _ in segment_frames(segmenter, segmenter, frames, 2, 3):
            labelled.read_mask(row, index)
        before = peak_mib()
        scores = evaluate_videos(segmenter, segmenter, videos)
        extra = peak_mib() - before
    assert scores["num_frames"] == num_frames // NUM_VIDEOS * NUM_VIDEOS
    assert scores["vc16"] is not None
    print(f"{extra:.1f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
