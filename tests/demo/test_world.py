"""The demo world: exact offsets, unseen names, rival answers, reproducible passages."""

import random
import re
from collections.abc import Callable

import pytest

from loraqa.demo import corpus
from loraqa.demo.kinds import KINDS
from loraqa.demo.names import Source, part_of
from loraqa.demo.paragraph import draw_paragraph, draw_thing, fields
from loraqa.demo.pretrain import draw_document
from loraqa.demo.world import test_passages as draw_test_passages
from loraqa.demo.world import train_passages
from loraqa.squad.passage import Passage


@pytest.fixture(scope="module")
def train() -> list[Passage]:
    return train_passages(seed=0, count=400)


@pytest.fixture(scope="module")
def test() -> list[Passage]:
    return draw_test_passages(seed=0, count=200)


def asked(passages: list[Passage]) -> set[str]:
    """Return the question templates that occur in the passages."""
    patterns = {
        re.escape(question).replace(r"\{s\}", ".+"): question
        for kind in KINDS.values()
        for relation in kind.relations.values()
        for question in relation.questions
    }
    texts = [question.text for passage in passages for question in passage.questions]
    return {
        question
        for pattern, question in patterns.items()
        if any(re.fullmatch(pattern, text) for text in texts)
    }


def test_answers_are_at_their_offsets(train: list[Passage], test: list[Passage]) -> None:
    for passage in train + test:
        for question in passage.questions:
            (answer,) = question.answers
            assert passage.context[answer.start : answer.end] == answer.text


def test_ids_are_unique(train: list[Passage], test: list[Passage]) -> None:
    ids = [question.id for passage in train + test for question in passage.questions]
    assert len(ids) == len(set(ids))


def test_four_to_six_questions_on_every_context(train: list[Passage]) -> None:
    assert {len(passage.questions) for passage in train} == {4, 5, 6}


def test_same_seed_same_passages(test: list[Passage]) -> None:
    assert draw_test_passages(seed=0, count=200) == test
    assert draw_test_passages(seed=1, count=200) != test


def test_most_relations_are_asked_in_several_ways(train: list[Passage]) -> None:
    seen = asked(train)
    relations = [relation for kind in KINDS.values() for relation in kind.relations.values()]
    several = [r for r in relations if len(seen & set(r.questions)) >= 3]
    assert len(several) >= 40
    assert all(len(set(r.questions)) >= 4 for r in relations)


def test_every_answer_has_a_rival(test: list[Passage]) -> None:
    """Another subject has the same relation, so that the sort of the answer does not suffice."""
    rng = random.Random(0)
    for _ in range(100):
        paragraph = draw_paragraph(rng, "test", 4, 2)
        shared = [(key, fact.value) for (_, key), (fact, _) in paragraph.facts.items()]
        assert len({key for key, _ in shared}) < len(shared)
        assert len({value for _, value in shared}) == len(shared)
    for passage in test:
        texts = [question.answers[0].text for question in passage.questions]
        assert len(texts) == len(set(texts))


DRAWS = (
    Source.person,
    Source.place,
    Source.river,
    Source.ship,
    Source.work,
    Source.building,
    Source.society,
)


@pytest.mark.parametrize("draw", DRAWS)
def test_no_test_name_occurs_in_training(draw: Callable[[Source], str], training: str) -> None:
    names = {
        part: {draw(Source(random.Random(f"{part} {i}"), part)) for i in range(200)}
        for part in ("train", "test")
    }
    assert all(part_of(name.removeprefix("the ")) == part for part in names for name in names[part])
    assert not any(name in training for name in names["test"])
    # The search itself works: it finds many names of the other part.
    assert sum(name in training for name in names["train"]) > 5


@pytest.fixture(scope="module")
def training() -> str:
    """Return text of the training part, for pretraining and for fine-tuning."""
    rng = random.Random(4)
    pretraining = (draw_document(rng, rng.random()).text for _ in range(2000))
    passages = train_passages(seed=9, count=500)
    return " ".join([*pretraining, *(passage.context for passage in passages)])


def test_names_in_a_text_share_no_word() -> None:
    rng = random.Random(8)
    for _ in range(100):
        source = Source(rng, "train")
        words = [word for _ in range(4) for word in source.person().split()]
        assert len(words) == len(set(words))


def test_exhausted_options_raise_an_error() -> None:
    source = Source(random.Random(0), "train")
    source.choice(["only"])
    with pytest.raises(LookupError):
        source.choice(["only"])


@pytest.mark.parametrize("kind", ["woman", "man"])
def test_lives_have_a_plausible_length(kind: str) -> None:
    rng = random.Random(9)
    for _ in range(30):
        values = draw_thing(Source(rng, "train"), kind).values
        birth, death = int(values["birth_year"]), int(values["death_year"])
        assert 20 <= death - birth <= 100
        assert all(1400 <= year < 1900 for year in (birth, death))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_relation_has_a_statement_of_its_own(kind: str) -> None:
    """Otherwise a random choice of statements could omit a fact."""
    alone = {next(iter(told)) for s in KINDS[kind].statements if len(told := fields(s)) == 1}
    assert alone == set(KINDS[kind].relations)


def test_the_corpus_is_plain_text() -> None:
    rng = random.Random(5)
    for _ in range(500):
        text = draw_document(rng, rng.random()).text
        assert not re.search(r"\b(Question|Answer|Context):", text)


@pytest.mark.parametrize("add", [corpus.add_dialogue, corpus.add_summary])
def test_echoes_repeat_every_fact(add: Callable[..., None]) -> None:
    rng = random.Random(6)
    for _ in range(100):
        paragraph = draw_paragraph(rng, "train", 3, 2)
        facts = [fact for fact, _ in paragraph.facts.values()]
        document = corpus.Document()
        add(rng, document, facts)
        again = "".join(
            letter if repeats else "#"
            for letter, repeats in zip(document.text, document.again, strict=True)
        )
        assert all(fact.value in again for fact in facts)


def test_a_repeated_list_repeats_its_names() -> None:
    rng = random.Random(7)
    for _ in range(100):
        document = corpus.repeated_list(rng, "train", 4, 3)
        first, *rest = document.text.split("\n")
        assert len(rest) == 2
        assert document.again == [False] * len(first) + [True] * (len(document.text) - len(first))
        names, *others = ({*re.findall(r"[A-Z][a-z]{4,}", line)} for line in (first, *rest))
        assert all(len(names & other) >= 4 for other in others)


def test_a_reply_is_more_than_the_answer() -> None:
    """Bare answers would teach the base model what the adapter is to learn."""
    rng = random.Random(6)
    for _ in range(200):
        for fact, _ in draw_paragraph(rng, "train", 3, 3).facts.values():
            before, _, after = corpus.reply(rng, fact).partition(fact.value)
            assert before.strip()
            assert re.search(r"\w", after)
