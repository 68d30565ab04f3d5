# SPDX-License-Identifier: Apache-2.0
"""One process of the runs that `test_invariant_steps.py` compares.

Arguments: the data, the file to write, the models with commas between them, and layouts, `batch x accumulation` each.
For every layout and model the main process writes losses, gradients and weights.
"""

import os
import sys
import tempfile
from pathlib import Path

import torch
from transformers import TrainerCallback

sys.path.insert(0, str(Path(__file__).parents[1]))
from trained_models import TRAINED_MODELS
from transformers_themask import THEMaskVideoProcessor
from transformers_themask.data.clip_dataset import ClipDataset
from transformers_themask.data.collator import ClipCollator
from transformers_themask.data.sources import load_videos
from transformers_themask.data.transforms import ClipAugmentation
from transformers_themask.training.arguments import VSSTrainingArguments
from transformers_themask.training.trainer import VSSTrainer

STEPS = 5


class GradientRecorder(TrainerCallback):
    """Keeps the gradients of the first optimiser step."""

    def __init__(self):
        self.gradients = {}

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        if state.global_step == 0:
            self.gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


class DoubleCollator(ClipCollator):
    def __call__(self, items):
        batch = super().__call__(items)
        batch["pixel_values_videos"] = batch["pixel_values_videos"].double()
        return batch


def keep_statistics(batch_norm: torch.nn.Module, _inputs: tuple) -> None:
    """A hook for norms that would see one batch at a time, the only way in which batches matter."""
    batch_norm.eval()


def train(data_root: str, name: str, batch_size: int, accumulation: int, dtype: torch.dtype) -> dict:
    trained = TRAINED_MODELS[name]
    processor = THEMaskVideoProcessor(size={"height": 64, "width": 96})
    clips = ClipDataset(
        videos=load_videos(data_root, "train"),
        frame_offsets=trained.frame_offsets,
        processor=processor,
        augmentation=ClipAugmentation(base_size=(80, 64), crop_size=(64, 64)),
        seed=0,
        clips_per_video=16,
    )
    model = trained.build(has_dropout=False).to(dtype)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("bias"):  # of zero, they make a constant of flat patches, which LayerNorm blows up
            torch.nn.init.normal_(parameter, std=0.1)
    for module in model.modules():  # the backbone's
        if isinstance(getattr(module, "drop_prob", None), float):
            module.drop_prob = 0.0
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.register_forward_pre_hook(keep_statistics)
    with tempfile.TemporaryDirectory() as folder:
        args = VSSTrainingArguments(
            output_dir=folder,
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
            logging_steps=1,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            max_steps=STEPS if dtype == torch.float64 else 1,  # later weights are compared in float64 only
            one_round_steps=trained.one_round_steps,
            consistency_weight=trained.consistency_weight,
            mask_patch_size=16,
            learning_rate=1e-3,
            max_grad_norm=0.0,
        )
        trainer = VSSTrainer(model, args, processor, train_dataset=clips)
        if dtype == torch.float64:
            trainer.data_collator = DoubleCollator()
        recorder = GradientRecorder()
        trainer.add_callback(recorder)
        trainer.train()
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "world_size": args.world_size,
        "logs": logs,
        "gradients": recorder.gradients,
        "weights": {parameter: value.clone() for parameter, value in model.state_dict().items()},
    }


def main() -> None:
    data_root, output, models, *layouts = sys.argv[1:]
    world = int(os.environ["WORLD_SIZE"])
    results = {}
    for layout in layouts:
        batch_size, accumulation = map(int, layout.split("x"))
        for name in models.split(","):
            for dtype in (torch.float64, torch.float32):
                result = train(data_root, name, batch_size, accumulation, dtype)
                assert result["world_size"] == world, f"{result['world_size']} processes instead of {world}"
                results[layout, name, str(dtype)] = result
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        torch.save(results, output)


if __name__ == "__main__":
    main()
