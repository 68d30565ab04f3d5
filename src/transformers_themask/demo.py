# SPDX-License-Identifier: Apache-2.0
"""Demo: train a small THE-Mask on synthetic videos, score it, and segment a held-out video."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoVideoProcessor

from transformers_themask.auto import AutoModelForVideoSemanticSegmentation
from transformers_themask.data.synthetic import render_synthetic_video, write_synthetic_dataset
from transformers_themask.drawing.palettes import class_palette
from transformers_themask.drawing.visualization import (
    draw_contours,
    draw_legend,
    overlay,
    side_by_side,
)
from transformers_themask.inference.segment_video import segment_video
from transformers_themask.sinks.label_maps import LabelFolder
from transformers_themask.sinks.overlay_video import OverlayVideo
from transformers_themask.sinks.sink import Sink
from transformers_themask.videos.video_reader import VideoReader
from transformers_themask.videos.video_writer import VideoWriter

CHECKOUT = Path(__file__).parents[2]
NUM_TRAIN_VIDEOS = 60
NUM_VAL_VIDEOS = 8
# In neither split: the scenes of the data set have the seeds (0, index).
HELD_OUT_SEED = (1, 0)
# Three times the data set's size, so that the legend can be read.
HELD_OUT_SIZE = (384, 480)
FRAME_RATE = 10


def run_demo(output: Path, announce: Callable[[str], None]) -> dict[str, Path]:
    """Build the data or reuse it, train both stages with evaluation, and draw a held-out clip; returns what to see."""
    data, stage1, stage2 = output / "data", output / "stage1", output / "stage2"
    flags = ["--data_root", str(data), "--output_dir"]
    commands = [
        training_command("demo_stage1.yaml", [*flags, str(stage1)]),
        training_command("demo_stage2.yaml", [*flags, str(stage2), "--model_name_or_path", str(stage1)]),
    ]
    announce(f"1/4 Synthetic videos in {data}")
    if not data.exists():
        write_synthetic_dataset(data, NUM_TRAIN_VIDEOS, NUM_VAL_VIDEOS)
    for step, command in enumerate(commands, start=2):
        announce(f"{step}/4 Training and evaluation, stage {step - 1}: {' '.join(command)}")
        if exit_code := subprocess.run(command, check=False).returncode:
            raise ChildProcessError(f"Stage {step - 1} must end with exit code 0. Got {exit_code}; see its output.")
    announce("4/4 Segmenting a synthetic clip that was not in the data")
    return {**draw_held_out_clip(stage2, output), "model": stage2}


def training_command(recipe: str, flags: list[str], checkout: Path = CHECKOUT) -> list[str]:
    """Command line that trains with a recipe of the repository at `checkout`; `flags` override its options."""
    script, recipe_path = checkout / "scripts" / "run_vss.py", checkout / "recipes" / recipe
    for path in (script, recipe_path):
        if not path.is_file():
            raise FileNotFoundError(
                f"`themask demo` must run from a checkout of the repository. Got an installation without {path}; "
                "clone the repository and run `make demo`."
            )
    # All options are given, so that the user's `accelerate config` does not change the demo.
    launch = ["-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--num_cpu_threads_per_process", str(torch.get_num_threads())]
    return [sys.executable, *launch, str(script), str(recipe_path), *flags]


def draw_held_out_clip(model_dir: Path, output: Path) -> dict[str, Path]:
    """Render a new synthetic scene, segment it with a saved model, and compare its middle frame with the truth."""
    paths = {
        "clip": output / "clip.mp4",
        "overlay video": output / "overlay.mp4",
        "label maps": output / "label_maps",
        "comparison": output / "frame_prediction_truth.png",
    }
    model = AutoModelForVideoSemanticSegmentation.from_pretrained(model_dir)
    processor = AutoVideoProcessor.from_pretrained(model_dir)
    frames, masks = render_synthetic_video(HELD_OUT_SEED, size=HELD_OUT_SIZE)
    output.mkdir(parents=True, exist_ok=True)
    with VideoWriter(paths["clip"], FRAME_RATE) as writer:
        for frame in frames:
            writer.write(frame)
    # Label maps of an earlier run must not mix with the new ones.
    if paths["label maps"].exists():
        shutil.rmtree(paths["label maps"])
    class_names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    source = VideoReader(paths["clip"])
    sinks: list[Sink] = [
        OverlayVideo(paths["overlay video"], source, class_names, class_palette(len(class_names))),
        LabelFolder(paths["label maps"]),
    ]
    segment_video(model.stream(processor), source, sinks, progress=True)
    middle = len(frames) // 2
    prediction = np.asarray(Image.open(paths["label maps"] / f"{source.frame_name(middle)}.png"))
    truth = processor.reduce_labels(masks[middle]).numpy()
    compare(frames[middle], prediction, truth, class_names).save(paths["comparison"])
    return paths


def compare(frame: np.ndarray, prediction: np.ndarray, truth: np.ndarray, class_names: list[str]) -> Image.Image:
    """Frame, and class indices predicted and true (255 for void), side by side over a legend of their classes."""
    palette = class_palette(len(class_names))
    panels = [
        ("frame", frame),
        ("prediction", draw_contours(overlay(frame, prediction, palette, alpha=0.7), prediction, palette)),
        ("truth", draw_contours(overlay(frame, truth, palette, alpha=0.7), truth, palette)),
    ]
    picture = np.asarray(side_by_side(panels))
    room_below = np.pad(picture, ((0, picture.shape[0] // 10), (0, 0), (0, 0)))
    class_indices = np.union1d(prediction, truth).tolist()
    return Image.fromarray(draw_legend(room_below, class_indices, class_names, palette))
