# SPDX-License-Identifier: Apache-2.0
import gc
import os
import pickle
import socket
import weakref
from contextlib import suppress
from fractions import Fraction

import av
import numpy as np
import pytest
from av.sidedata.sidedata import SideDataContainer

from hostile_videos import (
    DISPLAY_MATRICES,
    flat_frame,
    noise_frames,
    picture,
    shows_pictures,
    turn_display,
    write_sound,
    write_video,
)
from local_server import BreakingHandler, LiveHandler, serve
from transformers_themask.files import media_files
from transformers_themask.videos.source import IncompleteVideoError
from transformers_themask.videos.video_reader import VideoReader
from transformers_themask.videos.video_writer import VideoWriter

RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)


def test_reader_tells_size_rate_and_length_of_a_file(tmp_path):
    reader = VideoReader(write_video(tmp_path / "a.mp4", noise_frames(12), rate=Fraction(30000, 1001)))
    assert (reader.height, reader.width) == (48, 64)
    assert (reader.frame_rate, reader.num_frames, reader.has_audio) == (Fraction(30000, 1001), 12, False)


def test_reader_yields_every_frame_in_order_each_time_it_is_iterated(tmp_path):
    colors = [(20 * index,) * 3 for index in range(12)]
    reader = VideoReader(write_video(tmp_path / "a.mp4", [flat_frame(color) for color in colors]))
    for _ in range(2):
        frames = list(reader)
        assert all(frame.dtype == np.uint8 and frame.shape == (48, 64, 3) for frame in frames)
        assert [round(frame.mean() / 20) for frame in frames] == list(range(12))


