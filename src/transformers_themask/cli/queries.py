# SPDX-License-Identifier: Apache-2.0
"""`themask queries`: the masks of a model's queries in one frame."""

import argparse
from collections import deque
from fractions import Fraction

import numpy as np

from transformers_themask.drawing.palettes import named_palette
from transformers_themask.inference.frame_queries import query_view
from transformers_themask.inference.loading import label_names, load_model
from transformers_themask.sinks.output_folder import check_output_folder
from transformers_themask.videos.frame_source import open_frame_source
from transformers_themask.videos.source import FrameSource

from .command import check_apart, usable_device


def run(options: argparse.Namespace) -> None:
    """Draw the queries of each class in one frame."""
    if options.output.suffix != ".png" or options.output.is_dir():
        raise ValueError(f"`--output` must be a file whose name ends in .png. Got {options.output}.")
    check_apart("--output", options.output, options.input)
    check_output_folder("--output", options.output.parent)
    device = usable_device(options.device)
    source = open_frame_source(options.input, Fraction(15))
    model, processor = load_model(options.model, device, "MODEL")
    class_names = label_names(model.config)
    if options.class_name not in (None, *class_names):
        raise ValueError(f"`--class` must be one of {', '.join(class_names)}. Got {options.class_name}.")
    clip = _clip_up_to(source, options.frame, options.num_frames or model.config.num_frames)
    class_index = None if options.class_name is None else class_names.index(options.class_name)
    palette = named_palette(options.palette, len(class_names))
    view = query_view(model, processor, clip, class_index=class_index, palette=palette)
    view.save(options.output)
    print(f"{options.output}: {view.width}x{view.height}")


def _clip_up_to(source: FrameSource, index: int, num_frames: int) -> list[np.ndarray]:
    """A frame with those before it: `num_frames`, or fewer at the beginning of the video."""
    clip: deque[np.ndarray] = deque(maxlen=num_frames)
    for position, frame in enumerate(source):
        clip.append(frame)
        if position == index:
            return list(clip)
    raise ValueError(f"`--frame` must be below the number of frames. Got {index} for {position + 1} in {source.path}.")
