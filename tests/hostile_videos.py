# SPDX-License-Identifier: Apache-2.0
"""Videos as they come in the wild, made with PyAV and without the code under test."""

import re
import struct
from fractions import Fraction

import av
import numpy as np
from PIL import Image

# Far apart in every colour model, so that a lossy codec cannot confuse them.
COLORS = [(220, 30, 30), (30, 200, 30), (40, 40, 220), (220, 210, 30), (30, 200, 210), (210, 40, 200), (128, 128, 128)]
SIZE = (48, 64)
# Row-major display matrices in the fixed point of ISO 14496-12, and what they ask for.
DISPLAY_MATRICES = {
    "clockwise": ((0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30), lambda frame: np.rot90(frame, -1)),
    "upside_down": ((-65536, 0, 0, 0, -65536, 0, 0, 0, 1 << 30), lambda frame: np.rot90(frame, 2)),
    "counterclockwise": ((0, -65536, 0, 65536, 0, 0, 0, 0, 1 << 30), lambda frame: np.rot90(frame, 1)),
    "mirrored": ((-65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30), np.fliplr),
    "flipped": ((65536, 0, 0, 0, -65536, 0, 0, 0, 1 << 30), np.flipud),
    "transposed": ((0, 65536, 0, 65536, 0, 0, 0, 0, 1 << 30), lambda frame: frame.transpose(1, 0, 2)),
}


def color(index):
    return COLORS[index % len(COLORS)]


