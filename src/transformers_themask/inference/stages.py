# SPDX-License-Identifier: Apache-2.0
"""Stages of work in threads of their own, joined by bounded queues."""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from threading import Condition, RLock, Thread
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Stages:
    """Threads that end together.

    Leaving the `with` block waits for all of them. The first error, in a thread or in the block, stops every thread
    the next time it touches a queue, and is raised out of the block with its own traceback.
    """

    def __init__(self) -> None:
        # One lock for everything: there are few threads, and a frame's work is long against a hand-over. But a change
        # wakes only the two threads that it concerns: each one woken in vain would hold up those that compute.
        self._lock = RLock()
        self._conditions: list[Condition] = []
        self.is_stopped = False
        self._error: BaseException | None = None
        self._threads: list[Thread] = []

    def start(self, work: Callable[[], None]) -> None:
        """Run `work` in a thread; what it raises stops all stages."""
        # As daemons they cannot keep a program alive that a second interruption has thrown out of the waiting below.
        thread = Thread(target=self._run, args=(work,), name=f"stage {len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def run(self, items: Generator[Item, None, None], capacity: int) -> "StageQueue[Item]":
        """Run a generator in a thread, at most `capacity` items ahead of whoever takes them."""
        queue: StageQueue[Item] = StageQueue(self, capacity)

        def fill() -> None:
            with closing(items):
                for item in items:
                    queue.put(item)
            queue.end()

        self.start(fill)
        return queue

    def condition(self) -> Condition:
        """What threads of these stages can wait for; stopping wakes them."""
        with self._lock:
            condition = Condition(self._lock)
            self._conditions.append(condition)
        return condition

    def stop(self, error: BaseException) -> None:
        """Stop all threads because of an error; the first one is kept, as what comes of it is no reason."""
        with self._lock:
            if not self.is_stopped or isinstance(self._error, StoppedError):
                self.is_stopped, self._error = True, error
            for condition in self._conditions:
                condition.notify_all()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except StoppedError:
            pass
        except BaseException as error:
            self.stop(error)

    def _join(self) -> None:
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> "Stages":
        return self

    def __exit__(self, error_type: object, error: BaseException | None, traceback: object) -> None:
        if error is not None:
            self.stop(error)
        try:
            self._join()
        except BaseException as interruption:  # Ctrl-C while waiting
            self.stop(interruption)
            self._join()
        if isinstance(self._error, StoppedError):
            raise RuntimeError("A stage must take all items of its queue or fail. One has left without an error.")
        if self._error is not None and self._error is not error:
            context = self._error.__context__
            try:
                raise self._error
            finally:
                # Not "during handling of a StoppedError": the error came first.
                self._error.__context__ = context


class StageQueue(Generic[Item]):
    """At most `capacity` items on their way from one thread to another.

    One thread puts and ends, one other iterates. Once the iteration has been left early, putting raises a
    [`StoppedError`], so that the stages before it end too.
    """

    def __init__(self, stages: Stages, capacity: int):
        if capacity < 1:
            raise ValueError(f"`capacity` must be at least 1. Got {capacity}.")
        self._stages = stages
        self._changed = stages.condition()
        self._capacity = capacity
        self._waiting: deque[Item] = deque()
        self._has_ended = False
        self._is_left = False

    def put(self, item: Item) -> None:
        """Append an item, once there is room."""
        with self._changed:
            self._wait_until(lambda: self._is_left or len(self._waiting) < self._capacity)
            if self._is_left:
                raise StoppedError
            self._waiting.append(item)
            self._changed.notify_all()

    def end(self) -> None:
        """Say that no further item comes."""
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Item]:
        """Yield the items in order, waiting for them, until the end."""
        try:
            while True:
                with self._changed:
                    self._wait_until(lambda: self._has_ended or len(self._waiting) > 0)
                    if not self._waiting:
                        return
                    item = self._waiting.popleft()
                    self._changed.notify_all()
                yield item
                del item  # the next one may be long in coming
        finally:
            with self._changed:
                self._is_left = True
                self._waiting.clear()
                self._changed.notify_all()

    def _wait_until(self, is_ready: Callable[[], bool]) -> None:
        stages = self._stages
        self._changed.wait_for(lambda: stages.is_stopped or is_ready())
        if stages.is_stopped:
            raise StoppedError


class StoppedError(Exception):
    """Raised at a queue whose stages have been stopped; it never leaves the `with` block of [`Stages`]."""
