# SPDX-License-Identifier: Apache-2.0
"""Decoder, pixel decoder, backbone and position codes against tensors recorded from the official code.

Tolerance: an independent float32 rewrite differs by some 1e-5 of the tensor's maximum (logits reach 50).
"""

import pytest
import torch

from goldens import FIXTURES, manifest, official_layer, tensors, under, weights
from tiny import tiny_config
from transformers_themask import MiTBackbone, MiTConfig
from transformers_themask.families.themask import convert_state_dict
from transformers_themask.models.decoder_themask import THEMaskTransformerModule
from transformers_themask.models.masked_attention import frame_position_embedding
from transformers_themask.models.pixel_decoder import PixelDecoder

TAD_CASES = [(name, case) for name in ("tad", "tad_proj") for case in manifest()[f"{name}.safetensors"]["cases"]]


def assert_near(ours, official, tolerance=1e-5):
    torch.testing.assert_close(ours, official, rtol=tolerance, atol=tolerance * max(1.0, official.abs().max().item()))


def official_decoder(name: str, folder=FIXTURES, **fields) -> THEMaskTransformerModule:
    recorded = manifest(folder)[f"{name}.safetensors"]["config"]
    config = tiny_config(
        hidden_dim=recorded["hidden_dim"],
        mask_feature_size=recorded["mask_dim"],
        num_labels=recorded["num_classes"],
        num_queries=recorded["num_queries"],
        num_attention_heads=recorded["nheads"],
        dim_feedforward=recorded["dim_feedforward"],
        decoder_layers=recorded["dec_layers"] + 1,
        **fields,
    )
    config.feature_size = recorded["in_channels"]
    module = THEMaskTransformerModule(config).eval()
    converted, _ = convert_state_dict(
        {f"decode_head.predictor.{key}": value for key, value in weights(name, folder).items()}
    )
    heads = {key: converted.pop(key) for key in list(converted) if "class_predictor" in key}
    module.load_state_dict(
        {key.removeprefix("model.transformer_module."): value for key, value in converted.items()}, strict=True
    )
    module.heads = heads  # the class heads live one level up
    return module


def class_logits(module, queries, level=""):
    return torch.nn.functional.linear(
        queries, module.heads[f"{level}class_predictor.weight"], module.heads[f"{level}class_predictor.bias"]
    )


def record_inputs(module, calls, argument=0):
    module.register_forward_pre_hook(lambda _, args: calls.append(args[argument].detach()))


@pytest.mark.parametrize(("name", "case"), TAD_CASES)
def test_temporal_aggregation_decoder_reproduces_the_official_one(name, case):
    facts = manifest()[f"{name}.safetensors"]["cases"][case]
    batch_size, num_frames = facts["bs"], facts["T"]
    recorded = under(tensors(name), f"{case}.")
    module = official_decoder(name, num_frames=2)
    decoder, num_layers = module.decoder, len(module.decoder.layers)
    video_queries, frame_queries, allowed = [], [], []
    record_inputs(decoder.layernorm, video_queries)
    record_inputs(decoder.frame_layernorm, frame_queries)
    for layer in decoder.layers:
        record_inputs(layer, allowed, argument=3)

    with torch.no_grad():
        video, frame = module(
            [recorded[f"in.x{index}"] for index in range(3)],
            recorded["in.mask_features"],
            num_frames,
            all_predictions=True,
        )

    assert_near(video_queries[0], recorded["init.query_video"])
    assert_near(frame_queries[0], recorded["init.query_frame"])
    for layer in range(num_layers + 1):
        official = official_layer(layer, num_layers)
        assert_near(video_queries[layer], recorded[f"query_video.{layer}"])
        assert_near(frame_queries[layer], recorded[f"query_frame.{layer}"])
        assert_near(class_logits(module, video[layer].queries), recorded[f"out_video.{official}.pred_logits"])
        assert_near(video[layer].mask_logits.transpose(1, 2), recorded[f"out_video.{official}.pred_masks"])
        frame_classes = class_logits(module, frame[layer].queries, "frame_").flatten(0, 1)
        assert_near(frame_classes, recorded[f"out_frame.{official}.pred_logits"])
        frame_masks = frame[layer].mask_logits.flatten(0, 1)[:, :, None]
        assert_near(frame_masks, recorded[f"out_frame.{official}.pred_masks"])
        if layer < num_layers:
            blocked = ~allowed[layer].unflatten(0, (batch_size, num_frames)).transpose(0, 1)
            assert torch.equal(blocked, recorded[f"attn_mask.{layer}"])


