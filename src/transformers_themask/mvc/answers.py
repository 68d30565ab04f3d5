# SPDX-License-Identifier: Apache-2.0
"""The class that an answer names (MVC, Section 2.5)."""

import re

from .confusable_groups import ConfusableGroup, spoken


def parse_answer(answer: str, group: ConfusableGroup) -> str | None:
    """The class that an answer names, or `None` unless it names exactly one of the group's candidates.

    Names are whole words in upper or lower case, singular or with a plural "s". Nothing else is read: a denial that
    names one class counts as naming it.
    """
    longest_first = sorted(map(spoken, group.candidates), key=len, reverse=True)  # "other plant" is no "plant"
    pattern = "|".join(map(re.escape, longest_first))
    named = set(re.findall(rf"(?<![\w-])({pattern})s?(?![\w-])", spoken(answer)))
    return next((name for name in group.candidates if named == {spoken(name)}), None)
