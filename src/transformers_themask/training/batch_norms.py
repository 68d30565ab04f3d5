# SPDX-License-Identifier: Apache-2.0
"""Batch norms whose statistics are those of the clips of all GPUs."""

from torch import nn

# What a model's batch norms are in torch, whatever their number of dimensions.
BATCH_NORM = nn.modules.batchnorm._BatchNorm


def are_batch_norms_shared(device_type: str, world_size: int) -> bool:
    """Whether the batch norms of a training share their statistics: between several processes on CUDA devices.

    torch's `SyncBatchNorm` does not train on CPUs.

    Args:
        device_type (`str`): Type of the device of each process, such as `"cuda"`.
        world_size (`int`): Number of processes.
    """
    return device_type == "cuda" and world_size > 1


def share_batch_norms(model: nn.Module) -> None:
    """Turn a model's trainable batch norms into torch's `SyncBatchNorm`, in place.

    A forward pass then takes mean and variance of the clips of all processes, as the released trainings of SegFormer
    and CFFM do; the batches of an accumulated step stay apart. Parameters and buffers remain the same objects under
    the same names. Frozen layers, and those without parameters, keep to themselves.

    Args:
        model (`torch.nn.Module`): The model, before it is wrapped for training.
    """
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, BATCH_NORM) and any(parameter.requires_grad for parameter in layer.parameters()):
                setattr(parent, name, nn.SyncBatchNorm.convert_sync_batchnorm(layer))
