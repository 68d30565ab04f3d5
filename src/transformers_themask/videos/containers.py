# SPDX-License-Identifier: Apache-2.0
"""What AVI, Matroska and mp4 files say about their own length and pieces, to notice those that are cut.

FFmpeg continues behind a hole in a file, and takes the end of a cut one for the end of the video, without an error.
"""

import mmap
import re
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av

from transformers_themask.files.media_files import is_url, open_media

# What FFmpeg and others write for every track of a Matroska file.
MATROSKA_DURATION = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")
# Headers of the boxes that an mp4 file consists of (ISO 14496-12).
SHORT_HEADER, LONG_HEADER = struct.Struct(">I4s"), struct.Struct(">I4sQ")


class DeclaredEnds(NamedTuple):
    """Times in seconds at which a file says that its video and its longest stream end, if it does.

    The latter is `None` where the former is known.
    """

    video: Fraction | None = None
    file: Fraction | None = None

    @classmethod
    def of(cls, container: "av.container.InputContainer", stream: "av.VideoStream") -> "DeclaredEnds":
        """The ends that an open file declares and that can be believed."""
        time_base = stream_time_base(stream)
        if container.format.name == "avi":
            # FFmpeg shortens the duration of a cut file, but not the count of its frames, of `time_base` each.
            return cls(video=stream.frames * time_base or None)
        if is_mp4(container) and stream.duration:
            return cls(video=((stream.start_time or 0) + stream.duration) * time_base)
        if not _is_matroska(container):
            return cls()
        file_end = Fraction(container.duration, av.time_base) if container.duration else None
        video_end = file_end if len(container.streams) == 1 else _matroska_end(stream)
        if video_end is None:
            return cls(file=file_end)
        # A tag that was copied from another file may be longer than this one.
        return cls(video=min(video_end, file_end or video_end))


def stream_time_base(stream: "av.VideoStream") -> Fraction:
    """Unit of the time stamps of a stream's packets and frames, in seconds.

    A frame that PyAV gets out of a decoder after the last packet has the same, but names another one.
    """
    assert stream.time_base is not None  # FFmpeg sets it for every stream of an opened file.
    return stream.time_base


def is_mp4(container: "av.container.InputContainer") -> bool:
    """Whether a file is an mp4 or QuickTime file."""
    return container.format.name.startswith("mov")


def lacks_fragments(path: str | Path) -> bool:
    """Whether a fragmented mp4 file, as live recorders write it, ends within a box or has fragments behind a hole."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start, end = 0, len(content)
        while start < end:
            if end - start < SHORT_HEADER.size:
                return True
            size, kind = SHORT_HEADER.unpack_from(content, start)
            if not kind.isalnum():
                return content.find(b"moof", start) >= 0
            if size == 0:  # the last box, up to the end
                return False
            if size == 1:  # a long one
                if end - start < LONG_HEADER.size:
                    return True
                size = LONG_HEADER.unpack_from(content, start)[2]
            start += max(size, SHORT_HEADER.size)
        return start > end


def hole_detector(container: "av.container.InputContainer", stream: "av.VideoStream") -> Callable[["av.Packet"], bool]:
    """A function that says of each packet of a stream, in order, whether the file has a hole before it."""
    if container.format.name == "avi":
        return _avi_detector({entry.timestamp: entry.pos for entry in stream.index_entries})
    if _is_matroska(container) and not is_url(container.name):
        # FFmpeg reads the index of a Matroska file when it has to seek.
        with suppress(av.FFmpegError), open_media(container.name) as again:
            again.seek(0)
            return _matroska_detector([entry.timestamp for entry in again.streams[stream.index].index_entries])
    return lambda packet: False


def _avi_detector(positions: dict[int, int]) -> Callable[["av.Packet"], bool]:
    """Compares how far packets lie from their place in the file's index."""
    first_offset: int | None = None

    def is_after_hole(packet: "av.Packet") -> bool:
        nonlocal first_offset
        if packet.dts is None or packet.pos is None or packet.dts not in positions:
            return False
        offset = packet.pos - positions[packet.dts]
        first_offset = offset if first_offset is None else first_offset
        return offset != first_offset

    return is_after_hole


def _matroska_detector(key_times: list[int]) -> Callable[["av.Packet"], bool]:
    """Looks for key frames of the file's index that should have come between two packets."""
    latest: int | None = None

    def is_after_hole(packet: "av.Packet") -> bool:
        nonlocal latest
        if packet.pts is None:
            return False
        before = packet.pts if latest is None else latest
        latest = max(before, packet.pts)
        return bisect_right(key_times, before) < bisect_left(key_times, packet.pts)

    return is_after_hole


def _matroska_end(stream: "av.VideoStream") -> Fraction | None:
    match = MATROSKA_DURATION.match(stream.metadata.get("DURATION", ""))
    if match is None:
        return None
    hours, minutes, seconds = map(Fraction, match.groups())
    return 3600 * hours + 60 * minutes + seconds


def _is_matroska(container: "av.container.InputContainer") -> bool:
    return container.format.name.startswith("matroska")
