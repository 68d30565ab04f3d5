# SPDX-License-Identifier: Apache-2.0
"""Seeded synthetic videos of a toy world with exact labels, for tests, demos and quick experiments.

Labels are those of the middle of the exposure, with a thin void band (id 0) where two classes meet. Lengths are in
frame heights and times in frames, so a scene can be rendered at any size.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from transformers.utils import logging

from transformers_themask.files.atomic import AtomicFolder

from .synthetic_appearance import PATTERN_COLORS, PATTERNS, SHAPES, Color
from .vspw import LABEL_FILE

BACKGROUND_CLASSES = ("sky", "meadow")
SKY_ID, MEADOW_ID = 1, 2
PRESETS = {"texture": tuple(PATTERNS), "shape": tuple(SHAPES)}
MIN_CLASSES, MAX_CLASSES = len(BACKGROUND_CLASSES) + 1, len(BACKGROUND_CLASSES) + len(PATTERNS)

EXPOSURE_TIMES = (-0.25, 0.0, 0.25)
VOID_HALF_WIDTH = 0.75
SHADOW_OFFSET = 0.022
NOISE_LEVEL = 3.0
JPEG_QUALITY = 92


@dataclass(frozen=True)
class SyntheticObject:
    """One moving object, of a key of `SHAPES` and of `PATTERNS`.

    `tint` is a factor per colour channel, `pattern_scale` one on the frequency, `pattern_phase` a shift in radii.
    `center` (at time 0) and `velocity` are columns and rows, `stretch` is a factor along the first axis. `swelling` is
    relative amplitude, angular speed and phase of the mean `radius`, `rotation` the angle at time 0 and angular speed.
    """

    class_id: int
    shape: str
    pattern: str
    tint: Color
    pattern_scale: float
    pattern_phase: tuple[float, float]
    center: tuple[float, float]
    velocity: tuple[float, float]
    radius: float
    stretch: float
    swelling: tuple[float, float, float]
    rotation: tuple[float, float]


@dataclass(frozen=True)
class SyntheticScene:
    """Objects from back to front, a landscape, camera and light, which is a factor per colour channel.

    `pan_speed` is columns per frame (0.4 of it for the sky), `flicker` the light's amplitude, angular speed and phase.
    """

    objects: tuple[SyntheticObject, ...]
    landscape_seed: int
    pan_speed: float
    flicker: tuple[float, float, float]
    light: Color


def synthetic_class_names(num_classes: int, preset: str = "texture") -> list[str]:
    """Names of the classes with raw ids 1 to `num_classes`: sky, meadow, then the preset's patterns or shapes."""
    if preset not in PRESETS:
        raise ValueError(f"`preset` must be one of {', '.join(PRESETS)}. Got {preset!r}.")
    if not MIN_CLASSES <= num_classes <= MAX_CLASSES:
        raise ValueError(f"`num_classes` must be between {MIN_CLASSES} and {MAX_CLASSES}. Got {num_classes}.")
    return [*BACKGROUND_CLASSES, *PRESETS[preset]][:num_classes]


def render_synthetic_video(
    seed: int | Sequence[int],
    num_frames: int = 30,
    size: tuple[int, int] = (128, 160),
    num_classes: int = 8,
    preset: str = "texture",
) -> tuple[np.ndarray, np.ndarray]:
    """Render one random scene; a longer video starts like a shorter one of the same seed.

    `num_classes` includes two background classes. The others differ by `preset`: `"texture"` (pattern and colours, any
    shape) or `"shape"` (outline alone, any pattern; harder). Returns `uint8` frames `(num_frames, height, width, 3)`
    and raw label ids `(num_frames, height, width)`, where 0 is void.
    """
    if num_frames < 1 or min(size) < 16:
        raise ValueError(f"`num_frames` must be at least 1 and `size` at least 16. Got {num_frames} and {size}.")
    rng = np.random.default_rng(seed)
    scene = draw_scene(rng, size[1] / size[0], num_classes, preset)
    return render_scene(scene, num_frames, size, rng)


