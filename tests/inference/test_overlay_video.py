# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from PIL import Image

from transformers_themask.inference.frame_source import FrameFolder, open_frame_source
from transformers_themask.inference.label_maps import write_label_map
from transformers_themask.inference.overlay_video import write_overlay_video
from transformers_themask.inference.segment import segment_frames
from transformers_themask.inference.video_io import VideoReader
from transformers_themask.inference.visualization import class_palette


def test_a_label_map_survives_the_png(tmp_path):
    label_map = np.arange(256, dtype=np.uint8).reshape(8, 32)
    write_label_map(label_map, tmp_path / "new" / "a.png")
    image = Image.open(tmp_path / "new" / "a.png")
    assert image.mode == "L" and np.array_equal(image, label_map)


def test_a_label_map_of_many_classes_survives_the_png(tmp_path):
    label_map = np.array([[0, 255, 256, 999]], dtype=np.int32)
    write_label_map(label_map, tmp_path / "a.png")
    assert np.array_equal(Image.open(tmp_path / "a.png"), label_map)


@pytest.mark.parametrize("frame_stride", [1, 3])
def test_overlay_video_shows_every_frame_under_its_own_label_map(segmenter, video_path, tmp_path, frame_stride):
    source = VideoReader(video_path)
    output, labels = tmp_path / "new" / "out.mp4", tmp_path / "labels"
    num_written = write_overlay_video(
        segmenter.model,
        segmenter.processor,
        source,
        output,
        labels_dir=labels,
        frame_stride=frame_stride,
        alpha=0.4,
        legend=False,
    )
    assert num_written == 11
    labelled = segment_frames(segmenter.model, segmenter.processor, source, frame_stride=frame_stride)
    maps = [label_map for _, label_map in labelled]
    assert [path.name for path in sorted(labels.iterdir())] == [f"{index:08d}.png" for index in range(11)]
    written = [np.asarray(Image.open(labels / f"{index:08d}.png")) for index in range(11)]
    assert np.array_equal(written, maps)
    palette = class_palette(6).astype(float)
    pictures = list(VideoReader(output).timed_frames())
    for (time, picture), (source_time, frame), label_map in zip(pictures, source.timed_frames(), maps, strict=True):
        assert time == source_time
        expected = 0.6 * frame + 0.4 * palette[label_map]
        # H.264 and its halved colour resolution blur the borders between classes, not the mean.
        assert np.abs(picture - expected).mean() < 8


def test_the_legend_covers_the_bottom_only(segmenter, video_path, tmp_path):
    for name, legend in (("with", True), ("without", False)):
        source = open_frame_source(video_path)
        output = tmp_path / f"{name}.mp4"
        write_overlay_video(segmenter.model, segmenter.processor, source, output, legend=legend)
    difference = np.array([*VideoReader(tmp_path / "with.mp4")], dtype=int) - [*VideoReader(tmp_path / "without.mp4")]
    assert np.abs(difference[:, -12:]).mean() > 20
    assert np.abs(difference[:, :12]).mean() < 4  # the two files were coded apart


def test_label_maps_of_a_folder_are_named_after_its_frames(segmenter, frame_folder, tmp_path):
    output, labels = tmp_path / "out.mp4", tmp_path / "labels"
    write_overlay_video(segmenter.model, segmenter.processor, FrameFolder(frame_folder), output, labels_dir=labels)
    assert [path.name for path in sorted(labels.iterdir())] == [path.name for path in sorted(frame_folder.iterdir())]
    assert VideoReader(output).frame_rate == 15
