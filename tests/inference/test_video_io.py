# SPDX-License-Identifier: Apache-2.0
import functools
import gc
import http.server
import struct
import threading
from fractions import Fraction

import av
import numpy as np
import pytest
from av.sidedata.sidedata import SideDataContainer

from transformers_themask.inference.video_io import VideoReader, VideoWriter

RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)


def flat_frame(color, height=48, width=64):
    return np.full((height, width, 3), color, dtype=np.uint8)


def noise_frames(num_frames, height=48, width=64):
    return np.random.default_rng(0).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


def write_with_pyav(path, frames, rate=25, container_options=None):
    """A video made without the code under test."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def write_sound(path, codec="aac", num_seconds=2, file_format="mp4"):
    """A video of grey frames with a tone, made without the code under test."""
    with av.open(str(path), "w", format=file_format) as container:
        video = container.add_stream("libx264", rate=10)
        video.height, video.width, video.pix_fmt = 32, 32, "yuv420p"
        audio = container.add_stream(codec, rate=16000, layout="mono")
        tone = np.sin(np.arange(16000 * num_seconds) * 0.1).astype(np.float32)[None]
        sound = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
        sound.sample_rate, sound.pts = 16000, 0
        resampler = av.AudioResampler(
            format=audio.codec_context.format, layout="mono", rate=16000, frame_size=audio.codec_context.frame_size
        )
        for part in resampler.resample(sound):
            container.mux(audio.encode(part))
        container.mux(audio.encode(None))
        for _ in range(10 * num_seconds):
            container.mux(video.encode(av.VideoFrame.from_ndarray(flat_frame((128,) * 3, 32, 32), format="rgb24")))
        container.mux(video.encode(None))
    return path


def sound_packets(path):
    with av.open(str(path)) as container:
        packets = container.demux(container.streams.audio[0])
        return [(packet.pts * packet.time_base, bytes(packet)) for packet in packets if packet.size]


def turn_display(path, matrix):
    """Write a display matrix into the track header (ISO 14496-12, section 8.3.2) of an mp4 file."""
    content = bytearray(path.read_bytes())
    start = content.find(b"tkhd") + 4 + 40
    content[start : start + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(content)


def test_reader_tells_size_rate_and_length_of_a_file(tmp_path):
    reader = VideoReader(write_with_pyav(tmp_path / "a.mp4", noise_frames(12), Fraction(30000, 1001)))
    assert (reader.height, reader.width) == (48, 64)
    assert (reader.frame_rate, reader.num_frames, reader.has_audio) == (Fraction(30000, 1001), 12, False)


def test_reader_yields_every_frame_in_order_each_time_it_is_iterated(tmp_path):
    colors = [(20 * index,) * 3 for index in range(12)]
    reader = VideoReader(write_with_pyav(tmp_path / "a.mp4", [flat_frame(color) for color in colors]))
    for _ in range(2):
        frames = list(reader)
        assert all(frame.dtype == np.uint8 and frame.shape == (48, 64, 3) for frame in frames)
        assert [round(frame.mean() / 20) for frame in frames] == list(range(12))


def test_read_frames_are_freed_without_the_garbage_collector(tmp_path):
    path = write_with_pyav(tmp_path / "a.mp4", noise_frames(30))

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


def test_reader_estimates_the_length_where_the_container_does_not_count_frames(tmp_path):
    reader = VideoReader(write_with_pyav(tmp_path / "a.mkv", noise_frames(12)))
    assert reader.num_frames == len(list(reader)) == 12


@pytest.mark.parametrize(
    ("matrix", "upright"),
    [
        ((0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30), lambda frame: np.rot90(frame, -1)),
        ((-65536, 0, 0, 0, -65536, 0, 0, 0, 1 << 30), lambda frame: np.rot90(frame, 2)),
        ((0, -65536, 0, 65536, 0, 0, 0, 0, 1 << 30), lambda frame: np.rot90(frame, 1)),
        ((-65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30), np.fliplr),
        ((65536, 0, 0, 0, -65536, 0, 0, 0, 1 << 30), np.flipud),
    ],
    ids=["clockwise", "upside_down", "counterclockwise", "mirrored", "flipped"],
)
def test_reader_turns_frames_upright(tmp_path, matrix, upright):
    frame = flat_frame(RED)
    frame[:24, :32], frame[:24, 32:], frame[24:, :32] = GREEN, BLUE, YELLOW
    path = write_with_pyav(tmp_path / "a.mp4", [frame] * 3)
    (plain, *_) = list(VideoReader(path))
    turn_display(path, matrix)
    reader = VideoReader(path)
    expected = upright(plain)
    assert (reader.height, reader.width) == expected.shape[:2]
    for turned in reader:
        assert np.array_equal(turned, expected)


def test_reader_opens_a_url(tmp_path):
    write_with_pyav(tmp_path / "a.mp4", noise_frames(5))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        from_url = list(VideoReader(f"http://127.0.0.1:{server.server_port}/a.mp4"))
        server.shutdown()
    assert np.array_equal(from_url, list(VideoReader(tmp_path / "a.mp4")))


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100], ids=["empty", "text"])
def test_reader_names_a_file_that_is_no_video(tmp_path, content):
    path = tmp_path / "broken.mp4"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"`path` must name a video file that FFmpeg can read. Got .*broken.mp4"):
        VideoReader(path)


def test_reader_names_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`path` must name an existing video file. Got .*missing.mp4"):
        VideoReader(tmp_path / "missing.mp4")


def test_reader_names_a_file_without_a_video_stream(tmp_path):
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(ValueError, match=r"with a video stream. Got .*sound.wav, which has none"):
        VideoReader(tmp_path / "sound.wav")


def test_reader_names_file_and_frame_where_a_file_was_cut_off(tmp_path):
    path = write_with_pyav(tmp_path / "cut.mp4", noise_frames(60), container_options={"movflags": "faststart"})
    whole = list(VideoReader(path))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    read = []
    with pytest.raises(ValueError, match=r"cut.mp4, which cannot be decoded at frame \d+") as error:
        read.extend(frame for frame in iter(VideoReader(path)) if read.append(frame))
    assert f"frame {len(read)}:" in str(error.value)
    assert 0 < len(read) < 60 and np.array_equal(read, whole[: len(read)])


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_reader_notices_a_file_cut_between_two_frames(tmp_path, suffix):
    path = write_with_pyav(tmp_path / f"cut{suffix}", noise_frames(60), container_options={"movflags": "faststart"})
    with av.open(str(path)) as container:
        positions = [packet.pos for packet in container.demux(video=0) if packet.size]
    path.write_bytes(path.read_bytes()[: positions[30]])
    with pytest.raises(ValueError, match=r"at frame \d+: the file declares 2.40 s but ends after 1.2"):
        list(VideoReader(path))


def test_reader_names_file_and_frame_of_damaged_data(tmp_path):
    path = write_with_pyav(tmp_path / "damaged.mp4", noise_frames(60), container_options={"movflags": "faststart"})
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 4000] = bytes(4000)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged.mp4, which cannot be decoded at frame \d+"):
        list(VideoReader(path))


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
    assert [time for time, _ in VideoReader(tmp_path / "a.mp4").timed_frames()] == times


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


def test_sound_is_copied_packet_by_packet(tmp_path):
    source = write_sound(tmp_path / "in.mp4")
    reader = VideoReader(source)
    assert reader.has_audio
    with VideoWriter(tmp_path / "out.mp4", reader.frame_rate, reader.time_base, audio_from=source) as writer:
        for time, frame in reader.timed_frames():
            writer.write(frame, time)
    assert VideoReader(tmp_path / "out.mp4").has_audio
    assert sound_packets(tmp_path / "out.mp4") == sound_packets(source)


def test_a_silent_source_gives_a_silent_video(tmp_path):
    source = write_with_pyav(tmp_path / "in.mp4", noise_frames(3))
    with VideoWriter(tmp_path / "out.mp4", 10, audio_from=source) as writer:
        writer.write(flat_frame(RED))
    assert not VideoReader(tmp_path / "out.mp4").has_audio


def test_sound_that_mp4_cannot_hold_is_left_out(tmp_path):
    source = write_sound(tmp_path / "in.mkv", codec="pcm_u8", file_format="matroska")
    with VideoWriter(tmp_path / "out.mp4", 10, audio_from=source) as writer:
        writer.write(flat_frame(RED))
    reader = VideoReader(tmp_path / "out.mp4")
    assert not reader.has_audio and len(list(reader)) == 1


def test_an_error_leaves_no_file_and_keeps_an_earlier_one(tmp_path):
    (tmp_path / "a.mp4").write_text("earlier")
    with pytest.raises(RuntimeError), VideoWriter(tmp_path / "a.mp4", 10) as writer:
        writer.write(flat_frame(RED))
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_text() == "earlier"


def test_a_video_without_frames_is_refused(tmp_path):
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
