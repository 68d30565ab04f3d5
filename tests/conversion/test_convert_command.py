# SPDX-License-Identifier: Apache-2.0
"""`themask convert`: from an official checkpoint file to a model folder."""

import json

import pytest
import torch
from transformers import AutoModel, AutoVideoProcessor

from goldens import FIXTURES, json_file, tensors, under, weights
from themask_command import main
from transformers_themask import AutoModelForVideoSemanticSegmentation, CFFMConfig
from transformers_themask.conversion.checkpoints import convert_official_checkpoint
from transformers_themask.families import mpvss
from transformers_themask.families.themask import config_from_state_dict, convert_official_key

MPVSS_FIXTURES = FIXTURES.parent / "mpvss"

# The recordings' head counts; official checkpoints have the official ones, which are the default.
OVERRIDES = json.dumps(
    {
        "num_attention_heads": 4,
        "backbone_config": {
            "model_type": "mit",
            "hidden_sizes": [8, 16, 24, 32],
            "depths": [1, 1, 2, 1],
            "num_attention_heads": [1, 2, 3, 4],
        },
    }
)


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "iter_160000.pth"
    torch.save({"meta": {"mmseg_version": "0.11.0"}, "state_dict": weights("segmentor_1f")}, path)
    return path


@pytest.fixture
def dataset(tmp_path):
    names = {"others": "0", **{f"class {index}": str(index) for index in range(1, 7)}}
    (tmp_path / "label_num_dic_final.json").write_text(json.dumps(names))
    return tmp_path


def convert(*arguments):
    return main(["convert", *[str(argument) for argument in arguments]])


def test_converted_checkpoint_reproduces_the_official_scores(checkpoint, dataset, tmp_path, capsys):
    output = tmp_path / "model"
    assert convert(checkpoint, output, "--config-overrides", OVERRIDES, "--data", dataset) == 0
    assert "dropped: decode_head.conv_seg.bias" in capsys.readouterr().out
    model = AutoModelForVideoSemanticSegmentation.from_pretrained(output).eval()
    assert model.config.id2label[5] == "class 6"
    recorded = tensors("segmentor_1f")
    with torch.no_grad():
        outputs = model(pixel_values_videos=recorded["in.img"][:1])
    scores = torch.einsum(
        "bqk,btqhw->btkhw",
        outputs.class_queries_logits.softmax(-1)[..., :-1],
        outputs.masks_queries_logits.sigmoid(),
    )[0]
    torch.testing.assert_close(scores, recorded["test.scores_quarter"], rtol=1e-4, atol=1e-4)


def published_cffm():
    """Names, shapes and types of the official checkpoint with MiT-B1, and a state dict of random numbers for them."""
    generator = torch.Generator().manual_seed(0)
    entries = json_file("checkpoint_keys_B1", FIXTURES.parent / "cffm")
    return entries, {
        name: torch.zeros(shape, dtype=torch.int64)
        if dtype == "int64"
        else torch.randn(shape, generator=generator, dtype=getattr(torch, dtype))
        for name, shape, dtype in entries
    }


def test_published_names_of_cffm_fill_the_model(tmp_path, capsys):
    entries, state_dict = published_cffm()
    torch.save({"state_dict": state_dict}, tmp_path / "cffm_b1.pth")
    assert convert(tmp_path / "cffm_b1.pth", tmp_path / "model") == 0
    dropped = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("dropped: "))
    derivable = [name for name, _, dtype in entries if dtype == "int64" and "num_batches_tracked" not in name]
    assert set(dropped.removeprefix("dropped: ").split(", ")) == {
        *derivable,
        "decode_head.conv_seg.weight",
        "decode_head.conv_seg.bias",
    }
    model = AutoModelForVideoSemanticSegmentation.from_pretrained(tmp_path / "model")
    published = CFFMConfig(backbone="mit-b1", num_labels=124)
    for field in ("mining_layers", "hidden_dim", "mlp_ratio", "num_labels", "context_sources"):
        assert getattr(model.config, field) == getattr(published, field)
    assert model.config.backbone_config.hidden_sizes == list(published.backbone_config.hidden_sizes)
    ours = model.state_dict()
    kept = {name: tensor for name, tensor in state_dict.items() if name not in dropped.replace(":", ",").split(", ")}
    assert sum(tensor.numel() for tensor in ours.values()) == sum(tensor.numel() for tensor in kept.values())
    assert torch.equal(ours["head.classifier.weight"], state_dict["decode_head.linear_pred2.weight"])


