# SPDX-License-Identifier: Apache-2.0
"""Learning rate and weight decay of each parameter."""

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.backbone_utils import BackboneMixin

from transformers_themask.registry import family_of

NORM_TYPES = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)

# THE-Mask's official optimiser finds norms by the letters "norm" in a parameter's name. The norm layers of the pixel
# decoder's input projections are unnamed members of a `Sequential`, so they are decayed, and so are ours.
DECAYED_NORM_PARENT = "input_projections"

# The part of the model whose norms are not decayed: as released with THE-Mask, with SegFormer and CFFM, and by
# detectron2 with Mask2Former and MPVSS, where embeddings are not decayed either.
UNDECAYED_NORMS = ("head", "backbone", "all")


def default_undecayed_norms(config: PreTrainedConfig) -> str:
    """The `undecayed_norms` of a model's family; `"head"` for a model of no family."""
    row = family_of(config)
    return "head" if row is None else row.undecayed_norms


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    backbone_learning_rate_factor: float,
    undecayed_norms: str = "head",
) -> list[dict]:
    """Sort the trainable parameters into optimiser groups, `"backbone"` or `"head"`, as the official trainings do.

    A backbone's parameters get a reduced learning rate. Everything is decayed, biases and embeddings included, except
    the norms of the `undecayed_norms`: `"head"` (everything outside the backbone and `input_projections`),
    `"backbone"`, or `"all"`, which includes embeddings. No group is empty.
    """
    backbone = {id(parameter) for backbone in backbones(model) for parameter in backbone.parameters()}
    if undecayed_norms == "all":
        undecayed = _parameters_of(model, (*NORM_TYPES, nn.Embedding))
    else:
        norms = _parameters_of(model, NORM_TYPES, decayed_parent=DECAYED_NORM_PARENT)
        undecayed = norms & backbone if undecayed_norms == "backbone" else norms - backbone
    groups: dict[tuple[float, float, str], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            is_backbone = id(parameter) in backbone
            rate = learning_rate * (backbone_learning_rate_factor if is_backbone else 1.0)
            decay = 0.0 if id(parameter) in undecayed else weight_decay
            groups.setdefault((rate, decay, "backbone" if is_backbone else "head"), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": decay, "name": name}
        # The highest rate first: the log shows the rate of the first group.
        for (rate, decay, name), parameters in sorted(groups.items(), key=lambda item: -item[0][0])
    ]


def backbones(model: nn.Module) -> list[PreTrainedModel]:
    """The backbones inside a model, found by their type, or else its base model."""
    found = [module for module in model.modules() if isinstance(module, BackboneMixin)]
    if not found and isinstance(model, PreTrainedModel) and isinstance(model.base_model, PreTrainedModel):
        found = [model.base_model] if model.base_model is not model else []
    return found


def _parameters_of(
    model: nn.Module, types: tuple[type[nn.Module], ...], decayed_parent: str | None = None
) -> set[int]:
    return {
        id(parameter)
        for name, module in model.named_modules()
        if isinstance(module, types) and decayed_parent not in name.split(".")
        for parameter in module.parameters(recurse=False)
    }
