# SPDX-License-Identifier: Apache-2.0
"""Every file gives its frames, right-sized and in order, or one clear sentence."""

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from hostile_videos import (
    cut_off,
    noise_frames,
    picture,
    punch,
    punch_cluster,
    replace_in,
    shows_pictures,
    without_track_durations,
    write_changing_size,
    write_frames_and_tone,
    write_gif,
    write_music,
    write_video,
)
from transformers_themask.inference.segment import segment_frames
from transformers_themask.videos.frame_source import open_frame_source
from transformers_themask.videos.source import IncompleteVideoError

# The code of full range in ITU-T H.273.
FULL_RANGE = 2
# As live recorders write mp4: every piece has an index of its own.
IN_FRAGMENTS = "frag_keyframe+empty_moov"


def pictures(num_frames, size=(48, 64)):
    return [picture(index, size) for index in range(num_frames)]


def with_tone(path, num_frames, codec="libx264", sound_codec="aac", num_seconds=4, **options):
    return write_frames_and_tone(path, pictures(num_frames), codec, sound_codec, num_seconds, **options)


# Name: how to write it, number of frames, height and width.
READABLE = {
    "one_frame.mp4": (lambda path: write_video(path, pictures(1)), 1, (48, 64)),
    "odd_sides.mp4": (lambda path: write_video(path, pictures(9, (47, 63)), codec="mpeg4"), 9, (47, 63)),
    "odd_sides.webm": (lambda path: write_video(path, pictures(9, (47, 63)), codec="libvpx-vp9"), 9, (47, 63)),
    "full_color.mp4": (lambda path: write_video(path, pictures(9, (47, 63)), pix_fmt="yuv444p"), 9, (47, 63)),
    "ten_bit.mp4": (lambda path: write_video(path, pictures(9), pix_fmt="yuv420p10le"), 9, (48, 64)),
    "transparent.mkv": (lambda path: write_video(path, pictures(9), "ffv1", pix_fmt="yuva420p"), 9, (48, 64)),
    "rgb.mov": (lambda path: write_video(path, pictures(9), "qtrle", pix_fmt="argb"), 9, (48, 64)),
    "four_k.mp4": (lambda path: write_video(path, pictures(2, (2160, 3840)), preset="ultrafast"), 2, (2160, 3840)),
    "wide_pixels.mp4": (
        lambda path: write_video(path, pictures(9), tags={"sample_aspect_ratio": Fraction(2)}),
        9,
        (48, 64),
    ),
    "animated.gif": (lambda path: write_gif(path, 9), 9, (48, 64)),
    "no_times.h264": (lambda path: write_video(path, pictures(9)), 9, (48, 64)),
    "late_start.ts": (lambda path: write_video(path, pictures(9)), 9, (48, 64)),
    "motion_jpeg.avi": (lambda path: write_video(path, pictures(9), "mjpeg", pix_fmt="yuvj420p"), 9, (48, 64)),
    "Ünï çödé 100% [a] #1 %03d.mp4": (lambda path: write_video(path, pictures(9)), 9, (48, 64)),
    "packed_order.avi": (lambda path: write_video(path, pictures(40), "mpeg4", bf="2", b="4M"), 40, (48, 64)),
    "sound.avi": (lambda path: with_tone(path, 40, "mpeg4", "mp2"), 40, (48, 64)),
    "fragments.mp4": (lambda path: with_tone(path, 40, movflags=IN_FRAGMENTS), 40, (48, 64)),
    "sound.mkv": (lambda path: with_tone(path, 40), 40, (48, 64)),
    "longer_sound.mkv": (lambda path: with_tone(path, 9), 9, (48, 64)),
    "longer_sound_of_untold_tracks.mkv": (lambda path: without_track_durations(with_tone(path, 9)), 9, (48, 64)),
    "copied_track_durations.mkv": (
        lambda path: replace_in(with_tone(path, 40), b"00:00:04.", b"00:00:09."),
        40,
        (48, 64),
    ),
    "browser_recording.webm": (
        lambda path: with_tone(path, 40, "libvpx-vp9", "libopus", live="1"),
        40,
        (48, 64),
    ),
    "a_picture.mp4": (lambda path: Image.fromarray(picture(0)).save(path, format="png"), 1, (48, 64)),
}


