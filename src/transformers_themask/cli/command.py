# SPDX-License-Identifier: Apache-2.0
"""What the sub-commands share."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

# What containers can hold.
MIN_FRAME_RATE, MAX_FRAME_RATE = Fraction(1, 1000), Fraction(1000)


def add_command(commands: Any, name: str, run: Callable[[argparse.Namespace], int | None]) -> argparse.ArgumentParser:
    """Add a sub-command whose help is the docstring of the function that runs it."""
    command = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    command.set_defaults(run=run)
    return command


def add_labelling_options(command: argparse.ArgumentParser) -> None:
    """Add how a model labels the frames of a video, and with which colours they are drawn."""
    add_clip_options(command)
    command.add_argument(
        "--palette",
        default="default",
        metavar="NAME",
        help="colours: default, vspw or colour-blind (default: default)",
    )
    command.add_argument("--alpha", type=float, default=0.5, help="opacity of the colours, 0 to 1 (default: 0.5)")
    command.add_argument("--frame-rate", type=frame_rate, default=Fraction(15), help="of a folder (default: 15)")


def add_clip_options(command: argparse.ArgumentParser) -> None:
    """Add how a model labels the frames of a video."""
    command.add_argument(
        "--mode",
        choices=("contiguous", "interleaved", "sliding", "recurrent"),
        help="how frames share a clip: contiguous blocks, the official interleaved blocks, each frame with the ones "
        "before it, or passed on from frame to frame (default: the model's first)",
    )
    command.add_argument("--num-frames", type=int, metavar="N", help="frames per clip (default: the model's)")
    command.add_argument(
        "--frame-stride",
        type=int,
        metavar="N",
        help="distance between the frames of a clip (default: 3 for interleaved clips, otherwise 1; run_vss.py "
        "evaluates with the recipe's eval_frame_stride)",
    )
    command.add_argument("--device", help="cpu, cuda, cuda:1, mps ... (default: cuda where there is one)")


def add_labelled_videos(command: argparse.ArgumentParser) -> None:
    """Add which videos label maps belong to: one, or those of a data set."""
    videos = command.add_mutually_exclusive_group(required=True)
    videos.add_argument("--video", metavar="VIDEO", help="video file or URL, or folder of jpg or png frames")
    videos.add_argument("--data", type=Path, metavar="ROOT", help="data set")
    command.add_argument("--split", default="val", help="name of the split file of --data (default: val)")


def check_labelling_options(options: argparse.Namespace) -> None:
    """Find what is wrong with the options of [`add_labelling_options`]."""
    from transformers_themask.drawing.palettes import named_palette
    from transformers_themask.drawing.visualization import check_alpha

    check_alpha(options.alpha)
    named_palette(options.palette, 1)
    check_clips(options)


def check_clips(options: argparse.Namespace) -> None:
    """Find what is wrong with the options of [`add_clip_options`]."""
    from transformers_themask.models.streaming import check_clip_options

    check_clip_options(*(1 if value is None else value for value in (options.num_frames, options.frame_stride)))


def load_model(path: str) -> tuple[Any, Any]:
    """Load a model and its video processor."""
    from transformers_themask.inference import loading

    return loading.load_model(path, argument="--model")


def frame_rate(text: str) -> Fraction:
    """Frames per second as an argument: a number or a fraction such as 30000/1001."""
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not MIN_FRAME_RATE <= rate <= MAX_FRAME_RATE:
        raise argparse.ArgumentTypeError(f"must be between {MIN_FRAME_RATE} and {MAX_FRAME_RATE}. Got {text}.")
    return rate


def check_apart(argument: str, path: Path, source: str) -> None:
    """Raise a `ValueError` if an output would replace the input or lie among its frames.

    Args:
        argument (`str`): Name of the argument that asks for the output, for the error.
        path (`Path`): The output.
        source (`str`): The input.
    """
    if Path(source).resolve() == path.resolve():
        raise ValueError(f"`{argument}` must differ from the input. Got {path} for both.")
    if Path(source).is_dir() and Path(source).resolve() == path.resolve().parent:
        raise ValueError(f"`{argument}` must not lie among the frames of the input. Got {path}. Name another folder.")


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


def autocast(device: str, bf16: bool) -> Any:
    """Compute in bfloat16 where little is lost, or leave everything as it is."""
    import torch

    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16)


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
