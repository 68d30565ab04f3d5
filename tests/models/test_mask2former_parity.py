# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of Transformers' own models: what loads, what is new, and that the outputs are theirs.

Transformers' Mask2Former and SegFormer are the independent calculation. Logits agree within 1e-5 of their maximum:
both sides run in float32 and order their sums differently.
"""

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SegformerConfig,
    SegformerForImageClassification,
    SegformerModel,
    SwinConfig,
)

from tiny import TINY_MIT, tiny_config, tiny_model
from transformers_themask import MiTBackbone, MiTConfig, THEMaskForVideoSemanticSegmentation

TINY_SWIN = {"embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 3, 4), "window_size": 4, "image_size": 64}
NEW_FRAME_HEADS = ("decoder.frame_mask_predictor.", "decoder.frame_layernorm.", "frame_class_predictor.")


def perturb(model):
    """Move every parameter off its special initial value (zeros, ones), so that each of them matters."""
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def load(folder, **overrides):
    model, report = THEMaskForVideoSemanticSegmentation.from_pretrained(folder, output_loading_info=True, **overrides)
    assert not report["mismatched_keys"] and not report["error_msgs"]
    return model.eval(), set(report["missing_keys"]), set(report["unexpected_keys"])


@pytest.fixture(scope="module")
def mask2former():
    torch.manual_seed(0)
    shared = tiny_config(encoder_layers=2, decoder_layers=5)  # 4 layers: every scale, and the first one again
    fields = ("feature_size", "mask_feature_size", "hidden_dim", "encoder_feedforward_dim", "encoder_layers")
    fields += ("decoder_layers", "num_attention_heads", "dim_feedforward", "num_queries")
    swin = SwinConfig(**TINY_SWIN, out_features=["stage1", "stage2", "stage3", "stage4"])
    config = Mask2FormerConfig(backbone_config=swin, num_labels=6, **{name: getattr(shared, name) for name in fields})
    return perturb(Mask2FormerForUniversalSegmentation(config))


@pytest.fixture(scope="module")
def mask2former_folder(mask2former, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mask2former")
    mask2former.save_pretrained(folder)
    return folder


def test_one_frame_model_is_mask2former(mask2former, mask2former_folder):
    model, missing, unexpected = load(mask2former_folder)
    assert model.config.num_frames == 1 and not missing and not unexpected
    frames = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected, outputs = mask2former(pixel_values=frames), model(pixel_values_videos=frames[:, None])
    for ours, theirs in (
        (outputs.class_queries_logits, expected.class_queries_logits),
        (outputs.masks_queries_logits[:, 0], expected.masks_queries_logits),
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())


def test_saved_loss_constant_of_mask2former_is_not_reported(mask2former_folder):
    """Transformers' loss registers its class weights as a buffer, which Mask2Former checkpoints therefore hold."""
    assert "criterion.empty_weight" in load_file(mask2former_folder / "model.safetensors")
    assert load(mask2former_folder)[2] == set()


def test_projected_features_are_mask2formers_too(tmp_path):
    torch.manual_seed(0)
    fields = {"feature_size": 64, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 48}
    fields |= {"encoder_layers": 1, "decoder_layers": 4, "num_attention_heads": 4, "dim_feedforward": 48}
    config = Mask2FormerConfig(
        backbone_config=SwinConfig(**TINY_SWIN, out_features=["stage1", "stage2", "stage3", "stage4"]),
        num_queries=8,
        num_labels=6,
        **fields,
    )
    reference = perturb(Mask2FormerForUniversalSegmentation(config))
    reference.save_pretrained(tmp_path)
    model, missing, unexpected = load(tmp_path)
    projections = "model.transformer_module.input_projections."
    assert not unexpected and all(key.startswith(projections) for key in missing)
    # Older Transformers keep these in a plain list, hence out of the checkpoint.
    for ours, theirs in zip(
        model.model.transformer_module.input_projections,
        reference.model.transformer_module.input_projections,
        strict=True,
    ):
        ours.load_state_dict(theirs.state_dict())
    frames = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected, outputs = reference(pixel_values=frames), model(pixel_values_videos=frames[:, None])
    theirs = expected.masks_queries_logits
    torch.testing.assert_close(outputs.masks_queries_logits[:, 0], theirs, rtol=0, atol=1e-5 * theirs.abs().max())


def test_missing_keys_are_exactly_the_new_parameters_of_the_temporal_decoder(mask2former_folder):
    image_model, _, _ = load(mask2former_folder)
    video_model, missing, unexpected = load(mask2former_folder, num_frames=2)
    known, both = image_model.state_dict(), video_model.state_dict()
    assert missing == both.keys() - known.keys() and not unexpected
    assert any(".temporal_aggregator." in key for key in missing)
    for key, value in known.items():
        assert torch.equal(both[key], value), key


@pytest.mark.parametrize("temporal_mode", ["one_to_frame", "one_to_video"])
def test_ablations_load_mask2former_without_a_gap(mask2former_folder, temporal_mode):
    _, missing, unexpected = load(mask2former_folder, num_frames=2, temporal_mode=temporal_mode)
    assert not missing and not unexpected


