# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from tiny_vlm import VOCABULARY, answering_vlm, save_vlm, tiny_vlm, tiny_vlm_processor
from transformers_themask.mvc.confusable_groups import ConfusableGroup
from transformers_themask.mvc.correction import parse_answer, question_of
from transformers_themask.mvc.vision_language import MAX_NEW_TOKENS, VisionLanguageModel

GROUP = ConfusableGroup("water", ("river", "lake", "sea", "water"))
QUESTION = question_of(GROUP)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the network must not be used")

    monkeypatch.setattr("socket.socket.connect", refuse)


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))


def generated_by_hand(model, image, question):
    """Greedy decoding, one word after another, of a prompt written out by hand; and the prompt's pixels."""
    processor = tiny_vlm_processor()
    inputs = processor(images=image, text=f"USER : <image> {question} ASSISTANT :", return_tensors="pt")
    ids, answer = inputs["input_ids"], []
    while len(answer) < MAX_NEW_TOKENS:
        with torch.no_grad():
            logits = model(
                input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=inputs["pixel_values"]
            ).logits
        word = int(logits[0, -1].argmax())
        if word == VOCABULARY["</s>"]:
            break
        answer.append(word)
        ids = torch.cat([ids, torch.tensor([[word]])], dim=1)
    return processor.tokenizer.decode(answer, skip_special_tokens=True).strip(), inputs["pixel_values"]


@pytest.mark.parametrize("seed", [0, 1])
def test_answers_are_those_of_the_model_to_picture_and_question(tmp_path, image, seed, no_network):
    model = tiny_vlm(seed)
    expected, pixel_values = generated_by_hand(model, image, QUESTION)
    answer = VisionLanguageModel(save_vlm(tmp_path / "vlm", model))
    seen = []
    vision_tower = answer._pipeline.model.model.vision_tower
    vision_tower.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((*args, *kwargs.values())[0]), with_kwargs=True
    )
    assert expected and answer(image, QUESTION) == expected
    assert len(seen) == 1 and torch.equal(seen[0], pixel_values)
    assert answer(Image.new("RGB", (30, 20)), QUESTION) != expected
    assert answer(image, "Is it water ?") != expected


def test_answers_are_repeatable_and_leave_random_numbers_alone(tmp_path, image, no_network):
    folder = save_vlm(tmp_path / "vlm", tiny_vlm())
    answer = VisionLanguageModel(folder)
    state = torch.get_rng_state()
    first = answer(image, QUESTION)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)
    assert answer(image, QUESTION) == first == VisionLanguageModel(folder)(image, QUESTION)


def test_sampling_and_beams_of_the_saved_settings_are_not_used(tmp_path, image):
    model = tiny_vlm()
    expected, _ = generated_by_hand(model, image, QUESTION)
    folder = save_vlm(tmp_path / "vlm", model)
    settings = json.loads((folder / "generation_config.json").read_text())
    settings |= {"do_sample": True, "temperature": 5.0, "num_beams": 3, "max_length": 20}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    assert VisionLanguageModel(folder)(image, QUESTION) == expected


def test_whole_sentence_as_the_answer_names_the_class(tmp_path, image, no_network):
    answer = VisionLanguageModel(save_vlm(tmp_path / "vlm", answering_vlm("It is a lake .")))
    text = answer(image, QUESTION)
    assert text == "It is a lake ." and parse_answer(text, GROUP) == "lake"


def test_answers_have_an_end(tmp_path, image):
    model = answering_vlm("lake")
    with torch.no_grad():
        model.get_output_embeddings().weight[:, VOCABULARY["lake"]] = 0
        model.get_output_embeddings().weight[VOCABULARY["lake"], VOCABULARY["lake"]] = 1
    assert VisionLanguageModel(save_vlm(tmp_path / "vlm", model))(image, QUESTION).split() == ["lake"] * MAX_NEW_TOKENS


def test_path_that_is_no_vision_language_model_is_rejected(tmp_path, model_dir):
    def error(folder):
        with pytest.raises(ValueError) as caught:
            VisionLanguageModel(folder, argument="--vlm")
        return str(caught.value)

    rule = "`--vlm` must be a folder with a saved image-text-to-text model. Got "
    assert error(tmp_path / "none") == f"{rule}{tmp_path / 'none'}, which has no config.json."
    assert error(model_dir).startswith(f"{rule}{model_dir} with a model of type themask")
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(**size, vocab_size=8)).save_pretrained(tmp_path / "text")
    assert "of type llama, which answers no questions" in error(tmp_path / "text")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    assert error(tmp_path / "broken").startswith(f"{rule}{tmp_path / 'broken'}, whose config.json cannot be used: ")
    tiny_vlm().save_pretrained(tmp_path / "alone")
    assert error(tmp_path / "alone").startswith("`--vlm` must hold the model's processor")
    tiny_vlm_processor().tokenizer.save_pretrained(tmp_path / "alone")
    assert error(tmp_path / "alone").startswith("`--vlm` must hold the model's processor")
    assert "with a chat template" in error(save_vlm(tmp_path / "plain", tiny_vlm(), chat_template=None))


def test_model_with_missing_weights_is_rejected(tmp_path):
    folder = save_vlm(tmp_path / "vlm", tiny_vlm())
    settings = json.loads((folder / "config.json").read_text())
    settings["text_config"]["num_hidden_layers"] = 3
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="must fill the whole model"):
        VisionLanguageModel(folder)
