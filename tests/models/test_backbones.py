# SPDX-License-Identifier: Apache-2.0
"""Which backbones fit, how they are named, and that the paper's have its sizes."""

import pytest
import torch
from transformers import (
    AutoConfig,
    ConvNextConfig,
    Dinov2Config,
    DINOv3ConvNextConfig,
    DINOv3ViTConfig,
    PvtV2Config,
    ResNetConfig,
    SegformerConfig,
    SwinConfig,
    ViTConfig,
)

from tiny import TINY_MIT, random_clips, tiny_config, tiny_model
from transformers_themask import MiTConfig, THEMaskConfig, THEMaskForVideoSemanticSegmentation
from transformers_themask.models.mit import MIT_SIZES
from transformers_themask.models.step_context import StepContext

PYRAMID = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
SWIN = {"embed_dim": 12, "num_heads": (1, 2, 3, 4), "window_size": 4, "image_size": 64}
VIT = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 48}
FITTING = {
    "swin": lambda: SwinConfig(**SWIN, depths=(1, 1, 1, 1)),
    "resnet": lambda: ResNetConfig(**PYRAMID, embedding_size=8, layer_type="basic"),
    "convnext": lambda: ConvNextConfig(**PYRAMID),
    "pvt_v2": lambda: PvtV2Config(**PYRAMID, num_attention_heads=[1, 2, 3, 4]),
    "dinov3_convnext": lambda: DINOv3ConvNextConfig(**PYRAMID),
    "mit": lambda: MiTConfig(**TINY_MIT),
}


@pytest.mark.parametrize("name", FITTING)
def test_backbone_builds_runs_and_learns(name):
    model = tiny_model(num_frames=2, backbone_config=FITTING[name](), aggregator_dropout=0.0)
    assert model.config.backbone_config.out_features == ["stage1", "stage2", "stage3", "stage4"]
    frames, labels = random_clips()
    generator = torch.Generator()
    options = {"pixel_values_videos": frames, "labels": labels, "context": StepContext(point_generator=generator)}
    first = model(**options).loss
    first.backward()
    slopes = [parameter.grad for parameter in model.model.pixel_level_module.encoder.parameters()]
    assert any(slope is not None and slope.any() for slope in slopes)  # the loss reaches the backbone
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(5):  # a single small step may lose to a point or a pair that changes
        optimizer.step()
        optimizer.zero_grad()
        generator.manual_seed(generator.initial_seed())
        loss = model(**options).loss
        loss.backward()
    assert loss < first - 0.5


@pytest.mark.parametrize("name", FITTING)
def test_backbone_configuration_survives_as_a_dictionary(name):
    saved = tiny_config(backbone_config=FITTING[name]()).to_dict()
    assert saved["backbone_config"]["model_type"] == name
    config = THEMaskConfig(backbone_config=saved["backbone_config"])
    assert type(config.backbone_config) is type(FITTING[name]())
    assert config.backbone_config.out_features == ["stage1", "stage2", "stage3", "stage4"]


@pytest.mark.parametrize("config", [Dinov2Config(**VIT, patch_size=16), DINOv3ViTConfig(**VIT)])
def test_backbone_of_one_stride_is_rejected(config):
    model = tiny_model(backbone_config=config)
    with pytest.raises(
        ValueError, match=r"strides \(4, 8, 16, 32\)\. Got feature maps \[\(4, 6\), .*Use 'mit', 'swin'"
    ):
        model(pixel_values_videos=torch.zeros(1, 1, 3, 64, 96))


def test_backbone_without_stride_32_is_rejected():
    model = tiny_model(backbone_config=SwinConfig(**{**SWIN, "num_heads": (1, 2, 3)}, depths=(1, 1, 1)))
    with pytest.raises(ValueError, match=r"strides \(4, 8, 16, 32\)\. Got feature maps"):
        model(pixel_values_videos=torch.zeros(1, 1, 3, 64, 96))


