"""Kinds of errors, by rules. The first rule that holds names the kind.

| kind | rule |
|---|---|
| right | exact match is 1 |
| answered wrongly | the context has no answer, but one was given |
| abstained wrongly | the context has an answer, but none was given |
| not in the context | the given text does not stand there |
| boundary off | it overlaps a gold, or one's words stand in the other's |
| other place in the same sentence | it stands in the sentence of a gold |
| another entity of the same kind | it and a gold are both dates, both numbers or both names |
| elsewhere in the context | none of these |

A date has a month, a day of the week or a year from 1000 to 2099; a number has another digit or a
numeral. In a name each word starts with a capital letter, except small words such as "of".
"""

import regex

from loraqa.analysis.outcome import Asked, Candidate, Gold
from loraqa.analysis.sentences import sentence_at
from loraqa.squad import normalize_answer
from loraqa.squad.segmentation import words

RIGHT = "right"
ANSWERED = "answered wrongly"
ABSTAINED = "abstained wrongly"
NOT_IN_CONTEXT = "not in the context"
BOUNDARY = "boundary off"
SAME_SENTENCE = "other place in the same sentence"
SAME_KIND = "another entity of the same kind"
ELSEWHERE = "elsewhere in the context"

KINDS = (
    RIGHT,
    BOUNDARY,
    SAME_SENTENCE,
    SAME_KIND,
    ELSEWHERE,
    NOT_IN_CONTEXT,
    ABSTAINED,
    ANSWERED,
)

_DATE = regex.compile(
    r"\b(?:1\d\d\d|20\d\d)s?\b|\b(?:Jan(?:uary)?|Feb(?:ruary)?|March|April|May|June|July|Aug(?:ust)?"
    r"|Sept?(?:ember)?|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?|(?:Mon|Tues|Wednes|Thurs|Fri|Satur"
    r"|Sun)day)\b"
)
_NUMBER = regex.compile(
    r"\p{N}|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(?:thir|four|fif|six"
    r"|seven|eigh|nine)teen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundreds?"
    r"|thousands?|millions?|billions?|dozens?)\b",
    regex.IGNORECASE,
)
_SMALL_WORDS = frozenset("a an the of and in on at for de la le du von van der den di da s".split())


def kind_of(context: str, asked: Asked) -> str:
    """Return the kind of a question's error, or "right"."""
    given = asked.given
    if asked.exact_match == 1:
        return RIGHT
    if not asked.golds:
        return ANSWERED
    if not given.text:
        return ABSTAINED
    if given.start is None or given.end is None:
        return NOT_IN_CONTEXT
    if any(_boundary_off(given, gold) for gold in asked.golds):
        return BOUNDARY
    if any(_same_sentence(context, given.start, gold) for gold in asked.golds):
        return SAME_SENTENCE
    entity = entity_of(given.text)
    if entity is not None and any(entity_of(gold.text) == entity for gold in asked.golds):
        return SAME_KIND
    return ELSEWHERE


def entity_of(text: str) -> str | None:
    """Return "date", "number" or "name"; None for anything else."""
    if _DATE.search(text):
        return "date"
    if _NUMBER.search(text):
        return "number"
    written = [text[slice(*span)] for span in words(text)]
    telling = [word for word in written if word not in _SMALL_WORDS]
    return "name" if telling and all(word[0].isupper() for word in telling) else None


def _boundary_off(given: Candidate, gold: Gold) -> bool:
    if gold.start is not None and gold.end is not None:
        overlaps = max(given.start or 0, gold.start) < min(given.end or 0, gold.end)
        if overlaps:
            return True
    ours, theirs = (f" {normalize_answer(text)} " for text in (given.text, gold.text))
    return bool(ours.strip() and theirs.strip()) and (ours in theirs or theirs in ours)


def _same_sentence(context: str, start: int, gold: Gold) -> bool:
    return gold.start is not None and sentence_at(context, start) == sentence_at(
        context, gold.start
    )
