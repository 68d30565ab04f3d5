# SPDX-License-Identifier: Apache-2.0
"""Reader of the VSPW layout: split files, frames and masks in folders, one row per video, raw label ids.

```
ROOT/train.txt, ROOT/val.txt, ...        one video name per line
ROOT/data/<video>/origin/<frame>.jpg     RGB frames (.jpg or .png); sorted names are the order in time
ROOT/data/<video>/mask/<frame>.png       8-bit single-channel ids: 0 = "others" (void), 255 = void
ROOT/label_num_dic_final.json            class name -> id as a string
```
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

LABEL_FILE = "label_num_dic_final.json"
FRAME_SUFFIXES = (".jpg", ".jpeg", ".png")
MASK_SUFFIXES = (".png",)


def load_vspw(
    root: str | os.PathLike[str], split: str, cache_dir: str | os.PathLike[str] | None = None
) -> datasets.Dataset:
    """Load one split of a folder in VSPW layout, one row per video.

    Args:
        root (`str` or `os.PathLike`): Folder with the split files and `data/`.
        split (`str`): Name of a split file without `.txt`, such as `"train"`.
        cache_dir (`str` or `os.PathLike`, *optional*): Where the table of paths is kept; defaults to the cache of
            `datasets` (`HF_DATASETS_CACHE`). It is rebuilt when the listing of the files has changed.

    Returns:
        `datasets.Dataset`: Columns `video_id`, `num_frames`, `frames` and `masks`; paths are relative to `root`.
    """
    with _without_progress_bars():
        builder = VSPW(cache_dir=None if cache_dir is None else str(cache_dir), root=str(root), split=split)
        builder.download_and_prepare()
        return builder.as_dataset(split=split)


@dataclass(eq=False)
class VSPWConfig(datasets.BuilderConfig):
    """Configuration of [`VSPW`].

    Args:
        root (`str`): Folder with the split files and `data/`.
        split (`str`): Name of a split file without `.txt`.
    """

    root: str = ""
    split: str = "train"

    def create_config_id(self, config_kwargs: dict[str, Any], custom_features: Any = None) -> str:
        """Name the cache folder after the listing too, so that changed files never meet a stale table."""
        listing = list(_list_videos(Path(self.root), self.split))
        return super().create_config_id({**config_kwargs, "listing": listing}, custom_features)


class VSPW(datasets.GeneratorBasedBuilder):
    """Builder of one split of a folder in VSPW layout: `VSPW(root=..., split=...)`."""

    BUILDER_CONFIG_CLASS = VSPWConfig

    def _info(self) -> datasets.DatasetInfo:
        features = {
            "video_id": datasets.Value("string"),
            "num_frames": datasets.Value("int32"),
            "frames": datasets.List(datasets.Value("string")),
            "masks": datasets.List(datasets.Value("string")),
        }
        return datasets.DatasetInfo(features=datasets.Features(features))

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator(name=self.config.split)]

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        yield from enumerate(_list_videos(Path(self.config.root), self.config.split))


def read_class_names(root: str | os.PathLike[str]) -> list[str]:
    """Read the class names in the order of their ids, without the void id 0: list index = class index.

    Args:
        root (`str` or `os.PathLike`): Folder that holds `label_num_dic_final.json`.

    Returns:
        `list[str]`: Name of class index 0 (raw id 1), 1 (raw id 2), ...
    """
    _require_root(Path(root))
    path = Path(root) / LABEL_FILE
    if not path.is_file():
        raise FileNotFoundError(f"`root` must contain {LABEL_FILE}. Got {root}; write it as class name -> id string.")
    try:
        ids = {name: int(raw_id) for name, raw_id in json.loads(path.read_text(encoding="utf-8")).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} must map every class name to an id string. Got: {error}.") from error
    names = {raw_id: name for name, raw_id in ids.items() if raw_id != 0}
    class_ids = sorted(raw_id for raw_id in ids.values() if raw_id != 0)
    if not class_ids or class_ids != list(range(1, len(class_ids) + 1)):
        raise ValueError(
            f"The class ids in {path} must be 1, 2, 3, ... without gaps or repetitions (0 is void). Got {class_ids}; "
            "renumber the classes and the masks."
        )
    return [names[raw_id] for raw_id in class_ids]


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Build the small table of paths silently; a user's own setting is left as it was."""
    is_enabled = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if is_enabled:
            datasets.enable_progress_bars()


