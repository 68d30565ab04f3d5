# SPDX-License-Identifier: Apache-2.0
"""Shapes and patterns of the synthetic world.

All functions take coordinates in units of the object's radius, `u` to the right and `v` down, as arrays of one shape.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Field = Callable[[np.ndarray, np.ndarray], np.ndarray]
Color = tuple[float, float, float]


def _disc(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.hypot(u, v) - 1


def _box(u: np.ndarray, v: np.ndarray, half_width: float, half_height: float, rounding: float) -> np.ndarray:
    right, below = np.abs(u) - half_width + rounding, np.abs(v) - half_height + rounding
    outside = np.hypot(np.maximum(right, 0), np.maximum(below, 0))
    return outside + np.minimum(np.maximum(right, below), 0) - rounding


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _box(u, v, 0.84, 0.84, rounding=0.2)


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(v, np.sqrt(0.75) * np.abs(u) - 0.5 * v) - 0.6


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    tenth = np.pi / 5
    angle = np.abs((np.arctan2(u, -v) + tenth) % (2 * tenth) - tenth)
    radius = np.hypot(u, v)
    along, across = 1 - 0.5 * np.cos(tenth), 0.5 * np.sin(tenth)
    edge_length = np.hypot(along, across)
    return ((radius * np.cos(angle) - 1) * across + radius * np.sin(angle) * along) / edge_length


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.minimum(_box(u, v, 1.0, 0.38, rounding=0.1), _box(u, v, 0.38, 1.0, rounding=0.1))


def _ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(u, v) - 0.7) - 0.3


def _bar(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _box(u, v, 1.05, 0.42, rounding=0.42)


def _moon(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.hypot(u, v) - 1, 0.8 - np.hypot(u - 0.5, v))


SHAPES: dict[str, Field] = {
    "disc": _disc,
    "star": _star,
    "square": _square,
    "moon": _moon,
    "triangle": _triangle,
    "ring": _ring,
    "cross": _cross,
    "bar": _bar,
}
"""Signed distance to the outline, negative inside; every shape fits into the circle of radius 1.2."""


def _soft_step(wave: np.ndarray) -> np.ndarray:
    return np.clip(0.5 + 2.5 * wave, 0, 1)


def _stripes(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _soft_step(np.sin(8.5 * (u + v)))


def _checks(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _soft_step(np.sin(7 * u) * np.sin(7 * v))


def _dots(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _soft_step(0.25 - np.hypot((u / 0.55 + 0.5) % 1 - 0.5, (v / 0.55 + 0.5) % 1 - 0.5))


def _bricks(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    row = np.floor(v / 0.36)
    joint = np.minimum(0.5 - np.abs(v / 0.36 - row - 0.5), 2 * (0.5 - np.abs((u / 0.72 + 0.5 * row) % 1 - 0.5)))
    return np.clip(1.5 - 8 * joint, 0, 1)


def _rings(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _soft_step(np.sin(12 * np.hypot(u, v)))


def _zigzag(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _soft_step(np.sin(9 * (v + 0.6 * np.abs((u / 0.7) % 1 - 0.5))))


def _plaid(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return 0.5 * (_soft_step(np.sin(7 * u)) + _soft_step(np.sin(7 * v)))


def _petals(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _soft_step(np.sin(6 * np.arctan2(v, u)))


@dataclass(frozen=True)
class Pattern:
    """A two-colour pattern.

    Args:
        blend (`Callable`): Share of the second colour, 0 to 1, at `(u, v)`.
        colors (`tuple[Color, Color]`): The two colours in RGB grey levels.
    """

    blend: Field
    colors: tuple[Color, Color]


PATTERNS: dict[str, Pattern] = {
    "stripes": Pattern(_stripes, ((212, 48, 52), (246, 238, 228))),
    "checks": Pattern(_checks, ((40, 40, 52), (232, 226, 212))),
    "dots": Pattern(_dots, ((244, 196, 48), (40, 70, 170))),
    "rings": Pattern(_rings, ((126, 58, 160), (246, 168, 204))),
    "bricks": Pattern(_bricks, ((168, 86, 56), (214, 200, 184))),
    "zigzag": Pattern(_zigzag, ((16, 124, 128), (238, 216, 150))),
    "plaid": Pattern(_plaid, ((28, 42, 96), (238, 120, 44))),
    "petals": Pattern(_petals, ((236, 96, 150), (252, 236, 120))),
}