def picture(index, size=SIZE):
    """A frame that tells its index: its colour, but for a black upper left quarter."""
    frame = np.full((*size, 3), color(index), np.uint8)
    frame[: size[0] // 2, : size[1] // 2] = 0
    return frame


def shown_index(frame):
    """Which of the first pictures a decoded frame is, from the middles of its quarters; checks that it is one."""
    height, width, _ = frame.shape
    corner = frame[height // 4, width // 4].astype(int)
    others = [
        frame[row, column].astype(int) for row, column in ((-height // 4, width // 4), (height // 4, -width // 4))
    ]
    distances = np.abs(np.array(COLORS) - others[0]).max(axis=1)
    assert corner.max() < 25 and np.abs(others[0] - others[1]).max() < 12 and distances.min() < 25, (corner, others)
    return int(distances.argmin())


def shows_pictures(frames):
    """Whether these are the pictures 0, 1, 2, ..."""
    return all(shown_index(frame) == index % len(COLORS) for index, frame in enumerate(frames))


def flat_frame(rgb, height=48, width=64):
    return np.full((height, width, 3), rgb, dtype=np.uint8)


def noise_frames(num_frames, height=48, width=64):
    return np.random.default_rng(0).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


def write_video(path, frames, codec="libx264", rate=25, pix_fmt="yuv420p", times=None, cut=None, tags=None, **options):
    """Write a video.

    `times` are in milliseconds and `tags` go to the encoder. With `cut`, the table of frames comes first, and this
    fraction of the file is kept.
    """
    container_options = {} if cut is None else {"movflags": "faststart"}
    with av.open(str(path), "w", options=container_options) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
        for index, frame in enumerate(frames):
            encoded = av.VideoFrame.from_ndarray(frame, format="rgb24")
            if times is not None:
                encoded.pts, encoded.time_base = times[index], Fraction(1, 1000)
            container.mux(stream.encode(encoded))
        container.mux(stream.encode(None))
    if cut is not None:
        cut_off(path, cut)
    return path


def cut_off(path, fraction):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    return path


def punch(path, fraction, length):
    """Overwrite a piece in the middle of a file with zeros."""
    content = bytearray(path.read_bytes())
    start = int(len(content) * fraction)
    content[start : start + length] = bytes(length)
    path.write_bytes(content)
    return path


def punch_cluster(path, number, length):
    """Overwrite the beginning of one of the clusters that a Matroska file consists of."""
    content = path.read_bytes()
    starts = [match.start() for match in re.finditer(rb"\x1f\x43\xb6\x75", content)]
    path.write_bytes(content[: starts[number]] + bytes(length) + content[starts[number] + length :])
    return path


def replace_in(path, old, new):
    """Overwrite a text of a file, wherever it stands, with one of the same length."""
    content = path.read_bytes()
    assert old in content and len(old) == len(new)
    path.write_bytes(content.replace(old, new))
    return path


def without_track_durations(path):
    """A Matroska file that tells only its whole length, as not every program writes that of the tracks."""
    return replace_in(path, b"DURATION", b"X_LENGTH")


def turn_display(path, matrix):
    """Write a display matrix into the track header (ISO 14496-12, section 8.3.2) of an mp4 file."""
    content = bytearray(path.read_bytes())
    start = content.find(b"tkhd") + 4 + 40
    content[start : start + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(content)
    return path


def write_sound(path, codec="aac", num_seconds=2, file_format="mp4", num_frames=None, delay=0, cut=False):
    """A video of grey frames, ten a second, with a tone that starts after `delay` seconds; to `cut`, index first."""
    num_frames = 10 * num_seconds if num_frames is None else num_frames
    frames = [flat_frame((128,) * 3, 32, 32)] * num_frames
    options = {"movflags": "faststart"} if cut else {}
    return write_frames_and_tone(path, frames, "libx264", codec, num_seconds, delay, file_format, **options)


def write_frames_and_tone(path, frames, codec, sound_codec, num_seconds, delay=0, file_format=None, **options):
    """A video, ten frames a second, with a tone that starts after `delay` seconds; `options` go to the container."""
    with av.open(str(path), "w", format=file_format, options=options) as container:
        video = container.add_stream(codec, rate=10, options={"g": "5", "b": "4M"})
        (video.height, video.width), video.pix_fmt = frames[0].shape[:2], "yuv420p"
        audio = container.add_stream(sound_codec, rate=16000, layout="mono")
        tone = np.sin(np.arange(16000 * num_seconds) * 0.1).astype(np.float32)[None]
        sound = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
        sound.sample_rate, sound.pts = 16000, 16000 * delay
        resampler = av.AudioResampler(
            format=audio.codec_context.format, layout="mono", rate=16000, frame_size=audio.codec_context.frame_size
        )
        for part in resampler.resample(sound):
            container.mux(audio.encode(part))
        container.mux(audio.encode(None))
        for frame in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode(None))
    return path


def sound_packets(path):
    """Time and content of every packet of sound."""
    with av.open(str(path)) as container:
        packets = container.demux(container.streams.audio[0])
        return [(packet.pts * packet.time_base, bytes(packet)) for packet in packets if packet.size]


def write_music(path, cover=False):
    """Sound without pictures; with a cover, as music files have it."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        image = container.add_stream("mjpeg", rate=1) if cover else None
        if image is not None:
            image.height, image.width, image.pix_fmt = 32, 32, "yuvj420p"
            image.disposition = av.stream.Disposition.attached_pic
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
        if image is not None:
            container.mux(image.encode(av.VideoFrame.from_ndarray(flat_frame((9, 9, 9), 32, 32), format="rgb24")))
            container.mux(image.encode(None))
    return path


def write_changing_size(path, num_before, num_after):
    """An H.264 stream whose pictures become smaller."""
    parts = [path.with_name("before.h264"), path.with_name("after.h264")]
    write_video(parts[0], [picture(index) for index in range(num_before)], bf="0")
    write_video(parts[1], [picture(index, (24, 32)) for index in range(num_after)], bf="0")
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def write_gif(path, num_frames):
    """An animated gif of pictures, by Pillow."""
    images = [Image.fromarray(picture(index)) for index in range(num_frames)]
    images[0].save(path, save_all=True, append_images=images[1:], duration=120)
    return path
