# SPDX-License-Identifier: Apache-2.0
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from transformers_themask.inference.frame_source import FrameFolder, open_frame_source
from transformers_themask.inference.label_maps import write_label_map
from transformers_themask.inference.overlay_video import write_overlay_video
from transformers_themask.inference.segment import segment_frames
from transformers_themask.inference.video_io import VideoReader
from transformers_themask.inference.visualization import class_palette, draw_contours


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
    written = write_overlay_video(
        segmenter.model,
        segmenter.processor,
        source,
        output,
        labels_dir=labels,
        frame_stride=frame_stride,
        alpha=0.4,
        legend=False,
    )
    assert (written.num_frames, written.has_legend) == (11, False)
    labelled = segment_frames(segmenter.model, segmenter.processor, source, frame_stride=frame_stride)
    maps = [label_map for _, label_map in labelled]
    assert [path.name for path in sorted(labels.iterdir())] == [f"{index:08d}.png" for index in range(11)]
    files = [np.asarray(Image.open(labels / f"{index:08d}.png")) for index in range(11)]
    assert np.array_equal(files, maps)
    palette = class_palette(6)
    names = [segmenter.model.config.id2label[index] for index in np.unique(maps)]
    colors = ["#{:02x}{:02x}{:02x}".format(*palette[index]) for index in np.unique(maps)]
    assert written.class_colors == dict(zip(names, colors, strict=True))
    pictures = list(VideoReader(output).timed_frames())
    errors = []
    for (time, picture), (source_time, frame), label_map in zip(pictures, source.timed_frames(), maps, strict=True):
        assert time == source_time
        blended = 0.6 * frame + 0.4 * palette[label_map]
        expected = draw_contours(blended.round().astype(np.uint8), label_map, palette).astype(float)
        errors.append([np.abs(picture - expected).mean(), np.abs(picture - blended).mean()])
    with_contours, without_contours = np.mean(errors, axis=0)
    # H.264 and its halved colour resolution blur the contours; a neighbour's label map is at 18 or more.
    assert with_contours < min(12, without_contours)


@pytest.fixture
def overlays_with_and_without_legend(segmenter, frames, tmp_path):
    """Writes both overlays of the first frames, enlarged; returns their difference and what was said of the first."""

    def write(height):
        factor = -(-height // frames.shape[1])
        for index, frame in enumerate(frames[:3].repeat(factor, axis=1).repeat(factor, axis=2)[:, :height]):
            (tmp_path / "frames").mkdir(exist_ok=True)
            Image.fromarray(frame).save(tmp_path / "frames" / f"{index}.png")
        pictures, results = [], []
        for legend in (True, False):
            source, output = open_frame_source(tmp_path / "frames"), tmp_path / f"{legend}.mp4"
            results.append(write_overlay_video(segmenter.model, segmenter.processor, source, output, legend=legend))
            pictures.append(np.array([*VideoReader(output)], dtype=int))
        assert not results[1].has_legend
        return np.abs(pictures[0] - pictures[1]), results[0]

    return write


def test_the_legend_covers_the_bottom_only(overlays_with_and_without_legend):
    difference, result = overlays_with_and_without_legend(200)
    assert result.has_legend
    assert difference[:, -12:].mean() > 20
    assert difference[:, :120].mean() < 4  # the two files were coded apart


def test_small_pictures_have_no_legend(overlays_with_and_without_legend):
    difference, result = overlays_with_and_without_legend(198)
    assert not result.has_legend and difference.max() == 0


def test_without_opacity_there_are_no_contours_either(segmenter, video_path, tmp_path):
    output = tmp_path / "out.mp4"
    write_overlay_video(segmenter.model, segmenter.processor, VideoReader(video_path), output, alpha=0)
    difference = np.array([*VideoReader(output)], dtype=int) - [*VideoReader(video_path)]
    assert np.abs(difference).mean() < 8  # only H.264 lies between them


def test_repeated_time_stamps_are_set_one_tick_apart_with_a_warning(segmenter, frames, tmp_path, caplog):
    path = tmp_path / "repeats.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.height, stream.width, stream.pix_fmt = 36, 50, "yuvj420p"
        for index, frame in enumerate(frames[:5]):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            for packet in stream.encode(picture):
                packet.time_base = Fraction(1, 1000)
                packet.pts = packet.dts = (0, 100, 100, 100, 400)[index]
                container.mux(packet)
    source = VideoReader(path)
    assert [time for time, _ in source.timed_frames()] == [
        0,
        Fraction(1, 10),
        Fraction(1, 10),
        Fraction(1, 10),
        Fraction(2, 5),
    ]
    write_overlay_video(segmenter.model, segmenter.processor, source, tmp_path / "out.mp4")
    times = [time * 1000 for time, _ in VideoReader(tmp_path / "out.mp4").timed_frames()]
    assert times == [0, 100, 101, 102, 400]
    (warning,) = caplog.messages
    assert f"{path} repeats a time stamp at frame 2" in warning and "0.001 s after" in warning


def test_label_maps_of_a_folder_are_named_after_its_frames(segmenter, frame_folder, tmp_path):
    output, labels = tmp_path / "out.mp4", tmp_path / "labels"
    write_overlay_video(segmenter.model, segmenter.processor, FrameFolder(frame_folder), output, labels_dir=labels)
    assert [path.name for path in sorted(labels.iterdir())] == [path.name for path in sorted(frame_folder.iterdir())]
    assert VideoReader(output).frame_rate == 15
