# SPDX-License-Identifier: Apache-2.0
"""The claim of THE-Mask's Fig. 1, through the benchmark that measures it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_two_rounds_of_matching_give_a_target_to_twice_the_queries(data_root, tmp_path):
    command = [sys.executable, "-m", "benchmarks", "query-shares", "recipes/smoke.yaml", "--data_root", str(data_root)]
    fields = "{num_frames: 1, num_queries: 20}"  # more than twice as many queries as classes
    command += ["--config_overrides", fields, "--frame_offsets", "0", "--max_steps", "2", "--use_cpu", "true"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    assert "2 steps" in finished.stdout
    assert "two rounds to one, step by step: 2.0000 to 2.0000" in finished.stdout
