# SPDX-License-Identifier: Apache-2.0
"""Saved models where this package is not installed."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

HIDE_THE_PACKAGE = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "transformers_themask":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
try:
    import transformers_themask
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("the package must be hidden")
"""
LOAD_REMOTE_CODE = """
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoVideoProcessor

torch.set_num_threads(1)
source, target = sys.argv[1:]
model = AutoModel.from_pretrained(source, trust_remote_code=True)
processor = AutoVideoProcessor.from_pretrained(source, trust_remote_code=True)
assert "transformers_modules" in type(model).__module__ and "transformers_modules" in type(processor).__module__
inputs = load_file(f"{target}/inputs.safetensors")
with torch.no_grad():
    outputs = model(pixel_values_videos=inputs["frames"])
maps = processor.post_process_semantic_segmentation(outputs, [(75, 100), (75, 100)])
batch = processor(inputs["video"].numpy(), inputs["maps"].numpy(), return_tensors="pt")
loss = model(pixel_values_videos=inputs["frames"], labels=inputs["labels"]).loss
results = {name: value for name, value in outputs.items() if torch.is_tensor(value)}
results |= {"label_maps": torch.stack(maps), "loss": loss.detach(), **batch}
save_file({name: value.contiguous() for name, value in results.items()}, f"{target}/results.safetensors")
model.save_pretrained(f"{target}/again")
processor.save_pretrained(f"{target}/again")
"""


def run_python(code: str, *arguments, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)


def load_without_the_package(folder: Path, target: Path, frames: torch.Tensor, labels: torch.Tensor):
    """Load a saved model and its processor, use them, and save them again in `target / "again"`.

    Returns:
        What went in: two clips, their labels, a video and its label maps; and what came out: all outputs, the label
        maps and the loss of the clips, and the processed video.
    """
    generator = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (2, 75, 100, 3), generator=generator, dtype=torch.uint8)
    maps = torch.randint(0, 7, (2, 75, 100), generator=generator, dtype=torch.uint8)
    inputs = {"frames": frames, "labels": labels, "video": video, "maps": maps}
    save_file(inputs, target / "inputs.safetensors")
    process = run_python(HIDE_THE_PACKAGE + LOAD_REMOTE_CODE, folder, target, HF_MODULES_CACHE=str(target / "modules"))
    assert process.returncode == 0, process.stderr
    return inputs, load_file(target / "results.safetensors")
