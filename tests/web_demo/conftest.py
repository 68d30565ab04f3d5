# SPDX-License-Identifier: Apache-2.0
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from segmented_clip import saved, segmenter_with
from transformers_themask.videos.video_writer import VideoWriter

NAMES = {0: "sky", 1: "meadow & <wood>", 2: "stripes", 3: "dots", 4: "checks", 5: "bricks"}
START_SECONDS = 120
PROGRAM = "import sys; from themask_command import main; sys.exit(main())"


@pytest.fixture(scope="session")
def segmenter():
    return segmenter_with(NAMES)


@pytest.fixture(scope="session")
def model_dir(segmenter, tmp_path_factory):
    return saved(segmenter, tmp_path_factory.mktemp("model"))


def write_video(path, num_frames):
    """Coarse random colours, which H.264 keeps nearly as they are."""
    coarse = np.random.default_rng(0).integers(0, 256, (11, 6, 8, 3), dtype=np.uint8)
    frames = coarse.repeat(12, axis=1).repeat(12, axis=2)
    with VideoWriter(path, 10) as writer:
        for index in range(num_frames):
            writer.write(frames[index % len(frames)])
    return path


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4", 11)


@pytest.fixture(scope="session")
def long_video(tmp_path_factory):
    """Nobody waits for its end."""
    return write_video(tmp_path_factory.mktemp("video") / "long.mp4", 1000)


@pytest.fixture(scope="session")
def server(model_dir, tmp_path_factory):
    """`themask demo --web` as a user starts it, and that it leaves nothing behind."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", PROGRAM, "demo", "--web", "--model", str(model_dir), "--port", str(port)]
    env = {**os.environ, "TMPDIR": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = queue.Queue()
    threading.Thread(target=lambda: [lines.put(line) for line in process.stdout], daemon=True).start()
    try:
        printed = [lines.get(timeout=START_SECONDS)]
        while "http://" not in printed[-1]:
            printed.append(lines.get(timeout=START_SECONDS))
        (jobs,) = folder.glob("themask-web-*/jobs")
        yield SimpleNamespace(url=printed[-1].split()[0], jobs=jobs)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
        assert [path.name for path in folder.iterdir() if path.name.startswith("themask")] == []
    finally:
        process.kill()
