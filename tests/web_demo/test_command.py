# SPDX-License-Identifier: Apache-2.0
"""What `themask demo --web` says when it cannot begin."""

import socket
import sys

import pytest

from themask_command import main


def error_of(arguments, capsys):
    assert main(["demo", *map(str, arguments)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    return error.removeprefix("themask demo: ")


def test_without_gradio_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert error_of(["--web"], capsys) == (
        "`--web` must find Gradio. Got an installation without it; run `pip install 'transformers-themask[demo]'`."
    )


def test_without_a_model_it_asks_for_one(tmp_path, capsys):
    error = error_of(["--web", "-o", tmp_path], capsys)
    assert f"There is none in {tmp_path / 'stage2'}; run `themask demo` first, or give a model." in error


@pytest.mark.parametrize("option", [("--model", "x"), ("--port", "1"), ("--host", "0.0.0.0")])
def test_options_of_the_page_need_the_page(option, capsys):
    assert error_of(option, capsys) == f"`{option[0]}` must be used with `--web`. Got {option[1]} without it."


def test_unusable_server_address_is_one_sentence(capsys):
    rule = "`--host` and `--port` must be an address that is free. Got "
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert error_of(["--web", "--port", port], capsys).startswith(f"{rule}127.0.0.1 and {port} (Address already")
    assert error_of(["--web", "--port", 65536], capsys).startswith(f"{rule}127.0.0.1 and 65536 (")
    assert error_of(["--web", "--host", "not.a.host.invalid"], capsys).startswith(f"{rule}not.a.host.invalid and None")
