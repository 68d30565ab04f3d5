# SPDX-License-Identifier: Apache-2.0
"""The `themask` command: parse, call, print."""

# What a sub-command alone needs is imported inside its `run`.
import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version

from . import card, check_data, compare, convert, demo, evaluate, export, queries, segment

INCOMPLETE = 1
INPUT_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command. A problem with the input is one sentence on stderr and a non-zero exit code.

    Args:
        arguments (`Sequence[str]`, *optional*):
            Command line without the program's name. Defaults to `sys.argv[1:]`.

    Returns:
        `int`: The exit code: 0; 1 if a video is damaged and everything before the damage has been delivered; 2 for
        any other problem with the input. `data check` ends with 1 when it finds a problem.
    """
    options = _parser().parse_args(arguments)
    try:
        code = options.run(options)
    except (ValueError, OSError) as error:
        if options.debug:
            raise
        print(f"themask {options.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return _exit_code(error)
    return 0 if code is None else code


def _exit_code(error: Exception) -> int:
    from transformers_themask.videos.source import IncompleteVideoError

    return INCOMPLETE if isinstance(error, IncompleteVideoError) else INPUT_ERROR


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="themask", description="Video semantic segmentation with THE-Mask.")
    parser.add_argument("--version", action="version", version=f"themask {version('transformers-themask')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (segment, compare, queries, evaluate, card, check_data, convert, export, demo):
        command.add_to(commands)
    return parser
