# SPDX-License-Identifier: Apache-2.0
"""What answers decide: the specification's, and those of a model that explains, refuses, doubts or rambles."""

import pytest

from transformers_themask.mvc.answers import parse_answer
from transformers_themask.mvc.confusable_groups import ConfusableGroup

GROUP = ConfusableGroup("water", ("river", "lake", "sea", "water"))


@pytest.mark.parametrize(
    ("answer", "decision"),
    [
        # The specification's.
        ("The water in the image is a lake.", "lake"),
        ("Sea", "sea"),
        (
            "The water in the image appears to be a river, as it is flowing and there is a visible waterfall",
            "river",
        ),
        ("It could be a lake or a river", None),
        ("It is not a lake", None),
        ("", None),
        # One class.
        ("LAKE!", "lake"),
        ("  \n river\n", "river"),
        ("**River**", "river"),
        ("These are rivers.", "river"),
        ("lake\n", "lake"),
        ("The answer is: lake", "lake"),
        ("b) river", "river"),
        ("Based on the image, it is a river.", "river"),
        ("The body of water in the image is a lake.", "lake"),
        ("Yes, it is a river.", "river"),
        ("The water in the image is most likely a calm lake.", "lake"),
        ("This image shows the sea.", "sea"),
        ("In this image one sees the sea.", None),  # a form that is not expected decides nothing
        ("It's a lake in the picture, as it is calm.", "lake"),
        ("The answer is ＬＡＫＥ.", "lake"),
        ("It is a river, since it flows " + "on and on " * 50_000, "river"),
        # Several classes.
        ("river/lake", None),
        ("river, lake", None),
        ("A lake. A lake! Well, or the sea.", None),
        ("Is the water in the image a river, lake or sea? Please give me the only answer. Lake", None),
        # Denied, refused, asked back.
        ("It isn't a lake.", None),
        ("It isn’t a lake.", None),
        ("It isnt a lake.", None),
        ("No, it is the sea.", None),
        ("Neither a lake.", None),
        ("A river without doubt", None),
        ("This is never a lake", None),
        ("I cannot see a lake.", None),
        ("Anything but a lake.", None),
        ("Something other than a lake.", None),
        ("Hardly a lake.", None),
        ("I'm sorry, I can't help with that lake.", None),
        ("I'm sorry, I can't help with that", None),
        ("I am unable to identify the lake.", None),
        ("Unclear; a lake.", None),
        ("It is too blurry to tell whether it is a river.", None),
        ("It is hard to say if this is a lake.", None),
        ("I would need more context to say if it is a river.", None),
        ("Please provide an image of the river.", None),
        ("The picture of the river is missing.", None),
        ("The model refused: river", None),
        ("It isn´t a lake.", None),
        ("It isn′t a lake.", None),
        ("It doesn t look like a lake", None),
        ("There is zero evidence for lake", None),
        ("It is far from a lake.", None),
        ("lake: 0%", None),
        ("The lake is absent here.", None),
        ("puddle, too small for a lake", None),
        ("It is a river, however the banks look like those of a canal", None),
        ("It is a river, as it flows, though it may stand", None),
        ("It is a river, as opposed to a lake", None),
        # More than the group has, or something else beside it.
        ("It is a river or a stream.", None),
        ("river or an ocean", None),
        ("pond or lake", None),
        ("either a river or water", None),
        ("Perhaps a lake, perhaps a pond", None),
        ("It could be a lake.", None),
        ("canal that looks like a river", None),
        ("swimming pool near the sea", None),
        ("a sea lion in a pool", None),
        ("sea of grass", None),
        ("It is a river as well as an ocean", None),
        ("It is a lake as likely as an ocean", None),
        ("It is a river, as it could also be an ocean.", None),
        ("It is a lake, because it might be a pond", None),
        ("It is a river, since I must pick one; the true answer is a canal", None),
        ("Lake, as a wild guess.", None),
        ("A lake as such is ruled out", None),
        ("It is a lake given your options; I deny that this is one", None),
        ("River. As an AI model, I am only guessing.", None),
        ("River, as it is wide. A canal is straight.", None),
        ("It's the lake's shore.", None),
        # Marks that strike out or doubt.
        ("~~lake~~", None),
        ("❌ lake", None),
        ("[ ] lake", None),
        ("lake !=", None),
        ("lake؟", None),
        ("I see two lakes: a lake, and another lake.", None),
        ("Do you mean the lake?", None),
        ("Do you mean the lake？", None),
        # Other words.
        ("seaside", None),
        ("The Lakers", None),
        ("sea-side", None),
        ("lakelike, lake-like, salt_flats", None),
        ("a waterfall", None),
        ("lаke with a Cyrillic letter", None),
        ("lake\N{COMBINING ACUTE ACCENT}", None),
        ("la\N{ZERO WIDTH SPACE}ke", None),
        ("42 🌊", None),
        ("\0\ud800", None),
        # The name of the group.
        ("Water", "water"),
        ("It is water.", "water"),
        ("It's just water.", "water"),
        ("The water in the image is water.", "water"),
        ("The water in the image is murky.", None),
        ("The water in the image", None),
        ("The water.", None),
        ("Yes, the water", None),
        ("It is flowing water.", None),
        ("The type of water is hard to tell.", None),
        ("Water, as in a lake", None),
        ("Water, as it is wet", None),
    ],
)
def test_answers_name_one_class_or_decide_nothing(answer, decision):
    assert parse_answer(answer, GROUP) == decision


@pytest.mark.parametrize(
    ("classes", "answer", "decision"),
    [
        (("other_plant", "grass"), "That is some other  plant.", "other_plant"),
        (("other_plant", "grass"), "Other plants", "other_plant"),
        (("other_plant", "grass"), "other_plant", "other_plant"),
        (("other_plant", "grass"), "another plant", None),
        (("other_plant", "plant"), "other plant", "other_plant"),  # the longer name
        (("other_plant", "plant"), "a plant", "plant"),
        (("other_plant", "plant"), "a plant, the other plant", None),
        (("tree", "grass"), "The things in the image are trees.", "tree"),
        (("Berry", "Bush"), "berries", "Berry"),
        (("Berry", "Bush"), "bushes", "Bush"),
        (("glass", "glasses"), "glasses", "glasses"),  # a class of its own, not the plural
        (("glasses", "glass"), "glasses", "glasses"),
        (("plant", "plant_pot"), "a plant pot", "plant_pot"),
        (("T-shirt", "shirt"), "a t-shirt", "T-shirt"),
    ],
)
def test_names_of_several_words_and_plurals(classes, answer, decision):
    assert parse_answer(answer, ConfusableGroup("thing", classes)) == decision
