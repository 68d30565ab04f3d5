# SPDX-License-Identifier: Apache-2.0
import os
import signal

from transformers import TrainerCallback

from transformers_themask.training.checkpoints import checkpoint_damage, find_checkpoints
from transformers_themask.training.trainer import VSSTrainer


class Terminate(TrainerCallback):
    """Sends the process SIGTERM in the middle of an optimiser step."""

    def __init__(self, step):
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_saves_before_leaving(pixel_classifier, clips, training_arguments, processor, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    trainer = VSSTrainer(pixel_classifier, training_arguments(max_steps=5), processor, train_dataset=clips())
    trainer.add_callback(Terminate(step=3))
    trainer.train()
    assert trainer.stop_signal.has_stopped and trainer.state.global_step == 3
    checkpoint, skipped = find_checkpoints(tmp_path / "run")
    assert checkpoint.name == "checkpoint-3" and checkpoint_damage(checkpoint) is None and skipped == []
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_run_without_a_signal_does_not_stop(pixel_classifier, clips, training_arguments, processor):
    trainer = VSSTrainer(pixel_classifier, training_arguments(max_steps=2), processor, train_dataset=clips())
    trainer.train()
    assert not trainer.stop_signal.has_stopped and trainer.state.global_step == 2
