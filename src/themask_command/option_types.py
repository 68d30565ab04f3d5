# SPDX-License-Identifier: Apache-2.0
"""Types of command-line options: functions that read a text, or reject it with the rule it breaks."""

import argparse
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from typing import TypeVar

Number = TypeVar("Number", float, Fraction)

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


def scales(text: str) -> tuple[float, ...]:
    """Numbers separated by commas."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be numbers separated by commas, such as 0.9,1.0,1.1,1.2. Got {text}."
        ) from None


def number_between(kind: Callable[[str], Number], minimum: Number, maximum: Number) -> Callable[[str], Number]:
    """A number of a kind, within limits."""

    def read(text: str) -> Number:
        with suppress(ValueError, ZeroDivisionError):
            number = kind(text)
            if minimum <= number <= maximum:
                return number
        raise argparse.ArgumentTypeError(f"must be between {minimum} and {maximum}. Got {text}.")

    return read


share = number_between(float, 0, 1)
# Frames per second: a number or a fraction such as 30000/1001.
frame_rate = number_between(Fraction, MIN_FRAME_RATE, MAX_FRAME_RATE)
