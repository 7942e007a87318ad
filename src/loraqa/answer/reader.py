"""The reader: a model that answers questions about a text, with places and probabilities.

`loraqa.reader` loads one.
"""

import hashlib
import itertools
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple, dataclass, replace
from functools import cached_property, partial
from threading import Event
from typing import Any

from loraqa.answer.decode import Prompts, Rules, Strategy, Written
from loraqa.answer.journal import Journal
from loraqa.answer.locate import locate
from loraqa.answer.progress import Progress
from loraqa.answer.span import SpanSearch, reading
from loraqa.answer.strategies import DEFAULT_STRATEGY, MAX_SAMPLES, parse_strategy
from loraqa.errors import InputError, LoraqaError, counted, quote
from loraqa.model.memory import explaining_lack_of_memory
from loraqa.model.runner import Runner
from loraqa.model.stop import stopping
from loraqa.prompt.defaults import DEFAULT_MAX_ANSWER_TOKENS, DEFAULT_STRIDE
from loraqa.prompt.encode import Encoded, PromptEncoder
from loraqa.prompt.plan import pack
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import Template
from loraqa.prompt.tree import Tree
from loraqa.squad import Passage, Question

logger = logging.getLogger("loraqa")

# How far apart the bounds of an answer's probability are at most, where people look at them.
_SLACK = 0.1


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer to a question.

    Attributes:
        question_id: the id of the question.
        text: the answer; empty if the model finds none.
        log_probability: ln p of its tokens and its end, summed, in nats, in the model's own
            distribution.
        mean_log_probability: `log_probability` divided by the number of tokens.
        start, end: where the answer stands in the context (see `locate`); None if it does not.
        no_answer_probability: the probability of ending the answer before it starts; of several
            windows the lowest.
        probability_at_least, probability_at_most: bounds of the answer's share of the probability
            of all spans and "no answer" (see `Searched`); None if no spans were searched.
        paths: how many paths the span search extended by a token for this question.
        exact: false if the span search stopped before it was sure of the best answers.
        votes: how many of the answers to the question read like this one; it counts itself.
        confidence: the calibrated probability that the answer is right; None where the model was
            not calibrated, or no spans were searched.
        tokens: how many tokens it has, its end included.
    """

    question_id: str
    text: str
    log_probability: float
    mean_log_probability: float
    start: int | None
    end: int | None
    no_answer_probability: float
    probability_at_least: float | None = None
    probability_at_most: float | None = None
    paths: int | None = None
    exact: bool | None = None
    votes: int = 1
    confidence: float | None = None
    tokens: int = 0


@dataclass(frozen=True)
class Reader:
    """A model, and how its prompts are written.

    Attributes:
        runner: computes the model.
        tokenizer, template, max_length, stride: as for `PromptEncoder`.
        max_answer_tokens: the longest answer in tokens, its end included.
        no_answer: whether the model has learned to say that the context holds no answer.
        tokens_per_batch: how many tokens, read and written, are in memory at once.
    """

    runner: Runner
    tokenizer: SegmentTokenizer
    template: Template
    max_length: int
    stride: int = DEFAULT_STRIDE
    max_answer_tokens: int = DEFAULT_MAX_ANSWER_TOKENS
    no_answer: bool = False
    tokens_per_batch: int = 16384

    def answer(
        self,
        context: str,
        questions: Sequence[str],
        strategy: str | Strategy = DEFAULT_STRATEGY,
        *,
        seed: int = 0,
        stop: Event | None = None,
    ) -> list[Answered]:
        """Return one answer to each question about `context`; their ids are "0", "1", ...

        Raises:
            InputError: a text is blank or not valid Unicode, a question is too long, or there is
                no such strategy.
            StoppedError: another thread has set `stop`.
        """
        found = self.candidates(context, questions, 1, strategy, seed=seed, stop=stop)
        return [best for best, *_ in found]

    def candidates(
        self,
        context: str,
        questions: Sequence[str],
        count: int,
        strategy: str | Strategy = DEFAULT_STRATEGY,
        *,
        seed: int = 0,
        stop: Event | None = None,
    ) -> list[list[Answered]]:
        """Return at most `count` answers to each question, best first.

        Span search returns the best spans, beam search its beams, a strategy that samples its
        samples, and greedy decoding a single answer. Answers that read the same are one; samples
        are ordered by their votes.

        Raises:
            InputError: as for `answer`, or `count` is out of range.
            StoppedError: another thread has set `stop`.
        """
        check_asked(context, questions)
        check_count(count)
        asked = tuple(Question(str(number), text) for number, text in enumerate(questions))
        chosen = parse_strategy(strategy) if isinstance(strategy, str) else strategy
        if isinstance(chosen, SpanSearch):
            chosen = replace(chosen, slack=min(chosen.slack, _SLACK))
        with stopping(self.runner.model, stop) if stop else nullcontext():
            read = self.read([Passage(context, asked)], chosen, answers=count, seed=seed)
        return [_merge_votes(answers, chosen.draws) for answers in read]

    def read(
        self,
        passages: Sequence[Passage],
        strategy: Strategy,
        *,
        answers: int = 1,
        seed: int = 0,
        progress: Progress | None = None,
        journal: Journal | None = None,
    ) -> list[list[Answered]]:
        """Answer all questions of some passages, in their order.

        Each question gets `answers` answers; fewer, best first, if the strategy draws nothing and
        finds no more. Answers do not depend on the other questions, except for rounding. Batches in
        `journal` are not computed again, and the others are added to it.

        Raises:
            InputError: a question leaves no room for a context.
            LoraqaError: memory is out, or logits are not finite.
        """
        encoded = self._encode(passages)
        rows = strategy.rows * (answers if strategy.draws else 1)
        windows: dict[tuple[int, str], list[list[Answered]]] = defaultdict(list)
        done = 0
        if progress:
            progress(done, encoded.counts.examples)
        for trees in pack(encoded.trees, self.tokens_per_batch, partial(self._cost, rows=rows)):
            contexts = [passages[tree.passage].context for tree in trees]
            batch = _Batch(trees, contexts, strategy, self._rules, answers, seed)
            answered = self._recall(batch, journal) if journal else self._answers(batch)
            for (passage, question_id), found in zip(batch.places, answered, strict=True):
                windows[passage, question_id].append(found)
            done += len(answered)
            if progress:
                progress(done, encoded.counts.examples)
        return [
            _merge_windows(windows[index, question.id], answers, strategy.draws)
            for index, passage in enumerate(passages)
            for question in passage.questions
        ]

    def count_prompts(self, passages: Sequence[Passage]) -> int:
        """Return how many prompts all questions have: one for each window of the context.

        Raises:
            InputError: a question leaves no room for a context.
        """
        return self._encode(passages).counts.examples

    def _encode(self, passages: Sequence[Passage]) -> Encoded:
        encoder = PromptEncoder(self.tokenizer, self.template, self.max_length, self.stride)
        encoded = encoder.encode_prompts(passages, self.max_answer_tokens)
        self._note_windows(passages, encoded)
        return encoded

    def _recall(self, batch: "_Batch", journal: Journal) -> list[list[Answered]]:
        """Return the answers to each prompt from the journal if they are there."""

        def compute() -> list[list[tuple[Any, ...]]]:
            return [[astuple(answer) for answer in answers] for answers in self._answers(batch)]

        kept = journal.once(batch.fingerprint, compute)
        return [[Answered(*fields) for fields in answers] for answers in kept]

    def _answers(self, batch: "_Batch") -> list[list[Answered]]:
        """Return the answers to each prompt, from its window alone."""
        with self._explaining_lack_of_memory():
            session, logits = self.runner.prefill(batch.trees)
            prompts = Prompts(
                batch.trees, batch.contexts, session, logits, batch.rules, batch.answers, batch.seed
            )
            return _write(prompts, batch.strategy)

    def _note_windows(self, passages: Sequence[Passage], encoded: Encoded) -> None:
        """Log windows once for the same contexts, which may be read again and again."""
        trees = Counter(tree.passage for tree in encoded.trees)
        windowed = {passages[index].context for index, count in trees.items() if count > 1}
        if windowed <= self._noted:
            return
        self._noted.update(windowed)
        logger.info(
            f"Too long for {self.max_length:,} tokens and read in windows: "
            f"{encoded.counts.windowed:,} of {counted(len(passages), 'context')}."
        )

    @cached_property
    def _noted(self) -> set[str]:
        """The contexts whose windows were noted."""
        return set()

    @cached_property
    def _rules(self) -> Rules:
        return Rules(self.tokenizer, self.template, self.max_answer_tokens, self.no_answer)

    def _cost(self, trees: Sequence[Tree], rows: int) -> int:
        """Count the tokens in memory while each question takes `rows` rows."""
        if rows > 1:
            trees = [replace(tree, branches=tree.branches * rows) for tree in trees]
        answers = sum(len(tree.branches) for tree in trees)
        return self.runner.size(trees) + answers * self.max_answer_tokens

    def _explaining_lack_of_memory(self) -> AbstractContextManager[None]:
        return explaining_lack_of_memory(
            "while answering",
            f"set Reader.tokens_per_batch lower than {self.tokens_per_batch}, ask for fewer "
            "samples or beams, or give shorter contexts",
        )


@dataclass(frozen=True)
class _Batch:
    """Trees that are answered together, and all that their answers depend on besides the model."""

    trees: Sequence[Tree]
    contexts: Sequence[str]
    strategy: Strategy
    rules: Rules
    answers: int
    seed: int

    @property
    def places(self) -> list[tuple[int, str]]:
        """The passage and the question of each prompt."""
        return [(tree.passage, b.question_id) for tree in self.trees for b in tree.branches]

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything but the passages' numbers."""
        rules = self.rules
        how = (self.strategy, self.answers, self.seed, rules.max_answer_tokens, rules.no_answer)
        digest = hashlib.sha256(f"{how} {rules.template} {rules.tokenizer.fingerprint}".encode())
        for tree, context in zip(self.trees, self.contexts, strict=True):
            prompts = [(branch.question_id, branch.prompt.tolist()) for branch in tree.branches]
            digest.update(repr((context, tree.window, tree.trunk.tolist(), prompts)).encode())
        return digest.hexdigest()