@pytest.mark.parametrize("stages", [["stage2", "stage3", "stage4"], ["stage4"]])
def test_fewer_than_four_stages_are_rejected(stages):
    three = {"num_encoder_blocks": 3, "sr_ratios": (8, 4, 2), "patch_sizes": (7, 3, 3), "strides": (4, 2, 2)}
    with pytest.raises(ValueError, match=r"`backbone_config.out_features` must name four stages"):
        tiny_config(backbone_config=MiTConfig(**three))
    if len(stages) > 1:
        with pytest.raises(ValueError, match=r"must name four stages, at strides 4, 8, 16 and 32\. Got \['stage2'"):
            tiny_config(backbone_config=SwinConfig(**SWIN, depths=(1, 1, 1, 1), out_features=stages))
    else:  # the last stage alone is what a backbone defaults to, hence no choice
        config = tiny_config(backbone_config=SwinConfig(**SWIN, depths=(1, 1, 1, 1), out_features=stages))
        assert len(config.backbone_config.out_features) == 4


@pytest.mark.parametrize("config", [ViTConfig(**VIT), SegformerConfig()])
def test_model_without_feature_maps_is_rejected_as_backbone(config):
    with pytest.raises(ValueError, match=rf"must describe a backbone with feature maps\. Got {type(config).__name__}"):
        tiny_config(backbone_config=config)


@pytest.mark.parametrize("fields", [{"model_type": "nope"}, {"hidden_size": 3}])
def test_unknown_backbone_is_named_in_the_error(fields):
    with pytest.raises(
        ValueError, match=rf"must name a known `model_type`\. Got {fields.get('model_type')!r}\. Use 'mit'"
    ):
        THEMaskConfig(backbone_config=fields)


@pytest.mark.parametrize("name", ["mit-b6", "resnet50", ""])
def test_unknown_size_is_named_in_the_error(name):
    with pytest.raises(ValueError, match=rf"`backbone` must be one of mit-b0, .*mit-b5\. Got {name!r}"):
        THEMaskConfig(backbone=name)


def test_two_backbones_at_once_are_rejected():
    with pytest.raises(ValueError, match=r"`backbone` must not be given together with `backbone_config`"):
        THEMaskConfig(backbone="mit-b0", backbone_config=MiTConfig())


@pytest.mark.parametrize("size", MIT_SIZES)
def test_published_sizes_take_one_line(size):
    config = THEMaskConfig(backbone=size)
    assert config.backbone is None and config.backbone_config.model_type == "mit"
    assert list(config.backbone_config.hidden_sizes) == list(MIT_SIZES[size]["hidden_sizes"])
    assert list(config.backbone_config.depths) == list(MIT_SIZES[size]["depths"])


def test_mit_b1_is_the_default():
    assert THEMaskConfig().backbone_config.to_dict() == THEMaskConfig(backbone="mit-b1").backbone_config.to_dict()


def test_mit_defaults_are_the_papers():
    config = MiTConfig.from_size("mit-b2")
    assert tuple(config.num_attention_heads) == (1, 2, 5, 8) and tuple(config.sr_ratios) == (8, 4, 2, 1)
    assert tuple(config.mlp_ratios) == (4, 4, 4, 4) and tuple(config.patch_sizes) == (7, 3, 3, 3)
    assert (config.drop_path_rate, config.layer_norm_eps, config.hidden_act) == (0.1, 1e-6, "gelu")
    assert MiTConfig.from_size("mit-b2", drop_path_rate=0.3).drop_path_rate == 0.3
    assert AutoConfig.for_model("mit").out_features == ["stage1", "stage2", "stage3", "stage4"]


def parameters_in_millions(**fields):
    with torch.device("meta"):
        model = THEMaskForVideoSemanticSegmentation(THEMaskConfig(num_labels=124, **fields))
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


CONV_SEG = (256 + 1) * 124 / 1e6  # in the official count, but used by nothing
REFERENCE_POINTS = (256 + 1) * 2 / 1e6  # likewise, in the video decoder


@pytest.mark.parametrize(
    ("size", "official"), [("mit-b0", 23.026), ("mit-b1", 32.989), ("mit-b2", 44.034), ("mit-b5", 101.281)]
)
def test_networks_have_the_official_number_of_parameters(size, official):
    one_frame, video = (parameters_in_millions(backbone=size, num_frames=num_frames) for num_frames in (1, 2))
    assert abs(one_frame + CONV_SEG - official) < 0.0006
    assert abs(video + REFERENCE_POINTS - one_frame - 3.191) < 0.0006


@pytest.mark.parametrize("temporal_mode", ["one_to_frame", "one_to_video"])
def test_ablations_have_no_more_parameters_than_the_one_frame_model(temporal_mode):
    assert parameters_in_millions(num_frames=4, temporal_mode=temporal_mode) == parameters_in_millions(num_frames=1)
