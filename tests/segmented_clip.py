# SPDX-License-Identifier: Apache-2.0
"""Fixtures: a random model, and one clip as arrays, file, folder and labelled frames."""

from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tiny import tiny_model
from transformers_themask import THEMaskVideoProcessor
from transformers_themask.sinks.sink import LabelledFrame
from transformers_themask.videos.video_writer import VideoWriter

NAMES = {0: "sky", 1: "meadow", 2: "stripes", 3: "dots", 4: "checks", 5: "bricks"}
HEIGHT, WIDTH = 36, 50


def segmenter_with(names):
    """A random two-frame model of classes with these names, by index, and its processor, which shrinks frames."""
    model = tiny_model(num_frames=2, id2label=names, label2id={name: index for index, name in names.items()})
    # A fresh model is undecided and gives every pixel the same class; this one has opinions.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("class_predictor.weight", "mask_embedder.2.0.weight")):
                parameter.mul_(10)
    processor = THEMaskVideoProcessor(size={"shortest_edge": 32, "longest_edge": 64})
    return SimpleNamespace(model=model, processor=processor)


def saved(segmenter, folder):
    """Save model and processor; returns the folder."""
    segmenter.model.save_pretrained(folder)
    segmenter.processor.save_pretrained(folder)
    return folder


def write_all(sink, labelled_frames):
    """Give a sink all its frames: one file appears, at the end."""
    for frame in labelled_frames:
        sink.write(frame)
        assert not sink.path.exists()
    sink.close()
    sink.abandon()
    assert [file.name for file in sink.path.parent.iterdir()] == [sink.path.name]


@pytest.fixture(scope="session")
def segmenter():
    return segmenter_with(NAMES)


@pytest.fixture(scope="session")
def model_dir(segmenter, tmp_path_factory):
    return saved(segmenter, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def frames():
    """Eleven frames of coarse random colours, which H.264 keeps nearly as they are."""
    coarse = np.random.default_rng(0).integers(0, 256, (11, 6, 10, 3), dtype=np.uint8)
    return coarse.repeat(6, axis=1).repeat(5, axis=2)


@pytest.fixture(scope="session")
def video_path(frames, tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    with VideoWriter(path, 10) as writer:
        for frame in frames:
            writer.write(frame)
    return path


@pytest.fixture(scope="session")
def frame_folder(frames, tmp_path_factory):
    folder = tmp_path_factory.mktemp("frames")
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{100 + 2 * index:08d}.png")
    return folder


@pytest.fixture(scope="session")
def labelled_frames(frames):
    """The eleven frames with random blocks of classes 0 to 5, at times that no millisecond and no rate tells."""
    blocks = np.random.default_rng(1).integers(0, 6, (11, 9, 10), dtype=np.uint8).repeat(4, axis=1).repeat(5, axis=2)
    times = [Fraction(1001 * index**2 + 7, 90000) for index in range(11)]
    pairs = zip(times, frames, blocks, strict=True)
    return [LabelledFrame(index, time, f"{index:08d}", *pair) for index, (time, *pair) in enumerate(pairs)]
