# SPDX-License-Identifier: Apache-2.0
"""Measure the peak memory of a training step with and without activation checkpointing.

    python -m benchmarks training-memory --backbone mit-b1 --num_frames 4 --size 256 256

The peak counts the allocations of forward and backward pass, gradients included, weights and optimiser excluded.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedModel

from transformers_themask import THEMaskConfig, THEMaskForVideoSemanticSegmentation

from .measuring import MIB, Setting, peak_memory
from .models import NUM_LABELS, blocky_labels


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--backbone", default="mit-b1", help="size of the backbone (default: mit-b1)")
    parser.add_argument("--num_frames", type=int, default=4, help="frames of a clip (default: 4)")
    parser.add_argument("--size", type=int, nargs=2, default=(256, 256), help="height and width of a crop")
    parser.add_argument("--num_classes", type=int, default=8, help="classes in the clip (default: 8)")
    parser.add_argument("--freeze_pixel_level", action="store_true", help="as in the second training stage")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast, as with the trainer's --bf16")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")


def run(options: argparse.Namespace) -> Iterator[dict[str, float]]:
    """Measure both steps; sizes in MiB."""
    torch.manual_seed(0)
    config = THEMaskConfig(backbone=options.backbone, num_frames=options.num_frames, num_labels=NUM_LABELS)
    model: Any = THEMaskForVideoSemanticSegmentation(config).to(options.device)
    if options.freeze_pixel_level:
        model.freeze_pixel_level()
    size = tuple(options.size)
    frames = torch.randn(1, options.num_frames, 3, *size, device=options.device)
    labels = blocky_labels(Setting(options.device), options.num_frames, size, options.num_classes).transpose(0, 1)
    with torch.autocast(options.device, torch.bfloat16, enabled=options.bf16):
        plain, checkpointed = training_step_peaks(model, frames, labels)
    result = {
        "weights": sum(parameter.nbytes for parameter in model.parameters()) / MIB,
        "peak of a step": plain / MIB,
        "peak of a step with activation checkpointing": checkpointed / MIB,
    }
    print("\n".join(f"{name}: {mebibytes:.0f} MiB" for name, mebibytes in result.items()))
    print(f"lower by {1 - checkpointed / plain:.1%}")
    yield result


def training_step_peaks(model: PreTrainedModel, frames: torch.Tensor, labels: torch.Tensor) -> tuple[int, int]:
    """Peak bytes of one training step without and with activation checkpointing."""
    peaks = []
    for enable in (model.gradient_checkpointing_disable, model.gradient_checkpointing_enable):
        enable()
        model.train().zero_grad()
        peaks.append(
            peak_memory(lambda: model(pixel_values_videos=frames, labels=labels).loss.backward(), frames.device)
        )
    model.gradient_checkpointing_disable()
    return peaks[0], peaks[1]
