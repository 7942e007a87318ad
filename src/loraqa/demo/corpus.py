"""The pretraining corpus: plain text that repeats its own facts.

A document is a paragraph followed by echoes of it: summaries in other words and another order, and
dialogues with questions and full-sentence replies. Only earlier text can predict the next name, so
the model learns to look back and copy.
"""

import random
from dataclasses import dataclass, field

from loraqa.demo.kinds import KINDS, REPLIES
from loraqa.demo.names import Part, Source
from loraqa.demo.paragraph import (
    Fact,
    Writer,
    capitalised,
    draw_paragraph,
    draw_thing,
    fields,
    tell_all,
)

_LEADS = (
    *[""] * 14,
    "Tell me, ",
    "One more thing: ",
    "And ",
    "By the way, ",
    "Excuse me, ",
    "I forget, ",
    "Remind me, ",
)
_SUMMARIES = (
    "In short:",
    "To say it again:",
    "A short account of the same:",
    "As others tell it:",
    "To sum up:",
    "Another hand wrote below:",
)
_SCENES = (
    "Two friends spoke about it.",
    "A visitor asked the clerk.",
    "The children asked their grandmother.",
    "Later the two talked.",
    "The teacher asked the class.",
    "The judge questioned the witness.",
)
_ENTRIES = ("{s}: {v}.", "{s}, {v}.", "{s} - {v};", "{s} ({v}),")
_ECHOES = ("{s}? ", "{s}? ", "{s}, you ask? ", "About {s}: ", "Ah, {s}. ")
# Separators before each turn, before the question, before the reply and after the reply.
_STYLES = (
    (" ", '"', '" "', '"'),
    ("\n", '"', '" "', '"'),
    ("\n", "- ", "\n- ", ""),
    (" ", "", " ", ""),
    ("\n", "", " ", ""),
)
_HIS = {"he": "his", "she": "her", "it": "its"}


def ask(rng: random.Random, fact: Fact) -> str:
    """Return a question about the fact, as in a dialogue."""
    question = rng.choice(fact.relation.questions).format(s=fact.subject.name)
    lead = rng.choice(_LEADS)
    return lead + (question[0].lower() + question[1:] if lead else question)


def reply(rng: random.Random, fact: Fact) -> str:
    """Return a full sentence that answers the fact's question without naming its subject."""
    options = fact.relation.replies + REPLIES[fact.relation.sort]
    he = fact.subject.kind.pronoun
    return capitalised(rng.choice(options).format(he=he, his=_HIS[he], v=fact.value))


def echo_subject(rng: random.Random, fact: Fact) -> str:
    """Return an introduction to a reply that repeats the subject."""
    return capitalised(rng.choice(_ECHOES).format(s=fact.subject.name))


@dataclass
class Document:
    """A text, and for each character whether it repeats something earlier in the text."""

    text: str = ""
    again: list[bool] = field(default_factory=list)

    def add(self, text: str, again: bool) -> None:
        """Append a piece of text."""
        self.text += text
        self.again += [again] * len(text)


def add_dialogue(rng: random.Random, document: Document, facts: list[Fact]) -> None:
    """Add the facts, in random order, as questions and full-sentence replies."""
    document.add("\n" + rng.choice(_SCENES), again=False)
    joint, before, between, after = rng.choice(_STYLES)
    for fact in rng.sample(facts, len(facts)):
        document.add(joint + before + ask(rng, fact), again=False)
        echo = echo_subject(rng, fact) if rng.random() < 0.6 else ""
        document.add(between + echo + reply(rng, fact) + after, again=True)


def add_summary(rng: random.Random, document: Document, facts: list[Fact]) -> None:
    """Add the facts in other words and another order."""
    keys: dict[str, set[str]] = {}
    for fact in facts:
        keys.setdefault(fact.subject.name, set()).add(fact.key)
    things = {fact.subject.name: fact.subject for fact in facts}
    names = rng.sample(list(things), len(things))
    writer = Writer(rng.choice(_SUMMARIES))
    tell_all(rng, writer, [(things[name], keys[name]) for name in names])
    document.add("\n" + writer.text, again=True)


def repeated_paragraph(rng: random.Random, part: Part, things: int, times: int) -> Document:
    """Draw a short paragraph and repeat it verbatim, `times` times in all."""
    text = draw_paragraph(rng, part, things, 1).text
    document = Document()
    document.add(text, again=False)
    document.add(("\n" + text) * (times - 1), again=True)
    return document


def repeated_list(rng: random.Random, part: Part, things: int, times: int) -> Document:
    """Draw one fact about each of several things; list them `times` times, reordered and reworded.

    This is the densest repetition of facts: the subject alone predicts almost every value.
    """
    source = Source(rng, part)
    kind = rng.choice(list(KINDS))
    key = rng.choice(list(KINDS[kind].relations))
    listed = [draw_thing(source, kind) for _ in range(things)]
    sentences = [text for text in KINDS[kind].statements if fields(text) == {key}]
    document = Document()
    for turn in range(times):
        plain = not sentences or rng.random() < 0.3
        template = rng.choice(_ENTRIES) if plain else rng.choice(sentences)
        entries = [
            capitalised(template.replace("{v}", f"{{{key}}}").format(s=t.name, **t.values))
            for t in rng.sample(listed, things)
        ]
        document.add(("\n" if turn else "") + " ".join(entries), again=turn > 0)
    return document


def paragraph_with_echoes(
    rng: random.Random, part: Part, things: int, keys: int, echoes: int
) -> Document:
    """Draw a paragraph, and append `echoes` dialogues or summaries of it."""
    paragraph = draw_paragraph(rng, part, things, keys)
    facts = [fact for fact, _ in paragraph.facts.values()]
    document = Document()
    document.add(paragraph.text, again=False)
    for _ in range(echoes):
        add = add_dialogue if rng.random() < 0.8 else add_summary
        add(rng, document, facts)
    return document
