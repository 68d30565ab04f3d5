# SPDX-License-Identifier: Apache-2.0
"""`themask demo`: train on synthetic videos and draw what the model sees."""

import argparse
from pathlib import Path
from typing import Any

from .command import add_command


def add_to(commands: Any) -> None:
    """Add the command to the parser's commands."""
    command = add_command(commands, "demo", run)
    command.add_argument("-o", "--output", type=Path, default=Path("demo"), metavar="DIR", help="(default: demo)")


def run(options: argparse.Namespace) -> None:
    """Train on synthetic videos, score the model and draw what it sees."""
    from transformers_themask.demo import run_demo

    def announce(line: str) -> None:
        print(line, flush=True)  # before what the training processes print

    for name, path in run_demo(options.output, announce).items():
        print(f"{name}: {path.resolve()}")