def write_synthetic_dataset(
    root: str | os.PathLike[str],
    num_train_videos: int,
    num_val_videos: int,
    num_frames: int = 30,
    size: tuple[int, int] = (128, 160),
    num_classes: int = 8,
    seed: int = 0,
    preset: str = "texture",
) -> None:
    """Write random videos in VSPW layout, with the splits `train` and `val`, atomically to a new or empty folder.

    The other arguments are those of [`render_synthetic_video`] for every video.
    """
    root = Path(root).resolve()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FileExistsError(f"`root` must be a new or empty folder. Got {root}, which has content; remove it first.")
    ids = {name: str(index + 1) for index, name in enumerate(synthetic_class_names(num_classes, preset))}
    num_videos = {"train": num_train_videos, "val": num_val_videos}
    videos = [f"{split}_{index:04d}" for split, number in num_videos.items() for index in range(number)]
    with AtomicFolder(root) as folder:
        (folder / LABEL_FILE).write_text(json.dumps({**ids, "others": "0"}), encoding="utf-8")
        for split in num_videos:
            lines = [f"{video}\n" for video in videos if video.startswith(split)]
            (folder / f"{split}.txt").write_text("".join(lines), encoding="utf-8")
        for index, video in enumerate(logging.tqdm(videos, desc="Rendering synthetic videos", unit="video")):
            frames, masks = render_synthetic_video([seed, index], num_frames, size, num_classes, preset)
            _write_video(folder / "data" / video, frames, masks)


def _write_video(folder: Path, frames: np.ndarray, masks: np.ndarray) -> None:
    (folder / "origin").mkdir(parents=True)
    (folder / "mask").mkdir()
    for index, (frame, mask) in enumerate(zip(frames, masks, strict=True), start=1):
        Image.fromarray(frame).save(folder / "origin" / f"{index:08d}.jpg", quality=JPEG_QUALITY)
        Image.fromarray(mask).save(folder / "mask" / f"{index:08d}.png")


