# SPDX-License-Identifier: Apache-2.0
"""A run that is killed again and again ends exactly like one that is not."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
FAULTY = Path(__file__).with_name("run_with_fault.py")
# Checkpoints after 3, 6 and 9 of 10 optimiser steps of two batches each; log entries cover two steps, so that some are
# cut in two by a crash; dropout and drop path are on; the one-round loss ends between two checkpoints.
OPTIONS = {
    "max_steps": 10,
    "save_steps": 3,
    "eval_strategy": "steps",
    "eval_steps": 3,
    "logging_steps": 2,
    "one_round_steps": 5,
    "save_total_limit": 2,
    "dataloader_num_workers": 1,
}
# What depends on the clock and the machine, not on the recipe.
MEASURED = ("runtime", "per_second", "memory", "flos")


@pytest.fixture(scope="module")
def run(data_root):
    def start(output_dir, fault="none", **options):
        flags = [f"--{name}={value}" for name, value in {**OPTIONS, **options}.items()]
        flags += [f"--data_root={data_root}", f"--output_dir={output_dir}", "--disable_tqdm=true", "--use_cpu"]
        return subprocess.run(
            [sys.executable, str(FAULTY), fault, "scripts/run_vss.py", "recipes/smoke.yaml", *flags],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
        )

    return start


@pytest.fixture(scope="module")
def run_on_two(data_root):
    """The same on two processes, of which a launcher strikes none down."""

    def start(output_dir, **options):
        flags = [f"--{name}={value}" for name, value in options.items()]
        flags += [f"--data_root={data_root}", f"--output_dir={output_dir}", "--disable_tqdm=true", "--use_cpu"]
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        return subprocess.run(
            [*launcher, "scripts/run_vss.py", "recipes/smoke.yaml", "--do_eval=false", *flags],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
        )

    return start


def history(output_dir: Path) -> list[dict]:
    entries = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    return [
        {name: value for name, value in entry.items() if not any(word in name for word in MEASURED)}
        for entry in entries
        if "train_runtime" not in entry
    ]


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_exactly_like_an_undisturbed_one(run, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    undisturbed = run(whole)
    assert undisturbed.returncode == 0, undisturbed.stderr

    assert run(killed, "kill-in-step:2").returncode == -signal.SIGKILL  # nothing is saved yet
    assert run(killed, "kill-in-step:5").returncode == -signal.SIGKILL  # in the middle of step 5, after checkpoint 3
    # The second write of this run, which goes on from checkpoint 3, is that of checkpoint 9.
    assert run(killed, "kill-in-write:2").returncode == -signal.SIGKILL
    assert sorted(path.name for path in killed.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6"]

    terminated = run(killed, "terminate-in-step:2")
    assert terminated.returncode == 128 + signal.SIGTERM, terminated.stderr
    assert "Skipping incomplete" in terminated.stdout and "checkpoint-9" in terminated.stdout
    assert "stopped at step 8 with a checkpoint" in terminated.stdout
    assert not (killed / "model.safetensors").exists()

    finished = run(killed)
    assert finished.returncode == 0, finished.stderr
    assert f"resuming from {killed / 'checkpoint-8'}" in finished.stdout
    assert history(killed) == history(whole)
    states = [json.loads((folder / "trainer_state.json").read_text()) for folder in (whole, killed)]
    for name in ("best_metric", "best_global_step", "global_step", "epoch"):
        assert states[0][name] == states[1][name]
    weights, expected = load_file(killed / "model.safetensors"), load_file(whole / "model.safetensors")
    assert all(weights[name].equal(value) for name, value in expected.items())


@pytest.mark.slow
def test_two_processes_resume_in_the_middle_of_a_later_epoch(run_on_two, tmp_path):
    """Three steps an epoch; checkpoint 4 lies inside the second. Persistent workers start once more than before."""
    options = {"max_steps": 6, "save_steps": 2, "gradient_accumulation_steps": 1, "dataloader_num_workers": 1}
    options["dataloader_persistent_workers"] = "true"
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    done = run_on_two(whole, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    shutil.copytree(whole / "checkpoint-4", resumed / "checkpoint-4")
    again = run_on_two(resumed, **options)
    assert again.returncode == 0 and "resuming from" in again.stdout, again.stderr[-3000:]
    assert history(resumed) == history(whole)
    weights, expected = load_file(resumed / "model.safetensors"), load_file(whole / "model.safetensors")
    assert all(weights[name].equal(value) for name, value in expected.items())
