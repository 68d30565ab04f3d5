# SPDX-License-Identifier: Apache-2.0
"""Files and addresses as FFmpeg is told to open them, and what it says when it cannot."""

from pathlib import Path

import av

# Seconds that a server may take to answer, or to send the next piece.
SERVER_TIMEOUT = 30.0


def is_url(path: str | Path) -> bool:
    """Whether a path is the address of a video rather than the name of a file."""
    return "://" in str(path)


def ffmpeg_location(path: str | Path) -> str:
    """What to tell FFmpeg to open: of a relative path it would take what stands before a colon for a protocol."""
    return str(path) if is_url(path) else str(Path(path).absolute())


def open_input(path: str | Path) -> "av.container.InputContainer":
    """Open a file, or an address whose server must answer within [`SERVER_TIMEOUT`]."""
    return av.open(ffmpeg_location(path), timeout=SERVER_TIMEOUT if is_url(path) else None)


def reason(error: "av.FFmpegError") -> str:
    """What FFmpeg says is wrong, in its words."""
    # PyAV breaks off what takes too long, and reports the breaking off.
    if isinstance(error, av.ExitError):
        return f"no answer within {SERVER_TIMEOUT:g} s"
    return str(error.strerror)
