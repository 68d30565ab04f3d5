# SPDX-License-Identifier: Apache-2.0
"""Shapes and patterns of the synthetic world: functions of `u` (right) and `v` (down) in radii of an object."""

from collections.abc import Callable

import numpy as np

Field = Callable[[np.ndarray, np.ndarray], np.ndarray]
Color = tuple[float, float, float]


def _box(u: np.ndarray, v: np.ndarray, half_width: float, half_height: float, rounding: float) -> np.ndarray:
    right, below = np.abs(u) - half_width + rounding, np.abs(v) - half_height + rounding
    outside = np.hypot(np.maximum(right, 0), np.maximum(below, 0))
    return outside + np.minimum(np.maximum(right, below), 0) - rounding


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    tenth = np.pi / 5
    angle = np.abs((np.arctan2(u, -v) + tenth) % (2 * tenth) - tenth)
    radius = np.hypot(u, v)
    along, across = 1 - 0.5 * np.cos(tenth), 0.5 * np.sin(tenth)
    edge_length = np.hypot(along, across)
    return ((radius * np.cos(angle) - 1) * across + radius * np.sin(angle) * along) / edge_length


SHAPES: dict[str, Field] = {
    "disc": lambda u, v: np.hypot(u, v) - 1,
    "star": _star,
    "square": lambda u, v: _box(u, v, 0.84, 0.84, rounding=0.2),
    "moon": lambda u, v: np.maximum(np.hypot(u, v) - 1, 0.8 - np.hypot(u - 0.5, v)),
    "triangle": lambda u, v: np.maximum(v, np.sqrt(0.75) * np.abs(u) - 0.5 * v) - 0.6,
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.7) - 0.3,
    "cross": lambda u, v: np.minimum(_box(u, v, 1.0, 0.38, rounding=0.1), _box(u, v, 0.38, 1.0, rounding=0.1)),
    "bar": lambda u, v: _box(u, v, 1.05, 0.42, rounding=0.42),
}
"""Signed distance to the outline, negative inside; every shape fits into the circle of radius 1.2."""


def _soft_step(wave: np.ndarray) -> np.ndarray:
    return np.clip(0.5 + 2.5 * wave, 0, 1)


def _bricks(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    row = np.floor(v / 0.36)
    joint = np.minimum(0.5 - np.abs(v / 0.36 - row - 0.5), 2 * (0.5 - np.abs((u / 0.72 + 0.5 * row) % 1 - 0.5)))
    return np.clip(1.5 - 8 * joint, 0, 1)


PATTERNS: dict[str, Field] = {
    "stripes": lambda u, v: _soft_step(np.sin(8.5 * (u + v))),
    "checks": lambda u, v: _soft_step(np.sin(7 * u) * np.sin(7 * v)),
    "dots": lambda u, v: _soft_step(0.25 - np.hypot((u / 0.55 + 0.5) % 1 - 0.5, (v / 0.55 + 0.5) % 1 - 0.5)),
    "rings": lambda u, v: _soft_step(np.sin(12 * np.hypot(u, v))),
    "bricks": _bricks,
    "zigzag": lambda u, v: _soft_step(np.sin(9 * (v + 0.6 * np.abs((u / 0.7) % 1 - 0.5)))),
    "plaid": lambda u, v: 0.5 * (_soft_step(np.sin(7 * u)) + _soft_step(np.sin(7 * v))),
    "petals": lambda u, v: _soft_step(np.sin(6 * np.arctan2(v, u))),
}
"""Share of a pattern's second colour, 0 to 1."""

PATTERN_COLORS: dict[str, tuple[Color, Color]] = {
    "stripes": ((212, 48, 52), (246, 238, 228)),
    "checks": ((40, 40, 52), (232, 226, 212)),
    "dots": ((244, 196, 48), (40, 70, 170)),
    "rings": ((126, 58, 160), (246, 168, 204)),
    "bricks": ((168, 86, 56), (214, 200, 184)),
    "zigzag": ((16, 124, 128), (238, 216, 150)),
    "plaid": ((28, 42, 96), (238, 120, 44)),
    "petals": ((236, 96, 150), (252, 236, 120)),
}
"""In RGB grey levels."""
