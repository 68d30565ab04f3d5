# SPDX-License-Identifier: Apache-2.0
"""Memory does not grow with the length of a video; `python -m benchmarks stream-memory` takes longer ones."""

import ctypes
import gc
import statistics
from pathlib import Path

import numpy as np
import pytest
from transformers import pipeline

from transformers_themask.drawing.palettes import class_palette
from transformers_themask.inference.segment_video import segment_video
from transformers_themask.sinks.class_statistics import ClassStatistics
from transformers_themask.sinks.contact_sheet import ContactSheet
from transformers_themask.sinks.label_maps import LabelFolder
from transformers_themask.sinks.label_track import LabelTrack
from transformers_themask.sinks.overlay_video import OverlayVideo
from transformers_themask.sinks.timeline import ClassTimeline
from transformers_themask.videos.video_reader import VideoReader
from transformers_themask.videos.video_writer import VideoWriter

# x264 looks some fifty frames ahead; from then on nothing may be added.
WARM_UP_FRAMES, NUM_FRAMES, READING_DISTANCE = 64, 192, 16
# A picture has 506 KiB and a label map 169 KiB: whoever kept the smaller one would hold 16 MiB more in the last three
# readings than in the first three. Frames on the way from thread to thread make them differ by a few.
HEIGHT, WIDTH = 360, 480
MAX_GROWTH = 8.0
PAGE_SIZE = 4096


@pytest.fixture(scope="module")
def long_video(tmp_path_factory):
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    cells = np.random.default_rng(0).integers(0, 256, (8, 6, 8, 3), dtype=np.uint8)
    pictures = cells.repeat(HEIGHT // 6, axis=1).repeat(WIDTH // 8, axis=2)
    with VideoWriter(path, 25) as writer:
        for index in range(NUM_FRAMES):
            writer.write(pictures[index % len(pictures)])
    return path


def held_mib():
    """What the process holds when all that can be freed is freed."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_SIZE / 2**20


class Probe:
    """Notes what is held from the warm-up on; as a sink, too."""

    def __init__(self):
        self.sizes, self.num_frames = [], 0

    def count(self):
        self.num_frames += 1
        if self.num_frames >= WARM_UP_FRAMES and self.num_frames % READING_DISTANCE == 0:
            self.sizes.append(held_mib())

    def write(self, frame):
        self.count()

    def close(self):
        pass

    abandon = close


def run_session(segmenter, video, probe, folder, mode):
    session = segmenter.model.stream(segmenter.processor, mode)
    for frame in VideoReader(video):
        for _ in session.step(frame):
            probe.count()


def run_pipeline(segmenter, video, probe, folder, mode):
    segment = pipeline(
        "video-semantic-segmentation", model=segmenter.model, video_processor=segmenter.processor, device="cpu"
    )
    for _ in segment(str(video), mode=mode, stream=True):
        probe.count()


def run_sinks(segmenter, video, probe, folder, mode):
    """What `themask segment` does."""
    source = VideoReader(video)
    names = list(segmenter.model.config.id2label.values())
    palette = class_palette(len(names))
    sinks = [
        probe,
        OverlayVideo(folder / "overlay.mp4", source, names, palette),
        LabelFolder(folder / "labels"),
        LabelTrack(folder / "labels.mkv", source, names, palette),
        ClassStatistics(folder / "statistics.parquet", names),
        ContactSheet(folder / "sheet.png", names, palette),
        ClassTimeline(folder / "timeline.png", names, palette),
    ]
    segment_video(segmenter.model.stream(segmenter.processor, mode), source, sinks)


@pytest.mark.parametrize(
    ("run", "mode"),
    [
        (run_sinks, "contiguous"),
        pytest.param(run_session, "sliding", marks=pytest.mark.slow),
        pytest.param(run_pipeline, "interleaved", marks=pytest.mark.slow),
    ],
)
def test_a_long_video_holds_no_more_memory_than_a_short_one(segmenter, long_video, tmp_path, run, mode):
    probe = Probe()
    run(segmenter, long_video, probe, tmp_path, mode)
    assert probe.num_frames == NUM_FRAMES
    assert statistics.median(probe.sizes[-3:]) - statistics.median(probe.sizes[:3]) <= MAX_GROWTH, probe.sizes
