# SPDX-License-Identifier: Apache-2.0
"""Two-round Hungarian matching of queries to the classes of a clip (THE-Mask, section 3.2, Eq. 1 and 2)."""

from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

# Smaller than float32 resolves in a cost, larger than the rounding errors of the assignment.
TIE_BREAKER = 1e-10


class Assignment(NamedTuple):
    """Matched pairs of one clip, ordered by query: two int64 arrays of equal length."""

    query_indices: np.ndarray
    target_indices: np.ndarray


class PairwiseCosts(NamedTuple):
    """Unweighted matching costs of one clip, each `(num_queries, num_targets)`."""

    class_cost: Tensor
    mask_cost: Tensor
    dice_cost: Tensor


def pairwise_costs(
    class_probabilities: Tensor,
    point_logits: Tensor,
    class_labels: Tensor,
    point_targets: Tensor,
    point_weights: Tensor | None = None,
) -> PairwiseCosts:
    """Compare every query with every target of a clip at sampled points.

    Args:
        class_probabilities (`torch.Tensor` of shape `(num_queries, num_labels + 1)`): Class distribution of each
        query.
        point_logits (`torch.Tensor` of shape `(num_queries, num_points)`): Mask logits, all frames' points in one row.
        class_labels (`torch.Tensor` of shape `(num_targets,)`): Classes of the clip.
        point_targets (`torch.Tensor` of shape `(num_targets, num_points)`): Target masks in [0, 1] at the same points.
        point_weights (`torch.Tensor` of shape `(num_points,)`, *optional*): 0 takes a point out of the comparison.
    """
    if point_weights is None:
        point_weights = torch.ones_like(point_logits[0])
    weighted_targets = point_targets * point_weights
    total = point_weights.sum().clamp(min=1)
    # Cross-entropy inside and outside the target: softplus(∓x), from one logarithm without cancellation.
    softplus = nn.functional.softplus(-point_logits.abs())
    inside, outside = softplus + (-point_logits).relu(), softplus + point_logits.relu()
    mask_cost = inside @ weighted_targets.T + outside @ (point_weights - weighted_targets).T
    scores = point_logits.sigmoid()
    overlap = scores @ weighted_targets.T
    sizes = (scores @ point_weights)[:, None] + weighted_targets.sum(-1)
    return PairwiseCosts(
        class_cost=-class_probabilities[:, class_labels],
        mask_cost=mask_cost / total,
        dice_cost=1 - (2 * overlap + 1) / (sizes + 1),
    )


def two_round_assignment(
    cost_matrix: np.ndarray, second_cost_matrix: np.ndarray | None
) -> tuple[Assignment, Assignment]:
    """Match every target to one primary query and, where queries remain, to one secondary query.

    The second round sees only the queries the first left free, so no query is matched twice. With N queries and n
    targets the rounds assign min(n, N) and min(n, N - n) pairs; the released code fails beyond n = N / 2.

    Args:
        cost_matrix (`np.ndarray` of shape `(num_queries, num_targets)`): Cost of the first round; lower is better.
        second_cost_matrix (`np.ndarray` of shape `(num_queries, num_targets)`, *optional*): Cost of the second round;
            `None` for one-round matching.

    Returns:
        The primary and the secondary [`Assignment`]; the latter is empty without a second round.
    """
    primary = Assignment(*assign(cost_matrix))
    nothing = np.empty(0, dtype=np.int64)
    if second_cost_matrix is None:
        return primary, Assignment(nothing, nothing)
    free_queries = np.setdiff1d(np.arange(len(cost_matrix)), primary.query_indices)
    rows, target_indices = assign(second_cost_matrix[free_queries])
    return primary, Assignment(free_queries[rows], target_indices)


def assign(cost_matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Solve the linear assignment problem, with ties broken by position.

    Targets so small that no point hits them have equal columns. Without the tie-breaker, rounding errors would choose
    between them, and with those the number of processes.

    Args:
        cost_matrix (`np.ndarray` of shape `(num_queries, num_targets)`): Costs.

    Returns:
        Indices of matched queries, ascending, and of their targets.
    """
    positions = np.outer(*(np.arange(1, length + 1) for length in cost_matrix.shape))
    return linear_sum_assignment(cost_matrix.astype(np.float64) + TIE_BREAKER * positions)
