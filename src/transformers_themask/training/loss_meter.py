# SPDX-License-Identifier: Apache-2.0
"""Means of loss terms and statistics between log entries, which survive a resume."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor


class LossMeter:
    """Adds up loss terms and statistics of one process.

    Loss terms are shares of an optimiser step: they are summed over batches and processes and averaged over steps.
    Statistics are averaged over batches and processes.
    """

    def __init__(self):
        self.last_logged_step = 0
        self._clear()

    def add(self, loss_terms: Mapping[str, Tensor], statistics: Mapping[str, Tensor]) -> None:
        """Add the scalars of one batch; loss terms are its shares of the step."""
        self.loss_names |= set(loss_terms)
        for name, value in {**loss_terms, **statistics}.items():
            value = value.detach()  # summed on its device: reading it would wait for the GPU at every step
            self.sums[name] = self.sums[name].to(value.device) + value if name in self.sums else value
            self.counts[name] += 1

    def pop_means(self, accelerator: Accelerator, step: int) -> dict[str, float]:
        """Return the means over all processes since the last call, at an earlier optimiser `step`, and reset."""
        names = sorted(self.sums)
        if not names or step == self.last_logged_step:
            return {}
        num_steps = step - self.last_logged_step
        sums = torch.stack([self.sums[name].to(accelerator.device) for name in names])
        counts = torch.tensor([float(self.counts[name]) for name in names], device=accelerator.device)
        sums, counts = (accelerator.reduce(values, reduction="sum").tolist() for values in (sums, counts))
        means = {
            name: total / (num_steps if name in self.loss_names else count)
            for name, total, count in zip(names, sums, counts, strict=True)
        }
        self._clear()
        self.last_logged_step = step
        return means

    def _clear(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: defaultdict[str, int] = defaultdict(int)
        self.loss_names: set[str] = set()

    def state_dict(self) -> dict[str, Any]:
        """The state of this process for a checkpoint."""
        return {
            "sums": self.sums,
            "counts": dict(self.counts),
            "loss_names": sorted(self.loss_names),
            "last_logged_step": self.last_logged_step,
        }

    def load_state_dicts(self, states: Sequence[Mapping[str, Any]], process: int, num_processes: int) -> None:
        """Restore the states of all ranks; if their number has changed, rank 0 takes over all sums."""
        self._clear()
        own = states[process : process + 1] if len(states) == num_processes else states if process == 0 else []
        for state in own:
            self.loss_names |= set(state["loss_names"])
            for name, value in state["sums"].items():
                self.sums[name] = self.sums[name] + value if name in self.sums else value
                self.counts[name] += state["counts"][name]
        self.last_logged_step = max((state["last_logged_step"] for state in states), default=0)
