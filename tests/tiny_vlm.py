# SPDX-License-Identifier: Apache-2.0
"""The smallest model of Transformers that answers questions about pictures."""

from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

SPECIAL_TOKENS = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
WORDS = "Is the water in image a river , lake or sea ? Please give me only answer . It is USER ASSISTANT :"
VOCABULARY = {word: index for index, word in enumerate([*SPECIAL_TOKENS, *WORDS.split()])}
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper }} : {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT :{% endif %}"
)
HIDDEN_SIZE = 32
SIZES = {"hidden_size": HIDDEN_SIZE, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def tiny_vlm(seed: int = 0) -> LlavaForConditionalGeneration:
    """A model whose answers are random words that depend on the picture."""
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**SIZES, image_size=16, patch_size=8, projection_dim=16),
        text_config=LlamaConfig(
            **SIZES,
            num_key_value_heads=2,
            vocab_size=len(VOCABULARY),
            max_position_embeddings=256,
            bos_token_id=VOCABULARY["<s>"],
            eos_token_id=VOCABULARY["</s>"],
            pad_token_id=VOCABULARY["<pad>"],
        ),
        image_token_index=VOCABULARY["<image>"],
        image_seq_length=4,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:  # far from the small values of the start, so that the picture matters
                parameter.normal_(std=HIDDEN_SIZE**-0.5 * 2)
    return model


def answering_vlm(answer: str) -> LlavaForConditionalGeneration:
    """A model whose every answer is the same words of the vocabulary, each of them once.

    The blocks add nothing, words are unit vectors, and the output layer has the next word for each.
    """
    model = tiny_vlm()
    words = [":", *answer.split(), "</s>"]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
        embeddings, output = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        embeddings.copy_(torch.eye(len(VOCABULARY), HIDDEN_SIZE))
        output.zero_()
        for word, following in pairwise(words):
            output[VOCABULARY[following], VOCABULARY[word]] = 1
    return model


def tiny_vlm_processor(chat_template: str | None = CHAT_TEMPLATE) -> LlavaProcessor:
    """Its processor: words and 16x16 pictures of four patches."""
    tokenizer = Tokenizer(WordLevel(VOCABULARY, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            unk_token="<unk>",
            bos_token="<s>",
            eos_token="</s>",
            pad_token="<pad>",
            additional_special_tokens=["<image>"],
        ),
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=chat_template,
        image_token="<image>",
        num_additional_image_tokens=1,
    )


def save_vlm(folder: Path, model: LlavaForConditionalGeneration, chat_template: str | None = CHAT_TEMPLATE) -> Path:
    """Save a model with its processor."""
    model.save_pretrained(folder)
    tiny_vlm_processor(chat_template).save_pretrained(folder)
    return folder
