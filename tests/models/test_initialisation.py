# SPDX-License-Identifier: Apache-2.0
"""New parameters start as in the official code, whether nothing or only a part comes from a checkpoint."""

import math
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from tiny import tiny_model
from transformers_themask import THEMaskForVideoSemanticSegmentation
from transformers_themask.models.deformable_attention import DeformableAttention

WIDTH = 64  # of every layer here, so that each tensor has numbers enough for its spread to show


def spread_model(**fields):
    widths = {"hidden_dim": WIDTH, "feature_size": WIDTH, "mask_feature_size": WIDTH, "dim_feedforward": 96}
    return tiny_model(**widths, encoder_feedforward_dim=96, num_queries=40, num_frames=2, **fields)


def fans(weight):
    receptive_field = weight[0][0].numel() if weight.dim() > 2 else 1
    return weight.shape[1] * receptive_field, weight.shape[0] * receptive_field


def xavier(weight):
    return math.sqrt(6 / sum(fans(weight)))


def xavier_of_three_in_one(weight):
    """The bound of queries, keys and values initialised as one matrix of 3 x hidden rows."""
    return math.sqrt(6 / (WIDTH + 3 * WIDTH))


def kaiming(weight):
    """`kaiming_uniform_(a=1)`."""
    return math.sqrt(3 / fans(weight)[0])


def torch_default(weight):
    return 1 / math.sqrt(fans(weight)[0])


# By official rule: names, and the bound of a uniform distribution, the deviation of a normal one, or a constant.
ENCODER, DECODER = r"pixel_level_module\.decoder\.", r"transformer_module\.decoder\."
RULES = [
    (ENCODER + r"level_embed", "normal", 1.0),
    (r"queries_(embedder|features)\.weight|transformer_module\.level_embed\.weight", "normal", 1.0),
    (ENCODER + r"input_projections\.\d\.0\.weight", "uniform", xavier),
    (ENCODER + r"input_projections\.\d\.0\.bias", "constant", 0.0),
    (ENCODER + r"(adapter_1|layer_1)\.0\.weight|mask_projection\.weight", "uniform", kaiming),
    (r"mask_projection\.bias", "constant", 0.0),
    (ENCODER + r".*self_attn\.(value|output)_proj\.weight", "uniform", xavier),
    (ENCODER + r".*self_attn\.(value|output)_proj\.bias", "constant", 0.0),
    (r"sampling_offsets\.weight|attention_weights\.(weight|bias)", "constant", 0.0),
    (r"sampling_offsets\.bias", "star", None),
    (ENCODER + r".*\.fc[12]\.weight", "uniform", xavier),
    (DECODER + r".*self_attn\.[qkv]_proj\.weight|in_proj_weight", "uniform", xavier_of_three_in_one),
    (DECODER + r".*\.[qkv]_proj\.bias|in_proj_bias", "constant", 0.0),
    (DECODER + r".*\.out_proj\.weight", "uniform", xavier),
    (DECODER + r".*\.out_proj\.bias", "constant", 0.0),
    (DECODER + r"(layers|temporal_aggregator)\..*fc[12]\.weight", "uniform", xavier),
    (r"temporal_(weights|projection)\.weight", "uniform", xavier),
    (r"mask_embedder\.\d\.0\.weight|class_predictor\.weight", "uniform", torch_default),
    (r"(layer_?norm|input_projections\.\d\.1|adapter_1\.1|layer_1\.1)\.weight", "constant", 1.0),
    (r"(layer_?norm|input_projections\.\d\.1|adapter_1\.1|layer_1\.1)\.bias", "constant", 0.0),
    # Biases of plain linear layers: as PyTorch, from the fan-in of their weight.
    (r"(fc[12]|temporal_weights|temporal_projection|mask_embedder\.\d\.0|class_predictor)\.bias", "bias", None),
]


def assert_uniform(values, bound, name):
    """Reaches its bound and is spread evenly; with n values the largest is some 1 - 1/n of the bound."""
    assert values.abs().max() <= bound * (1 + 1e-6), name
    if len(values) >= 500:
        assert values.abs().max() > 0.98 * bound, name
        assert values.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.08), name


def assert_official(name, parameters):
    """One parameter, by the one rule that is about it."""
    matching = [(kind, value) for pattern, kind, value in RULES if re.search(f"({pattern})$", name)]
    assert len(matching) == 1, f"{name}: {matching}"
    (kind, value), parameter = matching[0], parameters[name].detach()
    if kind == "constant":
        assert (parameter == value).all(), name
    elif kind == "normal":
        tolerance = 4 / math.sqrt(parameter.numel())  # four standard errors of a mean; more than those of a deviation
        assert abs(parameter.mean()) < tolerance and abs(parameter.std() - value) < tolerance, name
    elif kind == "uniform":
        assert_uniform(parameter.flatten(), value(parameter), name)
    elif kind == "bias":
        assert_uniform(parameter, torch_default(parameters[name.replace("bias", "weight")]), name)
        assert parameter.any(), name


