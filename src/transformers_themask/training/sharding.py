# SPDX-License-Identifier: Apache-2.0
"""Adaptations of saving and streaming to fully sharded training (FSDP2)."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method


@contextmanager
def own_class(model: nn.Module) -> Iterator[None]:
    """Restore a sharded model's own class in the block: `save_pretrained` would write name and source of FSDP2's."""
    sharded_class = type(model)
    parents = (parent for parent in sharded_class.__mro__ if issubclass(parent, nn.Module))
    model.__class__ = next(parent for parent in parents if not issubclass(parent, FSDPModule))
    try:
        yield
    finally:
        model.__class__ = sharded_class


def gather_in_steps(model: object) -> None:
    """Make a sharded model gather its weights for `clip_step` as it does for `forward`."""
    if isinstance(model, nn.Module) and isinstance(model, FSDPModule) and "clip_step" not in vars(model):
        register_fsdp_forward_method(model, "clip_step")
