# SPDX-License-Identifier: Apache-2.0
"""`--gradient_checkpointing` and `--bf16` through the trainer."""

import pytest
import torch

from tiny import tiny_model
from transformers_themask.training.trainer import VSSTrainer

pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")  # its new name is 5.23's


@pytest.fixture
def train(clips, training_arguments, processor):
    """Trains a tiny model for three steps; returns it and the logged losses."""

    def run(**fields):
        model = tiny_model(num_frames=2, num_labels=8)
        args = training_arguments(max_steps=3, learning_rate=1e-4, **fields)
        trainer = VSSTrainer(model, args, processor, train_dataset=clips((-1, 0)))
        trainer.train()
        return model, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    return run


def test_a_run_with_gradient_checkpointing_ends_in_the_same_weights(train):
    (expected, expected_losses), (model, losses) = train(), train(gradient_checkpointing=True)
    assert model.model.transformer_module.decoder.layers[0].gradient_checkpointing
    assert losses == expected_losses
    for name, weight in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_a_run_in_bfloat16_has_almost_the_losses_of_float32_and_keeps_float32_weights(train, gradient_checkpointing):
    _, expected_losses = train()
    model, losses = train(bf16=True, gradient_checkpointing=gradient_checkpointing)
    assert losses == pytest.approx(expected_losses, rel=4 * torch.finfo(torch.bfloat16).eps)
    assert losses != expected_losses
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
