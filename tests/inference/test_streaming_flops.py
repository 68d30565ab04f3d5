# SPDX-License-Identifier: Apache-2.0
"""What a new frame costs, counted on tensors without content: exact, and the same on every machine."""

import importlib.util
from pathlib import Path

import pytest

from transformers_themask import THEMaskConfig

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark_streaming.py"


@pytest.fixture(scope="module")
def count_flops():
    spec = importlib.util.spec_from_file_location("benchmark_streaming", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.count_flops


def test_a_new_frame_of_a_window_of_four_costs_little_more_than_a_frame_alone(count_flops):
    """At the published size. The context makes the answer; the frames before are not computed again."""
    flops = count_flops(THEMaskConfig(backbone="mit-b1", num_frames=4, num_labels=124), (480, 864))
    assert flops["one"] < flops["sliding"] <= 1.40 * flops["one"]
    assert flops["anew"] >= 2.2 * flops["sliding"]
