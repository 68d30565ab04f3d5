# SPDX-License-Identifier: Apache-2.0
"""What a new frame costs, counted on tensors without content: exact, and the same on every machine."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark_streaming.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_streaming", SCRIPT)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_new_frame_of_a_window_of_four_costs_little_more_than_a_frame_alone(benchmark):
    """At the published size. The context makes the answer; the frames before are not computed again."""
    flops = benchmark.count_flops(benchmark.Task("themask"))
    assert flops["one"] < flops["stream"] <= 1.40 * flops["one"]
    assert flops["anew"] >= 2.2 * flops["stream"]


def test_a_new_frame_of_cffm_costs_little_more_than_one_of_segformer(benchmark):
    """With the same encoder and width. No frame is encoded twice."""
    flops = benchmark.count_flops(benchmark.Task("cffm"))
    assert flops["one"] < flops["stream"] <= 1.5 * flops["one"]
    assert flops["anew"] >= 2.5 * flops["stream"]
