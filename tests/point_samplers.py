# SPDX-License-Identifier: Apache-2.0
"""Point samplers for tests."""

import torch


def layer_by_layer(draw):
    """A point sampler out of `draw(kind, layer, shape, generator)`, which draws the points of one layer."""

    def sampler(kind, layers, shape, generator):
        return torch.stack([draw(kind, layer, shape[1:], generator) for layer in layers])

    return sampler
