# SPDX-License-Identifier: Apache-2.0
"""Export of a model as graphs that run without this package: of whole clips, and of the step of a stream."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from transformers_themask.files.atomic import AtomicFolder
from transformers_themask.models.streaming import stream_options
from transformers_themask.models.video_processing import VideoSegmentationProcessor
from transformers_themask.sinks.output_folder import check_new_folder

from .check import TOLERANCE, largest_difference
from .formats import SUFFIXES, check_format, export_error, load, trace, write
from .graphs import Graph, Size, graphs_of
from .manifest import MANIFEST, graph_entry, write_manifest

# Modes with graphs of their own; interleaved clips use the graph of clips.
EXPORTED_MODES = ("contiguous", "sliding", "recurrent")


def export_model(
    model: PreTrainedModel,
    processor: VideoSegmentationProcessor,
    output_dir: str | Path,
    formats: Sequence[str] = ("onnx",),
    sizes: Sequence[Size] | None = None,
    num_frames: int | None = None,
    modes: Sequence[str] | None = None,
) -> dict[Path, float]:
    """Write a model as graphs from normalised frames to class scores, with a manifest that describes them.

    Every file is loaded and compared with the model, which is put on the CPU, in float32 and eval mode; returns the
    files with their largest differences, of at most 0.001. Without `sizes`, one graph takes frames of any size whose
    height and width are multiples of 32, or of the one size that the model takes. `num_frames` is the number of frames
    that the label map of a streamed frame is based on. Raises `ValueError` for a model that cannot be exported.
    """
    check_new_folder("output_dir", output_dir)
    sizes = list(dict.fromkeys((height, width) for height, width in sizes or []))
    for name in formats:
        check_format(name)
    modes = exported_modes(model, modes)
    num_frames = stream_options(model, modes[-1], num_frames, frame_stride=1)[1]
    for height, width in sizes:
        if min(height, width) < 1:
            raise ValueError(f"`size` must be a positive height and width. Got {height} {width}.")
    model.cpu().float().eval()
    entries: list[dict[str, Any]] = []
    written: dict[str, float] = {}
    wanted: Sequence[Size | None] = sizes or [only_size(model)]
    with AtomicFolder(output_dir) as folder:
        for size in wanted:
            for graph in graphs_of(model, modes, num_frames, size):
                differences = write_graph(graph, formats, folder)
                entries.append(graph_entry(graph, differences))
                written |= differences
        write_manifest(folder / MANIFEST, model, processor, num_frames, entries)
    return {Path(output_dir) / name: difference for name, difference in written.items()}


def write_graph(graph: Graph, formats: Sequence[str], folder: Path) -> dict[str, float]:
    """Write one graph in some formats; returns each file's largest difference from the model."""
    program = trace(graph)
    differences = {}
    for name in formats:
        path = folder / f"{graph.name}{SUFFIXES[name]}"
        write(graph, program, name, path)
        try:
            differences[path.name] = largest_difference(graph, load(path))
        except Exception as error:  # runtimes raise errors of any type
            raise export_error(graph, f"the runtime of {path.name}", error) from error
        check_difference(path.name, differences[path.name])
    return differences


def check_difference(name: str, difference: float) -> None:
    """Raise a `ValueError` if an exported graph differs from the model, or its scores are not numbers."""
    if not difference <= TOLERANCE:
        raise ValueError(
            f"The scores of {name} must differ from the model's by at most {TOLERANCE}. Got {difference:.2g}. Nothing "
            "was exported."
        )


def only_size(model: PreTrainedModel) -> Size | None:
    """The only size of frames that a model takes, or `None` if it takes several."""
    square = getattr(model, "square_input_size", None) or getattr(model.config, "square_input_size", None)
    return None if square is None else (square["height"], square["width"])


def exported_modes(model: PreTrainedModel, modes: Sequence[str] | None) -> list[str]:
    """The modes to export, in a fixed order; a `ValueError` for one that the model does not have."""
    possible = [mode for mode in EXPORTED_MODES if mode in model.stream_modes]
    unknown = [mode for mode in modes or [] if mode not in possible]
    if unknown:
        raise ValueError(
            f"`mode` must be one that can be exported of {type(model).__name__}: {', '.join(possible)}. "
            f"Got {unknown[0]!r}."
        )
    return [mode for mode in possible if modes is None or mode in modes]
