# SPDX-License-Identifier: Apache-2.0
"""What a new frame costs, counted on tensors without content: exact, and the same on every machine."""

from benchmarks.stream import Task, count_flops


def test_a_new_frame_of_a_window_of_four_costs_little_more_than_a_frame_alone():
    """At the published size. The context makes the answer; the frames before are not computed again."""
    flops = count_flops(Task("themask"))
    assert flops["one"] < flops["stream"] <= 1.40 * flops["one"]
    assert flops["anew"] >= 2.2 * flops["stream"]


def test_a_new_frame_of_cffm_costs_little_more_than_one_of_segformer():
    """With the same encoder and width. No frame is encoded twice."""
    flops = count_flops(Task("cffm"))
    assert flops["one"] < flops["stream"] <= 1.5 * flops["one"]
    assert flops["anew"] >= 2.5 * flops["stream"]
