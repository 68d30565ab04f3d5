# SPDX-License-Identifier: Apache-2.0
"""Serve the page."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers_themask.models.protocols import VideoModel, VideoProcessor

STYLE = Path(__file__).with_name("style.css")
MAX_FILE_SIZE = "2gb"


def check_installation() -> None:
    """Raise a `ValueError` unless Gradio is installed."""
    if find_spec("gradio") is None:
        raise ValueError(
            "`--web` must find Gradio. Got an installation without it; run `pip install 'transformers-themask[demo]'`."
        )


def check_address(host: str, port: int | None) -> None:
    """Raise a `ValueError` unless a server can listen at this address, before a model is loaded for it."""
    try:
        socket.create_server((host, port or 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"`--host` and `--port` must be an address that is free. Got {host} and {port} ({reason}). Choose another "
            "port, or leave it out."
        ) from error


def wait_for_end() -> None:
    """Wait until the process is interrupted or asked to terminate."""
    handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, handler)


@contextmanager
def serving(
    model: VideoModel,
    processor: VideoProcessor,
    model_name: str,
    host: str = "127.0.0.1",
    port: int | None = None,
    max_file_size: str = MAX_FILE_SIZE,
) -> Iterator[Any]:
    """Serve the page for one model, on its device, while the block runs; yields the `gr.Blocks` with its `local_url`.

    Nothing is loaded from other machines, and uploaded files are deleted when the block ends. The default `host` is
    reached from this computer only; without a `port`, the first free one from 7860 on is taken.
    """
    with TemporaryDirectory(prefix="themask-web-", ignore_cleanup_errors=True) as folder:
        jobs, cache = Path(folder, "jobs"), Path(folder, "gradio")
        jobs.mkdir()
        # Gradio reads the one when it is imported and the other all the time.
        with _environment(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=str(cache)):
            from .page import Page
            from .theme import page_theme

            page = Page(model, processor, model_name, jobs)
            page.blocks.launch(
                server_name=host,
                server_port=port,
                max_file_size=max_file_size,
                theme=page_theme(),
                css_paths=STYLE,
                footer_links=[],
                share=False,
                ssr_mode=False,
                quiet=True,
                prevent_thread_lock=True,
            )
            try:
                yield page.blocks
            finally:
                page.stop_all()
                page.blocks.close(verbose=False)


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Environment variables that hold inside the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
