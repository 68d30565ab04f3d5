# SPDX-License-Identifier: Apache-2.0
"""What the sub-commands share."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def add_command(commands: Any, name: str, run: Callable[[argparse.Namespace], int | None]) -> argparse.ArgumentParser:
    """Add a sub-command whose help is the docstring of the function that runs it."""
    command = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    command.set_defaults(run=run)
    return command


def load_model(path: str) -> tuple[Any, Any]:
    """Load a model and its video processor."""
    from transformers_themask.inference import loading

    return loading.load_model(path, argument="--model")


def usable_device(name: str | None) -> str:
    """The device asked for, or the best one there is."""
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, ImportError) as error:  # unknown, not compiled in, not there
        raise ValueError(
            f"`--device` must be a device that PyTorch can use here, such as cpu or cuda. Got {name!r}; `--debug` "
            "shows why not."
        ) from error
    return name


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Put a file's name before what is wrong with its content."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def counted(number: int, noun: str) -> str:
    """`1 frame`, `2 frames`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
