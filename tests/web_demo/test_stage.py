# SPDX-License-Identifier: Apache-2.0
import base64
import io
import re

import numpy as np
from PIL import Image

from transformers_themask.web_demo.stage import message_html, notice_html, progress_html

PICTURE = np.full((1200, 1600, 3), 200, dtype=np.uint8)


def facts_of(page):
    return re.search('class="facts">(.*?)</p>', page)[1].split(" · ")


def test_progress_shows_the_picture_and_how_long_it_will_take():
    page = progress_html(PICTURE, num_done=30, num_total=120, seconds=10)
    assert facts_of(page) == ["Frame 30 of 120", "3.0 frames per second", "30 s left"]
    assert 'aria-valuenow="25"' in page
    picture = Image.open(io.BytesIO(base64.b64decode(re.search('base64,(.*?)"', page)[1])))
    assert picture.size == (960, 720)
    assert np.abs(np.asarray(picture).astype(int) - 200).max() <= 2


def test_progress_of_unknown_or_wrong_length_shows_no_total():
    for num_total in (None, 29):
        page = progress_html(PICTURE, num_done=30, num_total=num_total, seconds=10)
        assert facts_of(page) == ["Frame 30", "3.0 frames per second"] and "endless" in page


def test_long_waits_are_told_in_minutes_and_hours():
    left = [facts_of(progress_html(PICTURE, 1, total, 1))[-1] for total in (81, 601, 10801)]
    assert left == ["80 s left", "10 min left", "3.0 h left"]


def test_messages_with_html_are_escaped():
    assert "&lt;b&gt;.mp4" in message_html("No", "Got <b>.mp4") and "&lt;b&gt;.mp4" in notice_html("Got <b>.mp4")
