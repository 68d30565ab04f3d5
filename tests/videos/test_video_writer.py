# SPDX-License-Identifier: Apache-2.0
from fractions import Fraction
from itertools import accumulate

import av
import numpy as np
import pytest

from full_disk import full_disk
from hostile_videos import cut_off, flat_frame, noise_frames, sound_packets, write_sound, write_video
from transformers_themask.videos.video_reader import VideoReader
from transformers_themask.videos.video_writer import VideoWriter

RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)


@pytest.mark.parametrize("rate", [Fraction(24), Fraction(30000, 1001), Fraction(15)], ids=str)
def test_written_frames_come_back_in_number_order_and_time(tmp_path, rate):
    with VideoWriter(tmp_path / "a.mp4", rate) as writer:
        for index in range(40):
            writer.write(flat_frame((6 * index,) * 3))
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.average_rate, stream.frames) == (rate, 40)
        decoded = list(container.decode(stream))
    assert [frame.pts * frame.time_base for frame in decoded] == [index / rate for index in range(40)]
    assert [round(frame.to_ndarray(format="rgb24").mean() / 6) for frame in decoded] == list(range(40))


def test_times_of_a_variable_frame_rate_are_kept_exactly(tmp_path):
    times = [Fraction(milliseconds, 1000) for milliseconds in (80, 120, 121, 300, 301, 500, 1000, 1033)]
    with VideoWriter(tmp_path / "a.mp4", Fraction(25), time_base=Fraction(1, 1000)) as writer:
        for time in times:
            writer.write(flat_frame(RED), time)
    assert [time for time, *_ in VideoReader(tmp_path / "a.mp4").timed_frames()] == times


@pytest.mark.parametrize("time_base", [Fraction(1, 90000), Fraction(1, 30)], ids=str)
@pytest.mark.parametrize("sound", [False, True], ids=["silent", "sound"])
@pytest.mark.parametrize(
    "gaps",
    [[4], [1, 4], [Fraction(1, 15)] * 45 + [5, 5], [2, Fraction(1, 15), Fraction(1, 30)] * 9],
    ids=["two_frames", "three_frames", "late_gaps", "changing"],
)
def test_a_video_is_as_long_as_its_last_frame_is_shown(tmp_path, gaps, sound, time_base):
    times = [Fraction(0), *(Fraction(time) for time in accumulate(gaps))]
    audio_from = write_sound(tmp_path / "in.mp4") if sound else None
    with VideoWriter(tmp_path / "a.mp4", Fraction(15), time_base, audio_from) as writer:
        for frame, time in zip(np.resize(noise_frames(3), (len(times), 48, 64, 3)), times, strict=True):
            writer.write(frame, time)
    end = times[-1] + Fraction(1, 15)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.duration * stream.time_base == end
        # Sound ends with a packet of its own; both are rounded to the unit of the whole file.
        longest = max(stream.duration * stream.time_base for stream in container.streams)
        assert abs(Fraction(container.duration, av.time_base) - longest) <= Fraction(1, 1000)
    # That the file is read without an error says that its reader takes it for undamaged.
    assert [time for time, *_ in VideoReader(tmp_path / "a.mp4").timed_frames()] == times


def test_written_colors_come_back(tmp_path):
    colors = [RED, GREEN, BLUE, YELLOW, (200, 100, 50), (128, 128, 128), (255, 255, 255), (0, 0, 0)]
    with VideoWriter(tmp_path / "a.mp4", 10) as writer:
        for color in colors:
            writer.write(flat_frame(color))
    for frame, color in zip(VideoReader(tmp_path / "a.mp4"), colors, strict=True):
        # 8-bit limited-range YCbCr has fewer levels than RGB; two grey levels is its rounding.
        assert np.abs(frame.astype(int) - color).max() <= 2


@pytest.mark.parametrize(("height", "width"), [(47, 64), (48, 63), (47, 63)])
def test_odd_sizes_grow_by_a_repeated_row_or_column(tmp_path, height, width):
    frame = flat_frame(BLUE, height, width)
    frame[-1], frame[:, -1] = RED, RED
    with VideoWriter(tmp_path / "a.mp4", 10) as writer:
        writer.write(frame)
    (read,) = VideoReader(tmp_path / "a.mp4")
    assert read.shape == (height + height % 2, width + width % 2, 3)
    # The picture stays where it was: blue up to the red border. 2x2 pixels share a colour, hence the margin, and a
    # sharp border rings by a few per cent in H.264.
    assert np.abs(read[: height - 4, : width - 4].astype(int) - BLUE).max() <= 16
    if height % 2:
        assert np.abs(read[-1].astype(int) - read[-2]).max() <= 16
    if width % 2:
        assert np.abs(read[:, -1].astype(int) - read[:, -2]).max() <= 16


@pytest.mark.parametrize(
    "sound",
    [{}, {"num_frames": 5}, {"num_frames": 40}, {"delay": 1}, {"file_format": "matroska"}, {"file_format": "mpegts"}],
    ids=["as_long", "longer_than_the_video", "shorter", "starts_late", "matroska", "mpegts"],
)
def test_sound_is_copied_packet_by_packet_at_its_times(tmp_path, sound):
    source = write_sound(tmp_path / "in", **sound)
    reader = VideoReader(source)
    assert reader.has_audio
    with VideoWriter(tmp_path / "out.mp4", reader.frame_rate, reader.time_base, audio_from=source) as writer:
        for time, frame, _ in reader.timed_frames():
            writer.write(frame, time)
    written = VideoReader(tmp_path / "out.mp4")
    assert written.has_audio
    assert [time for time, *_ in written.timed_frames()] == [time for time, *_ in reader.timed_frames()]
    # A transport stream repeats the decoder's settings before every packet (ADTS, 7 bytes); mp4 keeps them once.
    header = 7 if sound.get("file_format") == "mpegts" else 0
    expected = [(time, content[header:]) for time, content in sound_packets(source)]
    assert sound_packets(tmp_path / "out.mp4") == expected


