# SPDX-License-Identifier: Apache-2.0
"""Jobs behind the page, without the page."""

import threading
import time

import numpy as np
import pytest

from transformers_themask.sinks.label_track import read_label_track
from transformers_themask.videos.frames_in_memory import FramesInMemory
from transformers_themask.web_demo.job import Coloring, SegmentationJob
from web_demo.conftest import NAMES

FRAME = np.zeros((48, 64, 3), dtype=np.uint8)


def job_for(segmenter, frames, folder, stopping=None):
    session = segmenter.model.stream(segmenter.processor, "sliding")
    coloring = Coloring(list(NAMES.values()), "default", 0.5)
    return SegmentationJob(session, FramesInMemory(frames), coloring, folder, stopping or threading.Event())


def wait_for(job):
    assert not list(job.updates(60))  # finished within the first interval


def test_a_stopped_job_keeps_what_it_has_read(segmenter, tmp_path):
    stopping = threading.Event()

    def frames():
        for _ in range(5):
            yield FRAME
        stopping.set()
        yield FRAME  # was being read when the visitor pressed the button
        raise AssertionError("nobody asks for more")

    with job_for(segmenter, frames(), tmp_path, stopping) as job:
        wait_for(job)
        files = job.results().files
        assert len(list(read_label_track(files["label_track"]))) == 5
        assert all(path.stat().st_size > 0 for path in files.values())
    end = time.monotonic() + 30
    while list(tmp_path.iterdir()):
        assert time.monotonic() < end, "the files of a job outlive it"
        time.sleep(0.01)


def test_a_job_that_was_stopped_before_its_first_frame_has_no_results(segmenter, tmp_path):
    stopping = threading.Event()
    stopping.set()
    with job_for(segmenter, iter([FRAME]), tmp_path, stopping) as job:
        wait_for(job)
        assert job.results() is None


def test_results_report_a_damaged_video(segmenter, tmp_path):
    frames = iter([FRAME, FRAME[:, :32]])
    with job_for(segmenter, frames, tmp_path) as job:
        wait_for(job)
        with pytest.raises(ValueError, match="must all have the size of the first one"):
            job.results()


def test_a_job_tells_how_far_it_is(segmenter, tmp_path):
    goes_on = threading.Event()

    def frames():
        yield from (FRAME, FRAME, FRAME)
        assert goes_on.wait(60)

    with job_for(segmenter, frames(), tmp_path) as job:
        for progress in job.updates(0.01):
            if progress.latest is not None and progress.latest.index == 2:
                goes_on.set()
        assert job.progress.latest.index == 2 and goes_on.is_set()
