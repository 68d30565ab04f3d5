# SPDX-License-Identifier: Apache-2.0
"""Types of command-line options: functions that read a text, or reject it with the rule it breaks."""

import argparse
import math
from collections.abc import Callable
from fractions import Fraction

# Limits of video containers.
MIN_FRAME_RATE, MAX_FRAME_RATE = Fraction(1, 1000), Fraction(1000)


def whole_number(minimum: int) -> Callable[[str], int]:
    """A whole number that is at least `minimum`."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a whole number. Got {text}.") from None
        if number < minimum:
            raise argparse.ArgumentTypeError(f"must be at least {minimum}. Got {text}.")
        return number

    return read


def share(text: str) -> float:
    """A number from 0 to 1."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1. Got {text}.")
    return number


def scales(text: str) -> tuple[float, ...]:
    """Numbers separated by commas."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be numbers separated by commas, such as 0.9,1.0,1.1,1.2. Got {text}."
        ) from None


def frame_rate(text: str) -> Fraction:
    """Frames per second: a number or a fraction such as 30000/1001."""
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not MIN_FRAME_RATE <= rate <= MAX_FRAME_RATE:
        raise argparse.ArgumentTypeError(f"must be between {MIN_FRAME_RATE} and {MAX_FRAME_RATE}. Got {text}.")
    return rate
