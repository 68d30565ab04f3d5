# SPDX-License-Identifier: Apache-2.0
"""Which batch norms share their statistics between processes, when, and that a model remains the same by it."""

import pytest
import torch
from torch import nn

from families import cffm_model
from tiny import tiny_model
from tiny_segmenters import per_frame_model
from transformers_themask import CFFMForVideoSemanticSegmentation
from transformers_themask.training import trainer as trainer_module
from transformers_themask.training.batch_norms import are_batch_norms_shared, share_batch_norms
from transformers_themask.training.parameter_groups import parameter_groups


def names_of(model, kind):
    return [name for name, module in model.named_modules() if type(module) is kind]


@pytest.mark.parametrize(
    ("device_type", "world_size", "expected"),
    [("cuda", 1, False), ("cuda", 2, True), ("cuda", 8, True), ("cpu", 1, False), ("cpu", 2, False)],
)
def test_statistics_are_shared_between_processes_on_gpus(device_type, world_size, expected):
    assert are_batch_norms_shared(device_type, world_size) is expected


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (cffm_model, ["head.fusion.batch_norm"]),
        (lambda: per_frame_model("segformer"), ["segmenter.decode_head.batch_norm"]),
        (lambda: tiny_model(num_frames=1), []),
    ],
    ids=["cffm", "segformer", "themask"],
)
def test_only_batch_norms_are_converted(build, expected):
    model = build()
    before = {name: type(module) for name, module in model.named_modules()}
    parameters = dict(model.named_parameters())
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    share_batch_norms(model)
    assert {name for name, module in model.named_modules() if type(module) is not before[name]} == set(expected)
    assert names_of(model, nn.SyncBatchNorm) == expected and not names_of(model, nn.BatchNorm2d)
    # What an optimiser or a checkpoint knows of them is as before.
    after = dict(model.named_parameters())
    assert after.keys() == parameters.keys() and all(after[name] is parameters[name] for name in after)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_frozen_batch_norms_are_not_shared():
    layers = nn.ModuleDict(
        {
            "one": nn.BatchNorm1d(3),
            "two": nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, eps=1e-3, momentum=0.2)),
            "three": nn.BatchNorm3d(3),
            "frozen": nn.BatchNorm2d(3).requires_grad_(False),
            "without_parameters": nn.BatchNorm2d(3, affine=False),
            "other": nn.InstanceNorm2d(3, affine=True),
        }
    )
    layers["two"].eval()
    share_batch_norms(layers)
    assert names_of(layers, nn.SyncBatchNorm) == ["one", "two.1", "three"]
    assert (layers["two"][1].eps, layers["two"][1].momentum, layers["two"][1].training) == (1e-3, 0.2, False)
    assert layers["one"].training


@torch.no_grad()
def test_answers_optimiser_groups_and_saved_files_stay_the_same(tmp_path):
    model = cffm_model()
    frames = torch.randn(1, 4, 3, 32, 64, generator=torch.Generator().manual_seed(0))
    expected = model(pixel_values_videos=frames).logits
    groups = [[id(one) for one in group["params"]] for group in parameter_groups(model, 1e-3, 0.01, 0.1)]
    model.save_pretrained(tmp_path / "before")
    share_batch_norms(model)
    assert torch.equal(model(pixel_values_videos=frames).logits, expected)
    assert groups == [[id(one) for one in group["params"]] for group in parameter_groups(model, 1e-3, 0.01, 0.1)]
    model.save_pretrained(tmp_path / "after")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "after" / name).read_bytes() == (tmp_path / "before" / name).read_bytes()
    loaded = CFFMForVideoSemanticSegmentation.from_pretrained(tmp_path / "after").eval()
    assert names_of(loaded, nn.BatchNorm2d) and not names_of(loaded, nn.SyncBatchNorm)
    assert torch.equal(loaded(pixel_values_videos=frames).logits, expected)


@pytest.mark.parametrize("is_trained", [True, False])
@pytest.mark.parametrize("is_shared", [True, False])
def test_the_trainer_shares_them_where_it_trains(
    clips, videos, processor, training_arguments, monkeypatch, is_shared, is_trained
):
    asked = []
    monkeypatch.setattr(
        trainer_module, "are_batch_norms_shared", lambda *arguments: asked.append(arguments) or is_shared
    )
    trainer = trainer_module.VSSTrainer(
        model=cffm_model(num_labels=8),
        args=training_arguments(),
        processing_class=processor,
        train_dataset=clips((-9, -6, -3, 0)) if is_trained else None,
        eval_dataset=videos(),
    )
    assert asked == ([("cpu", 1)] if is_trained else [])
    assert bool(names_of(trainer.model, nn.SyncBatchNorm)) is (is_shared and is_trained)
    names = {id(parameter) for group in trainer.create_optimizer().param_groups for parameter in group["params"]}
    assert id(trainer.model.head.fusion.batch_norm.weight) in names
