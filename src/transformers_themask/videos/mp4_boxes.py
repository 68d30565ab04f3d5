# SPDX-License-Identifier: Apache-2.0
"""The boxes that an mp4 file consists of (ISO 14496-12), as far as it takes to see that some are lost."""

import mmap
import struct
from pathlib import Path

SHORT_HEADER, LONG_HEADER = struct.Struct(">I4s"), struct.Struct(">I4sQ")


def has_unreachable_fragments(path: str | Path) -> bool:
    """Whether pieces of video stand behind a damaged box, where FFmpeg takes the file to end.

    Args:
        path (`str` or `Path`):
            An mp4 file in fragments, as live recorders write them.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = 0
        while start <= len(content) - LONG_HEADER.size:
            size, kind = SHORT_HEADER.unpack_from(content, start)
            if not kind.isalnum():
                return content.find(b"moof", start) >= 0
            if size == 0:  # the last box, up to the end
                return False
            start += max(LONG_HEADER.unpack_from(content, start)[2] if size == 1 else size, SHORT_HEADER.size)
    return False
