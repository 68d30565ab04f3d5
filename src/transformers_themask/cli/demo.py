# SPDX-License-Identifier: Apache-2.0
"""`themask demo`: train on synthetic videos, or serve a model in the browser."""

import argparse
from functools import partial
from pathlib import Path

from transformers_themask.demo import run_demo
from transformers_themask.inference.loading import load_model
from transformers_themask.web_demo.server import check_address, check_installation, serving, wait_for_end

from .command import usable_device


def run(options: argparse.Namespace) -> None:
    """Train, score and draw, or with `--web` serve a model until Ctrl-C."""
    if options.web:
        return _serve(options)
    for name in ("model", "host", "port"):
        if getattr(options, name) is not None:
            raise ValueError(f"`--{name}` must be used with `--web`. Got {getattr(options, name)} without it.")
    # Flushed before what the training processes print.
    for name, path in run_demo(options.output, partial(print, flush=True)).items():
        print(f"{name}: {path.resolve()}")


def _serve(options: argparse.Namespace) -> None:
    host = options.host or "127.0.0.1"
    check_installation()
    check_address(host, options.port)
    path = options.model or str(options.output / "stage2")
    if options.model is None and not Path(path, "config.json").is_file():
        raise ValueError(
            f"`--model` must be given unless `themask demo` has trained a model. There is none in {path}; run "
            "`themask demo` first, or give a model."
        )
    model, processor = load_model(path, argument="--model")
    model.to(usable_device(None))
    name = "/".join(Path(path).parts[-2:])
    with serving(model, processor, name, host, options.port) as page:
        print(f"{page.local_url} (Ctrl-C ends it)", flush=True)
        wait_for_end()
