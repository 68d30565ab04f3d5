# SPDX-License-Identifier: Apache-2.0
import re

import numpy as np
import pytest

from transformers_themask.drawing.palettes import class_palette
from transformers_themask.web_demo.share_charts import legend_html, mean_shares, timeline_html

NAMES = ["clear_sky", "meadow & <wood>", "never", "dots"]
PALETTE = class_palette(4)


def corners_of(path):
    return [tuple(map(float, point.split(","))) for point in re.findall(r"[ML]([^MLZ]*)", path)]


def test_the_legend_names_the_classes_that_occur_from_the_largest_share_on():
    page = legend_html(NAMES, PALETTE, np.array([0.3, 0.6, 0.0, 0.0004]))
    assert re.findall(r'name">(.*?)</span><b>(.*?)</b>', page) == [
        ("meadow &amp; &lt;wood&gt;", "60.0 %"),
        ("clear sky", "30.0 %"),
        ("dots", "&lt; 0.1 %"),
    ]
    assert re.findall(r"swatch.*?#(\w+)", page) == [bytes(PALETTE[index]).hex() for index in (1, 0, 3)]
    assert re.findall(r"width:(.*?)%", page) == ["100.0", "50.0", "0.1"]


def test_the_areas_of_the_timeline_lie_on_one_another_and_are_as_wide_as_their_time():
    edges = np.array([2.0, 3.0, 6.0])
    shares = np.array([[0.25, 0.75, 0, 0], [0.75, 0.25, 0, 0]])
    page = timeline_html(NAMES, PALETTE, edges, shares)
    sky, meadow = map(corners_of, re.findall(r'd="(.*?)"', page))  # sky covers more of the time
    assert sky == [(0, 75), (250, 75), (250, 25), (1000, 25), (1000, 100), (250, 100), (250, 100), (0, 100)]
    assert meadow == [(0, 0), (250, 0), (250, 0), (1000, 0), (1000, 25), (250, 25), (250, 75), (0, 75)]
    assert re.findall("<title>(.*?)</title>", page) == ["clear sky: 62.5 %", "meadow &amp; &lt;wood&gt;: 37.5 %"]
    times = re.search('class="times">(.*?)</div>', page)[1]
    assert re.findall("<span>(.*?)</span>", times) == ["0:02.0", "0:03.0", "0:04.0", "0:05.0", "0:06.0"]


def test_shares_of_the_whole_video_count_every_stretch_by_its_length():
    shares = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert mean_shares(np.array([0.0, 1.0, 4.0]), shares).tolist() == pytest.approx([0.25, 0.75])


def test_a_long_timeline_counts_minutes():
    page = timeline_html(NAMES, PALETTE, np.array([0.0, 3600.0]), np.array([[1.0, 0, 0, 0]]))
    assert re.findall("<span>([0-9:]+)</span>", page) == ["0:00", "15:00", "30:00", "45:00", "1:00:00"]
