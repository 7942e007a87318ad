"""Distractors: sentences like an answer's, about something else."""

from study.distractors import with_distractors
from tests.conftest import TOWN

from loraqa.squad import Answer, Passage, Question, normalize_answer


def _passages() -> list[Passage]:
    """Return passages about a mill and a harbour, whose answers are names and years."""
    harbour = "The harbour of Borg was dug by Ines Vale in 1411. It is deep."
    return [
        Passage(
            TOWN.replace("Its mill", "The mill on the Aune"),
            (
                Question("a1", "Who built the mill on the Aune?", (Answer("Ruth Olen", 71),)),
                Question("a2", "When was the mill built on the Aune?", (Answer("1203", 84),)),
            ),
            "Town",
        ),
        Passage(
            harbour,
            (
                Question("b1", "Who dug the harbour of Borg?", (Answer("Ines Vale", 31),)),
                Question("b2", "When did Ines dig it?", (Answer("1411", 44),)),
            ),
            "Harbour",
        ),
        Passage("Salt is white.", (Question("c1", "What is white?", (Answer("Salt", 0),)),)),
    ]


def test_a_distractor_keeps_the_answers_and_gives_none() -> None:
    for seed in range(20):
        changed = with_distractors(_passages(), 1.0, seed)
        for before, after in zip(_passages(), changed, strict=True):
            assert [q.id for q in after.questions] == [q.id for q in before.questions]
            for question in after.questions:
                for answer in question.answers:
                    assert after.context[answer.start : answer.end] == answer.text
            # A sentence more, and nothing less.
            added, places = len(after.context) - len(before.context), range(len(before.context) + 1)
            without = (after.context[:i] + after.context[i + added :] for i in places)
            assert before.context in without


def test_a_distractor_is_like_the_sentence_of_an_answer_with_other_names() -> None:
    town, harbour, salt = _passages()
    seen = set()
    for seed in range(20):
        changed, others, same = with_distractors([town, harbour, salt], 1.0, seed)
        assert same == salt
        assert changed.context.count("The mill on the") == 2
        seen |= {word for word in ("Borg", "Ines Vale", "1411") if word in changed.context}
        assert changed.context.count("Ruth Olen") + changed.context.count("1203") < 4
        assert normalize_answer(others.context) != normalize_answer(harbour.context)
    # What the question mentions became another name, and the answer another one of its kind.
    assert seen == {"Borg", "Ines Vale", "1411"}


def test_a_share_of_the_contexts_gets_one_by_the_seed() -> None:
    passages = _passages()[:1] * 400 + _passages()[1:]
    first, again = with_distractors(passages, 0.25, 1), with_distractors(passages, 0.25, 1)
    assert first == again != with_distractors(passages, 0.25, 2)
    changed = sum(a != b for a, b in zip(passages[:400], first[:400], strict=True))
    assert 60 < changed < 140
    assert with_distractors(passages, 0.0) == passages