def own(parameters):
    return [name for name in parameters if ".encoder.segformer." not in name]


def test_every_parameter_follows_the_official_rule():
    parameters = dict(spread_model().named_parameters())
    for name in own(parameters):
        assert_official(name, parameters)


def test_sampling_starts_on_stars_that_grow_with_the_point():
    """Head h looks at angle 2 pi h / heads, on a square; point k at distance k; alike on all levels."""
    heads = 8
    model = tiny_model(num_attention_heads=heads)
    attentions = [module for module in model.modules() if isinstance(module, DeformableAttention)]
    assert attentions
    for attention in attentions:
        offsets = attention.sampling_offsets.bias.detach().view(heads, 3, 4, 2)
        for head in range(heads):
            x, y = math.cos(2 * math.pi * head / heads), math.sin(2 * math.pi * head / heads)
            reach = max(abs(x), abs(y))
            for point in range(4):
                expected = torch.tensor([x, y]) / reach * (point + 1)
                for level in range(3):
                    torch.testing.assert_close(offsets[head, level, point], expected, rtol=1e-6, atol=1e-6)


def test_projections_into_a_decoder_of_another_width_start_as_in_mask2former():
    model = tiny_model(hidden_dim=64)
    for projection in model.model.transformer_module.input_projections:
        assert_uniform(projection.weight.detach().flatten(), xavier(projection.weight), "weight")
        assert (projection.bias == 0).all()


def test_queries_keys_and_values_differ():
    attention = spread_model().model.transformer_module.decoder.layers[0].self_attn
    assert not torch.equal(attention.q_proj.weight, attention.k_proj.weight)


def test_the_backbone_is_initialised_by_its_own_class():
    parameters = dict(spread_model().named_parameters())
    for name, parameter in parameters.items():
        if re.search(r"encoder\.segformer\..*[qkvo]_proj\.weight|encoder\.segformer\..*fc[12]\.weight", name):
            assert parameter.std().item() == pytest.approx(0.02, rel=0.35)  # 64 numbers in the smallest


def test_initial_weights_depend_on_the_seed_alone():
    first, second, other = (dict(spread_model(seed=seed).named_parameters()) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["class_predictor.weight"], other["class_predictor.weight"])


def is_dropped(what, name):
    return {
        "everything": True,
        "pixel decoder": "pixel_level_module.decoder" in name,
        "transformer": "transformer_module" in name or "class_predictor" in name,
        "aggregator": "temporal_aggregator" in name,
        "weights of one layer": "decoder.layers.0." in name and name.endswith("weight"),
        "biases": name.endswith("bias"),
        "embeddings": "queries_" in name or "level_embed" in name,
    }[what]


@pytest.mark.parametrize(
    "what",
    ["everything", "pixel decoder", "transformer", "aggregator", "weights of one layer", "biases", "embeddings"],
)
def test_parameters_missing_from_a_checkpoint_are_initialised_like_new_ones(tmp_path, what):
    trained = spread_model()
    for parameter in trained.parameters():
        parameter.data.fill_(7.0)
    trained.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    names = own(dict(trained.named_parameters()))
    dropped = {name for name in names if is_dropped(what, name)}
    assert dropped
    kept = {name: value for name, value in stored.items() if name not in dropped}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})

    torch.manual_seed(0)
    model, report = THEMaskForVideoSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert set(report["missing_keys"]) == dropped
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        if name in dropped:
            assert_official(name, parameters)
        else:
            assert (parameter == 7.0).all(), name


def test_a_wider_class_head_starts_fresh_when_classes_change(tmp_path):
    spread_model().save_pretrained(tmp_path)
    torch.manual_seed(0)
    model = THEMaskForVideoSemanticSegmentation.from_pretrained(tmp_path, num_labels=11, ignore_mismatched_sizes=True)
    parameters = dict(model.named_parameters())
    assert parameters["class_predictor.weight"].shape == (12, WIDTH)
    for head in ("class_predictor", "frame_class_predictor"):
        for name in (f"{head}.weight", f"{head}.bias"):
            assert_official(name, parameters)


def test_the_gain_of_attention_layers_is_configurable():
    doubled, usual = (spread_model(init_xavier_std=gain) for gain in (2.0, 1.0))
    for of, bound in (("cross_attn.in_proj_weight", math.sqrt(6 / (4 * WIDTH))), ("fc1.weight", math.sqrt(6 / 160))):
        for model, gain in ((doubled, 2.0), (usual, 1.0)):
            weight = model.model.transformer_module.decoder.layers[0].get_parameter(of)
            assert weight.abs().max().item() == pytest.approx(gain * bound, rel=0.02)
