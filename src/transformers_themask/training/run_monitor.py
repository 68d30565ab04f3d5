# SPDX-License-Identifier: Apache-2.0
"""Learning rates, throughput and peak memory for the log."""

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from transformers import TrainerCallback

from .arguments import clips_per_step

MIB = 2**20


class RunMonitor(TrainerCallback):
    """Measures the optimiser steps between log entries, with a monotonic `clock` in seconds.

    - `learning_rate_<group>`: the rate of each named parameter group in the last step.
    - `clips_per_second`, `frames_per_second`: of all processes. Waiting for data counts, evaluation and saving do not.
    - `peak_memory_mib`: the largest peak of any process, of GPU memory or, on the CPU, of main memory without its data
      workers.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.clock = clock
        self._learning_rates: dict[str, float] = {}
        self._is_running = False
        self._last_moment = 0.0
        self._seconds = 0.0
        self._clips = 0
        self._frames = 0

    def on_step_begin(self, args, state, control, **kwargs):
        """Start the clock at the first step, when a resumed run has skipped the clips of earlier steps."""
        if not self._is_running:
            self._is_running = True
            self._last_moment = self.clock()

    def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        """Record the learning rates before the schedule changes them."""
        self._learning_rates = {
            f"learning_rate_{group['name']}": group["lr"] for group in optimizer.param_groups if "name" in group
        }

    def on_step_end(self, args, state, control, train_dataloader=None, **kwargs):
        """Count the step."""
        now = self.clock()
        self._seconds += now - self._last_moment
        self._last_moment = now
        num_clips = clips_per_step(args)
        self._clips += num_clips
        self._frames += num_clips * len(train_dataloader.dataset.frame_offsets)

    def on_evaluate(self, args, state, control, **kwargs):
        """Exclude evaluation and the writing of a checkpoint from the throughput."""
        self._last_moment = self.clock()

    on_save = on_evaluate

    def pop_readings(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the readings since the last call and reset; collective over all processes."""
        readings = dict(self._learning_rates)
        if self._seconds > 0:
            readings["clips_per_second"] = round(self._clips / self._seconds, 3)
            readings["frames_per_second"] = round(self._frames / self._seconds, 3)
        self._seconds, self._clips, self._frames = 0.0, 0, 0
        peak: Any = torch.tensor([peak_memory(accelerator.device) / MIB], device=accelerator.device)
        readings["peak_memory_mib"] = round(accelerator.gather(peak).max().item(), 1)
        return readings


def peak_memory(device: torch.device) -> int:
    """Peak memory of this process in bytes: of its tensors on a GPU, or of all its main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # only on Unix

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
