# SPDX-License-Identifier: Apache-2.0
"""One process of `test_fsdp.py`: shards a model with FSDP2, trains a step, saves it whole: `fsdp_worker.py FOLDER`."""

import os
import sys
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import random_clips, tiny_model
from transformers_themask.models.step_context import StepContext
from transformers_themask.training.sharding import own_class


def main() -> None:
    distributed.init_process_group("gloo")
    rank, world = distributed.get_rank(), distributed.get_world_size()
    model = tiny_model(num_frames=2, dropout=0.0, aggregator_dropout=0.0)
    mesh = distributed.init_device_mesh("cpu", (world,))
    for module in model.modules():
        if type(module).__name__ in model._no_split_modules:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert any("DTensor" in type(parameter).__name__ for parameter in model.parameters())

    frames, labels = random_clips(batch_size=world)
    counts = model.loss_counts(labels)
    generators = [torch.Generator().manual_seed(clip) for clip in range(world)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    own = slice(rank, rank + 1)
    loss = model(frames[own], labels[own], StepContext(counts, point_generator=generators[own])).loss
    (loss * world).backward()
    optimizer.step()

    state_dict = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        with own_class(model):
            model.save_pretrained(sys.argv[1], state_dict=state_dict)
        assert "FSDP" in type(model).__name__
    distributed.barrier()
    distributed.destroy_process_group()
    # Without the interpreter's shutdown: rarely, a thread of torch still asks for the interpreter then and aborts.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
