# SPDX-License-Identifier: Apache-2.0
"""Vision-language models of Transformers that answer questions about pictures."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    ProcessorMixin,
    pipeline,
)

from transformers_themask.inference.loading import LOADING_ERRORS, load_pretrained

# One sentence is asked for; a long answer is read to see whether it names another class.
MAX_NEW_TOKENS = 256


class VisionLanguageModel:
    """Any image-text-to-text model of Transformers, from a folder; nothing is downloaded.

    Answers are decoded greedily: the same picture and question have the same answer. The processor needs a chat
    template. Raises a `ValueError`, which names `argument`, if there is no such folder or it holds something else.
    """

    def __init__(self, path: str | Path, device: str | torch.device = "cpu", argument: str = "path"):
        self._check_kind(path, argument)
        processor = self._load_processor(path, argument)
        model = load_pretrained(AutoModelForImageTextToText, argument, path)
        self._pipeline = pipeline("image-text-to-text", model=model, processor=processor, device=device)

    def __call__(self, image: Image.Image, question: str) -> str:
        """Answer a question about an RGB picture, without the spaces around the answer."""
        content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
        # Beams may be a model's default. A new dictionary each time, as the pipeline may write to it.
        greedy = {"do_sample": False, "num_beams": 1, "max_new_tokens": MAX_NEW_TOKENS}
        [result] = self._pipeline(
            text=[{"role": "user", "content": content}], return_full_text=False, generate_kwargs=greedy
        )
        return result["generated_text"].strip()

    @staticmethod
    def _check_kind(path: str | Path, argument: str) -> None:
        rule = f"`{argument}` must be a folder with a saved image-text-to-text model."
        if not (Path(path) / "config.json").is_file():
            raise ValueError(f"{rule} Got {path}, which has no config.json.")
        try:
            config = AutoConfig.from_pretrained(path)
        except LOADING_ERRORS as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"{rule} Got {path}, whose config.json cannot be used: {reason}") from error
        if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            raise ValueError(
                f"{rule} Got {path} with a model of type {config.model_type}, which answers no questions."
            )

    @staticmethod
    def _load_processor(path: str | Path, argument: str) -> Any:
        try:
            processor = AutoProcessor.from_pretrained(path)
        except (*LOADING_ERRORS, ImportError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"`{argument}` must hold the model's processor. Got {path}: {reason}") from error
        if not isinstance(processor, ProcessorMixin):
            raise ValueError(
                f"`{argument}` must hold the model's processor for pictures and text. Got {path} with a "
                f"{type(processor).__name__} only."
            )
        if processor.chat_template is None:
            raise ValueError(
                f"`{argument}` must hold a model for conversations, with a chat template. Got {path} without one; "
                "choose the instruction-tuned version of the model."
            )
        return processor
