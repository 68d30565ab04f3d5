# SPDX-License-Identifier: Apache-2.0
"""The stage of the page: an invitation, progress, or a message."""

import base64
import io
from html import escape

import numpy as np
from PIL import Image

# Wider pictures only cost time on their way to the page.
MAX_PICTURE_SIDE = 960
JPEG_QUALITY = 85

INVITATION_ICON = (
    '<svg viewBox="0 0 48 48" width="56" height="56" aria-hidden="true">'
    '<rect x="4" y="8" width="40" height="32" rx="6" fill="#4477aa" opacity=".25"/>'
    '<path d="M4 34L17 21L27 31L34 25L44 34a6 6 0 0 1-6 6H10a6 6 0 0 1-6-6Z" fill="#228833" opacity=".8"/>'
    '<circle cx="34" cy="17" r="4" fill="#ccbb44"/></svg>'
)
# The placeholder of the result.
INVITATION = (
    f'<div class="stage quiet">{INVITATION_ICON}<h3>Your result appears here</h3>'
    "<p>Choose a video, then press “Segment”.</p></div>"
)
# Shown until the first frame is segmented.
WAITING = (
    '<div class="stage quiet"><span class="spinner"></span><h3>Getting ready</h3>'
    "<p>Videos are segmented one after another; yours starts as soon as the one before it is done.</p></div>"
)


def message_html(title: str, sentence: str) -> str:
    """A message in place of the result."""
    return f'<div class="stage quiet"><h3>{escape(title)}</h3><p>{escape(sentence)}</p></div>'


def notice_html(sentence: str) -> str:
    """A message above the result; nothing for an empty sentence."""
    return f'<p class="notice" role="status">{escape(sentence)}</p>' if sentence else ""


def progress_html(picture: np.ndarray, num_done: int, num_total: int | None, seconds: float) -> str:
    """The latest picture, `uint8` RGB, with a progress bar; `seconds` is the time it took so far."""
    frames_per_second = num_done / seconds
    facts = [f"Frame {num_done}", f"{frames_per_second:.1f} frames per second"]
    kind, percent = "progress endless", 100.0
    # A declared number can be too small, and an estimated one a little.
    if num_total is not None and num_total >= num_done:
        kind, percent = "progress", 100 * num_done / num_total
        facts[0] += f" of {num_total}"
        facts.append(f"{_duration((num_total - num_done) / frames_per_second)} left")
    return (
        f'<div class="stage"><img src="{_data_uri(picture)}" alt="Frame {num_done - 1} with its classes">'
        f'<div class="{kind}" role="progressbar" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{percent:.0f}"><span style="width:{percent:.1f}%"></span></div>'
        f'<p class="facts">{" · ".join(facts)}</p></div>'
    )


def _data_uri(picture: np.ndarray) -> str:
    """The picture inside the page: a file per update would pile up on disk."""
    image = Image.fromarray(picture)
    image.thumbnail((MAX_PICTURE_SIDE, MAX_PICTURE_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
