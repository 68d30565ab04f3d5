# SPDX-License-Identifier: Apache-2.0
"""How near to each other two computations of the same numbers must come."""

import torch
from torch import Tensor

# Equalities (a stream and its clip, a batch and its items, another order of sums) are strict in float64. In float32
# every library version, vector width and batch size sums in another order, and the logits of a network, each within
# some 1e-5 of the largest one, are all that its arithmetic can promise, so that two differ by at most twice that:
# single values near zero have no digits of their own.
STRICT = 1e-9
OF_MAXIMUM = 2e-5


def assert_equal_up_to_rounding(ours: Tensor, expected: Tensor) -> None:
    """Strictly in float64; in float32 relative to the largest value of the tensor."""
    if expected.dtype == torch.float64:
        torch.testing.assert_close(ours, expected, rtol=STRICT, atol=STRICT)
    else:
        torch.testing.assert_close(ours, expected, rtol=0, atol=OF_MAXIMUM * expected.abs().max().item())
