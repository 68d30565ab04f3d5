# SPDX-License-Identifier: Apache-2.0
"""Shares and times as text."""

from fractions import Fraction


def percent(share: float | None, digits: int = 1) -> str:
    """A share of 0 to 1 as `12.3 %`, `< 0.1 %` for one that would round to nothing, `-` for `None`."""
    if share is None:
        return "-"
    smallest = 10.0**-digits
    return f"< {smallest:g} %" if 0 < 100 * share < smallest else f"{100 * share:.{digits}f} %"


def clock(seconds: float | Fraction, digits: int = 0) -> str:
    """A time as `0:07.50` or `1:02:03`: hours if there are any, minutes, and seconds with some decimal digits."""
    ticks = round(seconds * 10**digits)
    minutes, rest = divmod(ticks, 60 * 10**digits)
    hours, minutes = divmod(minutes, 60)
    start = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
    whole, decimals = divmod(rest, 10**digits)
    return f"{start}:{whole:02d}" + (f".{decimals:0{digits}d}" if digits else "")