def test_unknown_entries_are_reported_by_official_name(tmp_path, capsys):
    """Also where a part of their name is known, and where one entry would become two."""
    _, state_dict = published_cffm()
    placeless = [
        "backbone.block1.0.cross.attn.kv.weight",
        "decode_head.decoder_focal.blocks.0.attn.memory",
        "decode_head.prototype.weight",
    ]
    torch.save({"state_dict": {**state_dict, **dict.fromkeys(placeless, torch.ones(4))}}, tmp_path / "cffm.pth")
    assert convert(tmp_path / "cffm.pth", tmp_path / "model") == 1
    assert f"unknown: {', '.join(placeless)}" in capsys.readouterr().out.splitlines()
    _, report = convert_official_checkpoint({**state_dict, "decode_head.prototype.weight": torch.ones(4)})
    assert report.unknown == ["decode_head.prototype.weight"] and not report.missing


def test_config_is_read_off_the_shapes():
    config = config_from_state_dict(weights("segmentor_video"), **json.loads(OVERRIDES))
    assert (config.num_frames, config.num_labels, config.num_queries) == (2, 6, 8)
    assert (config.hidden_dim, config.feature_size, config.mask_feature_size) == (32, 32, 32)
    assert (config.encoder_layers, config.decoder_layers, config.dim_feedforward) == (1, 3, 48)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config-overrides", '{"num_queries": 9}'], "`config` must be that of the checkpoint"),
        (["--config-overrides", "{num_querys: 9}"], "must hold fields of THEMaskConfig. Got 'num_querys'"),
        (["--config-overrides", "{num_frames: two}"], "'num_frames' expected int, got str"),
        (["--config-overrides", "{num_attention_heads: 5}"], "must be a multiple of `num_attention_heads` (5)"),
    ],
)
def test_invalid_overrides_are_rejected_with_one_line(checkpoint, tmp_path, capsys, flags, words):
    assert convert(checkpoint, tmp_path / "model", *flags) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert str(checkpoint) in error and "with `--config-overrides`" in error


def test_overrides_and_output_are_checked_before_the_checkpoint_is_read(tmp_path, capsys):
    assert convert(tmp_path / "missing.pth", tmp_path / "model", "--config-overrides", "[]") == 2
    assert "`--config-overrides` must be a mapping" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert convert(tmp_path / "missing.pth", tmp_path / "file") == 2
    assert "`OUTPUT` must lie in a folder that can be written to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no checkpoint", "must be a PyTorch checkpoint of plain tensors. Got {path}."),
        ([1, 2], "Got {path} with other entries"),
        ({1: torch.ones(1)}, "Got {path} with other entries"),
        ({"decode_head.a": torch.ones(1), "decode_head.b": 1}, "Got {path} with other entries"),
    ],
)
def test_file_without_a_state_dict_is_rejected_with_one_line(content, words, tmp_path, capsys):
    path = tmp_path / "file.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    assert convert(path, tmp_path / "model") == 2
    error = capsys.readouterr().err
    assert words.format(path=path) in error and error.count("\n") == 1


def test_other_classes_and_missing_entries_are_rejected_with_one_line(checkpoint, dataset, tmp_path, capsys):
    (dataset / "label_num_dic_final.json").write_text(json.dumps({"others": "0", "road": "1"}))
    flags = ("--config-overrides", OVERRIDES, "--data", dataset)
    assert convert(checkpoint, tmp_path / "model", *flags) == 2
    assert "must be those of the checkpoint's 6 classes. Got 1" in capsys.readouterr().err
    state_dict = weights("segmentor_1f")
    incomplete = {key: value for key, value in state_dict.items() if "query_feat" not in key}
    torch.save(incomplete, checkpoint)
    assert convert(checkpoint, tmp_path / "model") == 2
    error = capsys.readouterr().err
    assert str(checkpoint) in error and "must hold `decode_head.predictor.query_feat.weight`" in error