@pytest.mark.parametrize("frame_head_init", ["fresh", "copy"])
def test_new_frame_heads_start_as_configured(mask2former_folder, frame_head_init):
    model, _, _ = load(mask2former_folder, num_frames=2, frame_head_init=frame_head_init)
    state = model.state_dict()
    pairs = {key: key.replace("frame_", "", 1) for key in state if any(head in key for head in NEW_FRAME_HEADS)}
    assert len(pairs) == 10  # class head, norm and three mask layers, a weight and a bias each
    for frame_key, video_key in pairs.items():
        assert torch.equal(state[frame_key], state[video_key]) == (frame_head_init == "copy"), frame_key


def test_copying_leaves_frame_heads_of_the_checkpoint_alone(tmp_path):
    trained = perturb(tiny_model(num_frames=2))
    trained.save_pretrained(tmp_path)
    model, missing, _ = load(tmp_path, frame_head_init="copy")
    assert not missing
    for key, value in trained.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


def test_stage_one_folder_becomes_a_video_model_with_its_decoder_norm(tmp_path):
    stage_one = perturb(tiny_model(num_frames=1))
    stage_one.save_pretrained(tmp_path)
    stage_two, missing, unexpected = load(tmp_path, num_frames=2)
    assert not unexpected and missing == stage_two.state_dict().keys() - stage_one.state_dict().keys()
    ours, theirs = (model.model.transformer_module.decoder.layernorm for model in (stage_two, stage_one))
    assert torch.equal(ours.weight, theirs.weight) and torch.equal(ours.bias, theirs.bias)
    fresh = stage_two.model.transformer_module.decoder.frame_layernorm
    assert torch.equal(fresh.weight, torch.ones_like(fresh.weight)) and not fresh.bias.any()


def test_pixel_decoder_is_mask2formers(mask2former, mask2former_folder):
    ours = load(mask2former_folder)[0].model.pixel_level_module.decoder
    theirs = mask2former.model.pixel_level_module.decoder
    features = [torch.randn(2, 12 * 2**stage, 16 // 2**stage, 24 // 2**stage) for stage in range(4)]
    with torch.no_grad():
        maps, mask_features = ours(features)
        expected = theirs(features)
    torch.testing.assert_close(mask_features, expected.mask_features, rtol=1e-5, atol=1e-5)
    for ours_map, their_map in zip(maps, expected.multi_scale_features, strict=True):
        torch.testing.assert_close(ours_map, their_map, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def segformer_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("segformer")
    config = SegformerConfig(**TINY_MIT, decoder_hidden_size=16, num_labels=5)
    perturb(SegformerForImageClassification(config)).save_pretrained(folder)
    return folder


def test_mit_loads_segformer_checkpoints_with_their_legacy_names(segformer_folder):
    saved = load_file(segformer_folder / "model.safetensors")
    assert "segformer.encoder.block.0.0.attention.self.query.weight" in saved
    backbone, report = MiTBackbone.from_pretrained(segformer_folder, output_loading_info=True)
    assert set(report["missing_keys"]) == set()
    assert set(report["unexpected_keys"]) == {"classifier.weight", "classifier.bias"}
    assert backbone.out_features == ["stage1", "stage2", "stage3", "stage4"]


def test_mit_is_segformer_when_its_norms_are_alike(segformer_folder):
    backbone = MiTBackbone.from_pretrained(segformer_folder, layer_norm_eps=1e-5).eval()
    reference = SegformerModel.from_pretrained(segformer_folder).eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        maps = backbone(images).feature_maps
        expected = reference(images, output_hidden_states=True).hidden_states
    for stage, (ours, theirs) in enumerate(zip(maps, expected, strict=True)):
        assert ours.shape[-2:] == (16 // 2**stage, 24 // 2**stage)
        assert torch.equal(ours, theirs)


def test_mit_returns_the_stages_asked_for(segformer_folder):
    images = torch.randn(1, 3, 64, 64)
    everything = MiTBackbone.from_pretrained(segformer_folder).eval()
    two = MiTBackbone.from_pretrained(segformer_folder, out_features=["stage2", "stage4"]).eval()
    with torch.no_grad():
        expected, maps = everything(images).feature_maps, two(images).feature_maps
    assert two.channels == [TINY_MIT["hidden_sizes"][1], TINY_MIT["hidden_sizes"][3]]
    assert torch.equal(maps[0], expected[1]) and torch.equal(maps[1], expected[3]) and len(maps) == 2


def test_mit_honours_its_norm_epsilon():
    def epsilons(backbone):
        return {module.eps for module in backbone.modules() if isinstance(module, torch.nn.LayerNorm)}

    assert epsilons(MiTBackbone(MiTConfig(**TINY_MIT))) == {1e-5, 1e-6}
    assert epsilons(MiTBackbone(MiTConfig(**TINY_MIT, layer_norm_eps=1e-5))) == {1e-5}