def test_sound_is_copied_up_to_a_damage(tmp_path):
    source = cut_off(write_sound(tmp_path / "in.mp4", num_seconds=8, cut=True), 0.6)
    whole = sound_packets(write_sound(tmp_path / "whole.mp4", num_seconds=8))
    with VideoWriter(tmp_path / "out.mp4", 10, audio_from=source) as writer:
        for _ in range(80):
            writer.write(flat_frame(RED))
    copied = sound_packets(tmp_path / "out.mp4")
    assert 10 < len(copied) < len(whole) and copied == whole[: len(copied)]


def test_a_silent_source_gives_a_silent_video(tmp_path):
    source = write_video(tmp_path / "in.mp4", noise_frames(3))
    with VideoWriter(tmp_path / "out.mp4", 10, audio_from=source) as writer:
        writer.write(flat_frame(RED))
    assert not VideoReader(tmp_path / "out.mp4").has_audio


def test_sound_that_mp4_cannot_hold_is_left_out(tmp_path):
    source = write_sound(tmp_path / "in.mkv", codec="pcm_u8", file_format="matroska")
    with VideoWriter(tmp_path / "out.mp4", 10, audio_from=source) as writer:
        writer.write(flat_frame(RED))
    reader = VideoReader(tmp_path / "out.mp4")
    assert not reader.has_audio and len(list(reader)) == 1


def test_sound_of_an_unknown_codec_is_left_out(tmp_path):
    source = write_sound(tmp_path / "in.mkv", file_format="matroska")
    source.write_bytes(source.read_bytes().replace(b"A_AAC", b"A_ZZZ"))
    with VideoWriter(tmp_path / "out.mp4", 10, audio_from=source) as writer:
        writer.write(flat_frame(RED))
    assert not VideoReader(tmp_path / "out.mp4").has_audio


def test_file_names_may_hold_a_colon(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_sound(tmp_path / "in:1.mp4")
    with VideoWriter("out:1.mp4", 10, audio_from="in:1.mp4") as writer:
        writer.write(flat_frame(RED))
    assert VideoReader("out:1.mp4").has_audio and VideoReader("in:1.mp4").num_frames == 20


def test_no_file_of_the_user_is_touched(tmp_path):
    for name in ("a.unfinished.mp4", ".a.mp4"):
        (tmp_path / name).write_text(name)
    with VideoWriter(tmp_path / "a.mp4", 10) as writer:
        writer.write(flat_frame(RED))
        (hidden,) = {path.name for path in tmp_path.iterdir()} - {"a.unfinished.mp4", ".a.mp4"}
        assert hidden.startswith(".") and hidden.endswith(".mp4")
    with pytest.raises(ValueError, match="at least one frame"), VideoWriter(tmp_path / "a.mp4", 10):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.mp4", "a.mp4", "a.unfinished.mp4"]
    assert (tmp_path / "a.unfinished.mp4").read_text() == "a.unfinished.mp4"


def test_full_disk_leaves_no_files(tmp_path):
    with full_disk(), pytest.raises(OSError), VideoWriter(tmp_path / "a.mp4", 10) as writer:
        for frame in noise_frames(30):
            writer.write(frame)
    assert not list(tmp_path.iterdir())


def test_unreadable_sound_leaves_no_files(tmp_path):
    with pytest.raises(av.FFmpegError):
        VideoWriter(tmp_path / "a.mp4", 10, audio_from=tmp_path / "missing.mp4")
    assert not list(tmp_path.iterdir())


def test_an_error_leaves_no_file_and_keeps_an_earlier_one(tmp_path):
    (tmp_path / "a.mp4").write_text("earlier")
    with pytest.raises(RuntimeError), VideoWriter(tmp_path / "a.mp4", 10) as writer:
        writer.write(flat_frame(RED))
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_text() == "earlier"


def test_video_without_frames_is_rejected(tmp_path):
    with (
        pytest.raises(ValueError, match=r"at least one frame. Got none for .*a.mp4"),
        VideoWriter(tmp_path / "a.mp4", 10),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_writer_refuses_what_it_cannot_write(tmp_path):
    with pytest.raises(ValueError, match=r"`path` must be a file whose name ends in .mp4. Got .*a.avi"):
        VideoWriter(tmp_path / "a.avi", 10)
    with pytest.raises(ValueError, match=r"`frame_rate` must be positive. Got 0"):
        VideoWriter(tmp_path / "a.mp4", 0)
    with pytest.raises(FileNotFoundError, match="no_such_folder"):
        VideoWriter(tmp_path / "no_such_folder" / "a.mp4", 10)
    with (
        pytest.raises(ValueError, match=r"shape \(height, width, 3\). Got float64"),
        VideoWriter(tmp_path / "a.mp4", 10) as writer,
    ):
        writer.write(np.zeros((4, 4, 3)))
    with (
        pytest.raises(ValueError, match=r"48x64. Got 32x64 for frame 1"),
        VideoWriter(tmp_path / "a.mp4", 10) as writer,
    ):
        writer.write(flat_frame(RED))
        writer.write(flat_frame(RED, height=32))
    with (
        pytest.raises(ValueError, match=r"`time` must grow .* Got 0.100000 s for frame 1"),
        VideoWriter(tmp_path / "a.mp4", 10) as writer,
    ):
        writer.write(flat_frame(RED), Fraction(1, 10))
        writer.write(flat_frame(RED), Fraction(1, 10))
