"""Passages with questions about the demo world, in the form of SQuAD."""

import random
from collections import Counter

from loraqa.demo.names import Part
from loraqa.demo.paragraph import Fact, Paragraph, draw_paragraph
from loraqa.squad.passage import Answer, Passage, Question


def train_passages(seed: int, count: int) -> list[Passage]:
    """Return `count` passages for training."""
    return _passages("train", seed, count)


def test_passages(seed: int, count: int) -> list[Passage]:
    """Return `count` passages whose invented names occur in no training text."""
    return _passages("test", seed, count)


def _passages(part: Part, seed: int, count: int) -> list[Passage]:
    rng = random.Random(f"{part} passages {seed}")
    return [_passage(rng, part, f"{part}-{seed}-{index}") for index in range(count)]


def _passage(rng: random.Random, part: Part, name: str) -> Passage:
    """Return a paragraph with up to six questions, each with a rival answer in the text."""
    paragraph = draw_paragraph(rng, part, rng.randint(3, 4), rng.randint(2, 3))
    facts = _with_rivals(paragraph)
    chosen = rng.sample(facts, min(len(facts), rng.randint(4, 6)))
    questions = tuple(
        Question(
            id=f"{name}-{index}",
            text=rng.choice(fact.relation.questions).format(s=fact.subject.name),
            answers=(Answer(fact.value, start),),
        )
        for index, (fact, start) in enumerate(chosen)
    )
    return Passage(paragraph.text, questions, title=name)


def _with_rivals(paragraph: Paragraph) -> list[tuple[Fact, int]]:
    """Return the facts whose relation the paragraph also states for another subject."""
    told = list(paragraph.facts.values())
    counts = Counter(fact.relation.questions for fact, _ in told)
    return [(fact, start) for fact, start in told if counts[fact.relation.questions] > 1]
