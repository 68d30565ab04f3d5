# SPDX-License-Identifier: Apache-2.0
import itertools
import signal
import threading
import traceback

import pytest

from transformers_themask.inference.stages import StageQueue, Stages

TIMEOUT = 20


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("stage")]


class Endless:
    """Numbers without end, and whether their generator has been closed."""

    def __init__(self):
        self.is_closed = False

    def numbers(self):
        try:
            yield from itertools.count()
        finally:
            self.is_closed = True


def test_items_pass_all_stages_in_order():
    threads = set()

    def noted(items):
        threads.add(threading.current_thread())
        yield from items

    with Stages() as stages:
        numbers = stages.run(noted(range(500)), capacity=3)
        squares = stages.run(noted(number**2 for number in numbers), capacity=1)
        assert list(squares) == [number**2 for number in range(500)]
    assert len(threads) == 2 and threading.current_thread() not in threads


def test_a_stage_runs_ahead_until_its_queue_is_full():
    made, is_ahead = [], threading.Event()

    def numbers():
        for number in range(100):
            made.append(number)
            if len(made) == 4:  # three waiting, one in its hands
                is_ahead.set()
            yield number

    with Stages() as stages:
        queue = stages.run(numbers(), capacity=3)
        assert is_ahead.wait(TIMEOUT)
        for taken, _ in enumerate(queue, start=1):
            assert len(made) <= taken + 4
    assert len(made) == 100


def test_items_reach_a_thread_from_the_block():
    received = []
    with Stages() as stages:
        queue = StageQueue(stages, capacity=1)
        stages.start(lambda: received.extend(queue))
        for number in range(50):
            queue.put(number)
        queue.end()
    assert received == list(range(50))


def fail_at_three(numbers):
    for number in numbers:
        if number == 3:
            raise OSError("three") from ValueError("cause")
        yield number


def test_an_error_of_a_stage_stops_all_and_is_raised_with_its_own_traceback():
    endless, received = Endless(), []
    with pytest.raises(OSError, match="three") as caught, Stages() as stages:
        first = stages.run(endless.numbers(), capacity=2)
        second = stages.run(fail_at_three(first), capacity=2)
        received.extend(second)
    assert received == [0, 1, 2][: len(received)]
    assert endless.is_closed
    assert "fail_at_three" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert isinstance(caught.value.__cause__, ValueError) and caught.value.__context__ is None


def test_an_error_at_the_end_of_the_line_releases_whoever_waits_to_put():
    with pytest.raises(OSError, match="three"), Stages() as stages:
        queue = StageQueue(stages, capacity=1)
        stages.start(lambda: list(fail_at_three(queue)))
        for number in itertools.count():
            queue.put(number)


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_in_the_block_stops_the_threads(error):
    endless = Endless()
    with pytest.raises(error), Stages() as stages:
        next(iter(stages.run(endless.numbers(), capacity=2)))
        raise error
    assert endless.is_closed


def test_an_interruption_while_waiting_for_the_threads_stops_them():
    endless = Endless()

    def interrupt(numbers):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        for _ in numbers:
            pass

    with pytest.raises(KeyboardInterrupt), Stages() as stages:
        numbers = stages.run(endless.numbers(), capacity=2)
        stages.start(lambda: interrupt(numbers))
    assert endless.is_closed


def test_the_error_of_a_stage_comes_before_what_comes_of_it():
    """The block's next item finds nobody to take it before the stage that failed has said why."""
    items_wanted = threading.Event()

    def fail(numbers):
        try:
            for _ in numbers:
                raise OSError("why")
        finally:
            numbers.close()
            items_wanted.wait(TIMEOUT)

    with pytest.raises(OSError, match="why"), Stages() as stages:
        queue = StageQueue(stages, 1)
        stages.start(lambda: fail(iter(queue)))
        try:
            for number in itertools.count():
                queue.put(number)
        finally:
            items_wanted.set()


def test_stage_without_a_consumer_ends():
    with pytest.raises(RuntimeError, match=r"^A stage must take all items of its queue or fail\."), Stages() as stages:
        queue = StageQueue(stages, 1)
        stages.start(lambda: next(iter(queue)) and None)
        for number in itertools.count():
            queue.put(number)


def test_leaving_an_iteration_early_ends_the_stages_before_it():
    endless = Endless()
    with Stages() as stages:
        numbers = stages.run(endless.numbers(), capacity=2)
        doubled = stages.run((2 * number for number in numbers), capacity=2)
        assert list(itertools.islice(doubled, 3)) == [0, 2, 4]
    assert endless.is_closed


def test_queue_rejects_zero_capacity():
    with pytest.raises(ValueError, match=r"`capacity` must be at least 1. Got 0"):
        StageQueue(Stages(), capacity=0)