def test_read_frames_are_freed_without_the_garbage_collector(tmp_path):
    path = write_video(tmp_path / "a.mp4", noise_frames(30))

    def num_alive():
        return sum(type(thing) in (av.VideoFrame, SideDataContainer) for thing in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = num_alive()
        assert sum(1 for _ in VideoReader(path)) == 30
        alive = num_alive() - before
    finally:
        gc.enable()
    assert alive <= 2  # those of the first frame, whose display matrix was read


def test_memory_does_not_grow_with_the_number_of_frames(tmp_path):
    path = write_video(tmp_path / "long.mp4", noise_frames(10, 16, 16).repeat(300, axis=0), codec="mpeg4")
    frames, num_frames, most_alive = weakref.WeakSet(), 0, 0
    for frame in map(Picture, VideoReader(path)):
        frames.add(frame)
        num_frames, most_alive = num_frames + 1, max(most_alive, len(frames))
    assert (num_frames, most_alive) == (3000, 1)


class Picture:
    """Holds an array as long as it lives itself, and can be counted."""

    def __init__(self, array):
        assert array.base is None or array.base.size == array.size
        self.array = array


def open_files():
    """What `os.stat` says about each file that this process has open."""
    for descriptor in range(1024):
        with suppress(OSError):
            yield os.fstat(descriptor)


def test_file_is_closed_with_its_iterator_or_its_unused_reader(tmp_path):
    path = write_video(tmp_path / "a.mp4", noise_frames(60), cut=1)

    def is_open():
        return any(os.path.samestat(path.stat(), status) for status in open_files())

    reader = VideoReader(path)
    assert is_open()  # for the first iteration
    del reader
    assert not is_open()
    reader = pickle.loads(pickle.dumps(VideoReader(path)))
    assert not is_open()
    for read in (reader.timed_frames, reader.__iter__):
        frames = read()
        next(frames)
        assert is_open()
        frames.close()
        assert not is_open()
    list(reader)
    assert not is_open()
    path.write_bytes(path.read_bytes()[:20000])
    with pytest.raises(IncompleteVideoError):
        list(reader)
    assert not is_open()


def test_reader_estimates_the_length_where_the_container_does_not_count_frames(tmp_path):
    reader = VideoReader(write_video(tmp_path / "a.mkv", noise_frames(12)))
    assert reader.num_frames == len(list(reader)) == 12


@pytest.mark.parametrize("turn", DISPLAY_MATRICES)
def test_reader_turns_frames_upright(tmp_path, turn):
    matrix, upright = DISPLAY_MATRICES[turn]
    frame = flat_frame(RED)
    frame[:24, :32], frame[:24, 32:], frame[24:, :32] = GREEN, BLUE, YELLOW
    path = write_video(tmp_path / "a.mp4", [frame] * 3)
    (plain, *_) = list(VideoReader(path))
    reader = VideoReader(turn_display(path, matrix))
    expected = upright(plain)
    assert (reader.height, reader.width) == expected.shape[:2]
    for turned in reader:
        assert np.array_equal(turned, expected)


def test_reader_names_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`path` must name an existing video file. Got .*missing.mp4"):
        VideoReader(tmp_path / "missing.mp4")


def test_reader_names_file_and_frame_where_a_file_was_cut_off(tmp_path):
    path = write_video(tmp_path / "cut.mp4", noise_frames(60), cut=1)
    whole = list(VideoReader(path))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    read = []
    with pytest.raises(IncompleteVideoError, match=r"cut.mp4, which cannot be decoded at frame \d+") as error:
        read.extend(frame for frame in iter(VideoReader(path)) if read.append(frame))
    assert f"frame {len(read)}:" in str(error.value)
    assert 0 < len(read) < 60 and np.array_equal(read, whole[: len(read)])


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_reader_notices_a_file_cut_between_two_frames(tmp_path, suffix):
    path = write_video(tmp_path / f"cut{suffix}", noise_frames(60), cut=1)
    with av.open(str(path)) as container:
        positions = [packet.pos for packet in container.demux(video=0) if packet.size]
    path.write_bytes(path.read_bytes()[: positions[30]])
    with pytest.raises(IncompleteVideoError, match=r"at frame \d+: the file declares 2.40 s but ends after 1.2"):
        list(VideoReader(path))


def test_reader_names_file_and_frame_of_damaged_data(tmp_path):
    path = write_video(tmp_path / "damaged.mp4", noise_frames(60), cut=1)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 4000] = bytes(4000)
    path.write_bytes(content)
    with pytest.raises(IncompleteVideoError, match=r"damaged.mp4, which cannot be decoded at frame \d+"):
        list(VideoReader(path))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("fraction", [0.6, 0.8, 0.95])
