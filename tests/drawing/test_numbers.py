# SPDX-License-Identifier: Apache-2.0
from fractions import Fraction

from transformers_themask.drawing.numbers import clock, percent


def test_clock_shows_hours_only_if_there_are_any():
    assert clock(Fraction(15, 2), digits=2) == "0:07.50"
    assert clock(Fraction(59_999, 1000), digits=2) == "1:00.00"
    assert clock(Fraction(3723), digits=2) == "1:02:03.00"
    assert clock(2.04, digits=1) == "0:02.0" and clock(899.6) == "15:00"


def test_percent_shows_small_shares_as_smaller_than_the_last_digit():
    assert percent(0.1234) == "12.3 %" and percent(0.6666, digits=0) == "67 %"
    assert percent(0.0004) == "< 0.1 %" and percent(0.004, digits=0) == "< 1 %"
    assert percent(0.0) == "0.0 %" and percent(None) == "-"
