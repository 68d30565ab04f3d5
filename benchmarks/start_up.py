# SPDX-License-Identifier: Apache-2.0
"""Measure the start-up of the package and of its command line beside what they build on."""

import argparse
import resource
import subprocess
import sys
from collections.abc import Iterator
from statistics import median
from typing import Any

from .measuring import summarise_pairs, table

BASE = """\
import torch
import transformers.modeling_utils
import transformers.models.mask2former.modeling_mask2former
import transformers.pipelines
import transformers.video_processing_utils
"""
COMMAND = "import sys, themask_command; sys.exit(themask_command.main(sys.argv[1:]))"
PROCESSES = {
    "torch and Transformers": [sys.executable, "-c", BASE],
    "import transformers_themask": [sys.executable, "-c", "import transformers_themask"],
    "themask --help": [sys.executable, "-c", COMMAND, "--help"],
    "themask segment --help": [sys.executable, "-c", COMMAND, "segment", "--help"],
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--repeats", type=int, default=7, help="timed rounds (default: 7)")


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Start all processes in turns; median CPU times and paired ratios."""
    seconds: dict[str, list[float]] = {name: [] for name in PROCESSES}
    for _ in range(1 + options.repeats):
        for name, command in PROCESSES.items():
            seconds[name].append(cpu_seconds(command))
    base, *_ = seconds.values()
    result = {
        name: {"CPU s": median(times[1:]), "ratio": summarise_pairs(times[1:], base[1:])["value"]}
        for name, times in seconds.items()
    }
    print(table(result))
    yield result


def cpu_seconds(command: list[str]) -> float:
    """CPU time of a process and its children; a `ValueError` with its error output if it fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if ran.returncode:
        raise ValueError(f"`{' '.join(command)}` must exit with 0. Got {ran.returncode}: {ran.stderr.strip()}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
