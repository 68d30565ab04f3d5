# SPDX-License-Identifier: Apache-2.0
"""Means of what models report, from one log entry to the next, kept across a crash."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor


class LossMeter:
    """Adds up the loss terms and statistics of the batches of one process.

    Loss terms are shares of an optimiser step: they are summed over its batches and processes and averaged over steps.
    Statistics are averaged over batches and processes.
    """

    def __init__(self):
        self.last_logged_step = 0
        self._clear()

    def add(self, loss_terms: Mapping[str, Tensor], statistics: Mapping[str, Tensor]) -> None:
        """Add one batch.

        Args:
            loss_terms (`Mapping[str, torch.Tensor]`): Scalars, this batch's shares.
            statistics (`Mapping[str, torch.Tensor]`): Scalars.
        """
        self.loss_names |= set(loss_terms)
        for name, value in {**loss_terms, **statistics}.items():
            value = value.detach()  # summed where it is: reading it would wait for the GPU at every step
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] += 1

    def pop_means(self, accelerator: Accelerator, step: int) -> dict[str, float]:
        """Return the means since the last call, over all processes, and start anew.

        Args:
            accelerator (`Accelerator`): Reduces over the processes.
            step (`int`): Number of optimiser steps done.
        """
        names = sorted(self.sums)
        if not names or step == self.last_logged_step:
            return {}
        num_steps = step - self.last_logged_step
        values = [
            self.sums[name].to(accelerator.device) / (num_steps if name in self.loss_names else self.counts[name])
            for name in names
        ]
        totals = accelerator.reduce(torch.stack(values), reduction="sum").tolist()
        means = {
            name: total if name in self.loss_names else total / accelerator.num_processes
            for name, total in zip(names, totals, strict=True)
        }
        self._clear()
        self.last_logged_step = step
        return means

    def _clear(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: defaultdict[str, int] = defaultdict(int)
        self.loss_names: set[str] = set()

    def state_dict(self) -> dict[str, Any]:
        """What this process needs to go on after a crash as if there had been none."""
        return {
            "sums": self.sums,
            "counts": dict(self.counts),
            "loss_names": sorted(self.loss_names),
            "last_logged_step": self.last_logged_step,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned.

        Args:
            state (`Mapping[str, Any]`): The state.
        """
        self.sums = dict(state["sums"])
        self.counts = defaultdict(int, state["counts"])
        self.loss_names = set(state["loss_names"])
        self.last_logged_step = state["last_logged_step"]