def test_frames_read_from_a_truncated_file_have_no_gap(tmp_path, suffix, fraction):
    shifting = [np.roll(picture(0), 2 * index, axis=1) for index in range(60)]
    grainy = [frame // 2 + grain // 4 for frame, grain in zip(shifting, noise_frames(60), strict=True)]
    path = write_video(tmp_path / f"cut{suffix}", grainy, cut=1, bf="8", **{"b-pyramid": "normal"})
    with av.open(str(path)) as container:
        times = [packet.pts for packet in container.demux(video=0) if packet.size]
    assert times != sorted(times)  # what is shown later comes earlier in the file
    whole = list(VideoReader(path))
    path.write_bytes(path.read_bytes()[: int(fraction * path.stat().st_size)])
    read = []
    with pytest.raises(IncompleteVideoError, match=r"\d+ frames? could be read\.") as error:
        for frame in VideoReader(path):
            read.append(frame)
    assert f"; {len(read)} frame" in str(error.value)
    assert 0 < len(read) < 60 and np.array_equal(read, whole[: len(read)])


def test_times_of_a_file_are_exact(tmp_path):
    times = [0, 40, 41, 300, 301, 500, 1000, 1033, 5000]
    for suffix in (".mp4", ".mkv"):
        path = write_video(tmp_path / f"a{suffix}", [picture(index) for index in range(9)], times=times)
        read, frames, _ = zip(*VideoReader(path).timed_frames(), strict=True)
        assert list(read) == [Fraction(time, 1000) for time in times] and shows_pictures(frames)


@pytest.mark.parametrize("has_ranges", [False, True])
def test_a_file_behind_a_url_equals_the_file(tmp_path, has_ranges):
    path = write_sound(tmp_path / "a b.mp4")
    file = VideoReader(path)
    with serve(tmp_path, has_ranges=has_ranges) as (url, requests):
        path.rename(tmp_path / "a.mp4")
        reader = VideoReader(f"{url}/a.mp4")
        num_requests = len(requests)
        read = [list(reader.timed_frames()) for _ in range(2)]
    path = tmp_path / "a.mp4"
    for times_and_frames in read:
        for (time, frame, _), (expected_time, expected, _) in zip(
            times_and_frames, VideoReader(path).timed_frames(), strict=True
        ):
            assert time == expected_time and np.array_equal(frame, expected)
    assert (reader.num_frames, reader.frame_rate, reader.has_audio) == (file.num_frames, file.frame_rate, True)
    assert num_requests >= 1


def test_a_live_stream_is_opened_once(tmp_path):
    write_video(tmp_path / "live.ts", [picture(index) for index in range(9)])
    with serve(tmp_path, LiveHandler) as (url, requests):
        reader = VideoReader(f"{url}/live.ts")
        frames = list(reader)
        assert requests == ["/live.ts"]
        assert shows_pictures(list(reader)) and len(requests) == 2
    assert len(frames) == 9 and shows_pictures(frames)
    assert reader.num_frames is None and not reader.has_audio


def test_a_damaged_frame_of_a_live_stream_is_left_out(tmp_path):
    path = write_video(tmp_path / "live.ts", noise_frames(60), g="10")
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 188 * 9] = bytes(188 * 9)
    path.write_bytes(content)
    with serve(tmp_path, LiveHandler) as (url, _):
        live = list(VideoReader(f"{url}/live.ts"))
    with pytest.raises(IncompleteVideoError):
        list(VideoReader(path))
    assert 40 < len(live) < 60


def test_frames_before_a_broken_connection_are_read(tmp_path):
    path = write_video(tmp_path / "a.mp4", noise_frames(60, 96, 128), cut=1)
    frames = []
    with (
        serve(tmp_path, BreakingHandler) as (url, _),
        pytest.raises(IncompleteVideoError, match=r"Try again; \d+ frames could be read\.$"),
    ):
        for frame in VideoReader(f"{url}/a.mp4"):
            frames.append(frame)
    assert 20 < len(frames) < 40 and np.array_equal(frames, list(VideoReader(path))[: len(frames)])


def test_a_url_without_a_video_is_named(tmp_path, monkeypatch):
    with serve(tmp_path) as (url, _), pytest.raises(ValueError, match=rf"FFmpeg can read. Got {url}/none.mp4 \("):
        VideoReader(f"{url}/none.mp4")
    with pytest.raises(ValueError, match=rf"Got {url}/none.mp4 \(.*refused"):
        VideoReader(f"{url}/none.mp4")
    monkeypatch.setattr(media_files, "SERVER_TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/a.mp4"
        with pytest.raises(ValueError, match=rf"Got {url} \(no answer within 0.1 s\)"):
            VideoReader(url)


def test_the_reader_says_how_long_the_last_frame_is_shown(tmp_path):
    path = tmp_path / "held.mp4"
    writer = VideoWriter(path, 10)
    for time in (Fraction(0), Fraction(1, 10), Fraction(2, 10)):
        writer.write(np.zeros((32, 48, 3), np.uint8), time)
    writer.close(end=Fraction(42, 10))
    reader = VideoReader(path)
    times, _, ends = zip(*reader.timed_frames(), strict=True)
    assert times == (Fraction(0), Fraction(1, 10), Fraction(2, 10)) and ends[-1] == Fraction(42, 10)
