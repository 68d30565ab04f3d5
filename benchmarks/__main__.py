# SPDX-License-Identifier: Apache-2.0
"""Measure this package: `python -m benchmarks COMMAND --help`."""

import argparse
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from transformers import logging

COMMANDS = {
    "rows": "time, memory, operations and synchronisations beside other implementations",
    "plot": "docs/performance.md and its plots from the reports of `rows`",
    "against": "rows beside another checkout of this package",
    "costs": "parameters, operations and speed of every family, as the papers report them",
    "stream": "a new frame in a stream beside a frame alone and its clip computed anew",
    "loader": "the training loader beside a plain chain of Pillow and NumPy",
    "pipeline": "overlap of the stages of `themask segment`",
    "stream-memory": "memory over the length of a video",
    "training-memory": "memory of a training step with and without activation checkpointing",
    "query-shares": "queries that receive a target with one and two rounds of matching",
    "start-up": "import time of the package and of the modules that it builds on",
}


def main(arguments: list[str] | None = None) -> None:
    """Run a command; invalid input is an error message and exit code 2."""
    lines = [f"  {name:<17}{about}" for name, about in COMMANDS.items()]
    layout: Any = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, epilog="commands:\n" + "\n".join(lines), **layout
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="...", help="options of the command")
    chosen = parser.parse_args(arguments)
    command = import_module(f".{chosen.command.replace('-', '_')}", __package__)
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks {chosen.command}", description=command.__doc__, **layout
    )
    if chosen.command != "plot":
        parser.add_argument("--json", type=Path, help="file for the results")
    command.add_options(parser)
    options = parser.parse_args(chosen.options)
    logging.set_verbosity_error()  # Transformers expects a Swin in its Mask2Former
    torch.set_num_threads(1)
    path = getattr(options, "json", None)
    try:
        check_writable(path)
        for report in command.run(options):
            if path is not None:
                path.write_text(json.dumps(report, indent=2) + "\n")
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))


def check_writable(path: Path | None) -> None:
    """Raise a `ValueError` unless the file can be written; its content stays until there are results."""
    if path is not None:
        try:
            path.open("a").close()
        except OSError as error:
            raise ValueError(f"`--json` must be a writable file. Got {path}: {error.strerror}.") from error


if __name__ == "__main__":
    main()
