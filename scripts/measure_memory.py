#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Measure the peak memory of a training step with and without activation checkpointing.

    python scripts/measure_memory.py --backbone mit-b1 --num_frames 4 --size 256 256

On the CPU the peak is the most that is held at once of what forward and backward pass allocate, gradients included,
weights and optimiser excluded. On a GPU it is `torch.cuda.max_memory_allocated`
over the memory allocated before the step.
"""

import argparse
from collections.abc import Callable, Iterable
from typing import Any

import torch
from transformers import PreTrainedModel

from transformers_themask import THEMaskConfig, THEMaskForVideoSemanticSegmentation

MIB = 2**20


def peak_memory(step: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Bytes that `step` holds at its worst moment, of those that it allocated (on a GPU, beyond what was held)."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    held: dict[int, int] = {}
    total = peak = 0
    for address, size in allocations(profile.profiler.kineto_results.experimental_event_tree()):
        if size > 0:
            held[address] = size
            total += size
            peak = max(peak, total)
        else:  # what was there before, such as the content of a cache, is not the step's
            total -= held.pop(address, 0)
    return peak


def allocations(events: Iterable[Any]) -> list[tuple[int, int]]:
    """Address and size of all that was allocated, and with a negative size of what was freed, in order."""
    found, ahead = [], [*events][::-1]
    while ahead:
        event = ahead.pop()
        ahead += event.children[::-1]
        if event.tag == torch._C._profiler._EventType.Allocation:
            found.append((event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size))
    found.sort(key=lambda each: each[0])
    return [(address, size) for _, address, size in found]


def training_step_peaks(model: PreTrainedModel, frames: torch.Tensor, labels: torch.Tensor) -> tuple[int, int]:
    """Peaks of one training step without and with activation checkpointing, in bytes."""
    peaks = []
    for enable in (model.gradient_checkpointing_disable, model.gradient_checkpointing_enable):
        enable()
        model.train().zero_grad()
        peaks.append(
            peak_memory(lambda: model(pixel_values_videos=frames, labels=labels).loss.backward(), frames.device)
        )
    model.gradient_checkpointing_disable()
    return peaks[0], peaks[1]


def blocky_labels(
    num_frames: int, size: tuple[int, int], num_classes: int, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Label maps `(1, num_frames, height, width)` of squares of 32 pixels."""
    height, width = size
    cells = torch.randint(0, num_classes, (1, num_frames, height // 32, width // 32), generator=generator)
    return cells.repeat_interleave(32, -2).repeat_interleave(32, -1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="mit-b1", help="Size of the backbone.")
    parser.add_argument("--num_frames", type=int, default=4, help="Frames per clip.")
    parser.add_argument("--size", type=int, nargs=2, default=(256, 256), help="Height and width of a crop.")
    parser.add_argument("--num_classes", type=int, default=8, help="Classes in the clip.")
    parser.add_argument("--freeze_pixel_level", action="store_true", help="As in the second training stage.")
    parser.add_argument("--bf16", action="store_true", help="Compute in bfloat16 where the trainer's --bf16 does.")
    parser.add_argument("--device", default="cpu", help="cpu or cuda.")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    config = THEMaskConfig(backbone=arguments.backbone, num_frames=arguments.num_frames, num_labels=124)
    model = THEMaskForVideoSemanticSegmentation(config).to(arguments.device)
    if arguments.freeze_pixel_level:
        model.freeze_pixel_level()
    frames = torch.randn(1, arguments.num_frames, 3, *arguments.size, device=arguments.device)
    labels = blocky_labels(arguments.num_frames, tuple(arguments.size), arguments.num_classes).to(arguments.device)
    with torch.autocast(arguments.device, torch.bfloat16, enabled=arguments.bf16):
        plain, checkpointed = training_step_peaks(model, frames, labels)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    print(f"weights: {weights / MIB:.0f} MiB")
    print(f"peak of a step: {plain / MIB:.0f} MiB")
    print(f"peak of a step with activation checkpointing: {checkpointed / MIB:.0f} MiB")
    print(f"lower by {1 - checkpointed / plain:.1%}")


if __name__ == "__main__":
    main()
