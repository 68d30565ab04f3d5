# SPDX-License-Identifier: Apache-2.0
"""Colours of classes."""

from collections.abc import Callable, Sequence

import numpy as np

PALETTES = ("default", "vspw", "colour-blind")
# Paul Tol's "bright" scheme without its grey, then orange, indigo and brown: told apart with the common colour
# deficiencies.
FIRST_COLORS = (
    (68, 119, 170),
    (238, 102, 119),
    (34, 136, 51),
    (204, 187, 68),
    (102, 204, 238),
    (170, 51, 119),
    (242, 140, 30),
    (51, 34, 136),
    (140, 86, 40),
)
# Blue and orange of M. Okabe and K. Ito's set (2008), distinguishable with any colour-vision deficiency.
FIRST_SAFE_COLORS = ((0, 114, 178), (230, 159, 0))
VOID_COLOR = (0, 0, 0)
# Colours no class may come close to: void, and the white of the text.
RESERVED_COLORS = (VOID_COLOR, (255, 255, 255))
# Further colours come from a cube of this many levels per channel, without the nearly black and nearly white and the
# most glaring ones (Oklab lightness and chroma); that leaves enough for `MAX_CLASSES`.
COLOR_LEVELS = 12
LIGHTNESS_RANGE = (0.4, 0.92)
# Where hues look alike, lightness has to tell classes apart: more of it, in finer steps.
SAFE_COLOR_LEVELS = 16
SAFE_LIGHTNESS_RANGE = (0.3, 0.95)
# With normal vision there are hues to spare: asking for more distance there keeps all of them in use, at no cost.
NORMAL_VISION_WEIGHT = 0.7
MAX_CHROMA = 0.25
MAX_CLASSES = 1024
# Raw ids of VSPW are bytes, and 0 is void.
MAX_VSPW_CLASSES = 255
# How linear RGB looks without long-, medium- and short-wave cones (protanopia, deuteranopia, tritanopia): G. Machado,
# M. Oliveira and L. Fernandes, "A physiologically-based model for simulation of color vision deficiency", 2009,
# severity 1.
COLOR_DEFICIENCIES = np.array(
    [
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ]
)


def named_palette(name: str, num_classes: int) -> np.ndarray:
    """Colours of classes `0 ... num_classes - 1`, `uint8` RGB of shape `(num_classes, 3)`, by the name of the palette.

    `"default"` is [`class_palette`], `"vspw"` [`vspw_palette`] and `"colour-blind"` [`colour_blind_palette`].
    """
    makers = dict(zip(PALETTES, (class_palette, vspw_palette, colour_blind_palette), strict=True))
    if name not in makers:
        raise ValueError(f"`palette` must be one of {', '.join(PALETTES)}. Got {name!r}.")
    return makers[name](num_classes)


def class_palette(num_classes: int) -> np.ndarray:
    """Colours for classes `0 ... num_classes - 1`, the same in every run and for every number of classes up to 1024.

    The first nine are hand-picked; each further one is the candidate that lies farthest, in the perceptual space Oklab
    (B. Ottosson, 2020), from all colours before it. The result is `uint8` RGB of shape `(num_classes, 3)`, without
    repetitions.
    """
    _check_num_classes(num_classes, MAX_CLASSES)
    return _farthest_colors(
        FIRST_COLORS, num_classes, COLOR_LEVELS, LIGHTNESS_RANGE, lambda colors: oklab(colors)[None]
    )


def vspw_palette(num_classes: int) -> np.ndarray:
    """The colour map of PASCAL VOC by raw id, as pictures of VSPW are usually shown: class `k` has raw id `k + 1`.

    There is no official palette of all 124 classes. VSPW's released test script (`test_clip.py` of `VSPW_baseline`)
    colours its PNGs with DAVIS's, which is VOC's for the first 22 entries (with 191 for 192) and grey ramps after
    them; this map continues VOC's rule instead, for up to 255 classes. That script counts from class index 0, which
    paints walls black; by raw id only void (raw id 0) is.
    """
    _check_num_classes(num_classes, MAX_VSPW_CLASSES)
    raw_ids = np.arange(1, num_classes + 1)
    # The bits of an id go to red, green and blue in turn, the lowest ones to the highest bits of the colour.
    channels = [
        sum(((raw_ids >> (3 * level + channel)) & 1) << (7 - level) for level in range(3)) for channel in range(3)
    ]
    return np.stack(channels, axis=1).astype(np.uint8)


