# SPDX-License-Identifier: Apache-2.0
"""The `themask` command. It imports `transformers_themask`, and with it PyTorch, only to run a sub-command."""

import argparse
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from types import FrameType

from .commands import COMMANDS, GROUPS

INCOMPLETE = 1
INPUT_ERROR = 2
# Added to the number of the signal, as shells do.
INTERRUPTED = 128


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command, by default of `sys.argv`. A problem with the input is one line on stderr.

    Returns the exit code: 0; 1 if a video is damaged and everything before the damage has been delivered, or
    `data check` finds a problem; 2 for any other problem with the input; 130 after Ctrl-C and 143 after SIGTERM, which
    leave nothing half-written.
    """
    options = command_parser().parse_args(arguments)
    try:
        with _interrupted_by_sigterm():
            module = import_module(f"transformers_themask.cli.{options.command.replace(' ', '_')}")
            code = module.run(options)
    except KeyboardInterrupt as interruption:
        print(f"themask {options.command}: interrupted; unfinished output has been removed", file=sys.stderr)
        return INTERRUPTED + (interruption.args[0] if interruption.args else signal.SIGINT)
    except (ValueError, OSError) as error:
        if options.debug:
            raise
        from transformers_themask.terminal_text import error_line
        from transformers_themask.videos.source import IncompleteVideoError

        print(f"themask {options.command}: {error_line(error)}", file=sys.stderr)
        return INCOMPLETE if isinstance(error, IncompleteVideoError) else INPUT_ERROR
    return 0 if code is None else code


def command_parser() -> argparse.ArgumentParser:
    """The parser of all sub-commands; it sets `command` to the name of the one that is given."""
    parser = argparse.ArgumentParser(prog="themask", description="Video semantic segmentation.")
    parser.add_argument("--version", action="version", version=f"themask {version('transformers-themask')}")
    places = {"": parser.add_subparsers(required=True, metavar="COMMAND")}
    for name, add_options in COMMANDS.items():
        group, _, last = name.rpartition(" ")
        if group not in places:
            parent = places[""].add_parser(group, help=GROUPS[group])
            places[group] = parent.add_subparsers(required=True, metavar="COMMAND")
        text = " ".join((add_options.__doc__ or "").split())
        command = places[group].add_parser(last, help=text, description=text)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.set_defaults(command=name)
        add_options(command)
    return parser


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, with the same cleaning up."""

    def interrupt(number: int, _: FrameType | None) -> None:
        raise KeyboardInterrupt(number)

    if threading.current_thread() is not threading.main_thread():  # where no signal arrives
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
