# SPDX-License-Identifier: Apache-2.0
"""Devices and checks of options that several sub-commands share."""

from pathlib import Path

import torch


def check_apart(argument: str, path: Path, source: str) -> None:
    """Raise a `ValueError` if an output would replace the input `source` or lie among its frames."""
    if Path(source).resolve() == path.resolve():
        raise ValueError(f"`{argument}` must differ from the input. Got {path} for both.")
    if Path(source).is_dir() and Path(source).resolve() == path.resolve().parent:
        raise ValueError(f"`{argument}` must not lie among the frames of the input. Got {path}. Name another folder.")


def usable_device(name: str | None) -> str:
    """The named device, by default the first GPU or else the CPU."""
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
