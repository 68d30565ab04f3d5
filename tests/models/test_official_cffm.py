# SPDX-License-Identifier: Apache-2.0
"""CFFM against tensors recorded from the official code: stages of the head, training, whole videos, checkpoints.

Tolerances as recorded: 1e-4 in evaluation, 2e-4 for the logits of training; every mistake that was tried on the
official code moves some case by more than 1e-3.
"""

import pytest
import torch

from goldens import FIXTURES, json_file, manifest, tensors, under
from tiny import TINY_MIT
from transformers_themask import CFFMConfig, CFFMForVideoSemanticSegmentation, MiTConfig, THEMaskVideoProcessor
from transformers_themask.conversion.checkpoints import convert_official_checkpoint
from transformers_themask.families.cffm import convert_official_key, convert_state_dict
from transformers_themask.models.decoder_cffm import CFFMHead

FOLDER = FIXTURES.parent / "cffm"
CASES = ["small4x4_b2", "single7x7_b1"]
MORE_CASES = ["div14x14_b2", "nondiv10x17_b1", "odd21x27_b1"]


@pytest.fixture(params=[*CASES, *(pytest.param(name, marks=pytest.mark.golden) for name in MORE_CASES)])
def case(request):
    """Name and folder of a recording of the head."""
    folder = FOLDER if request.param in CASES else request.getfixturevalue("golden_dir") / "cffm"
    return request.param, folder


def recorded(case):
    return tensors(*case)


def official_head(case):
    """The recorded head, which comes without a backbone; also its configuration."""
    name, folder = case
    fields = manifest(folder)["weights"][manifest(folder)["cases"][name]["weights"]]
    config = CFFMConfig(
        backbone_config=MiTConfig(**TINY_MIT),
        hidden_dim=fields["embed_dim"],
        num_labels=fields["num_classes"],
        mining_layers=fields["depth"],
        classifier_dropout=0.0,
    )
    head = CFFMHead(config, fields["in_channels"])
    converted, _ = convert_state_dict(tensors(fields["file"].removesuffix(".safetensors"), folder))
    head.load_state_dict({key.removeprefix("head."): value for key, value in converted.items()}, strict=True)
    return head.eval(), config


def feature_maps(entries):
    return [entries[f"input.c{level}"] for level in range(1, 5)]


def answers(head, maps, num_frames=4):
    """Logits of every frame by itself `(clips, frames, …)`, and of the targets."""
    fused = head.fusion(maps)
    features = head.at_stride_8(fused).unflatten(0, (-1, num_frames))
    targets = head.classify_targets(features[:, -1], features[:, :-1], fused.shape[-2:])
    return head.classify_frames(fused).unflatten(0, (-1, num_frames)), targets


def assert_near(ours, official, tolerance=1e-4):
    torch.testing.assert_close(ours, official, rtol=0, atol=tolerance)


@torch.no_grad()
def test_every_stage_of_the_head_equals_the_official_one(case):
    (head, _), entries = official_head(case), under(recorded(case), "eval.")
    fused = head.fusion(feature_maps(recorded(case)))
    assert_near(fused, entries["fused"])
    features = head.at_stride_8(fused)
    assert_near(features.movedim(-1, 1).unflatten(0, (-1, 4)), entries["focal_in"])
    features = features.unflatten(0, (-1, 4))
    target, references = features[:, -1], features[:, :-1]
    for index, layer in enumerate(head.layers):
        stages = under(entries, f"block{index}.")
        assert_near(target, stages["in_target"])
        seen = {}
        layer.attention.register_forward_pre_hook(lambda module, args, seen=seen: seen.update(inputs=args))
        layer.attention.proj.register_forward_hook(lambda module, args, out, seen=seen: seen.update(windows=out))
        target = layer(target, references)
        padded, (pooled_target, *pooled) = seen["inputs"]
        assert_near(padded, stages["target_padded"])
        assert_near(pooled_target, stages["pooled_target"])
        for place, context in enumerate(pooled):
            assert_near(context, stages[f"pooled_ref{place}"])
        assert_near(seen["windows"], stages["attn_windows"])
        assert_near(target, stages["out_target"])
    assert_near(target.movedim(-1, 1), entries["focal_out"][:, -1])
    both = torch.cat([features[:, -1], target], dim=-1).movedim(-1, 1)
    assert_near(both, entries["pred2_in"])
    assert_near(head.classifier(both), entries["pred2_raw"])


@torch.no_grad()
def test_logits_equal_the_official_ones(case):
    (head, _), entries = official_head(case), recorded(case)
    alone, targets = answers(head, feature_maps(entries))
    assert_near(targets, entries["eval.logits"])
    assert_near(alone[:, -1], entries["eval.logits_single_frame"])


