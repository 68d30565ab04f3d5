# SPDX-License-Identifier: Apache-2.0
"""Fully sharded training.

On the CPU torch's FSDP2 (`fully_shard`) works over gloo, which the first test uses. Accelerate, and with it `Trainer`,
knows FSDP on accelerators only: it trains without sharding there and says nothing, so `VSSTrainer` does.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tiny import random_clips, tiny_model
from transformers_themask.models.step_context import StepContext


@pytest.mark.slow
def test_a_sharded_step_equals_one_process_and_reloads(tmp_path):
    worker = Path(__file__).with_name("fsdp_worker.py")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", worker, tmp_path],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    model = tiny_model(num_frames=2, dropout=0.0, aggregator_dropout=0.0)
    frames, labels = random_clips(batch_size=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    context = StepContext(point_generator=[torch.Generator().manual_seed(clip) for clip in range(2)])
    model(frames, labels, context).loss.backward()
    optimizer.step()
    assert (tmp_path / "modeling_themask.py").is_file() and not list(tmp_path.glob("*fsdp*"))
    reloaded, loading = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(reloaded.state_dict()[name], weight, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
def test_fsdp_on_the_cpu_is_rejected(data_root, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = ["scripts/run_vss.py", "recipes/smoke.yaml", "--use_cpu", "--fsdp=full_shard"]
    done = subprocess.run(
        [*command, *script, f"--data_root={data_root}", f"--output_dir={tmp_path / 'run'}"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "run_vss.py: `fsdp` must be used on accelerators" in done.stderr
