# SPDX-License-Identifier: Apache-2.0
import resource

import pytest
import torch
from transformers import TrainerCallback

from tiny import tiny_model
from transformers_themask.training.run_monitor import RunMonitor, peak_memory
from transformers_themask.training.trainer import VSSTrainer


class Clock(TrainerCallback):
    """Time that passes in the training loop only: a step takes 2 s, evaluations and checkpoints take 100 s each."""

    def __init__(self):
        self.now = 0.0

    def on_substep_end(self, *args, **kwargs):
        self.now += 1

    def on_optimizer_step(self, *args, **kwargs):
        self.now += 1

    def on_evaluate(self, *args, **kwargs):
        self.now += 100

    def on_save(self, *args, **kwargs):
        self.now += 100


class Readings(TrainerCallback):
    """Collects what the monitor has to say whenever the trainer logs a loss."""

    def __init__(self, monitor):
        self.monitor, self.accelerator, self.entries = monitor, None, []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.entries.append(self.monitor.pop_readings(self.accelerator))


def readings_of(trainer):
    clock = Clock()
    readings = Readings(RunMonitor(clock=lambda: clock.now))
    readings.accelerator = trainer.accelerator
    for callback in (clock, readings.monitor, readings):
        trainer.add_callback(callback)
    trainer.train()
    return readings.entries


def test_throughput_counts_accumulated_clips_but_no_time_spent_on_evaluation_and_checkpoints(
    clips, videos, training_arguments, processor
):
    args = training_arguments(
        max_steps=4,
        logging_steps=2,
        gradient_accumulation_steps=2,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
    )
    trainer = VSSTrainer(tiny_model(num_frames=2, num_labels=8), args, processor, clips((-1, 0)), videos(num_frames=2))
    for entry in readings_of(trainer):
        assert entry["clips_per_second"] == 4 / 2 and entry["frames_per_second"] == 8 / 2


def test_each_parameter_group_has_the_learning_rate_of_its_last_step(clips, training_arguments, processor):
    args = training_arguments(
        max_steps=4,
        learning_rate=1e-2,
        backbone_learning_rate_factor=0.1,
        lr_scheduler_kwargs={"power": 1.0, "lr_end": 0.0},
    )
    trainer = VSSTrainer(tiny_model(num_labels=8), args, processor, train_dataset=clips())
    entries = readings_of(trainer)
    factors = [1, 3 / 4, 2 / 4, 1 / 4]
    assert [entry["learning_rate_head"] for entry in entries] == pytest.approx([1e-2 * factor for factor in factors])
    assert [entry["learning_rate_backbone"] for entry in entries] == pytest.approx([1e-3 * x for x in factors])


def test_peak_memory_of_a_process_on_the_cpu_covers_what_it_has_freed_again():
    before = peak_memory(torch.device("cpu"))
    size = max(before - resource.getpagesize(), 0) + 2**26  # above all that this process ever held
    block = torch.ones(size, dtype=torch.uint8)
    del block
    assert peak_memory(torch.device("cpu")) >= before + 2**25
