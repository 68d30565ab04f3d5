# SPDX-License-Identifier: Apache-2.0
"""The processes of one launch, without collective operations."""

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.distributed

POLL_SECONDS = 0.1
BEAT_SECONDS = 5.0


@dataclass
class WorkerGroup:
    """A process among others: ranks work independently, then wait for the exit code of rank 0.

    They talk through the launcher's key-value store. There is no process group, hence no collective operation in which
    one process would wait for another that works for an hour on one file or that has died. A single process needs no
    store. `patience` is the number of seconds without a sign of life before a process is given up.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    store: Any = None
    patience: float = 60.0

    @classmethod
    def of_launcher(cls) -> "WorkerGroup":
        """The group that `accelerate launch` or `torchrun` describes in the environment, or a single process."""
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            return cls()
        store, rank, size = next(torch.distributed.rendezvous("env://"))
        group = cls(rank, size, int(os.environ.get("LOCAL_RANK", 0)), store)
        threading.Thread(target=group._beat, daemon=True).start()
        return group

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def wait_for_others(self, is_stopping: Callable[[], bool] = lambda: False) -> None:
        """In the main process: return when all others have finished, died or, once stopping, had time to finish."""
        last_signs = {rank: (b"", time.monotonic()) for rank in range(1, self.size)}
        while last_signs:
            for rank, (sign, seen) in list(last_signs.items()):
                new_sign = self._read(f"alive/{rank}")
                if new_sign != sign:
                    last_signs[rank] = new_sign, time.monotonic()
                patience = BEAT_SECONDS if is_stopping() else self.patience
                if self._read(f"finished/{rank}") or time.monotonic() - seen > patience:
                    del last_signs[rank]
            time.sleep(POLL_SECONDS if last_signs else 0)

    def conclude(self, exit_code: int) -> None:
        """In the main process: tell the others the exit code and give them time to read it."""
        if self.size == 1:
            return
        self.store.set("exit_code", str(exit_code))
        deadline = time.monotonic() + BEAT_SECONDS  # the store may live in this process
        while self.store.add("readers", 0) < self.size - 1 and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    def finish(self) -> int:
        """In the other processes: report the end of the work, wait, and return the main one's exit code, or 1."""
        try:
            self.store.set(f"finished/{self.rank}", "1")
            sign, seen = b"", time.monotonic()
            while not self.store.check(["exit_code"]):
                new_sign = self._read("alive/0")
                if new_sign != sign:
                    sign, seen = new_sign, time.monotonic()
                if time.monotonic() - seen > self.patience:  # the main process is gone, its store is not
                    return 1
                time.sleep(POLL_SECONDS)
            exit_code = int(self.store.get("exit_code"))
            self.store.add("readers", 1)
        except (torch.distributed.DistError, RuntimeError):  # the main process, or the launcher, is gone
            return 1
        return exit_code

    def _read(self, key: str) -> bytes:
        return self.store.get(key) if self.store.check([key]) else b""

    def _beat(self) -> None:
        try:
            while True:
                self.store.add(f"alive/{self.rank}", 1)
                time.sleep(BEAT_SECONDS)
        except (torch.distributed.DistError, RuntimeError):  # nobody listens any more
            return
