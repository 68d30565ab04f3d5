# SPDX-License-Identifier: Apache-2.0
"""Memory does not grow with the number of training steps."""

import ctypes
import gc
from pathlib import Path

import numpy as np
import pytest
from transformers import TrainerCallback

from tiny import tiny_model
from transformers_themask.training.trainer import VSSTrainer

WARM_UP_STEPS = 50
PAGE_SIZE = 4096


class HeldMemory(TrainerCallback):
    """Notes every ten steps how much main memory the process holds when all that can be freed is freed, in MiB."""

    def __init__(self):
        self.steps, self.sizes = [], []

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % 10 == 0 and state.global_step > WARM_UP_STEPS:
            gc.collect()
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            self.steps.append(state.global_step)
            self.sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_SIZE / 2**20)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")  # its new name is 5.23's
@pytest.mark.parametrize(
    "checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["plain", "gradient_checkpointing"]
)
def test_two_hundred_training_steps_hold_no_more_memory_than_fifty(
    clips, training_arguments, processor, checkpointing
):
    """At most 1 MiB in ten steps, by the line through all readings."""
    args = training_arguments(max_steps=200, one_round_steps=20, gradient_checkpointing=checkpointing)
    held = HeldMemory()
    trainer = VSSTrainer(tiny_model(num_frames=2, num_labels=8), args, processor, train_dataset=clips((-1, 0)))
    trainer.add_callback(held)
    trainer.train()
    slope, _ = np.polyfit(held.steps, held.sizes, 1)
    assert len(held.sizes) == 15
    assert 10 * slope <= 1.0, held.sizes
