# SPDX-License-Identifier: Apache-2.0
"""`themask demo`: train on synthetic videos and draw what the model sees, or let people try a model in the browser."""

import argparse
from pathlib import Path
from typing import Any

from .command import add_command, load_model, usable_device


def add_to(commands: Any) -> None:
    """Add the command to the parser's commands."""
    command = add_command(commands, "demo", run)
    command.add_argument("-o", "--output", type=Path, default=Path("demo"), metavar="DIR", help="(default: demo)")
    web = command.add_argument_group("in the browser")
    web.add_argument("--web", action="store_true", help="serve a page that segments the videos of its visitors")
    web.add_argument(
        "--model", metavar="DIR", help="saved model, folder or Hub id (default: the one that the demo trained in -o)"
    )
    web.add_argument("--host", metavar="ADDRESS", help="address to listen on (default: 127.0.0.1, this computer only)")
    web.add_argument("--port", type=int, metavar="N", help="port to listen on (default: a free one from 7860 on)")


def run(options: argparse.Namespace) -> None:
    """Train on synthetic videos, score the model and draw what it sees; with --web, serve a model in the browser."""
    if options.web:
        return _serve(options)
    for name in ("model", "host", "port"):
        if getattr(options, name) is not None:
            raise ValueError(f"`--{name}` must come with `--web`. Got {getattr(options, name)} without it.")
    return _train(options.output)


def _train(output: Path) -> None:
    from transformers_themask.demo import run_demo

    def announce(line: str) -> None:
        print(line, flush=True)  # before what the training processes print

    for name, path in run_demo(output, announce).items():
        print(f"{name}: {path.resolve()}")


def _serve(options: argparse.Namespace) -> None:
    from transformers_themask.web_demo.server import check_address, check_installation, serving, wait_for_end

    host = options.host or "127.0.0.1"
    check_installation()
    check_address(host, options.port)
    path = options.model or _trained_model(options.output)
    model, processor = load_model(path)
    model.to(usable_device(None))
    name = "/".join(Path(path).parts[-2:])
    with serving(model, processor, name, host, options.port) as page:
        print(f"{page.local_url} (Ctrl-C ends it)", flush=True)
        wait_for_end()


def _trained_model(output: Path) -> str:
    """The model that the demo has trained."""
    folder = output / "stage2"
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"`--model` must name a saved model unless `themask demo` has trained one. Got none, and there is none in "
            f"{folder}. Run `themask demo` first, or give a model."
        )
    return str(folder)
