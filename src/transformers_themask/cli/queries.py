# SPDX-License-Identifier: Apache-2.0
"""`themask queries`: what the queries of a model see in one frame."""

import argparse
from collections import deque
from fractions import Fraction
from pathlib import Path
from typing import Any

from .command import add_command, check_apart, usable_device


def add_to(commands: Any) -> None:
    """Add the command to the parser's commands."""
    command = add_command(commands, "queries", run)
    command.add_argument("model", metavar="MODEL", help="saved model (folder or Hub id)")
    command.add_argument("input", metavar="INPUT", help="video file or URL, or folder of jpg or png frames")
    command.add_argument("-o", "--output", type=Path, required=True, metavar="PNG", help="picture to write")
    command.add_argument("--frame", type=int, default=0, metavar="N", help="index of the frame (default: 0)")
    command.add_argument("--class", dest="class_name", metavar="NAME", help="show this class alone")
    command.add_argument("--num-frames", type=int, metavar="N", help="frames per clip (default: the model's)")
    command.add_argument(
        "--palette",
        default="default",
        metavar="NAME",
        help="colours: default, vspw or colour-blind (default: default)",
    )
    command.add_argument("--device", help="cpu, cuda, cuda:1, mps ... (default: cuda where there is one)")


def run(options: argparse.Namespace) -> None:
    """Draw the masks of the primary and the secondary query of each class in one frame."""
    from transformers_themask.drawing.palettes import named_palette
    from transformers_themask.inference.frame_queries import query_view
    from transformers_themask.inference.loading import load_model
    from transformers_themask.videos.frame_source import open_frame_source

    _check_options(options)
    device = usable_device(options.device)
    source = open_frame_source(options.input, Fraction(15))
    model, processor = load_model(options.model, device, "MODEL")
    class_names = [model.config.id2label[index] for index in sorted(model.config.id2label)]
    if options.class_name not in (None, *class_names):
        raise ValueError(f"`--class` must be one of {', '.join(class_names)}. Got {options.class_name}.")
    clip = _clip_up_to(source, options.frame, options.num_frames or model.config.num_frames)
    view = query_view(
        model,
        processor,
        clip,
        class_index=None if options.class_name is None else class_names.index(options.class_name),
        palette=named_palette(options.palette, len(class_names)),
    )
    view.save(options.output)
    print(f"{options.output}: {view.width}x{view.height}")


def _check_options(options: argparse.Namespace) -> None:
    """Find what is wrong before anything is loaded."""
    from transformers_themask.drawing.palettes import named_palette
    from transformers_themask.models.streaming import check_clip_options
    from transformers_themask.sinks.output_folder import check_output_folder

    if options.output.suffix != ".png" or options.output.is_dir():
        raise ValueError(f"`--output` must be a file whose name ends in .png. Got {options.output}.")
    check_apart("--output", options.output, options.input)
    check_output_folder("--output", options.output.parent)
    if options.frame < 0:
        raise ValueError(f"`--frame` must be an index from 0. Got {options.frame}.")
    named_palette(options.palette, 1)
    check_clip_options(1 if options.num_frames is None else options.num_frames, 1)


def _clip_up_to(source: Any, index: int, num_frames: int) -> list[Any]:
    """A frame with the ones before it, fewer at the beginning of the video."""
    clip: deque[Any] = deque(maxlen=num_frames)
    for position, frame in enumerate(source):
        clip.append(frame)
        if position == index:
            return list(clip)
    raise ValueError(f"`--frame` must be below the number of frames. Got {index} for {position + 1} in {source.path}.")