@pytest.mark.parametrize("name", READABLE)
def test_frames_come_right_sized_and_in_order(tmp_path, name):
    write, num_frames, size = READABLE[name]
    write(tmp_path / name)
    source = open_frame_source(tmp_path / name)
    times, frames, _ = zip(*source.timed_frames(), strict=True)
    assert len(frames) == num_frames and shows_pictures(frames)
    assert all(frame.shape == (*size, 3) and frame.dtype == np.uint8 for frame in frames)
    assert list(times) == sorted(set(times)) and all((time / source.time_base).denominator == 1 for time in times)


@pytest.mark.parametrize(("name", "pix_fmt"), [("grey.mp4", "gray"), ("sixteen_bit.mkv", "gray16le")])
def test_grey_videos_keep_their_levels(tmp_path, name, pix_fmt):
    levels = [0, 30, 128, 200, 255]
    frames = [np.full((48, 64, 3), level, np.uint8) for level in levels]
    codec = "libx264" if name.endswith("mp4") else "ffv1"
    write_video(tmp_path / name, frames, codec, pix_fmt=pix_fmt, tags={"color_range": FULL_RANGE})
    for frame, level in zip(open_frame_source(tmp_path / name), levels, strict=True):
        assert frame.shape == (48, 64, 3) and np.abs(frame.astype(int) - level).max() <= 1


def without_pictures(path):
    """The header of a video, of which nothing else has arrived."""
    content = write_video(path, pictures(9), cut=1).read_bytes()
    path.write_bytes(content[: content.index(b"mdat") + 4])


def of_unknown_codec(path):
    path.write_bytes(write_video(path, pictures(9)).read_bytes().replace(b"avc1", b"zzzz"))