def _require_root(root: Path) -> None:
    if not root.is_dir():
        raise FileNotFoundError(f"`root` must be a folder in VSPW layout. Got {root}, which does not exist.")


def _list_videos(root: Path, split: str) -> Iterator[dict[str, Any]]:
    video_ids = _read_split(root, split)
    if not (root / "data").is_dir():
        raise FileNotFoundError(f"{root} must hold the folder data with the videos. Got no {root / 'data'}.")
    for video_id in video_ids:
        folder = root / "data" / video_id
        if not folder.is_dir():
            raise FileNotFoundError(
                f"Every video in {root / f'{split}.txt'} must be a folder in {root / 'data'}. Got {video_id!r}; "
                "remove the line or add the video."
            )
        frames = _list_images(folder / "origin", FRAME_SUFFIXES)
        masks = _list_images(folder / "mask", MASK_SUFFIXES)
        _check_pairs(folder, frames, masks)
        yield {
            "video_id": video_id,
            "num_frames": len(frames),
            "frames": [f"data/{video_id}/origin/{name}" for name in frames],
            "masks": [f"data/{video_id}/mask/{name}" for name in masks],
        }


def _read_split(root: Path, split: str) -> list[str]:
    _require_root(root)
    if not re.fullmatch(r"\w+", split):
        raise ValueError(
            f"`split` must be letters, digits and underscores only. Got {split!r}; rename the split file."
        )
    path = root / f"{split}.txt"
    if not path.is_file():
        available = ", ".join(sorted(file.stem for file in root.glob("*.txt"))) or "none"
        raise FileNotFoundError(f"`split` must name a split file in {root}. Got {split!r}; available: {available}.")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be a text file with one video name per line. Got {error}.") from error
    video_ids = [line.strip() for line in lines if line.strip()]
    if not video_ids:
        raise ValueError(f"{path} must name at least one video. Got an empty file; write one video name per line.")
    repeated = [video_id for video_id, count in Counter(video_ids).items() if count > 1]
    if repeated:
        raise ValueError(f"{path} must name every video once. Got {repeated[0]!r} again; remove the repeated line.")
    return video_ids


def _list_images(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    if not folder.is_dir():
        raise FileNotFoundError(f"A video in VSPW layout must have the folder {folder}. Got no such folder.")
    return sorted(name for name in os.listdir(folder) if name.lower().endswith(suffixes) and not name.startswith("."))


def _check_pairs(folder: Path, frames: list[str], masks: list[str]) -> None:
    if not frames:
        raise FileNotFoundError(f"{folder / 'origin'} must hold at least one frame (.jpg or .png). Got none.")
    frame_stems = [Path(name).stem for name in frames]
    mask_stems = [Path(name).stem for name in masks]
    if frame_stems == mask_stems:
        return
    without_mask = sorted(set(frame_stems) - set(mask_stems))
    if without_mask:
        raise FileNotFoundError(
            f"Every frame in {folder / 'origin'} must have a mask of the same stem. Got no mask for "
            f"{without_mask[0]!r} ({len(without_mask)} frames without one); add {without_mask[0]}.png to "
            f"{folder / 'mask'} or remove the frame."
        )
    without_frame = sorted(set(mask_stems) - set(frame_stems))
    if without_frame:
        raise FileNotFoundError(
            f"Every mask in {folder / 'mask'} must have a frame of the same stem. Got no frame for "
            f"{without_frame[0]!r} ({len(without_frame)} masks without one); add the frame or remove the mask."
        )
    raise ValueError(
        f"Every frame in {folder / 'origin'} must have a stem of its own. Got {len(frames)} frames for {len(masks)} "
        "masks; remove the copies that differ only in suffix."
    )
