# SPDX-License-Identifier: Apache-2.0
"""Fingerprints of models, independent of where they were loaded from."""

import hashlib
import json

import torch
from transformers import BaseVideoProcessor, PreTrainedModel

# These do not change what a model does.
ORIGIN_FIELDS = ("_name_or_path", "transformers_version")


def model_fingerprint(model: PreTrainedModel, processor: BaseVideoProcessor) -> str:
    """A short text that changes with the weights, the configuration and the preprocessing."""
    fingerprint = hashlib.sha256()
    for part in (model.config, processor):
        fields = {name: value for name, value in part.to_dict().items() if name not in ORIGIN_FIELDS}
        fingerprint.update(json.dumps(fields, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        fingerprint.update(name.encode())
        fingerprint.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return fingerprint.hexdigest()[:16]