# Name: how to write it, and what is said.
REFUSED = {
    "zero_bytes.mp4": (lambda path: path.write_bytes(b""), "a video file that FFmpeg can read"),
    "text.mp4": (lambda path: path.write_text("no video at all\n" * 100), "a video file that FFmpeg can read"),
    "noise.mp4": (
        lambda path: path.write_bytes(np.random.default_rng(0).bytes(10000)),
        "a video file that FFmpeg can read",
    ),
    "subtitles.mp4": (
        lambda path: path.write_text("1\n00:00:01,000 --> 00:00:02,000\nhello\n"),
        "a video file that FFmpeg can read",
    ),
    "sound.m4a": (write_music, "a file with a video stream"),
    "cover.mp4": (lambda path: write_music(path, cover=True), "a file with a video stream"),
    "index_missing.mp4": (lambda path: cut_off(write_video(path, noise_frames(30)), 0.5), "FFmpeg can read"),
    "header_only.mp4": (without_pictures, "an undamaged video"),
    "first_frame_cut.mp4": (lambda path: write_video(path, noise_frames(9), cut=0.15), "an undamaged video"),
    "unknown_codec.mp4": (of_unknown_codec, "a codec that FFmpeg can decode"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_files_without_a_frame_are_rejected_in_one_sentence(tmp_path, name):
    write, expected = REFUSED[name]
    write(tmp_path / name)
    with pytest.raises(ValueError, match=rf"^`path` must name [^\n]*{expected}[^\n]*{name}[^\n]*\.$") as error:
        open_frame_source(tmp_path / name)
    assert not isinstance(error.value, IncompleteVideoError)


# Name: how to write it, and what is said after the frames that can be read.
INCOMPLETE = {
    "cut.mp4": (lambda path: write_video(path, pictures(40), g="5", cut=0.7), "a piece of the file is missing"),
    "cut.mkv": (lambda path: write_video(path, pictures(40), g="5", cut=0.7), "the file declares 1.60 s but ends"),
    "cut.webm": (
        lambda path: write_video(path, pictures(40), "libvpx-vp9", g="5", cut=0.7),
        "the file declares 1.60 s but ends",
    ),
    "cut.avi": (
        lambda path: write_video(path, pictures(40), "mjpeg", pix_fmt="yuvj420p", cut=0.7),
        "Invalid data|is missing",
    ),
    "hole.mp4": (
        lambda path: punch(write_video(path, pictures(40), g="5", cut=1), 2 / 3, 600),
        "Invalid data|damaged picture data",
    ),
    "sound_cut.mkv": (lambda path: cut_off(with_tone(path, 40), 0.6), "the file declares 4.00 s but ends"),
    "sound_cut.webm": (
        lambda path: cut_off(with_tone(path, 40, "libvpx-vp9", "libopus"), 0.6),
        "the file declares 4.00 s but ends",
    ),
    "cluster_hole.webm": (
        lambda path: punch_cluster(write_video(path, pictures(40), "libvpx-vp9", rate=2, g="2", b="4M"), 1, 100),
        "a piece of the file is missing",
    ),
    "sound_hole.mkv": (
        lambda path: punch(with_tone(path, 40), 0.6, 5000),
        "a piece of the file is missing",
    ),
    "sound_of_untold_tracks_cut.mkv": (
        lambda path: cut_off(without_track_durations(with_tone(path, 40)), 0.6),
        "the file declares 4.0. s but ends",
    ),
    "sound_cut.avi": (
        lambda path: cut_off(with_tone(path, 40, "mpeg4", "mp2"), 0.7),
        "the file declares 4.00 s but ends|is missing",
    ),
    "sound_hole.avi": (
        lambda path: punch(with_tone(path, 40, "mpeg4", "mp2"), 0.7, 8000),
        "a piece of the file is missing",
    ),
    "fragment_hole.mp4": (
        lambda path: punch(with_tone(path, 40, movflags=IN_FRAGMENTS), 0.6, 4000),
        "a piece of the file is missing",
    ),
    "fragment_cut.mp4": (
        lambda path: cut_off(with_tone(path, 40, movflags=IN_FRAGMENTS), 0.5),
        "a piece of the file is missing",
    ),
    "cut_mpeg4.avi": (
        lambda path: write_video(path, pictures(40), "mpeg4", g="5", b="4M", cut=0.8),
        "the file declares 1.60 s but ends|is missing",
    ),
    "smaller_pictures.h264": (lambda path: write_changing_size(path, 9, 5), "changes from 48x64 to 24x32"),
}


@pytest.mark.parametrize("name", INCOMPLETE)
def test_damaged_video_is_read_and_segmented_up_to_the_damage(segmenter, tmp_path, name):
    write, problem = INCOMPLETE[name]
    write(tmp_path / name)
    source = open_frame_source(tmp_path / name)
    for _ in range(2):
        frames = []
        with pytest.raises(IncompleteVideoError, match=rf"^[^\n]*{name}[^\n]*({problem})[^\n]*\.$") as error:
            for frame in source:
                frames.append(frame)
        assert 4 < len(frames) < 40 and shows_pictures(frames)
        assert all(frame.shape == (48, 64, 3) for frame in frames)
        assert f"at frame {len(frames)}:" in str(error.value) and f"{len(frames)} frames could be" in str(error.value)
    label_maps = []
    with pytest.raises(IncompleteVideoError):
        for _, label_map in segment_frames(segmenter.model, segmenter.processor, source, num_frames=4):
            label_maps.append(label_map)
    expected = segment_frames(segmenter.model, segmenter.processor, frames, num_frames=4)
    assert np.array_equal(label_maps, [label_map for _, label_map in expected])


@pytest.mark.parametrize("name", ["one_frame.mp4", "odd_sides.webm", "ten_bit.mp4", "animated.gif"])
def test_every_frame_has_a_label_map_of_its_size(segmenter, tmp_path, name):
    write, num_frames, size = READABLE[name]
    write(tmp_path / name)
    source = open_frame_source(tmp_path / name)
    labelled = list(segment_frames(segmenter.model, segmenter.processor, source))
    in_memory = segment_frames(segmenter.model, segmenter.processor, list(source))
    assert [index for index, _ in labelled] == list(range(num_frames))
    for (_, label_map), (_, expected) in zip(labelled, in_memory, strict=True):
        assert label_map.shape == size and np.array_equal(label_map, expected)
