# SPDX-License-Identifier: Apache-2.0
"""One file per model family: its row in the registry, and the key map of its official checkpoints."""

# Fields of the tiny models of several families.
STAGES = {
    "hidden_sizes": (8, 16, 24, 32),
    "depths": (1, 1, 1, 1),
    "num_attention_heads": (1, 2, 3, 4),
}
QUERY_SEGMENTER = {
    "feature_size": 32,
    "mask_feature_size": 32,
    "hidden_dim": 32,
    "encoder_feedforward_dim": 48,
    "encoder_layers": 1,
    "decoder_layers": 3,
    "num_attention_heads": 4,
    "dim_feedforward": 48,
    "num_queries": 8,
    "train_num_points": 32,
    "num_labels": 6,
}
