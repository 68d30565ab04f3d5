# SPDX-License-Identifier: Apache-2.0
"""Print the peaks of the resident memory, in MiB, of segmenting a video in one pass and in eight, as JSON."""

import json
from pathlib import Path

import numpy as np
import torch

from transformers_themask import MiTConfig, THEMaskConfig, THEMaskForVideoSemanticSegmentation, THEMaskVideoProcessor
from transformers_themask.mvc.passes import open_passes, segment_video_in_passes
from transformers_themask.mvc.tta import TTA
from transformers_themask.videos.frames_in_memory import FramesInMemory

# The label maps of all passes would take 118 MiB if they stayed in memory.
NUM_FRAMES, SIZE = 40, (540, 720)


class Video:
    """Frames that are made when they are asked for."""

    def __len__(self) -> int:
        return NUM_FRAMES

    def __iter__(self):
        cells = np.random.default_rng(0).integers(0, 256, (NUM_FRAMES, 6, 8, 3), dtype=np.uint8)
        return (picture.repeat(SIZE[0] // 6, axis=0).repeat(SIZE[1] // 8, axis=1) for picture in cells)


def small_segmenter() -> tuple[THEMaskForVideoSemanticSegmentation, THEMaskVideoProcessor]:
    torch.manual_seed(0)
    config = THEMaskConfig(
        backbone_config=MiTConfig(hidden_sizes=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_attention_heads=(1, 2, 3, 4)),
        num_frames=2,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=48,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=4,
        dim_feedforward=48,
        num_queries=8,
        num_labels=12,
    )
    processor = THEMaskVideoProcessor(size={"shortest_edge": 64, "longest_edge": 128})
    return THEMaskForVideoSemanticSegmentation(config), processor


def peak_of(tta: TTA) -> float:
    """MiB that the process holds at most while it segments the video in some passes."""
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    sessions = open_passes(*small_segmenter(), tta, mode="contiguous")
    segment_video_in_passes(sessions, FramesInMemory(Video()), [], tta.combine)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def main() -> None:
    torch.set_num_threads(1)
    one_pass = TTA(scales=(2.0,))
    peak_of(one_pass)  # what is loaded on first use
    plans = {"one pass": one_pass}
    plans |= {name: TTA((0.5, 1.0, 1.5, 2.0), flip=True, combine=name) for name in ("votes", "scores")}
    print(json.dumps({name: peak_of(tta) for name, tta in plans.items()}))


if __name__ == "__main__":
    main()
