# SPDX-License-Identifier: Apache-2.0
import re

import pytest

from transformers_themask.training.trainer import VSSTrainer


def learning_rate_at(trainer, step):
    schedule, optimizer = trainer.lr_scheduler, trainer.optimizer
    (factor, *_) = [rule(step) for rule in schedule.lr_lambdas]
    return optimizer.defaults["lr"] * factor


def test_default_schedule_is_the_official_one(official_facts, pixel_classifier, training_arguments, processor):
    for name, official in official_facts["poly_lr_base_1e-4"].items():
        max_steps, step = map(int, re.fullmatch(r"max(\d+)_iter(\d+)", name).groups())
        args = training_arguments(learning_rate=1e-4, max_steps=max_steps)
        trainer = VSSTrainer(pixel_classifier, args, processor)
        trainer.create_optimizer_and_scheduler(max_steps)
        assert learning_rate_at(trainer, step) == pytest.approx(official, rel=1e-12)


def test_default_optimizer_is_the_official_one(official_facts, pixel_classifier, training_arguments, processor):
    official = official_facts["optimizer"]
    args = training_arguments(learning_rate=1e-4)
    defaults = VSSTrainer(pixel_classifier, args, processor).create_optimizer().defaults
    assert (defaults["lr"], defaults["eps"], list(defaults["betas"])) == (
        official["lr"],
        official["eps"],
        list(official["betas"]),
    )
    assert args.weight_decay == official["weight_decay"]
    assert args.max_grad_norm == official["grad_clip"]["max_norm"]


def test_the_rate_rises_linearly_during_warm_up_and_ends_at_zero(pixel_classifier, training_arguments, processor):
    args = training_arguments(learning_rate=1.0, warmup_steps=0.04, max_steps=100)
    trainer = VSSTrainer(pixel_classifier, args, processor)
    trainer.create_optimizer_and_scheduler(100)
    rates = [learning_rate_at(trainer, step) for step in (0, 1, 2, 4, 52, 100)]
    assert rates == pytest.approx([0, 0.25, 0.5, 1.0, 0.5**0.9, 0.0])
