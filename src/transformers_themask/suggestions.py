# SPDX-License-Identifier: Apache-2.0
"""Suggestions for mistyped names."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: object, known: Iterable[str], otherwise: str) -> str:
    """The last sentence of an error about an unknown name; `otherwise` if no known name is close."""
    close = difflib.get_close_matches(str(name), sorted(known), n=1)
    return f"Did you mean `{close[0]}`?" if close else otherwise
