# SPDX-License-Identifier: Apache-2.0
"""What an answer in English to the question of MVC, section 2.5, decides: one class of the group, or nothing."""

import re
import unicodedata
from collections.abc import Sequence

from .confusable_groups import ConfusableGroup

# Letters, digits and what joins them: "lake-like" and "isn't" are one word each, "river/lake" is two.
WORD = re.compile(r"\w+(?:['-]\w+)*")
SENTENCE_END = re.compile(r"[.!:;]")
ONE_CHARACTER_FOR_ALL = str.maketrans({**dict.fromkeys("’‘ʼ`´′", "'"), "‐": "-", "_": " "})

# An answer is taken only if all of it has this form: what is refused, doubted or compared has too many forms to list.
MARKS = re.compile(r"[\w\s«»“”„.,!:;'\"*()#-]*")
SHOWN = r"(?:image|picture|photo|frame|scene)"
LEAD = (
    rf"(?:(?:the |my )?(?:(?:only|correct|final) )?answer(?: is)? |based on the {SHOWN} |option |[a-d1-9] (?=\w)|yes |"
    r"sure )*"
)
SUBJECT = (
    rf"(?:(?:it|this|that|these|those|(?:the|this|these|the (?:type|body) of) {{group}}(?:s|es)?|(?:the|this) {SHOWN})"
    rf"(?: (?:shown|seen|visible|depicted))?(?: in (?:the|this) {SHOWN})? )?"
)
VERB = (
    r"(?:(?:is|are|shows|depicts|appears to be|appear to be|seems to be|looks like|looks to be)"
    r"(?: (?:most likely|likely|probably|clearly|definitely|just|simply|only))? )?"
)
ARTICLE = r"(?:just |simply |only )?(?P<article>(?:a|an|the|some) )?"
ADJECTIVES = (
    r"(?P<adjectives>(?:(?:small|large|big|wide|narrow|broad|shallow|deep|calm|still|flowing|freshwater|natural) )*)"
)
PLACE = rf"(?P<place> in (?:the|this) {SHOWN})?"
# One clause that says what can be seen.
REASON = r"(?P<reason> (?:as|because|since) (?:it|they|there|this|the {group}) (?:is|are|has|have|flows?) .+)?"
# There a statement may be taken back.
DENIAL = re.compile(
    r"\w+n't|n't|(?:ai|are|ca|could|did|do|does|has|have|is|should|was|were|wo|would)nt|"
    r"no|non|not|nor|none|nothing|nobody|nowhere|never|neither|without|cannot|hardly|barely|scarcely|unlikely|unlike|"
    r"except|excluding|instead|than|anything|lacks?|lacking|absent|missing|zero|far|false|wrong|incorrect|deny|denied|"
    r"doubt|doubtful|refused?|decline|however|but|though|although|actually|rather|maybe|perhaps|either|or|if|whether|"
    r"may|might|could|would|should|must|can|also|too|both|yet|otherwise|well|guess|guessing|true|possible|possibly|"
    r"sorry|unfortunately|unable|unsure|uncertain|unclear|unknown|undetermined|impossible|hard|difficult|t|i|me|my"
)


def parse_answer(answer: str, group: ConfusableGroup) -> str | None:
    """The class that an answer in English names, if it says that it is exactly one of the group.

    The whole answer must be a name ("River."), a statement ("The water in the image is a lake.") or either with a
    reason in the same sentence ("..., as it is flowing"), in upper or lower case, singular or plural. Anything else
    decides nothing, and neither does a reason that doubts, denies or names another class. The class with the group's
    own name, which is not offered, counts where it is all that is said, as in "It is water.".

    Args:
        answer (`str`): The answer.
        group ([`ConfusableGroup`]): The group that was asked about.

    Returns:
        `str`, *optional*: The name of the class in the data set; `None` if the answer decides nothing.
    """
    if MARKS.fullmatch(_plain(answer)) is None:
        return None
    words = _words(answer)
    names = _forms(group.classes)
    longest_first = sorted((" ".join(name) for name in names), key=len, reverse=True)
    name = f"(?P<name>{'|'.join(map(re.escape, longest_first))})"
    group_name = re.escape(" ".join(_words(group.name)))
    form = LEAD + SUBJECT.format(group=group_name) + VERB + ARTICLE + ADJECTIVES + name + PLACE
    found = re.fullmatch(form + REASON.format(group=group_name), " ".join(words))
    if found is None:
        return None
    decision = names[tuple(found["name"].split(" "))]
    if found["reason"] is None:
        # "The water in the image" only repeats the question.
        is_repeated = found["article"] or found["adjectives"] or found["place"]
        return None if decision == group.generic_class and is_repeated else decision
    reason = found["reason"].split()
    mentioned = _mentioned_classes(reason, names) - {group.generic_class}
    is_taken_back = decision == group.generic_class or mentioned - {decision} or any(map(DENIAL.fullmatch, reason))
    return None if is_taken_back or SENTENCE_END.search(_plain(answer).strip().rstrip(".!")) else decision


def _plain(text: str) -> str:
    """Text in lower case, with one character for each of those that look the same."""
    return (
        unicodedata.normalize("NFKC", text.translate(ONE_CHARACTER_FOR_ALL))
        .translate(ONE_CHARACTER_FOR_ALL)
        .casefold()
    )


def _words(text: str) -> list[str]:
    return WORD.findall(re.sub(r"'s\b", " is", _plain(text)))


def _mentioned_classes(words: Sequence[str], names: dict[tuple[str, ...], str]) -> set[str]:
    """Classes whose names are among the words; of names within names, as in "other plant", the longest counts."""
    longest = max(map(len, names))
    mentioned = set()
    position = 0
    while position < len(words):
        candidates = (tuple(words[position : position + length]) for length in range(longest, 0, -1))
        found = next((candidate for candidate in candidates if candidate in names), None)
        if found is not None:
            mentioned.add(names[found])
        position += 1 if found is None else len(found)
    return mentioned


def _forms(classes: Sequence[str]) -> dict[tuple[str, ...], str]:
    """The classes by the words of their names, in singular and plural."""
    singular = {tuple(_words(name)): name for name in classes}
    plural = {
        (*first, ending): name
        for (*first, last), name in singular.items()
        for ending in (f"{last}s", f"{last}es", re.sub("y$", "ies", last))
    }
    return plural | singular  # a class may be called like the plural of another
