# SPDX-License-Identifier: Apache-2.0
"""A checkpoint before the process ends on SIGTERM, as on preempted machines."""

import signal
import threading
from typing import Any

import torch
from accelerate import Accelerator
from transformers import TrainerCallback


class StopOnSignal(TrainerCallback):
    """Ends training with a checkpoint at an optimiser step after SIGTERM.

    Processes agree on that step: a signal reaches them at different moments, and some of them twice, from the
    launcher and directly. Data loader workers inherit the handler, so the signal does not end them.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.was_signalled = False
        self.has_stopped = False
        self._previous_handler: Any = None
        self._agreement: torch.Tensor | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        """Install the signal handler."""
        if threading.current_thread() is threading.main_thread():
            self._previous_handler = signal.signal(signal.SIGTERM, self._remember)

    def on_train_end(self, args, state, control, **kwargs):
        """Restore the previous signal handler."""
        if self._previous_handler is not None:
            signal.signal(signal.SIGTERM, self._previous_handler)
            self._previous_handler = None

    def on_step_end(self, args, state, control, **kwargs):
        """Request a checkpoint and the end of training once every process knows of the signal."""
        if self._everyone_knows():
            self.has_stopped = True
            control.should_save = True
            control.should_training_stop = True

    def _remember(self, signum, frame) -> None:
        self.was_signalled = True

    def _everyone_knows(self) -> bool:
        if self.accelerator.num_processes == 1:
            return self.was_signalled
        # The result of the previous step's reduction is read, to avoid waiting for the GPU.
        earlier = self._agreement
        flag = torch.tensor(float(self.was_signalled), device=self.accelerator.device)
        self._agreement = self.accelerator.reduce(flag, reduction="sum")
        return earlier is not None and bool(earlier > 0)