def draw_scene(rng: np.random.Generator, aspect: float, num_classes: int, preset: str) -> SyntheticScene:
    """Draw a scene for frames of the aspect ratio `aspect` (width / height)."""
    names = synthetic_class_names(num_classes, preset)
    object_ids = np.arange(len(BACKGROUND_CLASSES) + 1, num_classes + 1)
    num_objects = int(rng.integers(4, 7))
    class_ids = np.concatenate([rng.permutation(object_ids) for _ in range(-(-num_objects // len(object_ids)))])
    objects = tuple(
        _draw_object(rng, aspect, int(class_id), names[class_id - 1], preset) for class_id in class_ids[:num_objects]
    )
    return SyntheticScene(
        objects=objects,
        landscape_seed=int(rng.integers(2**31)),
        pan_speed=rng.uniform(0.002, 0.012) * rng.choice([-1, 1]),
        flicker=(rng.uniform(0, 0.08), rng.uniform(0.1, 0.4), rng.uniform(0, 2 * np.pi)),
        light=tuple(rng.uniform(0.85, 1.05) * rng.uniform(0.96, 1.04, 3)),
    )


def _draw_object(rng: np.random.Generator, aspect: float, class_id: int, name: str, preset: str) -> SyntheticObject:
    other = str(rng.choice(PRESETS["shape" if preset == "texture" else "texture"]))
    shape, pattern = (other, name) if preset == "texture" else (name, other)
    direction, speed = rng.uniform(0, 2 * np.pi), rng.uniform(0.004, 0.022)
    return SyntheticObject(
        class_id=class_id,
        shape=shape,
        pattern=pattern,
        tint=tuple(rng.uniform(0.85, 1.1) * rng.uniform(0.94, 1.06, 3)),
        pattern_scale=rng.uniform(0.8, 1.25),
        pattern_phase=tuple(rng.uniform(-0.3, 0.3, 2)),
        center=(rng.uniform(0, aspect), rng.uniform(0.12, 0.92)),
        velocity=(speed * np.cos(direction), speed * np.sin(direction)),
        radius=rng.uniform(0.12, 0.25),
        stretch=rng.uniform(0.85, 1.2),
        swelling=(rng.uniform(0.05, 0.25), rng.uniform(0.08, 0.3), rng.uniform(0, 2 * np.pi)),
        rotation=(rng.uniform(0, 2 * np.pi), rng.uniform(-0.06, 0.06)),
    )


def render_scene(
    scene: SyntheticScene, num_frames: int, size: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Render a scene; `rng` only draws the camera noise."""
    landscape = _Landscape(scene, size)
    frames = np.empty((num_frames, *size, 3), np.uint8)
    masks = np.empty((num_frames, *size), np.uint8)
    for time in range(num_frames):
        exposure = np.zeros((*size, 3), np.float32)
        for offset in EXPOSURE_TIMES:
            canvas = landscape.paint(time + offset)
            for thing in scene.objects:
                _paint_object(canvas, thing, time + offset)
            exposure += canvas
        amplitude, speed, phase = scene.flicker
        light = _floats(scene.light) * np.float32(1 + amplitude * np.sin(speed * time + phase))
        exposure *= light / len(EXPOSURE_TIMES)
        exposure += NOISE_LEVEL * rng.standard_normal(exposure.shape, np.float32)
        frames[time] = exposure.clip(0, 255)
        masks[time] = landscape.label(time)
        for thing in scene.objects:
            view = _view_object(thing, time, size)
            window = masks[time][view.rows, view.columns]
            window[view.distance < VOID_HALF_WIDTH] = 0
            window[view.distance < -VOID_HALF_WIDTH] = thing.class_id
    return frames, masks


@dataclass(frozen=True)
class _View:
    """The box of an object in one image: slices of the image and the object's coordinates at their pixels."""

    rows: slice
    columns: slice
    across: np.ndarray
    down: np.ndarray
    u: np.ndarray
    v: np.ndarray
    distance: np.ndarray


def _view_object(thing: SyntheticObject, time: float, size: tuple[int, int]) -> _View:
    """View of an object at a time. Its centre is always inside the image; distances to the outline are in pixels."""
    height, width = size
    amplitude, speed, phase = thing.swelling
    radius = thing.radius * (1 + amplitude * np.sin(speed * time + phase)) * height
    column = _bounce(thing.center[0] + thing.velocity[0] * time, width / height) * height
    row = _bounce(thing.center[1] + thing.velocity[1] * time, 1.0) * height
    reach = 1.2 * max(1.0, thing.stretch) * radius + SHADOW_OFFSET * height + 2
    rows = slice(max(0, int(row - reach)), min(height, int(row + reach) + 1))
    columns = slice(max(0, int(column - reach)), min(width, int(column + reach) + 1))
    down = ((np.arange(rows.start, rows.stop, dtype=np.float32) + np.float32(0.5 - row)) / np.float32(radius))[:, None]
    across = (np.arange(columns.start, columns.stop, dtype=np.float32) + np.float32(0.5 - column)) / np.float32(radius)
    angle = thing.rotation[0] + thing.rotation[1] * time
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u = (cosine * across + sine * down) / np.float32(thing.stretch)
    v = cosine * down - sine * across
    distance = SHAPES[thing.shape](u, v) * np.float32(radius)
    return _View(rows, columns, across, down, u, v, distance)


def _bounce(position: float, limit: float) -> float:
    """Reflect a position at 0 and at `limit`."""
    position %= 2 * limit
    return min(position, 2 * limit - position)


def _paint_object(canvas: np.ndarray, thing: SyntheticObject, time: float) -> None:
    view = _view_object(thing, time, canvas.shape[:2])
    window = canvas[view.rows, view.columns]
    cover = np.clip(0.5 - view.distance, 0, 1)
    softness = np.float32(SHADOW_OFFSET * canvas.shape[0])
    shift = max(1, round(softness))
    shadow = 0.4 * np.clip(0.5 - view.distance / softness, 0, 1)
    window[shift:, shift:] *= (1 - shadow[:-shift, :-shift])[..., None]

    first, second = _floats(PATTERN_COLORS[thing.pattern]) * _floats(thing.tint)
    scale = np.float32(thing.pattern_scale)
    phase = _floats(thing.pattern_phase)
    blend = PATTERNS[thing.pattern](scale * view.u + phase[0], scale * view.v + phase[1])
    rim = np.clip(1 + view.distance / (3 * softness), 0, 1)
    shade = np.clip(1.1 - 0.14 * (view.across + view.down), 0.75, 1.25) * (1 - 0.45 * rim * rim)
    color = (first + blend[..., None] * (second - first)) * shade[..., None]
    window += cover[..., None] * (color - window)


class _Landscape:
    """Sky and meadow, painted once as periodic panoramas twice as wide as a frame."""

    def __init__(self, scene: SyntheticScene, size: tuple[int, int]):
        self.height, self.width = size
        self.pan_speed = scene.pan_speed * self.height
        rng = np.random.default_rng(scene.landscape_seed)
        self.horizon = self._draw_hills(rng, rng.uniform(0.32, 0.55))
        ridge = self._draw_hills(rng, rng.uniform(0.62, 0.75))
        self.sky = self._paint_sky(rng)
        self.meadow = self._paint_meadow(rng, ridge)
        self.rows = np.arange(self.height, dtype=np.float32)[:, None] + np.float32(0.5)

    def paint(self, time: float) -> np.ndarray:
        """The landscape in RGB grey levels at a time."""
        sky = self._look(self.sky, 0.4 * time)
        cover = np.clip(0.5 + self.rows - self._look(self.horizon, time), 0, 1)
        return sky + cover[..., None] * (self._look(self.meadow, time) - sky)

    def label(self, time: float) -> np.ndarray:
        """Raw label ids at a time, void along the horizon."""
        depth = self.rows - self._look(self.horizon, time)
        mask = np.where(depth > 0, np.uint8(MEADOW_ID), np.uint8(SKY_ID))
        mask[np.abs(depth) < VOID_HALF_WIDTH] = 0
        return mask

    def _look(self, panorama: np.ndarray, time: float) -> np.ndarray:
        """The visible part of a panorama (columns on axis 1) at a time."""
        first, fraction = divmod(self.pan_speed * time, 1)
        columns = (int(first) + np.arange(self.width + 1)) % panorama.shape[1]
        seen = np.take(panorama, columns, axis=1)
        return seen[:, :-1] + np.float32(fraction) * (seen[:, 1:] - seen[:, :-1])

    def _draw_hills(self, rng: np.random.Generator, level: float) -> np.ndarray:
        """Row of a hilly outline at every column, of shape `(1, columns)`."""
        phases = np.linspace(0, 2 * np.pi, 2 * self.width, endpoint=False)
        waves = [rng.uniform(0.02, 0.05) / n * np.sin(2 * n * phases + rng.uniform(0, 2 * np.pi)) for n in (1, 2, 3)]
        return _floats((level + np.sum(waves, axis=0)) * self.height)[None]

    def _paint_sky(self, rng: np.random.Generator) -> np.ndarray:
        down = np.linspace(0, 1, self.height, dtype=np.float32)[:, None, None]
        gradient = _floats((84, 148, 224)) + np.minimum(1.7 * down, 1) * _floats((126, 84, 22))
        billows = sum(self._noise(rng, cell, 2.5 * cell) * weight for cell, weight in ((0.2, 4), (0.1, 2), (0.05, 1)))
        clouds = np.clip((billows / 7 - 0.5) * 5, 0, 0.9)[..., None]
        return gradient + clouds * (_floats((252, 250, 248)) - gradient)

    def _paint_meadow(self, rng: np.random.Generator, ridge: np.ndarray) -> np.ndarray:
        rows = np.arange(self.height, dtype=np.float32)[:, None]
        is_near = np.clip(0.5 + rows - ridge, 0, 1)[..., None]
        far, near = _floats((140, 178, 92)), _floats((78, 142, 56))
        color = far + is_near * (near - far)
        grass = 0.5 * self._noise(rng, 0.06, 0.012) + 0.5 * self._noise(rng, 0.2, 0.3)
        meadow = color * (0.65 + 0.65 * grass[..., None])
        is_flower = (rng.random(grass.shape) > 0.992) & (rows > ridge)
        petals = _floats([(250, 246, 236), (250, 214, 70), (238, 130, 160)])
        meadow[is_flower] = petals[rng.integers(3, size=int(is_flower.sum()))]
        return meadow

    def _noise(self, rng: np.random.Generator, cell_height: float, cell_width: float) -> np.ndarray:
        """Smooth noise in 0..1 over the panorama, periodic along the columns; cells are in frame heights."""
        width = 2 * self.width
        num_rows = int(np.ceil(1 / cell_height)) + 2
        num_columns = max(1, round(width / (cell_width * self.height)))
        grid = rng.random((num_rows, num_columns), np.float32)
        down, down_weight = _cells(np.arange(self.height) / (cell_height * self.height))
        across, across_weight = _cells(np.arange(width) * (num_columns / width))
        left, right = grid[:, across], grid[:, (across + 1) % num_columns]
        lines = left + across_weight * (right - left)
        return lines[down] + down_weight[:, None] * (lines[down + 1] - lines[down])


def _floats(values: npt.ArrayLike) -> np.ndarray:
    """Single precision array; double precision would halve the renderer's speed."""
    return np.asarray(values, np.float32)


def _cells(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cell index and smooth weight of the next cell."""
    index = positions.astype(np.intp)
    fraction = (positions - index).astype(np.float32)
    return index, fraction * fraction * (3 - 2 * fraction)
