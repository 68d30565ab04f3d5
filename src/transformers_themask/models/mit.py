# SPDX-License-Identifier: Apache-2.0
"""Mix Transformer (MiT), the SegFormer encoder, as a Transformers backbone.

Source: SegFormer (Xie et al., NeurIPS 2021), section 3.1; THE-Mask uses it as its backbone (section 4.1). The network
is Transformers' own `SegformerModel`, so the published `nvidia/mit-b*` and SegFormer checkpoints load as they are.
"""

from typing import Any

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import SegformerConfig, SegformerModel
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import BackboneOutput
from transformers.models.segformer.modeling_segformer import SegformerPreTrainedModel

MIT_SIZES: dict[str, dict[str, tuple[int, ...]]] = {
    "mit-b0": {"hidden_sizes": (32, 64, 160, 256), "depths": (2, 2, 2, 2)},
    "mit-b1": {"hidden_sizes": (64, 128, 320, 512), "depths": (2, 2, 2, 2)},
    "mit-b2": {"hidden_sizes": (64, 128, 320, 512), "depths": (3, 4, 6, 3)},
    "mit-b3": {"hidden_sizes": (64, 128, 320, 512), "depths": (3, 4, 18, 3)},
    "mit-b4": {"hidden_sizes": (64, 128, 320, 512), "depths": (3, 8, 27, 3)},
    "mit-b5": {"hidden_sizes": (64, 128, 320, 512), "depths": (3, 6, 40, 3)},
}


@strict
class MiTConfig(BackboneConfigMixin, SegformerConfig):
    r"""Configuration of a [`MiTBackbone`]: the fields of [`SegformerConfig`] plus the choice of output stages.

    Unlike in [`SegformerModel`], `layer_norm_eps` (default 1e-6) is honoured: it is the epsilon of the block and stage
    norms, as in the official code. Patch embeddings and sequence reductions keep 1e-5, also as in the official code.

    Args:
        out_features: Names of the stages to return, of `"stage1"` … `"stage4"`. All four by default.
        out_indices: The same choice by position.
    """

    model_type = "mit"

    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any):
        self.stage_names = [f"stage{index}" for index in range(1, self.num_encoder_blocks + 1)]
        out_features = kwargs.pop("out_features", None)
        out_indices = kwargs.pop("out_indices", None)
        if out_features is None and out_indices is None:
            out_features = self.stage_names
        self.set_output_features_output_indices(out_features=out_features, out_indices=out_indices)
        super().__post_init__(**kwargs)

    @classmethod
    def from_size(cls, size: str, **kwargs: Any) -> "MiTConfig":
        """Build the configuration of a published size, `"mit-b0"` … `"mit-b5"`; further fields override its own.

        Raises:
            ValueError: If `size` is not a published size.
        """
        if size not in MIT_SIZES:
            raise ValueError(
                f"`backbone` must be one of {', '.join(MIT_SIZES)}. Got {size!r}. "
                "For another backbone pass its configuration as `backbone_config`."
            )
        return cls(**{**MIT_SIZES[size], **kwargs})


class MiTBackbone(BackboneMixin, SegformerPreTrainedModel):
    """The four feature maps of a Mix Transformer, at strides 4, 8, 16 and 32."""

    config_class = MiTConfig
    config: MiTConfig
    base_model_prefix = "segformer"

    def __init__(self, config: MiTConfig):
        super().__init__(config)
        self.num_features = list(config.hidden_sizes)
        self.segformer = SegformerModel(config)
        # `SegformerModel` builds every LayerNorm with 1e-5, whatever the configuration says.
        for stage in self.segformer.stages:
            block_norms = [norm for block in stage.blocks for norm in (block.layernorm_before, block.layernorm_after)]
            for norm in [*block_norms, stage.layer_norm]:
                norm.eps = config.layer_norm_eps
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the first patch embedding."""
        return self.segformer.stages[0].patch_embeddings

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> BackboneOutput:
        """Encode normalised images `(batch, 3, height, width)`.

        Optionally returns the maps of every stage and, with eager attention only, the attention weights. The
        `feature_maps` are `(batch, hidden_sizes[i], height / stride, width / stride)`. Other arguments are ignored.
        """
        outputs = self.segformer(
            pixel_values, output_hidden_states=True, output_attentions=bool(output_attentions), return_dict=True
        )
        return BackboneOutput(
            feature_maps=tuple(outputs.hidden_states[index] for index in self.out_indices),
            hidden_states=outputs.hidden_states if output_hidden_states else None,
            attentions=outputs.attentions,
        )


__all__ = ["MIT_SIZES", "MiTBackbone", "MiTConfig"]
