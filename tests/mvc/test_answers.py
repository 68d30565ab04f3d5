# SPDX-License-Identifier: Apache-2.0
import pytest

from transformers_themask.mvc.confusable_groups import ConfusableGroup
from transformers_themask.mvc.correction import parse_answer


@pytest.mark.parametrize(
    ("answer", "decision"),
    [
        ("The water in the image is a lake.", "lake"),
        ("Sea", "sea"),
        ("**River**", "river"),
        ("These are rivers, as they are flowing; there is a waterfall", "river"),
        ("A lake. A lake!", "lake"),
        ("It could be a lake or a river", None),
        ("river/lake", None),
        ("", None),
        ("I'm sorry, I can't help with that.", None),
        ("Water", None),  # not offered
        ("seaside, lake-like, The Lakers", None),
        ("\0\ud800", None),
    ],
)
def test_answer_decides_if_it_names_exactly_one_candidate(answer, decision):
    assert parse_answer(answer, ConfusableGroup("water", ("river", "lake", "sea", "water"))) == decision


@pytest.mark.parametrize(
    ("classes", "answer", "decision"),
    [
        (("other_plant", "grass"), "That is some other  plant.", "other_plant"),
        (("other_plant", "grass"), "another plant", None),
        (("other_plant", "plant"), "other plants", "other_plant"),
        (("other_plant", "plant"), "a plant, the other plant", None),
        (("glasses", "glass"), "glasses", "glasses"),  # a class of its own, not the plural
        (("T-shirt", "shirt"), "a t-shirt", "T-shirt"),
    ],
)
def test_longest_name_of_several_words_counts(classes, answer, decision):
    assert parse_answer(answer, ConfusableGroup("thing", classes)) == decision
