# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest

from segmented_clip import write_all
from transformers_themask.drawing.palettes import class_palette
from transformers_themask.drawing.visualization import draw_contours
from transformers_themask.inference.segment_video import segment_video
from transformers_themask.sinks.overlay_video import OverlayVideo
from transformers_themask.videos.frame_folder import FrameFolder
from transformers_themask.videos.frames_in_memory import FramesInMemory
from transformers_themask.videos.video_reader import VideoReader

NAMES = ["sky", "meadow", "stripes", "dots", "checks", "bricks"]
PALETTE = class_palette(6)


def write_overlay(path, source, labelled_frames, **options):
    """Write all frames; returns the sink and the pictures of the file."""
    sink = OverlayVideo(path, source, NAMES, PALETTE, **options)
    write_all(sink, labelled_frames)
    return sink, np.array([*VideoReader(path)], dtype=int)


def enlarged(labelled_frames, height):
    factor = -(-height // 36)
    return [
        replace(
            frame,
            picture=frame.picture.repeat(factor, axis=0).repeat(factor, axis=1)[:height],
            label_map=frame.label_map.repeat(factor, axis=0).repeat(factor, axis=1)[:height],
        )
        for frame in labelled_frames
    ]


@pytest.fixture
def source(frames):
    return FramesInMemory(frames)


@pytest.fixture
def even_frames(labelled_frames, video_path):
    """Labelled frames at 15 frames per second whose colours H.264 has been through already."""
    pictures = zip(labelled_frames, VideoReader(video_path), strict=True)
    return [replace(frame, time=Fraction(frame.index, 15), picture=picture) for frame, picture in pictures]


def test_every_frame_lies_under_its_own_label_map(even_frames, source, tmp_path):
    sink, pictures = write_overlay(tmp_path / "new" / "out.mp4", source, even_frames, alpha=0.4, legend=False)
    expected, without_contours, neighbours = [], [], []
    for frame, other in zip(even_frames, [*even_frames[1:], even_frames[0]], strict=True):
        blended = (0.6 * frame.picture + 0.4 * PALETTE[frame.label_map]).round().astype(np.uint8)
        without_contours.append(blended)
        expected.append(draw_contours(blended, frame.label_map, PALETTE))
        neighbours.append(draw_contours(blended, other.label_map, PALETTE))
    # H.264 and its halved colour resolution blur the contours, which take half of such a small picture.
    error, *errors = (np.abs(pictures - np.array(other)).mean() for other in (expected, without_contours, neighbours))
    assert error < 0.9 * min(errors)
    assert not sink.has_legend
    colors = ["#{:02x}{:02x}{:02x}".format(*color) for color in PALETTE]
    assert sink.class_colors == dict(zip(NAMES, colors, strict=True))


def test_times_of_any_distance_are_kept(labelled_frames, source, tmp_path):
    source.time_base = Fraction(1, 90000)
    write_overlay(tmp_path / "new" / "out.mp4", source, labelled_frames)
    times = [time for time, *_ in VideoReader(tmp_path / "new" / "out.mp4").timed_frames()]
    assert times == [frame.time for frame in labelled_frames]


@pytest.mark.parametrize("seconds", [None, 4])
def test_the_last_frame_is_shown_as_long_as_the_source_says(labelled_frames, source, tmp_path, seconds):
    source.time_base = Fraction(1, 90000)
    last = labelled_frames[-1].time
    end = None if seconds is None else last + seconds
    *frames, last_frame = labelled_frames
    write_overlay(tmp_path / "new" / "out.mp4", source, [*frames, replace(last_frame, end=end)])
    with av.open(str(tmp_path / "new" / "out.mp4")) as container:
        stream = container.streams.video[0]
        end = (stream.start_time + stream.duration) * stream.time_base
    assert abs(end - (last + (seconds or 1 / source.frame_rate))) <= source.time_base


@pytest.mark.parametrize(("height", "has_legend"), [(200, True), (198, False)])
def test_a_legend_covers_the_bottom_of_pictures_that_have_room_for_it(
    even_frames, source, tmp_path, height, has_legend
):
    frames = enlarged(even_frames[:3], height)
    sink, pictures = write_overlay(tmp_path / "with" / "out.mp4", source, frames)
    assert sink.has_legend == has_legend
    without_sink, without = write_overlay(tmp_path / "without" / "out.mp4", source, frames, legend=False)
    assert not without_sink.has_legend
    difference = np.abs(pictures - without)
    if has_legend:
        assert difference[:, -12:].mean() > 20
        assert difference[:, :120].mean() < 4  # the two files were coded apart
    else:
        assert difference.max() == 0


def test_without_opacity_there_are_no_contours_either(even_frames, source, tmp_path):
    _, pictures = write_overlay(tmp_path / "new" / "out.mp4", source, even_frames, alpha=0)
    difference = pictures - np.array([frame.picture for frame in even_frames])
    assert np.abs(difference).mean() < 8  # only H.264 lies between them


def test_a_folder_plays_at_its_rate(segmenter, frame_folder, tmp_path):
    source = FrameFolder(frame_folder)
    sink = OverlayVideo(tmp_path / "out.mp4", source, NAMES, PALETTE)
    segment_video(segmenter.model.stream(segmenter.processor), source, [sink])
    assert VideoReader(tmp_path / "out.mp4").frame_rate == 15


def sound_seconds(path):
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(audio=0) if packet.dts is not None]
        return float(max(packet.pts + packet.duration for packet in packets) * packets[0].time_base)


@pytest.fixture
def video_with_sound(frames, tmp_path):
    """A second of eleven frames with as much sound."""
    path = tmp_path / "sound" / "clip.mp4"
    path.parent.mkdir()
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=11)
        video.height, video.width, video.pix_fmt = 36, 50, "yuv420p"
        audio = container.add_stream("aac", rate=16000, layout="mono")
        for frame in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        noise = np.random.default_rng(0).uniform(-0.3, 0.3, (1, 16000)).astype(np.float32)
        sound = av.AudioFrame.from_ndarray(noise, format="fltp", layout="mono")
        sound.rate = 16000
        container.mux(audio.encode(sound))
        for stream in (video, audio):
            container.mux(stream.encode(None))
    return path


def test_sound_is_kept_and_ends_with_the_last_frame_on_request(segmenter, video_with_sound, tmp_path):
    source = VideoReader(video_with_sound)
    session = segmenter.model.stream(segmenter.processor)
    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    segment_video(session, source, [OverlayVideo(whole, source, NAMES, PALETTE)])
    segment_video(session, source, [OverlayVideo(cut, source, NAMES, PALETTE, cut_sound=True)], max_frames=5)
    assert sound_seconds(whole) == pytest.approx(sound_seconds(video_with_sound))
    assert 5 / 11 <= sound_seconds(cut) < 5 / 11 + 0.2


def test_abandoned_video_leaves_no_files(labelled_frames, source, tmp_path):
    sink = OverlayVideo(tmp_path / "out.mp4", source, NAMES, PALETTE)
    sink.abandon()
    sink.close()
    sink.write(labelled_frames[0])
    sink.abandon()
    assert not list(tmp_path.iterdir())


def test_an_overlay_names_what_it_cannot_be(source, tmp_path):
    with pytest.raises(ValueError, match=r"`path` must be a file whose name ends in .mp4. Got .*a.avi"):
        OverlayVideo(tmp_path / "a.avi", source, NAMES, PALETTE)
    with pytest.raises(ValueError, match=r"`alpha` must be between 0 and 1. Got 1.5"):
        OverlayVideo(tmp_path / "a.mp4", source, NAMES, PALETTE, alpha=1.5)
