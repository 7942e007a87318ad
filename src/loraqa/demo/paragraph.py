"""Paragraphs about several things of the demo world, with the character offsets of all facts."""

import random
from dataclasses import dataclass, field
from string import Formatter

from loraqa.demo.kinds import KINDS, Kind, Relation
from loraqa.demo.names import Part, Source


@dataclass(frozen=True)
class Thing:
    """A thing of the world: its kind, its name, and the values of its relations."""

    kind: Kind
    name: str
    values: dict[str, str]


@dataclass(frozen=True)
class Fact:
    """A relation of a subject, named by its key, with its value."""

    subject: Thing
    key: str

    @property
    def relation(self) -> Relation:
        """The relation: its sort, questions and replies."""
        return self.subject.kind.relations[self.key]

    @property
    def value(self) -> str:
        """The answer to the fact's questions."""
        return self.subject.values[self.key]


@dataclass(frozen=True)
class Paragraph:
    """A text and its facts.

    Attributes:
        text: the text.
        facts: (subject's name, key) to the fact and the character offset of its value in the text.
    """

    text: str
    facts: dict[tuple[str, str], tuple[Fact, int]]


@dataclass(frozen=True)
class Form:
    """A form of paragraph: the kinds of its things, and its opening and closing sentences."""

    kinds: tuple[str, ...]
    openings: tuple[str, ...]
    closings: tuple[str, ...]


_PERSONS = ("woman", "man")
FORMS: dict[str, Form] = {
    "biography": Form(
        _PERSONS,
        ("These are the lives of some people of the valley.", "This chapter is about neighbours."),
        (
            "Nothing more is known about them.",
            "Their letters are lost.",
            "So much for these lives.",
        ),
    ),
    "gazetteer": Form(
        ("town",),
        ("The traveller should know these towns.", "We now come to the towns of the plain."),
        ("The roads between them are good.", "There are inns in all of them."),
    ),
    "log": Form(
        ("ship",),
        ("The harbour was busy this week.", "The harbour master wrote this down."),
        ("The wind was fair all day.", "No other sails were seen."),
    ),
    "chronicle": Form(
        ("event",),
        ("The chronicle tells of hard years.", "Those times saw many things."),
        ("So the chronicle says.", "People still talk about it."),
    ),
    "catalogue": Form(
        ("work",),
        ("The following works were shown this year.", "From the catalogue of the museum:"),
        ("The museum is open on Sundays.", "Visitors are asked not to touch anything."),
    ),
    "report": Form(
        ("society", "building"),
        ("This is the yearly report to the council.", "The council heard a report."),
        ("The council thanked everybody.", "The report was read without a vote."),
    ),
    "letter": Form(
        ("woman", "man", "town", "ship", "work"),
        ("Dear friend, here is the news you asked for.", "Dear cousin, let me tell you the news."),
        ("Write back soon.", "With kind greetings from all of us."),
    ),
    "gazette": Form(
        ("society", "event", "building", "ship", "town"),
        ("The gazette brings the news of the month.", "Here is the news of the month."),
        ("More will follow next month.", "So far the gazette."),
    ),
}


@dataclass
class Writer:
    """A text under construction, with the offset of the first mention of each fact's value."""

    text: str = ""
    facts: dict[tuple[str, str], tuple[Fact, int]] = field(default_factory=dict)

    def say(self, sentence: str, separator: str = " ") -> None:
        """Add a sentence without facts."""
        self.text += (separator if self.text else "") + sentence

    def tell(self, template: str, subject: Thing, called: str) -> None:
        """Add a sentence about `subject` that refers to it as `called`."""
        self.say("")
        for index, (literal, key, _, _) in enumerate(Formatter().parse(template)):
            self.text += literal
            if key == "s":
                self.text += capitalised(called) if index == 0 else called
            elif key:
                fact = Fact(subject, key)
                self.facts.setdefault((subject.name, key), (fact, len(self.text)))
                self.text += fact.value


def capitalised(text: str) -> str:
    """Return `text` with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def fields(template: str) -> set[str]:
    """Return the relations that a statement states."""
    return {key for _, key, _, _ in Formatter().parse(template) if key and key != "s"}


def draw_thing(source: Source, kind: str) -> Thing:
    """Draw a thing of a kind, with a value for each of its relations."""
    shape = KINDS[kind]
    name = shape.draw(source)
    return Thing(shape, name, {key: r.draw(source) for key, r in shape.relations.items()})


def statements(rng: random.Random, thing: Thing, keys: set[str]) -> list[str]:
    """Return statements about `thing` that state each relation in `keys` once and no other."""
    chosen = []
    missing = set(keys)
    options = list(thing.kind.statements)
    rng.shuffle(options)
    for template in options:
        told = fields(template)
        if told <= missing:
            chosen.append(template)
            missing -= told
    return chosen


def draw_things(rng: random.Random, source: Source, form: Form, count: int) -> list[Thing]:
    """Draw `count` things, at least two of them of the same kind."""
    kinds = [rng.choice(form.kinds) for _ in range(count - 1)]
    kinds.append(kinds[0])
    return [draw_thing(source, kind) for kind in kinds]


def draw_keys(rng: random.Random, things: list[Thing], count: int) -> list[set[str]]:
    """Draw the relations to state for each thing; things of a kind share most of them."""
    orders: dict[int, list[str]] = {}
    chosen = []
    for thing in things:
        order = orders.setdefault(
            id(thing.kind.statements), rng.sample(list(thing.values), len(thing.values))
        )
        chosen.append(set(order[: count + rng.randint(0, 1)]))
    return chosen


def tell_all(rng: random.Random, writer: Writer, told: list[tuple[Thing, set[str]]]) -> None:
    """Write all facts, thing by thing or in random order; pronouns may repeat the last subject."""
    sentences = [
        (thing, template) for thing, keys in told for template in statements(rng, thing, keys)
    ]
    if mixed := rng.random() < 0.35:
        rng.shuffle(sentences)
    last = None
    for thing, template in sentences:
        again = thing is last and template.startswith("{s} ")
        pronoun = again and (mixed or rng.random() < 0.25)
        writer.tell(template, thing, thing.kind.pronoun if pronoun else thing.name)
        last = thing


def draw_paragraph(rng: random.Random, part: Part, things: int, keys: int) -> Paragraph:
    """Draw a paragraph about `things` things, with `keys` or `keys` + 1 facts about each."""
    form = FORMS[rng.choice(list(FORMS))]
    drawn = draw_things(rng, Source(rng, part), form, things)
    writer = Writer()
    if rng.random() < 0.6:
        writer.say(rng.choice(form.openings))
    tell_all(rng, writer, list(zip(drawn, draw_keys(rng, drawn, keys), strict=True)))
    if rng.random() < 0.6:
        writer.say(rng.choice(form.closings))
    return Paragraph(writer.text, writer.facts)
