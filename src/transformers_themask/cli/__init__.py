# SPDX-License-Identifier: Apache-2.0
"""The `themask` command: parse, call, print."""

# What a sub-command alone needs is imported inside its `run`.
import argparse
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from . import aggregate, card, check_data, compare, convert, correct, demo, evaluate, export, queries, segment

INCOMPLETE = 1
INPUT_ERROR = 2
# Added to the number of the signal, as shells do.
INTERRUPTED = 128


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command. A problem with the input is one sentence on stderr and a non-zero exit code.

    Args:
        arguments (`Sequence[str]`, *optional*):
            Command line without the program's name. Defaults to `sys.argv[1:]`.

    Returns:
        `int`: The exit code: 0; 1 if a video is damaged and everything before the damage has been delivered; 2 for
        any other problem with the input; 130 after Ctrl-C, 143 after SIGTERM, which leave nothing half-written.
        `data check` ends with 1 when it finds a problem.
    """
    options = _parser().parse_args(arguments)
    try:
        with _interrupted_by_sigterm():
            code = options.run(options)
    except KeyboardInterrupt as interruption:
        print(f"themask {options.command}: interrupted; what was unfinished is removed", file=sys.stderr)
        return INTERRUPTED + (interruption.args[0] if interruption.args else signal.SIGINT)
    except (ValueError, OSError) as error:
        if options.debug:
            raise
        print(f"themask {options.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return _exit_code(error)
    return 0 if code is None else code


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, with everything that is cleaned up then."""

    def interrupt(number: int, _: Any) -> None:
        raise KeyboardInterrupt(number)

    if threading.current_thread() is not threading.main_thread():  # where no signal arrives
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _exit_code(error: Exception) -> int:
    from transformers_themask.videos.source import IncompleteVideoError

    return INCOMPLETE if isinstance(error, IncompleteVideoError) else INPUT_ERROR


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="themask", description="Video semantic segmentation with THE-Mask.")
    parser.add_argument("--version", action="version", version=f"themask {version('transformers-themask')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (segment, compare, aggregate, correct, queries, evaluate, card, check_data, convert, export, demo):
        command.add_to(commands)
    return parser