def _write(prompts: Prompts, strategy: Strategy) -> list[list[Answered]]:
    """Return the answers to each prompt, from its window alone.

    Raises:
        LoraqaError: logits are not finite. Nothing could be chosen by them.
    """
    no_answer = prompts.logits.float().softmax(dim=-1)[:, prompts.rules.tokenizer.eos].tolist()
    if any(map(math.isnan, no_answer)):
        raise LoraqaError(
            "The model gives logits that are not finite for some questions; answer with another "
            "dtype, such as float32, or train again with a lower learning rate."
        )
    rows = zip(prompts.rows(), strategy.write(prompts), no_answer, strict=True)
    return [
        [
            _answered(prompts.rules, branch.question_id, context, tree.window, written, probability)
            for written in answers
        ]
        for (tree, branch, context), answers, probability in rows
    ]


def _answered(
    rules: Rules,
    question_id: str,
    context: str,
    window: tuple[int, int],
    written: Written,
    no_answer_probability: float,
) -> Answered:
    place = written.place
    text = context[slice(*place)] if place else rules.text(written.tokens)
    start, end = place or locate(text, context, window) or (None, None)
    at_least, at_most, paths, exact = written.search or (None, None, None, None)
    return Answered(
        question_id,
        text,
        written.log_probability,
        written.log_probability / len(written.tokens),
        start,
        end,
        no_answer_probability,
        at_least,
        at_most,
        paths,
        exact,
        tokens=len(written.tokens),
    )


