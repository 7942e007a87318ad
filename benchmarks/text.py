"""The passages that all contenders share, sampled with a fixed seed and written as SQuAD files.

They are from SQuAD if it lies beside the checkout, else from the demo's invented world.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from loraqa.answer.evaluate import sample_questions
from loraqa.demo.parts import BASE
from loraqa.demo.world import test_passages, train_passages
from loraqa.squad import Answer, Passage, QADataset, Question, read_passages, write_official

SHARED = Path(__file__).resolve().parents[2] / "shared"
REAL = all((SHARED / name).exists() for name in ("data/squad1-train.json", "gpt2/vocab.json"))
TOKENIZER = SHARED / "gpt2" if REAL else BASE
SOURCE = "SQuAD v1.1" if REAL else "the demo's invented world"

_WORLD_PASSAGES = 1000
# In characters; longer questions would exceed the model's limit with the longest contexts.
_SHORT_QUESTION = 60


def write(folder: str, files: Mapping[str, tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Write files of passages and return their numbers of questions.

    `files` maps file names to (function of this module, its options).
    """
    counts = {}
    for name, (function, options) in files.items():
        passages = globals()[function](**options)
        write_official(Path(folder) / name, passages, "1.1")
        counts[name] = sum(len(passage.questions) for passage in passages)
    return counts


def sample(split: str, questions: int) -> list[Passage]:
    """Whole passages of a split, "train" or "dev", until they hold so many questions."""
    return _draw(_passages(split), questions)


def single(questions: int) -> list[Passage]:
    """Sample passages of the train split, each with only its first question."""
    passages = [replace(p, questions=p.questions[:1]) for p in _passages("train") if p.questions]
    return _draw(passages, questions)


def repeated(split: str, questions: int) -> list[Passage]:
    """Repeat a split, each copy with new ids and contexts, until it holds the questions."""
    copies = (_renamed(p, i) for i, p in enumerate(cycle(_passages(split))))
    return _draw(islice(copies, questions), questions)


def regular(contexts: int, tokens: int, questions: int) -> list[Passage]:
    """Make `contexts` contexts of `tokens` tokens with `questions` questions each."""
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    passages = _passages("train")
    random.Random(0).shuffle(passages)
    asked = cycle(q for p in passages for q in p.questions if len(q.text) <= _SHORT_QUESTION)
    texts = islice(_cut(passages, tokenizer, tokens), contexts)
    return [
        Passage(text, tuple(_about(text, f"{i}-{j}", next(asked)) for j in range(questions)))
        for i, text in enumerate(texts)
    ]


def _draw(passages: Iterable[Passage], questions: int) -> list[Passage]:
    dataset = QADataset.from_passages(passages, "1.1")
    return list(sample_questions(dataset, questions, seed=0).passages)


def _passages(split: str) -> list[Passage]:
    if REAL:
        return list(read_passages(SHARED / "data" / f"squad1-{split}.json").passages)
    draw = {"train": train_passages, "dev": test_passages}[split]
    return draw(seed=0, count=_WORLD_PASSAGES)


def _renamed(passage: Passage, number: int) -> Passage:
    """Return the passage with a unique context and unique question ids."""
    renamed = (replace(q, id=f"{number}-{q.id}") for q in passage.questions)
    context = f"{passage.context} {number}"
    return replace(passage, context=context, questions=tuple(renamed))


def _cut(passages: Sequence[Passage], tokenizer: Any, tokens: int) -> Iterator[str]:
    """Yield texts of `tokens` tokens, cut from one context or several concatenated ones."""
    text = ""
    for passage in cycle(passages):
        text = f"{text} {passage.context}".strip()
        ends = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        if len(ends) >= tokens:
            yield text[: ends[tokens - 1][1]]
            text = ""


def _about(text: str, question_id: str, question: Question) -> Question:
    """Return the question with an answer from the text, so that the file is valid."""
    answer = " ".join(text.split(" ")[:2])
    return Question(question_id, question.text, (Answer(answer, 0),))
