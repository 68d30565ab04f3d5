# SPDX-License-Identifier: Apache-2.0
"""The `themask` command: parse, call, print."""

# What a sub-command alone needs is imported inside its `run`.
import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version

from . import card, check_data, convert, demo, evaluate, segment

INPUT_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command. A problem with the input is one sentence on stderr and exit code 2.

    Args:
        arguments (`Sequence[str]`, *optional*):
            Command line without the program's name. Defaults to `sys.argv[1:]`.

    Returns:
        `int`: The exit code: 0, or 2 for a problem with the input; `data check` ends with 1 when it finds one.
    """
    options = _parser().parse_args(arguments)
    try:
        code = options.run(options)
    except (ValueError, OSError) as error:
        if options.debug:
            raise
        print(f"themask {options.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return INPUT_ERROR
    return 0 if code is None else code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="themask", description="Video semantic segmentation with THE-Mask.")
    parser.add_argument("--version", action="version", version=f"themask {version('transformers-themask')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (segment, evaluate, card, check_data, convert, demo):
        command.add_to(commands)
    return parser
