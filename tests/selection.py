# SPDX-License-Identifier: Apache-2.0
"""Which cases of a test are asked for every change, and which at night only."""

import itertools
from collections.abc import Iterable, Sequence

import pytest


def nightly_except(cases: Iterable, chosen: Iterable) -> list:
    """All cases, of which those not `chosen` are `nightly`."""
    chosen = list(chosen)
    return [case if case in chosen else pytest.param(case, marks=pytest.mark.nightly) for case in cases]


def pairwise(**choices: Sequence) -> pytest.MarkDecorator:
    """Parametrises with few combinations in which any two values of any two parameters meet; the rest is `nightly`."""
    combinations = list(itertools.product(*choices.values()))

    def pairs_of(combination):
        return {
            (first, second, combination[first], combination[second])
            for first, second in itertools.combinations(range(len(combination)), 2)
        }

    indices = [range(len(values)) for values in choices.values()]
    missing = set().union(*map(pairs_of, itertools.product(*indices)))
    chosen = set()
    while missing:
        best = max(itertools.product(*indices), key=lambda combination: len(pairs_of(combination) & missing))
        chosen.add(best)
        missing -= pairs_of(best)
    cases = [
        pytest.param(*values, marks=() if places in chosen else pytest.mark.nightly, id="-".join(map(str, values)))
        for values, places in zip(combinations, itertools.product(*indices), strict=True)
    ]
    return pytest.mark.parametrize(tuple(choices), cases)