def colour_blind_palette(num_classes: int) -> np.ndarray:
    """Colours that lie apart with normal vision and, simulated, with each of the three kinds of colour blindness.

    Like [`class_palette`], but what counts is the smallest of four distances: with protanopia, deuteranopia and
    tritanopia (Machado et al., 2009), and 0.7 times that with normal vision. No palette is safe for many classes: the
    smallest distance in Oklab is 0.11 for 11 classes, 0.077 for 20, 0.05 for 40 and 0.027 for 124
    ([`class_palette`]: 0.033, 0.028, 0.005 and 0.001). About 0.02 is just noticed side by side,
    and an overlay halves it: beyond some 40 classes, rely on the label maps instead.
    """
    _check_num_classes(num_classes, MAX_CLASSES)

    def appearances(colors: np.ndarray) -> np.ndarray:
        return np.stack([NORMAL_VISION_WEIGHT * oklab(colors), *map(oklab, simulated_colour_blindness(colors))])

    return _farthest_colors(FIRST_SAFE_COLORS, num_classes, SAFE_COLOR_LEVELS, SAFE_LIGHTNESS_RANGE, appearances)


def simulated_colour_blindness(colors: np.ndarray) -> np.ndarray:
    """How RGB colours `(..., 3)` look with protanopia, deuteranopia and tritanopia: `(3, ..., 3)`, not rounded."""
    simulated = np.stack([_linear(colors) @ matrix.T for matrix in COLOR_DEFICIENCIES]).clip(0, 1)
    return 255 * np.where(simulated <= 0.0031308, 12.92 * simulated, 1.055 * simulated ** (1 / 2.4) - 0.055)


def oklab(colors: np.ndarray) -> np.ndarray:
    """RGB 0 ... 255 in Oklab (https://bottosson.github.io/posts/oklab/): lightness 0 ... 1 and two colour axes."""
    cones = _linear(colors) @ np.array(
        [[0.4122214708, 0.2119034982, 0.0883024619], [0.5363325363, 0.6806995451, 0.2817188376],
         [0.0514459929, 0.1073969566, 0.6299787005]]
    )  # fmt: skip
    return np.cbrt(cones) @ np.array(
        [[0.2104542553, 1.9779984951, 0.0259040371], [0.7936177850, -2.4285922050, 0.7827717662],
         [-0.0040720468, 0.4505937099, -0.8086757660]]
    )  # fmt: skip


def _farthest_colors(
    first: Sequence[tuple[int, int, int]],
    num_classes: int,
    levels: int,
    lightness_range: tuple[float, float],
    appearances: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Extend `first` by one candidate after the other, each the farthest, in its worst appearance, from all before."""
    colors = list(first[:num_classes])
    steps = np.linspace(0, 255, levels).round()
    candidates = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    lightness, *hue = oklab(candidates).T
    darkest, lightest = lightness_range
    candidates = candidates[(lightness >= darkest) & (lightness <= lightest) & (np.hypot(*hue) <= MAX_CHROMA)]
    seen = appearances(candidates)  # (appearances, candidates, 3)

    def distance_to(color: np.ndarray) -> np.ndarray:
        return ((seen - color) ** 2).sum(axis=-1).min(axis=0)

    distance = np.full(len(candidates), np.inf)
    for color in (*RESERVED_COLORS, *colors):
        distance = np.minimum(distance, distance_to(appearances(np.array([color]))))
    while len(colors) < num_classes:
        farthest = int(distance.argmax())
        red, green, blue = candidates[farthest].astype(int).tolist()
        colors.append((red, green, blue))
        distance = np.minimum(distance, distance_to(seen[:, farthest, None]))
    return np.array(colors, dtype=np.uint8)


def _check_num_classes(num_classes: int, most: int) -> None:
    if not 1 <= num_classes <= most:
        raise ValueError(f"`num_classes` must be between 1 and {most}. Got {num_classes}.")


def _linear(colors: np.ndarray) -> np.ndarray:
    """Undo the transfer curve of sRGB: values 0 ... 255 to intensities 0 ... 1."""
    rgb = colors / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
