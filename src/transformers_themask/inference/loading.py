# SPDX-License-Identifier: Apache-2.0
"""Loading saved models, with one sentence for whatever is wrong with them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import PreTrainedModel

# What `from_pretrained` raises for missing and damaged files and for values that no model has.
LOADING_ERRORS = (OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError)


def load_pretrained(
    model_class: Any,
    argument: str,
    checkpoint: str | Path,
    *,
    allow_missing: bool = False,
    allow_mismatched: bool = False,
    **options: Any,
) -> PreTrainedModel:
    """Load a saved model and refuse one that would be part random.

    Args:
        model_class:
            A model or an auto class.
        argument (`str`):
            Name of the argument that asks for the model, for the errors.
        checkpoint (`str` or `Path`):
            Folder or Hub repository.
        allow_missing (`bool`, *optional*, defaults to `False`):
            Whether parameters that the checkpoint lacks may start anew, because the model is trained next.
        allow_mismatched (`bool`, *optional*, defaults to `False`):
            Whether parameters of another shape may start anew.
        options:
            Passed to `from_pretrained`.

    Returns:
        `PreTrainedModel`: The model, in evaluation mode.

    Raises:
        ValueError: If the model cannot be loaded, or not whole.
    """
    with loading_errors_as_sentences(argument, checkpoint):
        model, loading = model_class.from_pretrained(
            checkpoint, ignore_mismatched_sizes=True, output_loading_info=True, **options
        )
    if loading["mismatched_keys"] and not allow_mismatched:
        name, saved_shape, shape = min(loading["mismatched_keys"])
        raise ValueError(
            f"The weights in {checkpoint} must fit the configuration. Got `{name}` of shape {tuple(saved_shape)} "
            f"there and {tuple(shape)} here. Use the configuration that they were saved with."
        )
    if loading["missing_keys"] and not allow_missing:
        raise ValueError(
            f"The weights in {checkpoint} must fill the whole model. Got none for {len(loading['missing_keys'])} "
            f"parameters, the first `{min(loading['missing_keys'])}`. Use a complete checkpoint of this model."
        )
    return model


@contextmanager
def loading_errors_as_sentences(argument: str, checkpoint: str | Path) -> Iterator[None]:
    """Turn what a broken checkpoint raises inside the `with` block into a `ValueError` of one sentence.

    Args:
        argument (`str`):
            Name of the argument that asks for the checkpoint.
        checkpoint (`str` or `Path`):
            Folder or Hub repository.
    """
    try:
        yield
    except LOADING_ERRORS as error:
        # The cause is in the last line of what dataclasses raise; others begin with it and go on with advice.
        line = -1 if isinstance(error, StrictDataclassError) else 0
        reason = (str(error).strip() or type(error).__name__).splitlines()[line].strip()
        raise ValueError(
            f"`{argument}` must be a folder or Hub repository with a saved model and its video processor. Got "
            f"{checkpoint}, which cannot be loaded: {reason}"
        ) from error
