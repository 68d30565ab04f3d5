# SPDX-License-Identifier: Apache-2.0
"""Per-pixel majority vote of label maps, with ties resolved by the priority of the inputs."""

from collections.abc import Sequence

import numpy as np

RULES = ("tied_only", "literal")
# So many pixels that what is counted about them stays in a processor's cache.
PIXELS_PER_CHUNK = 65536


def vote(
    label_maps: np.ndarray,
    priority: Sequence[int] | np.ndarray,
    rule: str = "tied_only",
    ignore_index: int | None = 255,
) -> np.ndarray:
    """Give every pixel the label that most label maps give it (MVC, Liang et al., PVUW 2024, equation 8).

    Of a tie among the inputs `(num_inputs, ..., height, width)`, that with the largest `priority` decides; the paper
    says "the higher-resolution input". By the rule `"tied_only"` it is the first, by priority, that supports one of
    the tied classes. `"literal"` reads the equation to the letter: the first of all, though it may be the only one
    with its label. The label `ignore_index` does not vote, and is the result where nobody does.
    """
    label_maps, priority = np.asarray(label_maps), np.asarray(priority)
    if label_maps.ndim < 1 or len(label_maps) == 0 or not np.issubdtype(label_maps.dtype, np.integer):
        raise ValueError(
            "`label_maps` must be integer arrays, at least one. "
            f"Got an array of {label_maps.dtype} of shape {label_maps.shape}."
        )
    if priority.shape != label_maps.shape[:1] or len(np.unique(priority)) != len(priority):
        raise ValueError(
            f"`priority` must be a different number for each of the {len(label_maps)} label maps. "
            f"Got {priority.tolist()}."
        )
    if rule not in RULES:
        raise ValueError(f"`rule` must be one of {', '.join(RULES)}. Got {rule!r}.")
    rising = [label_maps[index].reshape(-1) for index in np.argsort(priority)]
    elected = np.empty_like(rising[0])
    for start in range(0, len(elected), PIXELS_PER_CHUNK):
        part = slice(start, start + PIXELS_PER_CHUNK)
        elected[part] = _elected([labels[part] for labels in rising], rule, ignore_index)
    return elected.reshape(label_maps.shape[1:])


def _elected(rising: list[np.ndarray], rule: str, ignore_index: int | None) -> np.ndarray:
    """The labels of some pixels `(num_pixels,)`, of inputs in rising priority."""
    supporters = _supporters(rising, ignore_index)
    most = np.zeros_like(supporters[0])
    winners = np.full_like(rising[0], 0 if ignore_index is None else ignore_index)
    for labels, count in zip(rising, supporters, strict=True):
        np.copyto(winners, labels, where=(count >= most) & (count > 0))
        np.maximum(most, count, out=most)
    if rule == "tied_only":
        return winners
    is_tied = np.zeros(winners.shape, bool)
    first = winners.copy()
    for labels, count in zip(rising, supporters, strict=True):
        is_tied |= (count == most) & (labels != winners) & (count > 0)
        np.copyto(first, labels, where=count > 0)
    return np.where(is_tied, first, winners)


def _supporters(rising: list[np.ndarray], ignore_index: int | None) -> list[np.ndarray]:
    """For each input and pixel the number of inputs with its label; 0 where it does not vote."""
    counts = [np.ones(labels.shape, np.min_scalar_type(len(rising))) for labels in rising]
    for index, labels in enumerate(rising):
        for other in range(index):
            agree = labels == rising[other]
            counts[index] += agree
            counts[other] += agree
    if ignore_index is not None:
        for labels, count in zip(rising, counts, strict=True):
            count[labels == ignore_index] = 0
    return counts
