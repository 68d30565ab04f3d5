# SPDX-License-Identifier: Apache-2.0
"""Description of exported graphs, as JSON, for use without this package."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from transformers_themask.models.video_processing import VideoSegmentationProcessor

from .graphs import Graph, Shape, Tensors

MANIFEST = "manifest.json"
PREPROCESSING_FIELDS = (
    "do_resize",
    "size",
    "resample",
    "fit",
    "size_divisor",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
)


def graph_entry(graph: Graph, differences: dict[str, float]) -> dict[str, Any]:
    """Describe one graph, with the largest difference of each of its files from the model."""
    return {
        "files": list(differences),
        "modes": graph.modes,
        "step": graph.step_kind or None,
        "height": graph.size[0] if graph.size else None,
        "width": graph.size[1] if graph.size else None,
        "inputs": values(graph.input_shapes, graph.inputs),
        "outputs": values(graph.output_shapes, graph.outputs),
        "largest_difference": differences,
    }


def values(shapes: dict[str, Shape], examples: Tensors) -> list[dict[str, Any]]:
    """Describe inputs or outputs; in a shape, numbers are fixed and names free."""
    return [
        {"name": name, "dtype": str(examples[name].dtype).removeprefix("torch."), "shape": shape}
        for name, shape in shapes.items()
    ]


def write_manifest(
    path: Path,
    model: PreTrainedModel,
    processor: VideoSegmentationProcessor,
    num_frames: int,
    graphs: list[dict[str, Any]],
) -> None:
    """Write the manifest: the entries of all graphs, the classes and the preprocessing of frames."""
    fields = processor.to_dict()
    manifest = {
        "model_type": model.config.model_type,
        "num_frames": num_frames,
        "class_names": [model.config.id2label[index] for index in range(model.config.num_labels)],
        "preprocessing": {name: fields[name] for name in PREPROCESSING_FIELDS if name in fields},
        "graphs": graphs,
        "made_with": f"PyTorch {torch.__version__}",
    }
    path.write_text(json.dumps(manifest, indent=2) + "\n")
