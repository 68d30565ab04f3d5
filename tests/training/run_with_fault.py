# SPDX-License-Identifier: Apache-2.0
"""Runs a script and strikes it down at one moment: `run_with_fault.py FAULT SCRIPT [ARGUMENT ...]`.

FAULT is `none`, `kill-in-step:N` (SIGKILL after the backward pass of optimiser step N), `kill-in-write:N` (SIGKILL
when half of the N-th optimiser state is written) or `terminate-in-step:N` (SIGTERM).
"""

import os
import runpy
import signal
import sys
from pathlib import Path

import torch

counts = {"step": 0, "write": 0}
original_step, original_save = torch.optim.AdamW.step, torch.save


def strike(signal_number: int) -> None:
    os.kill(os.getpid(), signal_number)


def step(self, *args, **kwargs):
    counts["step"] += 1
    if fault == "kill-in-step" and counts["step"] == moment:
        strike(signal.SIGKILL)
    if fault == "terminate-in-step" and counts["step"] == moment:
        strike(signal.SIGTERM)
    return original_step(self, *args, **kwargs)


def save(content, file, *args, **kwargs):
    original_save(content, file, *args, **kwargs)
    if str(file).endswith("optimizer.pt"):
        counts["write"] += 1
        if fault == "kill-in-write" and counts["write"] == moment:
            os.truncate(file, Path(file).stat().st_size // 2)
            strike(signal.SIGKILL)


if __name__ == "__main__":
    fault, _, number = sys.argv[1].partition(":")
    moment = int(number or 0)
    torch.optim.AdamW.step, torch.save = step, save
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