def test_misleading_official_names_are_converted():
    prefix = "decode_head.predictor.deformabel_transformer_cross_attention_layers."
    aggregator = "model.transformer_module.decoder.temporal_aggregator."
    assert (
        convert_official_key(f"{prefix}self_attn_box.in_proj_weight") == f"{aggregator}frame_self_attn.in_proj_weight"
    )
    assert convert_official_key(f"{prefix}norm2.weight") == f"{aggregator}video_self_attn_layer_norm.weight"
    assert convert_official_key(f"{prefix}reference_points.weight") is None


def flownets(folder):
    """The encoder of a tiny recorded MPVSS in the place of FlowNetS', with some of the decoder that is not used."""
    encoder = under(tensors("tiny_weights", folder), "motion.encoder.")
    return {name: torch.full_like(value, 0.5) for name, value in encoder.items()} | {"deconv5.weight": torch.ones(1)}


def test_mask2former_and_flownets_become_an_untrained_mpvss(tmp_path):
    official = tensors("tiny_weights", MPVSS_FIXTURES)
    mask2former = {name: value for name, value in official.items() if not name.startswith("motion.")}
    torch.save({"model": mask2former, "iteration": 90000}, tmp_path / "m2f.pth")
    torch.save({"state_dict": flownets(MPVSS_FIXTURES)}, tmp_path / "flownets.pth")
    channels = "motion_channels: [8, 16, 24, 40, 40, 80], motion_attention_heads: 4"
    overrides = f"{{segmenter_config: {{num_attention_heads: 4}}, {channels}}}"
    options = ["--config-overrides", overrides]
    assert convert(tmp_path / "m2f.pth", tmp_path / "half", *options) == 2  # the flow is missing
    options += ["--motion-encoder", str(tmp_path / "flownets.pth")]
    assert convert(tmp_path / "m2f.pth", tmp_path / "model", *options) == 0
    model = AutoModel.from_pretrained(tmp_path / "model")
    assert all((parameter == 0.5).all() for parameter in model.flow.encoder.parameters())
    segmenter = AutoModel.from_pretrained(tmp_path / "model").segmenter.state_dict()
    converted = mpvss.convert_state_dict(mask2former)[0]
    assert {f"segmenter.{name}" for name in segmenter} == converted.keys()
    assert all(torch.equal(segmenter[name.removeprefix("segmenter.")], value) for name, value in converted.items())
    assert AutoVideoProcessor.from_pretrained(tmp_path / "model").fit == "pad"


def test_motion_encoder_with_other_entries_is_rejected(tmp_path, capsys):
    torch.save(tensors("tiny_weights", MPVSS_FIXTURES), tmp_path / "mpvss.pth")
    torch.save(flownets(MPVSS_FIXTURES), tmp_path / "flownets.pth")
    options = ["--config-overrides", "{segmenter_config: {num_attention_heads: 4}, motion_attention_heads: 4}"]
    assert convert(tmp_path / "mpvss.pth", tmp_path / "model", *options) == 0
    capsys.readouterr()
    for name, content in (("junk.pth", {"conv1.0.conv.bias": torch.ones(8)}), ("empty.pth", {})):
        torch.save(content, tmp_path / name)
        assert (
            convert(tmp_path / "mpvss.pth", tmp_path / name[:-4], *options, "--motion-encoder", str(tmp_path / name))
            == 2
        )
        assert capsys.readouterr().err.count("\n") == 1


def test_motion_encoder_is_rejected_for_a_family_without_one(checkpoint, tmp_path, capsys):
    options = ["--config-overrides", OVERRIDES, "--motion-encoder", str(checkpoint)]
    assert convert(checkpoint, tmp_path / "model", *options) == 2
    assert "of which themask has none. Got motion_encoder." in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