def _merge_windows(
    windows: Sequence[Sequence[Answered]], count: int, draws: bool
) -> list[Answered]:
    """Choose between the answers of a context's windows: sample by sample, or the best of all.

    Any answer comes before "no answer", because a window without the answer rightly says that.
    Among several answers the most probable is chosen.
    """
    if len(windows) == 1:
        return list(windows[0])
    if draws:
        best = [max(candidates, key=_rank) for candidates in zip(*windows, strict=True)]
    else:
        best = _of_each_reading(_ranked(itertools.chain(*windows)))[:count]
    no_answer = min(answers[0].no_answer_probability for answers in windows)
    return [replace(answer, no_answer_probability=no_answer) for answer in best]


def _ranked(answers: Iterable[Answered]) -> list[Answered]:
    return sorted(answers, key=_rank, reverse=True)


def _rank(answer: Answered) -> tuple[bool, float]:
    return answer.text != "", answer.log_probability


def _of_each_reading(answers: Sequence[Answered]) -> list[Answered]:
    """Keep the first of the answers that read the same."""
    first: dict[str, Answered] = {}
    for answer in answers:
        first.setdefault(reading(answer.text), answer)
    return list(first.values())


def _merge_votes(answers: Sequence[Answered], draws: bool) -> list[Answered]:
    """Make one of the answers that read the same. Order samples by their votes."""
    votes = Counter(reading(answer.text) for answer in answers)
    best = [
        replace(answer, votes=votes[reading(answer.text)])
        for answer in _of_each_reading(_ranked(answers) if draws else answers)
    ]
    return sorted(best, key=lambda answer: -answer.votes) if draws else best


def check_count(count: int) -> None:
    """Raise `InputError` unless 1 to `MAX_SAMPLES` answers are wanted."""
    if not 1 <= count <= MAX_SAMPLES:
        raise InputError(f"{count} answers are out of range; give from 1 to {MAX_SAMPLES}.")


def check_asked(context: str, questions: Sequence[str]) -> None:
    """Raise `InputError` if a text is blank or not valid Unicode, or the questions are no list."""
    if isinstance(questions, str):
        raise InputError(f"The questions are one text; give a list, [{quote(questions)}].")
    _check_text("context", context)
    for question in questions:
        _check_text("question", question)


def _check_text(name: str, text: str) -> None:
    if not text.strip():
        raise InputError(f"The {name} is blank; give some text.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"The {name} holds half a character (a lone surrogate) at {error.start}; remove it."
        ) from None
    if "\0" in text:
        raise InputError(
            f"The {name} holds a NUL character (U+0000) at {text.index(chr(0))}; remove it."
        )
