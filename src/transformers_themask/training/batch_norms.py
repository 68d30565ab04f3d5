# SPDX-License-Identifier: Apache-2.0
"""Batch norms whose statistics are those of the clips of all GPUs."""

from torch import nn

# Base class of torch's batch norms.
BATCH_NORM = nn.modules.batchnorm._BatchNorm


def are_batch_norms_shared(device_type: str, world_size: int) -> bool:
    """Whether batch norms share their statistics in training; torch's `SyncBatchNorm` does not train on CPUs."""
    return device_type == "cuda" and world_size > 1


def share_batch_norms(model: nn.Module) -> None:
    """Turn a model's trainable batch norms into torch's `SyncBatchNorm`, in place and before it is wrapped.

    They see the clips of a forward pass on all processes, as the released trainings of SegFormer and CFFM do.
    """
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, BATCH_NORM) and any(parameter.requires_grad for parameter in layer.parameters()):
                setattr(parent, name, nn.SyncBatchNorm.convert_sync_batchnorm(layer))