@torch.no_grad()
def test_mask_of_tokens_outside_the_frame_equals_the_official_one(case):
    (head, _), entries = official_head(case), under(recorded(case), "eval.block0.")
    attention = head.layers[0].attention
    rows, columns = (length // 7 for length in entries["target_padded"].shape[1:3])
    sizes = [(source.cells * rows, source.cells * columns) for source in attention.sources]
    tokens, is_outside = attention.window_tokens(rows, columns, sizes, torch.device("cpu"))
    official = torch.cat([entries[f"mask_{name}"][0] for name in ("target", "ref0", "ref1", "ref2")], dim=-1)
    assert tokens.shape == is_outside.shape == (rows * columns, 289)
    assert not is_outside[:, : 49 + 132].any()
    assert torch.equal(-100.0 * is_outside[:, 49 + 132 :], official)


def test_training_logits_loss_and_gradients_equal_the_official_ones(case):
    (head, config), entries = official_head(case), recorded(case)
    model = CFFMForVideoSemanticSegmentation(config)
    head.train()
    alone, targets = answers(head, feature_maps(entries))
    assert_near(torch.cat([alone, targets[:, None]], dim=1), entries["train.logits"], 2e-4)
    labels = entries["train.labels"].squeeze(2).long()
    terms = model._loss_terms(alone, targets, labels, None)
    loss = sum(terms.values())
    assert_near(terms["loss_auxiliary"] / 0.5, entries["train.loss_aux_ce"][0], 1e-5)
    assert_near(terms["loss_main"], entries["train.loss_main_ce"][0], 1e-5)
    assert_near(loss, entries["train.loss_seg"][0], 1e-5)
    enlarged = torch.nn.functional.interpolate(alone.flatten(0, 1), labels.shape[-2:], mode="bilinear")
    accuracy = (enlarged.argmax(1) == labels.flatten(0, 1)).float().mean() * 100
    assert_near(accuracy, entries["train.acc_seg"][0], 1e-3)
    assert_near(head.fusion.batch_norm.running_mean, entries["train.bn_running_mean_after"], 1e-5)
    assert_near(head.fusion.batch_norm.running_var, entries["train.bn_running_var_after"], 1e-5)

    loss.backward()
    gradients, _ = convert_state_dict({f"decode_head.{k}": v for k, v in under(entries, "train.grad.").items()})
    ours = {f"head.{name}": parameter.grad for name, parameter in head.named_parameters()}
    for name, official in gradients.items():
        assert_near(ours[name], official, 1e-4 * max(1.0, official.abs().max().item()))
    norms = manifest(case[1])["cases"][case[0]]["grad_norms"]
    converted = {key: convert_official_key(f"decode_head.{key}") for key in norms}
    assert set(converted.values()) >= ours.keys()
    for key, norm in norms.items():
        assert ours[converted[key]].norm().item() == pytest.approx(norm, rel=2e-3, abs=1e-5), key


def official_model(golden_dir):
    folder = golden_dir / "cffm"
    fields = manifest(folder)["e2e"]
    state_dict = tensors("e2e_weights", folder)
    backbone = MiTConfig(
        hidden_sizes=fields["embed_dims"],
        depths=fields["depths"],
        num_attention_heads=fields["num_heads"],
        drop_path_rate=0.0,
    )
    config = CFFMConfig(backbone_config=backbone, hidden_dim=16, mining_layers=1, num_labels=5, classifier_dropout=0.0)
    model, report = convert_official_checkpoint(state_dict, config)
    assert not report.unknown
    assert not report.missing
    return model, tensors("e2e", folder), fields


@pytest.mark.golden
@torch.no_grad()
def test_every_frame_of_a_video_equals_the_official_one(golden_dir):
    """By clips of the official frames, and streamed; logits and label maps."""
    model, entries, fields = official_model(golden_dir)
    video = entries["video"][None]
    processor = THEMaskVideoProcessor(do_resize=False, size_divisor=32)
    state = model.initial_state()
    for target in fields["targets"]:
        official = entries[f"t{target}.head_logits"]
        clip = model(pixel_values_videos=video[:, fields["indices"][str(target)]])
        assert_near(clip.logits[:, -1], official)
        streamed, state = model.streaming_step(video[:, target : target + 1], state)
        assert_near(streamed.logits[:, 0], official)
        processor.size = {"height": 64, "width": 96}
        processor.do_resize = True
        (labels,) = processor.post_process_semantic_segmentation(streamed, [fields["ori_hw"]], via_input_size=True)
        assert torch.equal(labels[0], entries[f"t{target}.pred"])


@pytest.mark.golden
def test_training_step_equals_the_official_one(golden_dir):
    model, entries, fields = official_model(golden_dir)
    model.train()
    clips = torch.stack([entries["video"][frames] for frames in fields["train_clip_frames"]])
    loss = model(pixel_values_videos=clips, labels=entries["train.labels"].squeeze(2)).loss
    assert_near(loss, entries["train.loss"][0], 1e-5)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for key, norm in fields["train_grad_norms"].items():
        name = convert_official_key(key)
        if name is not None and ".kv_proj." in name:
            ours = torch.cat([gradients[name.replace("kv_proj", f"{part}_proj")] for part in "kv"])
        elif name is not None:
            ours = gradients[name]
        assert ours.norm().item() == pytest.approx(norm, rel=2e-3, abs=2e-5), key


@pytest.mark.parametrize("size", ["B0", "B1", "B2", "B5"])
def test_parameter_counts_equal_the_official_ones(size):
    for num_labels in (19, 124):
        with torch.device("meta"):
            model = CFFMForVideoSemanticSegmentation(CFFMConfig(backbone=f"mit-{size.lower()}", num_labels=num_labels))
        official = json_file("paramcounts", FOLDER)[f"{size}_{num_labels}"]
        count = sum(parameter.numel() for parameter in model.parameters())
        assert count == official["total"] - official["unused_conv_seg"]
        assert sum(parameter.numel() for parameter in model.backbone.parameters()) == official["backbone"]
        assert sum(parameter.numel() for parameter in model.head.layers[0].parameters()) == official["per_block"]
