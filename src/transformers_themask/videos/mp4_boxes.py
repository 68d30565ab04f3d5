# SPDX-License-Identifier: Apache-2.0
"""The boxes that an mp4 file consists of (ISO 14496-12), as far as it takes to see that some are lost."""

import mmap
import struct
from pathlib import Path

SHORT_HEADER, LONG_HEADER = struct.Struct(">I4s"), struct.Struct(">I4sQ")


def lacks_fragments(path: str | Path) -> bool:
    """Whether the file ends within a box, or pieces of video stand behind a damaged one; FFmpeg takes both for an end.

    Args:
        path (`str` or `Path`):
            An mp4 file in fragments, as live recorders write them.
    """
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
