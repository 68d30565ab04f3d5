# SPDX-License-Identifier: Apache-2.0
"""File formats of graphs, `torch.export` archives and ONNX: writing and running them."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from .graphs import SIZE_DIVISOR, Graph, Shape, Tensors, call_module, nested

Runner = Callable[[Tensors], Tensors]

SUFFIXES = {"torch": ".pt2", "onnx": ".onnx"}
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# The first opset with Gelu and a GridSample of volumes.
OPSET = 20


def check_format(name: str) -> None:
    """Raise a `ValueError` for an unknown format, or one whose packages are missing."""
    if name not in SUFFIXES:
        raise ValueError(f"`format` must be {' or '.join(SUFFIXES)}. Got {name!r}.")
    missing = [package for package in ONNX_PACKAGES if importlib.util.find_spec(package) is None]
    if name == "onnx" and missing:
        raise ValueError(
            f"`format` must be torch without the packages {', '.join(missing)}. Got 'onnx'. Install them with "
            "`pip install transformers-themask[export]`."
        )


@torch.no_grad()
def trace(graph: Graph) -> ExportedProgram:
    """Trace a graph, with free lengths where its shapes have names; a `ValueError` if PyTorch cannot."""
    lengths = {"height": SIZE_DIVISOR * Dim("rows"), "width": SIZE_DIVISOR * Dim("columns")}
    free = {
        name: {axis: lengths.get(length, Dim.AUTO) for axis, length in enumerate(shape) if isinstance(length, str)}
        for name, shape in graph.input_shapes.items()
    }
    try:
        return torch.export.export(graph.module, (), nested(graph.inputs), dynamic_shapes=nested(free), strict=False)
    except Exception as error:  # exporters raise errors of any type
        raise export_error(graph, "torch.export", error) from error


@torch.no_grad()
def write(graph: Graph, program: ExportedProgram, name: str, path: Path) -> None:
    """Write a traced graph as a file of one format, ONNX with named free axes; a `ValueError` if that fails."""
    if name == "torch":
        torch.export.save(program, path)
        return
    import onnx

    try:
        exported: Any = torch.onnx.export(
            program,
            (),
            kwargs=nested(graph.inputs),
            input_names=list(graph.input_shapes),
            output_names=list(graph.output_shapes),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        model = exported.model_proto
    except Exception as error:  # exporters raise errors of any type
        raise export_error(graph, "torch.onnx.export", error) from error
    for values, shapes in ((model.graph.input, graph.input_shapes), (model.graph.output, graph.output_shapes)):
        for value in values:
            name_axes(value.type.tensor_type.shape.dim, shapes[value.name])
    # The origin of each node, with paths of this machine, would be many times the size of the graph.
    for node in model.graph.node:
        del node.metadata_props[:]
    del model.graph.value_info[:]
    onnx.save(model, path)


def name_axes(axes: Any, shape: Shape) -> None:
    """Give the free axes of an ONNX value their names."""
    for axis, length in zip(axes, shape, strict=True):
        if isinstance(length, str):
            axis.dim_param = length


def export_error(graph: Graph, tool: str, error: Exception) -> ValueError:
    """The error for a graph that a tool cannot export, with the tool's reason."""
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    remedy = "" if graph.size else " Give the height and width of the frames as `size`."
    return ValueError(
        f"`model` must be one that PyTorch {torch.__version__} can export. Got {graph.name}, which {tool} rejects: "
        f"{reason.strip()}.{remedy}"
    )


def load(path: str | Path) -> Runner:
    """Open an exported file: a function from named inputs to named outputs."""
    if Path(path).suffix == SUFFIXES["torch"]:
        module = torch.export.load(path).module()
        return lambda inputs: call_module(module, inputs)
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Tensors) -> Tensors:
        outputs = session.run(names, {name: tensor.numpy() for name, tensor in inputs.items()})
        return {name: torch.from_numpy(output) for name, output in zip(names, outputs, strict=True)}

    return run
