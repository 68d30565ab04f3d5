# SPDX-License-Identifier: Apache-2.0
"""Order, time limits and CPU costs of the tests, and the signals that they start with."""

import os
import signal
from collections import defaultdict

import pytest

# Files with the longest tests and fixtures come first, so that no worker is left with one of them at the end.
HEAVY_FILES = (
    "training/test_invariant_steps.py",
    "training/test_exact_resume.py",
    "test_deleting_a_family.py",
    "test_adding_a_family.py",
    "test_benchmark.py",
    "training/test_recipes.py",
    "export/test_export_model.py",
    "training/test_run_vss.py",
    "test_count_costs.py",
    "web_demo/test_page.py",
    "training/test_fsdp.py",
    "batch/test_segment_videos.py",
    "models/test_every_family.py",
    "models/test_loss_edges.py",
    "models/test_overfitting.py",
    "models/test_save_load.py",
    "models/test_per_frame.py",
    "inference/test_loading.py",
    "mvc/test_tta.py",
    "models/test_precision_and_compile.py",
    "training/test_evaluation.py",
    "training/test_starting_point.py",
    "models/test_mpvss.py",
    "test_saved_by_earlier_versions.py",
)
# Seconds after which a test has failed, by mark; that of all others is set in `pyproject.toml`.
TIME_LIMITS = {"slow": 1800, "nightly": 3600}
# CPU seconds above which a test without one of these marks is listed at the end.
MOST_CPU_SECONDS = 10
# What a shell may have changed for the processes that it starts in the background, and what tests rely on.
DISPOSITIONS = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGCHLD: signal.SIG_DFL,
}

cpu_seconds = defaultdict(float)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Order the files, drop tests that need recordings which are not there, and set time limits by mark."""
    order = {config.rootpath / "tests" / name: place for place, name in enumerate(HEAVY_FILES)}
    items.sort(key=lambda item: order.get(item.path, len(order)))
    for item in items:
        limits = [TIME_LIMITS[mark] for mark in TIME_LIMITS if item.get_closest_marker(mark)]
        if limits and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(max(limits)))
    if not config.getoption("--golden-dir"):
        golden = [item for item in items if item.get_closest_marker("golden")]
        config.hook.pytest_deselected(items=golden)
        items[:] = [item for item in items if not item.get_closest_marker("golden")]


@pytest.fixture(scope="session", autouse=True)
def signal_dispositions():
    """Signals act as in a process started from a terminal, also where a background job inherits that they do not."""
    before = {number: signal.signal(number, action) for number, action in DISPOSITIONS.items()}
    blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, [*DISPOSITIONS, signal.SIGALRM])  # that of the time limit
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    for number, action in before.items():
        signal.signal(number, action)


# ---- CPU time ----


def cpu_time():
    """CPU seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    item.start_of_cpu_time = cpu_time()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item):
    try:
        return (yield)
    finally:
        marks = [mark for mark in TIME_LIMITS if item.get_closest_marker(mark)]
        item.user_properties.append(("cpu_seconds", (cpu_time() - item.start_of_cpu_time, not marks)))


def pytest_runtest_logreport(report):
    for name, value in report.user_properties:
        if name == "cpu_seconds" and report.when == "teardown":
            seconds, is_unmarked = value
            if is_unmarked and seconds > MOST_CPU_SECONDS:
                cpu_seconds[report.nodeid] = seconds


def pytest_terminal_summary(terminalreporter):
    if cpu_seconds:
        terminalreporter.section(f"over {MOST_CPU_SECONDS} s of CPU time, neither slow nor nightly")
        for nodeid, seconds in sorted(cpu_seconds.items(), key=lambda item: -item[1]):
            terminalreporter.line(f"{seconds:7.1f} s  {nodeid}")