@pytest.mark.golden
@pytest.mark.parametrize("case", ["eval_T1", "eval_T1_flat", "eval_T2_joint", "train_bs2_T1"])
def test_one_frame_decoder_reproduces_the_official_one(golden_dir, case):
    folder = golden_dir / "themask"
    facts = manifest(folder)["decoder_1f.safetensors"]["cases"][case]
    recorded = under(tensors("decoder_1f", folder), f"{case}.")
    # The official one-frame decoder given two frames attends to both jointly.
    joint = {"num_frames": 2, "temporal_mode": "one_to_video"} if facts["T"] > 1 else {}
    module = official_decoder("decoder_1f", folder, **joint)
    num_layers = len(module.decoder.layers)
    allowed = []
    for layer in module.decoder.layers:
        record_inputs(layer, allowed, argument=3)
    with torch.no_grad():
        video, _ = module(
            [recorded[f"in.x{index}"] for index in range(3)], recorded["in.mask_features"], facts["T"], True
        )
    for layer in range(num_layers + 1):
        official = official_layer(layer, num_layers)
        assert_near(class_logits(module, video[layer].queries), recorded[f"out.{official}.pred_logits"])
        assert_near(video[layer].mask_logits.transpose(1, 2), recorded[f"out.{official}.pred_masks"])
        if layer < num_layers:
            blocked = recorded[f"attn_mask_raw.{layer}"]
            assert torch.equal(~allowed[layer], blocked & ~blocked.all(-1, keepdim=True))


def official_backbone(name: str, folder=FIXTURES) -> MiTBackbone:
    recorded = manifest(folder)[f"{name}.safetensors"]["config"]
    config = MiTConfig(
        hidden_sizes=recorded["embed_dims"],
        num_attention_heads=recorded["num_heads"],
        depths=recorded["depths"],
        sr_ratios=recorded["sr_ratios"],
    )
    backbone = MiTBackbone(config).eval()
    converted, _ = convert_state_dict({f"backbone.{key}": value for key, value in weights(name, folder).items()})
    prefix = "model.pixel_level_module.encoder."
    backbone.load_state_dict({key.removeprefix(prefix): value for key, value in converted.items()}, strict=True)
    return backbone


def assert_stages_equal(backbone, recorded):
    with torch.no_grad():
        features = backbone(recorded["in.image"]).feature_maps
    for stage, feature in enumerate(features, start=1):
        assert_near(feature, recorded[f"out.stage{stage}"])


def test_backbone_has_the_official_norm_epsilons():
    assert_stages_equal(official_backbone("mit_eps_probe"), under(tensors("mit_eps_probe"), "b1_64x64."))


@pytest.mark.golden
@pytest.mark.parametrize("case", ["b2_32x96", "b1_odd_70x101"])
def test_backbone_reproduces_the_official_one(golden_dir, case):
    folder = golden_dir / "themask"
    assert_stages_equal(official_backbone("mit", folder), under(tensors("mit", folder), f"{case}."))


@pytest.mark.golden
@pytest.mark.parametrize("case", ["b1_3x5", "b2_2x3"])
def test_pixel_decoder_reproduces_the_official_one(golden_dir, case):
    folder = golden_dir / "themask"
    recorded, facts = (
        under(tensors("pixel_decoder", folder), f"{case}."),
        manifest(folder)["pixel_decoder.safetensors"],
    )
    config = tiny_config(encoder_layers=facts["config"]["transformer_enc_layers"])
    decoder = PixelDecoder(config, facts["config"]["input_channels"]).eval()
    converted, _ = convert_state_dict(
        {f"decode_head.pixel_decoder.{key}": value for key, value in weights("pixel_decoder", folder).items()}
    )
    prefix = "model.pixel_level_module.decoder."
    decoder.load_state_dict({key.removeprefix(prefix): value for key, value in converted.items()}, strict=True)
    with torch.no_grad():
        maps, mask_features = decoder([recorded[f"in.res{stage}"] for stage in range(2, 6)])
    assert_near(mask_features, recorded["out.mask_features"])
    for index, feature_map in enumerate(maps):
        assert_near(feature_map, recorded[f"out.multi_scale.{index}"])


@pytest.mark.golden
def test_frame_positions_reproduce_the_official_ones(golden_dir):
    folder = golden_dir / "themask"
    facts = manifest(folder)["position_encoding.safetensors"]["cases"]
    recorded = tensors("position_encoding", folder)
    for case, fact in facts.items():
        if not case.startswith("pe3d"):
            continue
        _, num_frames, _, height, width = fact["input_shape"]
        hidden = 2 * fact["num_pos_feats"]
        config = tiny_config(num_frames=2, temporal_mode="one_to_video", hidden_dim=hidden, num_attention_heads=4)
        positions = THEMaskTransformerModule(config)._positions(torch.zeros(1, num_frames, 1, hidden), (height, width))
        if num_frames == 1:  # a single frame's code shifts all keys alike and is left out
            positions = positions + frame_position_embedding(1, hidden, "cpu", torch.float32)[:, None]
        ours = positions.transpose(1, 2).unflatten(2, (height, width))
        official = next(value for key, value in recorded.items() if key.startswith(case))
        assert_near(ours, official[0])


@pytest.mark.golden
def test_planar_positions_reproduce_the_official_ones(golden_dir):
    folder = golden_dir / "themask"
    facts = manifest(folder)["position_encoding.safetensors"]["cases"]
    recorded = tensors("position_encoding", folder)
    for case in ("pe2d_3x5", "pe2d_6x4"):
        height, width = facts[case]["input_shape"][-2:]
        hidden = 2 * facts[case]["num_pos_feats"]
        module = THEMaskTransformerModule(tiny_config(hidden_dim=hidden))
        positions = module._positions(torch.zeros(1, 1, 1, hidden), (height, width))[0]
        assert_near(positions.T.unflatten(1, (height, width)), recorded[case][0])
